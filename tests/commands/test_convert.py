"""The command line of imports and exports: what it says, and what it leaves on a full disk."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.errors import run_cli
from tests.convert.names import load
from tests.convert.test_lora import pairs_of, put_adapter, put_model
from tests.convert.test_run import assert_same_tensors, write_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process and gives its exit status and what it printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            run_cli(lambda: execute("convert", [str(argument) for argument in arguments]))
            status = 0
        except SystemExit as stop:
            status = int(str(stop.code or 0))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_there_and_back(run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], np.float16)
    status, out, _ = run("import", "--from", tmp_path / "given", "--out", tmp_path / "run")
    assert status == 0 and out.startswith(f"{tmp_path / 'run'}: decoder ") and "parameters" in out
    export = ("export", "--checkpoint", tmp_path / "run", "--to")
    status, out, _ = run(*export, tmp_path / "out", "--shard-gb", "1e-5")
    assert status == 0 and out.startswith(f"{tmp_path / 'out'}: ")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_same_tensors(tmp_path / "given", tmp_path / "out")
    assert run(*export, tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    assert {str(d) for d in open_tensors(tmp_path / "half").dtypes.values()} == {"bfloat16"}


def test_an_adapter_there_and_back(run: Run, tmp_path: Path) -> None:
    given = put_adapter(tmp_path / "given", pairs_of(put_model(tmp_path / "base", "llama"), ("q_proj",)))
    start = ("import", "--from", tmp_path / "base", "--adapter", given, "--out")
    status, out, _ = run(*start, tmp_path / "run")
    # 2 layers of 3 x 16 and 16 x 3 numbers.
    assert status == 0 and "lora 192 parameters" in out
    export = ("export", "--checkpoint", tmp_path / "run", "--to")
    assert run(*export, tmp_path / "out", "--adapter", "peft")[0] == 0
    assert_same_tensors(given / "adapter_model.safetensors", tmp_path / "out" / "adapter_model.safetensors")
    status, out, _ = run(*start, tmp_path / "merged", "--merge-adapter")
    assert status == 0 and "lora" not in out
    status, _, error = run(*start[:3], "--out", tmp_path / "none", "--merge-adapter")
    assert status == 1 and error.startswith("error: --merge-adapter needs an adapter")


@pytest.mark.parametrize("here", ["run", "weights/run", "./run", "../beside/run"])
def test_places_are_relative_to_the_working_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_checkpoint(Path("given"), load("llama")["config"], load("llama")["tensors"], np.float16)
    status, _, error = run("import", "--from", "given", "--out", here)
    assert (status, error) == (0, "")
    listed = json.loads(Path(here, "checksums.json").read_text())["files"]
    assert "config.json" in listed and not any(Path(file).is_absolute() for file in listed)
    assert run("export", "--checkpoint", here, "--to", "out")[0] == 0
    assert_same_tensors(Path("given"), Path("out"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "name a command: import, export"),
        (("improt",), "improt is not a command; did you mean import?"),
        (("import", "--out", "x"), "--from must be given"),
        (("export", "--checkpoint", "x"), "--to must be given"),
        (("import", "--from", "a", "--out", "b", "--vison", "c"), "did you mean --vision?"),
        (("import", "--from", "a", "--out", "b", "--dtype", "int8"), "--dtype"),
        (("import", "--from", "nowhere", "--out", "b"), "nowhere does not exist"),
        (("export", "--checkpoint", "nowhere", "--to", "b"), "nowhere/config.json does not exist"),
        (("export", "--checkpoint", "x", "--to", "b", "--shard-gb", "0"), "--shard-gb is 0.0"),
        (("export", "--checkpoint", "x", "--to", "b", "--shard-gb", "nan"), "--shard-gb is nan"),
        (("export", "--checkpoint", "x", "--to", "b", "--shard-gb", "inf"), "--shard-gb is inf"),
        (("export", "--checkpoint", "x", "--to", "b", "--shard-gb", "1e300"), "--shard-gb is 1e+300"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, error = run(*arguments)
    assert (status, out) == (1, "")
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_help_names_the_options(run: Run) -> None:
    assert "{import,export}" in run("--help")[1]
    assert "--allow-pickle" in run("import", "--help")[1] and "--shard-gb" in run("export", "--help")[1]


@pytest.mark.parametrize("verb", ["import", pytest.param("export", marks=pytest.mark.slow)])
def test_a_full_disk_leaves_nothing_that_looks_complete(run: Run, tmp_path: Path, verb: str) -> None:
    """The limit on the size of a file stands in for a disk that fills up within the largest tensor."""
    shapes = {k: [9000 if d == 40 else d for d in v] for k, v in load("llama")["tensors"].items()}
    write_checkpoint(tmp_path / "given", load("llama")["config"] | {"vocab_size": 9000}, shapes, np.float16)
    if verb == "export":
        assert run("import", "--from", tmp_path / "given", "--out", tmp_path / "run")[0] == 0
    before = sorted(p.name for p in tmp_path.iterdir())
    given, to = ("--from", "--out") if verb == "import" else ("--checkpoint", "--to")
    source = tmp_path / ("given" if verb == "import" else "run")
    command = [sys.executable, "-m", "launch.convert", verb, given, str(source), to, str(tmp_path / "new")]
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before
