"""Names of topologies, and the sentences for those that are none."""

import os
from unittest import mock

import pytest

from quecc_jax.aot.topology import parse_topology, prepare_environment, topology_devices
from quecc_jax.errors import UserError
from tests.commands.test_compile_pod import needs_libtpu
from tests.jax_shim import hide_tpu_compiler


@pytest.mark.parametrize(
    "text, shape, slices", [("v5e:16x16", (16, 16), 1), ("v5p:2x4x4", (2, 4, 4), 1), ("2*v5e:4x4", (4, 4), 2)]
)
def test_names(text, shape, slices):
    topology = parse_topology(text)
    assert (topology.shape, topology.slices, topology.name) == (shape, slices, text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5e-16", "write CHIP:AxB"),
        ("h100:2x2", "one of the chips v4, v5e, v5p, v6e"),
        ("v5e:4x4x4", "has 2 axes"),
        ("0*v5e:4x4", "at least 1"),
        ("v5p:4x4", "has 3 axes"),
        ("2*v4:2x2x2", "no rate between slices is known for v4"),
    ],
)
def test_other_names_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_topology(text)


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    hide_tpu_compiler(monkeypatch)
    with pytest.raises(UserError, match=r"not installed here; pip install -r requirements/tpu\.txt"):
        topology_devices(parse_topology("v5e:4x4"))


@needs_libtpu
@mock.patch.dict(os.environ)
@pytest.mark.parametrize("name, chips", [("v5e:1x1", 1), ("v6e:1x2", 2), ("v5p:1x1x1", 1)])
def test_a_part_of_a_host_is_a_slice_too(name, chips):
    prepare_environment()
    assert len(topology_devices(parse_topology(name))) == chips
