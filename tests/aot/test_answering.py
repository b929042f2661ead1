"""What answers questions, compiled for a slice that is not here."""

import json
import subprocess
import sys

import jax
import pytest

from quecc_jax.aot import answering, hlo
from quecc_jax.aot.answering import Asked
from quecc_jax.aot.buffers import Memory
from quecc_jax.aot.compiler import Compiled
from quecc_jax.aot.topology import parse_topology
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import CHUNK
from tests.aot.pod_model import config
from tests.commands.test_compile_pod import ANSWER, needs_libtpu

SPLIT = ("--mesh.data", "2", "--mesh.fsdp", "1", "--mesh.tensor", "2")
MATRICES = 8 * (4 * 256 * 256 + 3 * 256 * 640)
TABLE = 2048 * 256
"""Numbers of the decoder's layers, and of each of its two tables."""


@pytest.mark.parametrize("weights", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
@needs_libtpu
def test_programs_of_answers_hold_and_move_what_they_must(tmp_path, weights):
    out = tmp_path / "report.json"
    given = ("--batch-size", "64", "--prompt-tokens", "60", "--max-new-tokens", "17", "--weights", weights)
    ran = subprocess.run(
        [sys.executable, "-m", "launch.compile_pod", *ANSWER, *SPLIT, *given, "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "fits" in ran.stdout and "tokens per second" in ran.stdout and f"{CHUNK} tokens" in ran.stdout
    report = json.loads(out.read_text())
    assert report["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2} and report["fits"]
    # 60 tokens of text and four visual ones; 16 tokens behind the first are two chunks.
    assert report["asked"]["prompt"] == 64 and report["positions"] == 64 + 32
    assert report["cache"] == 2 * 8 * (64 // 2) * 96 * (256 // 2) * 2
    wide = 1 if weights == "int8" else 2
    decoder = (wide * MATRICES + 2 * 2 * TABLE) / 2
    # Scales, norms, tower and compressor are the rest.
    assert decoder < report["parameters"] < decoder + 1.2e6
    names = ["images", "question", "compressor", "prefill", f"{CHUNK} tokens"]
    programs = {one["name"]: one for one in report["programs"]}
    assert list(programs) == names and [one["times"] for one in programs.values()] == [1, 1, 1, 1, 2]
    assert all(one["needed"] >= report["parameters"] for one in programs.values())
    last = programs[names[-1]]
    assert last["flops"] == pytest.approx(CHUNK * 64 * 2 * (MATRICES + TABLE) / 4, rel=0.1)
    assert last["memory"]["aliased"] >= report["cache"]
    read = decoder - 2 * TABLE / 2
    assert CHUNK * read < last["traffic"] < 2.5 * CHUNK * (read + report["cache"])
    # Two sums of 32 rows over the two devices of `tensor`, for each layer and token.
    (sums,) = [one for one in last["collectives"] if one["kind"] == "all-reduce"]
    assert 2 * 8 * CHUNK <= sums["times"] <= 3 * 8 * CHUNK
    assert programs["prefill"]["flops"] > 64 * 64 * 2 * MATRICES / 4
    seconds = [one["seconds"] for one in report["programs"]]
    assert report["first_token_seconds"] == pytest.approx(sum(seconds[:-1]))
    assert report["tokens_per_second"] == pytest.approx(64 * CHUNK / seconds[-1])
    assert report["answers_per_second"] == pytest.approx(64 / (sum(seconds[:-1]) + 2 * seconds[-1]))


PROGRAM = hlo.parse("ENTRY %main (x: f32[4]) -> f32[4] {\n  ROOT %x = f32[4]{0} parameter(0)\n}\n")


@pytest.mark.parametrize("most, program", [(9, answering.DECODE), (700, answering.IMAGES)])
def test_the_most_that_fit_are_found_by_compiling_them(monkeypatch, most, program):
    """Without the compiler: one of the programs needs too much from some batch on."""
    compiled = []

    def compile_(lower, topology):
        batch, name = lower.args[2].batch, lower.args[3]
        compiled.append(batch)
        fits = batch <= most or name != program
        return Compiled(PROGRAM, Memory(0, 0, 0, 0, 0), [], 0 if fits else 1 << 40, 15 << 30, 0.0, 0.0)

    monkeypatch.setattr(answering, "compile_quickly", compile_)
    monkeypatch.setattr(answering, "topology_devices", lambda _: jax.devices()[:4])
    asked = Asked(0, 64, 16)
    found = answering.largest_batch(config(), parse_topology("v5e:2x2"), asked)
    assert found % 4 == 0 and found <= most < 2 * found
    assert max(compiled) <= 4 * 15 * 2**30 and len(set(compiled)) < 12


def test_not_one_question_fits(monkeypatch):
    too_much = Compiled(PROGRAM, Memory(0, 0, 0, 0, 0), [], 1 << 40, 15 << 30, 0.0, 0.0)
    monkeypatch.setattr(answering, "compile_quickly", lambda *_: too_much)
    monkeypatch.setattr(answering, "topology_devices", lambda _: jax.devices()[:4])
    with pytest.raises(UserError, match="4 questions at once do not fit v5e:2x2; take fewer bits"):
        answering.largest_batch(config(), parse_topology("v5e:2x2"), Asked(0, 64, 16))
