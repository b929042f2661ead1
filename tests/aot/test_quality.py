"""What a training step compiled for a TPU does and does not do, on a small model of the real structure.

Stage 0 on text alone stands for the decoder's part of stage 2, which takes four times as long to compile."""

import dataclasses
import functools
import platform
import sys
import typing

import pytest

from quecc_jax.aot import hlo
from quecc_jax.aot.collectives import collectives
from quecc_jax.aot.quality import MOST_FLOPS, backward_flops, defects
from quecc_jax.aot.topology import parse_topology, prepare_environment, topology_devices
from quecc_jax.config import MeshConfig, ModelConfig
from quecc_jax.flops import train_flops
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import build_trainer
from tests.aot import pod_model

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="libtpu, the TPU compiler, has wheels for x86-64 Linux only",
)
CHIPS = 4
MESH = {"data": 1, "fsdp": CHIPS, "tensor": 1}


def config(stage, remat="full"):
    base = pod_model.config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, remat=remat),
        data=dataclasses.replace(base.data, images_per_row=min(stage, 1)),
        train=dataclasses.replace(base.train, stage=stage),
    )


@functools.cache
def compiled(stage):
    """The program of a stage; the command line's test has stage 2 without rematerialisation."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "JAX_PLATFORMS",
            "TPU_SKIP_MDS_QUERY",
            "TPU_ACCELERATOR_TYPE",
            "TPU_WORKER_HOSTNAMES",
            "ALLOW_MULTIPLE_LIBTPU_LOAD",
        ):
            patch.setenv(name, "")
        prepare_environment()
        mesh = make_mesh(MeshConfig(), topology_devices(parse_topology("v5e:2x2")))
        return hlo.parse(build_trainer(config(stage), mesh).lower().compile().as_text() or "")


def ratio(program, run):
    return CHIPS * hlo.flops(program) / train_flops(run)


def test_every_rematerialisation_has_its_limit():
    assert set(MOST_FLOPS) == set(typing.get_args(typing.get_type_hints(ModelConfig)["remat"]))


STAGE_2 = pytest.param(2, marks=pytest.mark.slow)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 1, STAGE_2])
def test_a_step_has_no_defects(stage):
    program, run = compiled(stage), config(stage)
    assert hlo.runs(program)[1] == []
    assert defects(run, MESH, program, ratio(program, run)) == []


@pytest.mark.parametrize("stage", [1, STAGE_2])
def test_the_tower_runs_forward_only_and_the_decoder_both_ways(stage):
    program = compiled(stage)
    assert backward_flops(program, "vision/") == 0 < backward_flops(program, "decoder/")
    names = [i.op_name for c in program.computations.values() for i in c.values()]
    assert any("vision/" in name for name in names)


@pytest.mark.parametrize("stage", [0, STAGE_2])
def test_stage_1_spends_half_of_another_stages_backward_pass_on_the_decoder(stage):
    one, whole = (backward_flops(compiled(number), "decoder/") for number in (1, stage))
    assert 0.4 * whole < one < 0.75 * whole


@pytest.mark.parametrize("stage", [1, STAGE_2])
def test_images_stay_where_their_rows_are(stage):
    """With fewer rows of activations than a matrix has, the partitioner may move them rather than weights."""
    moved = [one for one in collectives(compiled(stage)) if one.kind == "all-to-all"]
    assert [one.op_name for one in moved] == []


@pytest.mark.parametrize("stage", [0, STAGE_2])
def test_what_is_wrong_is_said(stage):
    """The same program, held against runs that should have compiled to something else."""
    program = compiled(stage)
    found = defects(config(1), MESH, program, 1.0)
    assert any("gradients of frozen decoder weights" in text for text in found)
    assert "above 1.1" in defects(config(stage, "none"), MESH, program, 1.2)[0]

    run = config(stage)
    narrow = dataclasses.replace(run.model.decoder, mlp_width=8, width=32, heads=1)
    small = dataclasses.replace(run, model=dataclasses.replace(run.model, decoder=narrow))
    assert any("gathered at once" in text for text in defects(small, MESH, program, 1.0))
    # As many positions as a slice of the loss has.
    short = dataclasses.replace(run, data=dataclasses.replace(run.data, max_length=run.train.loss_chunk))
    assert any("logits of all positions" in text for text in defects(short, MESH, program, 1.0))
