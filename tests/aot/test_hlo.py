"""The counter of FLOPs on programs whose work is known."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from quecc_jax.aot import hlo
from quecc_jax.aot.collectives import collectives
from quecc_jax.aot.traffic import traffic

TPU = hlo.parse((Path(__file__).parent / "tpu_program.txt").read_text())
"""What the TPU compiler makes of a sharded step, in small: a product overlapped with the exchange of its
weights, a scan whose counter's step is carried along, and a gather in pieces that overlap with others."""


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text() or "")


def layers(unroll):
    """Gradient of five layers, scanned or written out."""

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jax.nn.silu(x @ w), None), x, weights, unroll=unroll)[0])

    return jax.grad(loss, (0, 1))


def test_a_scan_counts_as_much_as_its_unrolled_twin():
    shapes = (5, 64, 64), (16, 64)
    scanned, unrolled = (compiled(layers(unroll), *shapes) for unroll in (1, 5))
    product = 2 * 16 * 64 * 64
    assert hlo.flops(scanned) == 5 * 3 * product
    assert hlo.flops(unrolled) == hlo.flops(scanned)
    assert any(i.opcode == "while" for c in scanned.computations.values() for i in c.values())


def test_loops_within_loops_multiply():
    def nested(w, x):
        def outer(x, _):
            return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0], None

        return jax.lax.scan(outer, x, length=3)[0]

    program = compiled(nested, (8, 8), (4, 8))
    assert hlo.flops(program) == 21 * 2 * 4 * 8 * 8
    assert hlo.runs(program)[1] == []


def test_a_loop_that_ends_on_data_is_named():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1.0, lambda x: 0.5 * x @ x.T, x)

    program = compiled(halve, (8, 8))
    loops = [i.name for c in program.computations.values() for i in c.values() if i.opcode == "while"]
    assert hlo.runs(program)[1] == loops and len(loops) == 1


ROWS = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("padding, dilation", [(0, 1), (1, 1), (2, 2), (0, 3)])
def test_convolutions_count_products_with_real_numbers_only(padding, dilation):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), 2 * [(padding, padding)], 2 * [dilation], dimension_numbers=ROWS
        )

    # A convolution of ones with ones counts its own products.
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    assert hlo.flops(compiled(convolve, x.shape, kernel.shape)) == 2 * int(convolve(x, kernel).sum())


def test_grouped_convolutions():
    def depthwise(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", feature_group_count=6, dimension_numbers=ROWS
        )

    assert hlo.flops(compiled(depthwise, (2, 9, 9, 6), (3, 3, 1, 6))) == 2 * 2 * 4 * 4 * 9 * 6


def test_tpu_loops_and_products_written_as_convolutions():
    times, unknown = hlo.runs(TPU)
    assert unknown == [] and (times["window_body"], times["layer_body"]) == (4, 32)
    window = 2 * 2048 * 512 * 4096
    assert hlo.flops(TPU) == 4 * window + 32 * 1000


def test_types_spaces_and_names():
    carry = TPU.computations["window_body"]["carry"]
    assert [a.dims for a in carry.arrays] == [(2048, 4096), (2, 256, 32, 128), ()]
    assert [a.space for a in carry.arrays] == [1, 0, 0]
    assert carry.arrays[0].bytes == 2 * 2048 * 4096
    product = TPU.computations["window_body"]["product"]
    assert product.op_name.startswith("jit(step)/jvp(VLM)/decoder")
    assert product.attribute("dim_labels") == "b1f0_1i0o->b0f1" and product.attribute("absent") == ""
    assert hlo.fused(TPU) == {"add", "piece", "first_piece"}


def test_blocks_that_splash_attention_skips_do_not_count():
    """Eight heads of 2048 places: in four blocks ten of sixteen run, within a window of two blocks seven."""

    def text(kind, mask):
        shapes = (f"s8[{mask}]", f"s8[{mask}]", "bf16[2,4,2048,128]")
        lines = [f"  %p{i} = {shape}{{0}} parameter({i})" for i, shape in enumerate(shapes)]
        call = f"  %splash_mha_{kind}_segmented.1 = (bf16[2,4,2048,128]{{0}}) custom-call(%p0, %p1, %p2, %p2)"
        lines += [
            f"{call}, frontend_attributes={{kernel_metadata={{",
            '"xprof_metadata":"{\\"a\\": 1}"',
            '}}, metadata={op_name="jit(step)"}',
        ]
        return "\n".join(["HloModule m", "ENTRY %main () -> f32[] {", *lines, "}", ""])

    block = 2 * 8 * 512 * 512 * 128
    counts = {
        ("fwd", "1,4,4"): 20,
        ("dq", "1,4,4"): 30,
        ("dkv", "1,4,4"): 40,
        ("fwd", "1,4,2"): 14,
        ("dkv", "1,2,4"): 28,
    }
    for (kind, mask), count in counts.items():
        program = hlo.parse(text(kind, mask))
        assert hlo.flops(program) == count * block
        (call,) = (i for i in program.computations["main"].values() if i.opcode == "custom-call")
        assert call.op_name == "jit(step)"


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing")


def shortened(text: str) -> str:
    """A program with its tuples' elements as newer compilers write them: `%x#3` where they are used."""
    return "\n}\n".join(map(_shortened, text.split("\n}\n")))


def _shortened(computation: str) -> str:
    for line in re.findall(r"^ +%.* get-tuple-element\(.*\n", computation, re.MULTILINE):
        name, owner, index = re.findall(r"%([\w.\-]+) = .*\(%([\w.\-#]+)\), index=(\d+)", line)[0]
        computation = computation.replace(line, "")
        computation = re.sub(rf"%{re.escape(name)}(?![\w.\-])", f"%{owner}#{index}", computation)
    return computation


def test_elements_of_tuples_are_found_where_they_are_used():
    text = (Path(__file__).parent / "tpu_program.txt").read_text()
    program = hlo.parse(shortened(text))
    # The result of the program stays an instruction.
    assert text.count("get-tuple-element(") > shortened(text).count("get-tuple-element(") == 1
    assert hlo.flops(program) == hlo.flops(TPU) > 0
    assert hlo.runs(program) == hlo.runs(TPU)
    assert traffic(program) == traffic(TPU) > 0
    assert len(list(collectives(program))) == len(list(collectives(TPU))) > 0


def test_an_element_of_an_element_has_its_own_type():
    program = hlo.parse("""HloModule m
ENTRY %main (x: (f32[2], (s32[3], /*index=1*/f32[4,5]))) -> f32[4,5] {
  %x = (f32[2]{0}, (s32[3]{0}, /*index=1*/f32[4,5]{1,0:T(8,128)})) parameter(0)
  ROOT %y = f32[4,5]{1,0} negate(%x#1#1)
}
""")
    element = program.computations["main"]["x#1#1"]
    assert element.opcode == "get-tuple-element" and element.operands == ("x#1",)
    assert [array.dims for array in element.arrays] == [(4, 5)]
    assert [array.dims for array in program.computations["main"]["x#1"].arrays] == [(3,), (4, 5)]
