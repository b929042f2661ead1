"""Which programs a report is made of, without the compiler."""

import jax

from quecc_jax.aot import hlo, report
from quecc_jax.aot.buffers import Memory
from quecc_jax.aot.compiler import Compiled
from quecc_jax.aot.topology import parse_topology
from tests.tiny import run

PROGRAM = """
ENTRY %main (x: f32[64,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  ROOT %dot = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_every_length_that_questions_may_have_is_a_program_of_its_own(monkeypatch):
    """tests/commands/test_compile_pod.py compiles the same, slowly."""
    lengths = []

    def compile_(lower, topology):
        lengths.append(lower().args_info[0][1].queries.shape[1])
        return Compiled(hlo.parse(PROGRAM), Memory(1, 2, 1, 1, 0), [], 3, 4, 0.0, 0.0)

    monkeypatch.setattr(report, "compile_program", compile_)
    monkeypatch.setattr(report, "topology_devices", lambda _: jax.devices()[:4])
    config, told = run(data={"query_length": 128, "images_per_row": 1, "max_length": 160}), list[str]()
    longest, shorter = report.pod_reports(config, parse_topology("v5e:2x2"), told.append)
    assert lengths == [longest.query_length, shorter.query_length] == [128, 32]
    assert shorter.model_flops < longest.model_flops and longest.fits
    assert [one.split(",")[0] for one in told] == [f"questions of up to {n} tokens" for n in lengths]
