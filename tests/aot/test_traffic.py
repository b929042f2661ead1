"""Bytes to and from main memory, on programs whose traffic is known."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from quecc_jax.aot import hlo
from quecc_jax.aot.traffic import instruction_traffic, traffic
from tests.aot.test_hlo import compiled

TPU = hlo.parse((Path(__file__).parent / "tpu_program.txt").read_text())


def test_a_scan_moves_as_much_as_its_unrolled_twin():
    def forward(unroll):
        return lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w, unroll=unroll)[0]

    scanned, unrolled = (traffic(compiled(forward(unroll), (5, 256, 256), (4, 256))) for unroll in (1, 5))
    weights = 5 * 256 * 256 * 4
    # Either form may copy a layer's weights out of the stack before it multiplies by them.
    assert weights <= unrolled <= 3.2 * weights and weights <= scanned <= 3.2 * weights
    assert scanned == pytest.approx(unrolled, rel=0.1)


def test_a_product_reads_its_factors_and_writes_its_result():
    program = compiled(lambda a, b: a @ b, (64, 128), (128, 32))
    assert traffic(program) == 4 * (64 * 128 + 128 * 32 + 64 * 32)


def test_a_slice_in_a_loop_reads_only_itself():
    def total(table):
        def add(sum_, i):
            return sum_ + jax.lax.dynamic_index_in_dim(table, i, keepdims=False), None

        return jax.lax.scan(add, jnp.zeros(1024), jnp.arange(100))[0]

    row = 4 * 1024
    # Per turn: the row, and the sum read and written; at most one more pass over the sum for copies.
    assert 3 * 100 * row <= traffic(compiled(total, (100, 1024))) <= 5 * 100 * row


def test_an_update_in_place_writes_only_itself():
    def fill(table):
        def put(table, i):
            return jax.lax.dynamic_update_index_in_dim(table, jnp.full(1024, i, jnp.float32), i, 0), None

        return jax.lax.scan(put, table, jnp.arange(100))[0]

    row = 4 * 1024
    # The filled table, and one copy of it, as the argument may not be overwritten.
    assert 100 * row <= traffic(compiled(fill, (100, 1024))) <= 4 * 100 * row


def test_on_chip_memory_is_free():
    body = TPU.computations["window_body"]
    left, shard, product = (body[name].arrays[0] for name in ("left", "shard", "product"))
    assert (left.space, shard.space, product.space) == (1, 0, 0)
    assert instruction_traffic(TPU, body["product"], body) == shard.bytes + product.bytes
    assert instruction_traffic(TPU, body["carry"], body) == 0


ASYNC = """
%copy_a_part (whole: bf16[64,64]) -> bf16[64,16] {
  %whole = bf16[64,64]{1,0} parameter(0)
  ROOT %part = bf16[64,16]{1,0:S(1)} slice(%whole), slice={[0:64], [0:16]}
}

ENTRY %main (table: bf16[64,64]) -> bf16[64,16] {
  %table = bf16[64,64]{1,0} parameter(0)
  %start = ((bf16[64,64]{1,0}), bf16[64,16]{1,0:S(1)}, s32[]{:S(2)}) async-start(%table), calls=%copy_a_part
  ROOT %done = bf16[64,16]{1,0:S(1)} async-done(%start)
}
"""
"""As libtpu 0.0.42.1 fetches matrices ahead of their products."""


def test_a_part_that_is_fetched_ahead_counts_once_and_alone():
    assert traffic(hlo.parse(ASYNC)) == 2 * 64 * 16
