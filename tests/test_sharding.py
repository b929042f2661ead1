"""Rules: what they resolve to, and the mistakes that they name."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from quecc_jax.config import MeshConfig
from quecc_jax.data.batch import batch_spec
from quecc_jax.errors import UserError
from quecc_jax.sharding import RULES, make_mesh, parameter_shardings, placements, sharding_rules
from quecc_jax.train.step import abstract_params, boxed_params, build_trainer
from tests import tiny

MESH = make_mesh(MeshConfig(2, 2, 2))


def box(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@functools.cache
def tiny_boxes():
    return boxed_params(tiny.RUN, batch_spec(tiny.MODEL, tiny.RUN.data, 8))


def test_the_table_holds_every_parameter_and_its_share():
    placed = abstract_params(tiny.RUN, MESH, batch_spec(tiny.MODEL, tiny.RUN.data, 8))
    rows = {row.name: row for row in placements(tiny_boxes(), placed)}
    gate = rows["decoder/layers/gate/kernel"]
    assert gate.shape == (2, 32, 48) and gate.axes == ("layers", "embed", "mlp")
    assert gate.spec == (None, "fsdp", "tensor") and gate.bytes == 4 * gate.chip_bytes == 4 * 2 * 32 * 48
    state = build_trainer(tiny.RUN, MESH).abstract_state
    leaves = jax.tree.leaves((state.trainable, state.frozen))
    assert sum(row.bytes for row in rows.values()) == sum(4 * leaf.size for leaf in leaves)
    assert len(rows) == len(leaves)


@pytest.mark.parametrize(
    "rules, message",
    [
        (
            tuple(r for r in RULES if r[0] != "mlp"),
            "compressor/k_proj/fc1/bias: .*'mlp' has no sharding rule",
        ),
        ((*RULES, ("mpl", "tensor")), "rule for 'mpl' matches nothing"),
        ((*(r for r in RULES if r[0] != "mlp"), ("mlp", "fsdp")), "/kernel: axis 'mlp' .* a second time"),
        ((*(r for r in RULES if r[0] != "mlp"), ("mlp", "model")), "'mlp' names the mesh axis 'model'"),
        ((*(r for r in RULES if r[0] != "layers"), ("layers", "data")), "'layers' of size 3 does not divide"),
    ],
)
def test_mistakes_in_rules_are_named(rules, message):
    with pytest.raises(UserError, match=message):
        parameter_shardings(tiny_boxes(), MESH, rules)


def test_a_parameter_without_axes_is_named():
    tree = {"a": {"kernel": jax.ShapeDtypeStruct((4,), jnp.float32)}}
    with pytest.raises(UserError, match="a/kernel: declared without logical axes"):
        parameter_shardings(tree, MESH)


def test_sequence_parallel_moves_the_sequence_alone():
    plain, split = (dict(sharding_rules(MeshConfig(sequence_parallel=on))) for on in (False, True))
    assert plain["sequence"] is None and split["sequence"] == "tensor"
    assert {k: v for k, v in plain.items() if k != "sequence"} == {
        k: v for k, v in split.items() if k != "sequence"
    }


@pytest.mark.parametrize(
    "mesh, data, train, message",
    [
        (MeshConfig(4, 2, 1), {}, {"batch_size": 12}, "gives 12 rows, which do not divide over 8"),
        (
            MeshConfig(4, 2, 1),
            {},
            {"grad_accum_steps": 2},
            "in train.grad_accum_steps 2 microbatches gives 4 rows",
        ),
        (
            MeshConfig(4, 1, 2, sequence_parallel=True),
            {"max_length": 25},
            {},
            "max_length 25 does not divide",
        ),
    ],
)
def test_what_does_not_divide_over_the_mesh_is_named(mesh, data, train, message):
    config = dataclasses.replace(tiny.run(data=data, **train), mesh=mesh)
    with pytest.raises(UserError, match=message):
        build_trainer(config, make_mesh(mesh))


class Far:
    """A device of one of two slices."""

    platform, device_kind, process_index = "tpu", "TPU v5 lite", 0

    def __init__(self, number: int):
        self.id, self.slice_index = number, number // 4
        self.coords, self.core_on_chip = (number % 2, number // 2 % 2, 0), 0


def test_several_slices_lie_along_the_data_axis():
    devices = [Far(n) for n in range(8)]
    mesh = make_mesh(MeshConfig(2, 4, 1), devices)
    assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh\.data 1 does not divide over 2 slices"):
        make_mesh(MeshConfig(1, 8, 1), devices)
