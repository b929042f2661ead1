"""The TPU compiler at work on a small model, through the command line's own path."""

import json
import platform
import re
import subprocess
import sys

import pytest

CONFIG = "tests/aot/pod_model.py"

needs_libtpu = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="libtpu, the TPU compiler, has wheels for x86-64 Linux only",
)


def compile_pod(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.compile_pod", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@needs_libtpu
@pytest.mark.parametrize("query_length", [32, pytest.param(128, marks=pytest.mark.slow)])
def test_a_step_compiles_for_a_slice_that_is_not_here(tmp_path, query_length):
    out = tmp_path / "new" / "report.json"
    ran = compile_pod(
        CONFIG,
        "--topology",
        "v5e:2x2",
        "--json",
        str(out),
        "--model.remat",
        "none",
        "--data.query-length",
        str(query_length),
    )
    assert ran.returncode == 0, ran.stderr
    for heading in ("memory per chip", "fits", "FLOPs per step", "all-gather, ICI", "predicted MFU"):
        assert heading in ran.stdout, heading
    report = json.loads(out.read_text())
    assert report["fits"] and report["chips"] == 4 and report["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert 0.99 <= report["flops_ratio"] <= 1.10
    # Parameters and two slots each of the trained ones, in float32, a quarter per chip; plus the batch.
    memory = report["memory"]
    assert memory["aliased"] > 0.95 * memory["output"] and memory["total"] <= report["needed"] * 1.01
    assert any("decoder/layers/gate" in b["name"] for b in report["buffers"])
    assert report["unknown_loops"] == [] and report["defects"] == []
    # Every length that a batch's questions may have is a program of its own.
    assert report["query_length"] == query_length
    if query_length == 32:
        assert report["shorter_queries"] == []
        return
    (shorter,) = report["shorter_queries"]
    assert shorter["query_length"] == 32
    assert shorter["model_flops"] < report["model_flops"] and "questions of up to 32" in ran.stdout
    assert 0.99 <= shorter["flops_ratio"] <= 1.10


@needs_libtpu
@pytest.mark.slow
def test_a_distilled_step_has_no_defects(tmp_path):
    """The teacher's pass is counted, forward alone, and its logits of all positions do not exist either."""
    out = tmp_path / "report.json"
    distilled = ["--train.distil.weight", "0.5", "--train.stage", "1", "--init-from", "somewhere"]
    ran = compile_pod(
        CONFIG, "--topology", "v5e:2x2", "--json", str(out), "--model.remat", "none", *distilled
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert 0.95 <= report["flops_ratio"] <= 1.15 and report["defects"] == []


@needs_libtpu
@pytest.mark.slow
def test_two_slices_exchange_gradients_over_the_data_centre_network(tmp_path):
    out = tmp_path / "report.json"
    ran = compile_pod(CONFIG, "--topology", "2*v5e:2x2", "--mesh.data", "2", "--json", str(out))
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert report["chips"] == 8 and report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    (between,) = [e for e in report["exchanges"] if e["network"] == "DCN"]
    # Each chip's quarter of the gradients, in 16 bits, once; tables and norms may go in 32.
    quarter = 2 * (2 * 2048 * 256 + 8 * (4 * 256 * 256 + 3 * 256 * 640)) / 4
    assert between["kind"] == "all-reduce" and quarter <= between["bytes"] <= 2.2 * quarter


@needs_libtpu
@pytest.mark.slow
def test_the_output_matrix_gradient_does_not_wait_for_the_layers(tmp_path):
    """Its 64 MiB would be there beside all that the layers' backward pass needs, and were until a barrier."""
    out = tmp_path / "report.json"
    text = ("--train.stage", "0", "--data.images-per-row", "0", "--model.decoder.vocab-size", "65536")
    ran = compile_pod(CONFIG, "--topology", "v5e:2x2", "--quick", "--json", str(out), *text)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(out.read_text())["memory"]["temporaries"] < 190e6


@needs_libtpu
def test_a_step_that_the_compiler_refuses_is_reported_with_what_would_help(tmp_path):
    out = tmp_path / "report.json"
    ran = compile_pod(
        CONFIG,
        "--topology",
        "v5e:2x2",
        "--json",
        str(out),
        "--model.remat",
        "none",
        "--train.batch-size",
        "16384",
        # On text alone, which compiles fastest.
        "--train.stage",
        "0",
        "--data.images-per-row",
        "0",
    )
    assert ran.returncode == 1 and "does not fit" in ran.stdout
    (error,) = ran.stderr.strip().splitlines()
    assert re.match(r"error: the step needs \d+\.\d+ GiB per chip and v5e:2x2 has 15\.75", error)
    report = json.loads(out.read_text())
    assert not report["fits"] and report["needed"] > report["limit"] == int(15.75 * 2**30)
    assert report["buffers"][0]["kind"] == "temporary"
    assert "decoder" in report["buffers"][0]["name"]
    slices = int(re.findall(r"--train.grad-accum-steps (\d+)", error)[0])
    assert "--model.remat full" in error and 8 <= slices <= 16


@needs_libtpu
def test_the_resolved_table_of_shardings():
    ran = compile_pod(CONFIG, "--topology", "v5e:2x2", "--show-sharding", "--mesh.tensor", "2")
    assert ran.returncode == 0, ran.stderr
    (gate,) = re.findall(r".*decoder/layers/gate/kernel.*", ran.stdout)
    assert "8x256x640" in gate and "layers, embed, mlp" in gate and "·, fsdp, tensor" in gate
    assert "of optimizer state for the" in ran.stdout


@needs_libtpu
def test_the_table_of_a_decoder_under_adapters():
    ran = compile_pod(
        CONFIG, "--topology", "v5e:2x2", "--show-sharding", "--mesh.tensor", "2", "--model.lora.rank", "8",
        "--model.dtype", "bfloat16", "--model.lora.targets", "gate",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = {
        name: next(line for line in ran.stdout.splitlines() if f"/{name} " in line)
        for name in ("gate/kernel", "gate/lora_a", "gate/lora_b")
    }
    assert (
        "8x256x640" in lines["gate/kernel"] and f"{8 * 256 * 640 * 2 / 4 / 2**20:.2f}" in lines["gate/kernel"]
    )
    assert "lora/layers" in lines["gate/lora_a"] and "layers, embed, ·" in lines["gate/lora_a"]
    assert "·, ·, tensor" in lines["gate/lora_b"]


@needs_libtpu
def test_the_table_shows_scales_that_do_not_divide_as_a_run_places_them():
    """A width of 256 has four blocks, which do not divide over eight chips."""
    ran = compile_pod(
        CONFIG, "--topology", "v5e:2x4", "--show-sharding", "--model.lora.rank", "8", "--train.frozen-weights", "nf4",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    codes, scale = (
        next(line for line in ran.stdout.splitlines() if f"gate/kernel/{name} " in line)
        for name in ("nf4", "scale")
    )
    assert "·, fsdp, tensor" in codes and f"{8 * 256 * 640 / 2 / 8 / 2**20:.3f}" in codes
    assert "8x4x640" in scale and "fsdp" not in scale and f"{4 * 8 * 4 * 640 / 2**20:.3f}" in scale


@needs_libtpu
@pytest.mark.parametrize(
    "extra", [("--train.stage", "0", "--data.images-per-row", "0"), pytest.param((), marks=pytest.mark.slow)]
)
def test_a_quick_report_is_the_whole_one_but_for_the_code(tmp_path, extra):
    reports = []
    for name, option in (("quick", ["--quick"]), ("whole", [])):
        out = tmp_path / f"{name}.json"
        ran = compile_pod(CONFIG, "--topology", "v5e:2x2", *extra, *option, "--json", str(out))
        assert ran.returncode == 0, ran.stderr
        reports.append(json.loads(out.read_text()))
    quick, whole = reports
    assert quick["memory"].pop("code") == 0 < whole["memory"].pop("code")
    other = {"memory", "needed", "trace_seconds", "compile_seconds", "shorter_queries"}
    assert {k: v for k, v in quick.items() if k not in other} == {
        k: v for k, v in whole.items() if k not in other
    }
    for part in ("arguments", "temporaries", "output", "aliased"):
        assert quick["memory"][part] == whole["memory"][part]


@needs_libtpu
def test_a_quick_report_of_what_does_not_divide_is_one_sentence():
    ran = compile_pod(CONFIG, "--topology", "v5e:2x2", "--train.batch-size", "6", "--quick")
    assert ran.returncode == 1 and "do not divide over 4 devices" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


ANSWER = (CONFIG, "--topology", "v5e:2x2", "--program", "answer")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (*ANSWER, "--batch-size", "6"),
            "6 questions does not divide over 4 devices of mesh axes data and fsdp",
        ),
        ((*ANSWER, "--batch-size", "8", "--mesh.fsdp", "1", "--mesh.tensor", "4"), "heads"),
        ((*ANSWER, "--max-new-tokens", "1"), "--max-new-tokens is 1; give at least 2"),
        ((CONFIG, "--topology", "v5e:2x2", "--weights", "int8"), "--weights goes with --program answer"),
        ((*ANSWER, "--show-sharding"), "--program is of a compilation"),
        ((CONFIG,), "--topology must be given"),
        (
            (CONFIG, "--topology", "v5e:2x2", "--train.steps", "0", "--train.epochs", "2"),
            "train.epochs 2 is counted from the data, which is not read here, and train.steps is 0; say how many",
        ),
        ((CONFIG, "--topology", "v9:2x2"), "topology 'v9:2x2' is not known"),
        ((CONFIG, "--topology", "v5e:2x2", "--mesh.fsdp", "3"), "needs 3 devices, 4 are here"),
        (
            (CONFIG, "--topology", "v5e:2x2", "--json", f"{CONFIG}/x.json"),
            f"--json {CONFIG}/x.json cannot be written",
        ),
        ((CONFIG, "--topology", "v5e:2x2", "--json", "tests"), "--json tests is a folder; name a file"),
        (
            (CONFIG, "--topology", "v5e:2x2", "--show-sharding", "--json", "x.json"),
            "--json is of a compilation",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    ran = compile_pod(*arguments)
    assert ran.returncode == 1 and message in ran.stderr and ran.stderr.startswith("error: ")
    assert len(ran.stderr.strip().splitlines()) == 1
