"""Bytes against the arrays of a run's state, and against what the TPU compiler says of whole steps."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from quecc_jax.aot.memory import LOW, TrainMemory, layer_bytes, table_params, train_memory, verdict
from quecc_jax.commands.options import parse_run
from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    QueccConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.config.weights import FORMS, matrix_bytes
from quecc_jax.models.quantized import quantize
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import build_trainer

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=224, width=512, depth=2, heads=4, mlp_width=1024, levels=(0, 1, 2), select_layer=-1
    ),
    compressor=QueccConfig(kernel=4, stride=4, heads=4),
    decoder=DecoderConfig(vocab_size=512, width=768, depth=3, heads=8, kv_heads=4, mlp_width=2048),
)


def run(stage=2, rank=0, form="auto", mesh=(1, 1, 1), data=None, **model):
    return RunConfig(
        model=dataclasses.replace(MODEL, lora=LoraConfig(rank=rank), **model),
        data=data or DataConfig(max_length=256, query_length=64),
        train=TrainConfig(stage=stage, batch_size=8, frozen_weights=form),
        mesh=MeshConfig(*mesh),
    )


def held(tree) -> float:
    """Bytes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) / 8
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rank": 64},
        {"rank": 64, "dtype": "float32"},
        {"rank": 32, "form": "nf4"},
        {"stage": 1},
        {"stage": 1, "form": "int8"},
        {"stage": 0, "rank": 16, "form": "int4"},
        {"data": DataConfig(max_length=256, query_length=64, cached_features=True)},
        {"stage": 0, "data": DataConfig(max_length=256, images_per_row=0)},
    ],
    ids=str,
)
def test_a_state_holds_what_is_counted(config, mesh):
    one = run(mesh=mesh, **config)
    state = build_trainer(one, make_mesh(one.mesh, jax.devices()[: math.prod(mesh)])).abstract_state
    counted = train_memory(one, math.prod(mesh))
    parts = held((state.trainable, state.frozen)), held(state.opt_state), held(state.trainable)
    assert counted[:3] == pytest.approx(parts, rel=0.05)


@pytest.mark.parametrize("weights", FORMS)
def test_a_matrix_takes_what_its_stored_form_does(weights):
    for shape, inputs in (((96, 40), 1), ((4, 96, 40), 2), ((100, 8), 1)):
        stored = quantize(jnp.ones(shape), weights, inputs)
        bits = sum(leaf.size * jax.dtypes.itemsize_bits(leaf.dtype) for leaf in jax.tree.leaves(stored))
        assert matrix_bytes(shape, weights, inputs) == bits / 8


def test_a_decoder_of_7b_by_hand():
    decoder = parse_run([str(ROOT / "configs/llava_7b_stage2.py")], "memory").model.decoder
    numbers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    outputs = 32 * (4 * 4096 + 2 * 11008 + 4096)
    assert layer_bytes(decoder, "bfloat16") == 2 * numbers
    assert layer_bytes(decoder, "int8") == numbers + 4 * outputs
    assert layer_bytes(decoder, "nf4") == numbers / 2 + 4 * numbers / 64
    assert table_params(decoder) == 2 * 32000 * 4096


@pytest.mark.parametrize("record", ["pods.json", "pods_adapters.json"])
def test_estimates_are_near_what_the_compiler_needs(record):
    """An estimate that is too low would promise a run that ends without memory."""
    for row in json.loads((ROOT / "docs" / record).read_text())["rows"]:
        arguments = row["command"].split()[3:]
        where = arguments.index("--topology")
        del arguments[where : where + 2]
        arguments[0] = str(ROOT / arguments[0])
        config = parse_run([part for part in arguments if part != "--quick"], "memory")
        found, memory = train_memory(config, row["chips"]), row["memory"]
        ratio = found.total / (memory["arguments"] + memory["temporaries"])
        assert LOW < ratio < (1.4 if "llava" in row["command"] else 1.5), (row["command"], ratio)


def test_what_is_too_rough_to_say_is_said():
    memory = TrainMemory(parameters=4.0, slots=2.0, gradients=1.0, activations=3.0)
    found = [verdict(memory, limit) for limit in (5.9, 8.0, 8.5, 10.7, 10.8)]
    assert found == ["does not fit", "does not fit", "close", "close", "fits"]


def test_what_makes_a_step_larger():
    base = run(rank=16)
    total = train_memory(base, 1).total
    assert train_memory(run(), 1).total > total > train_memory(run(rank=16, form="nf4"), 1).state
    for change in ({"batch_size": 16}, {"loss_chunk": 10_000, "batch_size": 64}):
        train = dataclasses.replace(base.train, **change)
        assert train_memory(dataclasses.replace(base, train=train), 1).total > total
    cut = dataclasses.replace(base.train, grad_accum_steps=8)
    assert (
        train_memory(dataclasses.replace(base, train=cut), 1).activations < train_memory(base, 1).activations
    )
    kept = dataclasses.replace(base, model=dataclasses.replace(base.model, remat="none"))
    assert train_memory(kept, 1).activations > train_memory(base, 1).activations
