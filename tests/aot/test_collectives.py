"""Bytes between chips, on a program in the TPU compiler's notation and on compiled collectives."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from quecc_jax.aot import hlo
from quecc_jax.aot.collectives import Collective, collectives, first_group
from quecc_jax.aot.roofline import network_use
from quecc_jax.aot.topology import parse_topology
from quecc_jax.aot.traffic import traffic

TPU = hlo.parse((Path(__file__).parent / "tpu_program.txt").read_text())


def test_pieces_of_one_exchange_count_once():
    gather, *rest = [c for c in collectives(TPU) if c.kind == "all-gather"]
    assert not rest and gather.times == 1
    assert gather.payload == 2 * 64 * 4096 and gather.received == 2 * 64 * 256 * 15


def test_exchanges_in_loops_count_as_often_as_they_run():
    found = {c.kind: c for c in collectives(TPU)}
    permute, reduce = found["collective-permute"], found["all-reduce"]
    assert (permute.times, permute.received) == (4, 2 * 2 * 256 * 32 * 128)
    assert (reduce.times, reduce.payload, reduce.received) == (32, 512, 2 * 512 * 7 // 8)
    assert reduce.group == (0, 2, 4, 6, 8, 10, 12, 14)


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("{{1,3},{0,2}}", (1, 3)),
        ("{}", tuple(range(8))),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a', 'c'}", (0, 1, 4, 5)),
    ],
)
def test_notations_of_groups(groups, expected):
    line = f"  %r = f32[4]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add"
    program = hlo.parse(f"HloModule m\nENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n")
    assert first_group(program.computations["main"]["r"], 8) == expected


def test_exchanges_between_slices_go_through_the_hosts():
    program = hlo.parse(
        """HloModule m, num_partitions=4
ENTRY %main (x: bf16[64,16]) -> bf16[64,16] {
  %x = bf16[64,16]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (bf16[64,16]{1,0}, u32[], token[]) send(%x, %after), channel_id=8, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=8, is_host_transfer=true
  %recv = (bf16[64,16]{1,0}, u32[], token[]) recv(%sent), channel_id=9, is_host_transfer=true
  %got = (bf16[64,16]{1,0}, token[]) recv-done(%recv), channel_id=9, is_host_transfer=true
  ROOT %sum = bf16[64,16]{1,0} get-tuple-element(%got), index=0
}
""".replace("\\\n", "")
    )
    (found,) = collectives(program)
    assert (found.kind, found.operand, found.group) == ("all-reduce", 2 * 64 * 16, ())
    topology = parse_topology("2*v5e:2x2")
    (sent,) = network_use([found], topology, [])
    assert (sent.network, sent.bytes, sent.times) == ("DCN", 2 * 64 * 16, 1)
    assert sent.seconds == sent.bytes / topology.chip.dcn_bytes
    (more,) = network_use([found], parse_topology("4*v5e:2x2"), [])
    assert more.bytes == 1.5 * sent.bytes


class At:
    """A device at a place of the torus."""

    def __init__(self, *coords: int):
        self.coords = coords


def test_an_exchange_uses_the_links_of_the_axes_that_it_spans():
    one = Collective("all-gather", 1, 4, 3, (0, 1), 1, "", "")
    along, across = [At(0, 0, 0), At(1, 0, 0)], [At(0, 0, 0), At(1, 1, 0)]
    link = parse_topology("v5e:4x4").chip.link_bytes

    def seconds(topology, devices):
        return network_use([one], parse_topology(topology), devices)[0].seconds

    assert seconds("v5e:4x4", along) == 3 / link
    assert seconds("v5e:4x4", across) == 3 / (2 * link)
    assert seconds("v5e:16x16", across) == 3 / (4 * link)
    assert seconds("v5e:16x4", across) == 3 / (3 * link)


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    program = hlo.parse("""HloModule m, num_partitions=8
%scattered (input: f32[64,16]) -> f32[8,16] {
  %input = f32[64,16]{1,0} parameter(0)
  %view = f32[8,8,16]{2,1,0} bitcast(%input)
  %sum = f32[8,8,16]{2,1,0} all-reduce(%view), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  %number = u32[] partition-id()
  %zero = u32[] constant(0)
  %mine = f32[1,8,16]{2,1,0} dynamic-slice(%sum, %number, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %out = f32[8,16]{1,0} bitcast(%mine)
}
ENTRY %main (x: f32[64,16]) -> f32[8,16] {
  %x = f32[64,16]{1,0} parameter(0)
  ROOT %f = f32[8,16]{1,0} fusion(%x), kind=kCustom, calls=%scattered
}
""")
    (found,) = collectives(program)
    size = 4 * 64 * 16
    assert (found.kind, found.payload, found.received) == ("reduce-scatter", size, size * 7 // 8)
    # Read once, written once as a whole inside, and the slice.
    assert traffic(program) == 2 * size + size // 8


@pytest.mark.parametrize(
    "spec, kind, received",
    [((None, None), "all-gather", 3 * 16 * 8 * 4), ((None, "x"), "all-to-all", 16 * 8 * 4 * 3 // 4)],
)
def test_resharding(spec, kind, received):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, target = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x", None), spec))
    x = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=rows)
    text = jax.jit(lambda x: x + 1, out_shardings=target).lower(x).compile().as_text()
    program = hlo.parse(text or "")
    (found,) = collectives(program)
    assert (found.kind, found.received, found.group) == (kind, received, (0, 1, 2, 3))
