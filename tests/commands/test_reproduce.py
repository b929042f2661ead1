"""`launch.reproduce`: what it prints before anything is there, and options that cannot be."""

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.experiments.reproduce.downloads import DOWNLOADS


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    # The command takes the devices away from this process.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def one(*more: str) -> str:
        execute("reproduce", ["--root", str(tmp_path / "kit"), *more])
        return capsys.readouterr().out

    return one


def test_without_run_it_says_everything_and_does_nothing(call, tmp_path):
    told = call("--slice", "v5e-64", "--visual-tokens", "4")
    lines = told.splitlines()
    assert [line.split()[1] for line in lines if line[:2].strip().isdigit()] == [
        *(download.name for download in DOWNLOADS),
        *("import", "stage1", "stage2", "evaluate"),
    ]
    for download in DOWNLOADS:
        for remote in download.remotes:
            line = next(one for one in lines if f" {remote.path}" in one and not one.startswith("#"))
            assert remote.address in line and remote.sha256 in line
            assert not remote.bytes or f"{remote.bytes:,} bytes" in line
    stage1 = next(line for line in lines if "launch.train" in line)
    assert "configs/table1.py:stage1-v4 " in stage1 and "--train.grad-accum-steps 2" in stage1
    assert "on v5e-64, 64 chips: stage 1 1.4 h, stage 2 at most 2.2 h" in told and "chip hours, $" in told
    assert "GB are free" in told and "go on: the same command with --run" in told
    assert not (tmp_path / "kit").exists()


def test_what_is_printed_is_shell(call, tmp_path):
    """The function that fetches, on a file of this machine."""
    import subprocess

    told = call()
    begin = next(line for line in told.splitlines() if line.startswith("get()"))
    (tmp_path / "a").write_text("content")
    script = f"{begin}\nget deep/b file://{tmp_path}/a"
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "deep/b").read_text() == "content" and not (tmp_path / "deep/b.part").exists()
    rest = told[told.index("get()") : told.index("to run, or with --run")]
    subprocess.run(["bash", "-n", "-c", rest], check=True)


def test_a_mirror_takes_the_place_of_addresses(call, tmp_path):
    told = call("--mirror", "https://near/files")
    assert "get weights/vicuna-7b-v1.5/config.json https://near/files/vicuna/config.json" in told
    assert "get downloads/eval.zip https://near/files/questions/eval.zip" in told and "gdown" not in told
    assert f"get downloads/mme.zip file://{tmp_path}/m/mme/mme.zip" in call("--mirror", str(tmp_path / "m"))


def test_without_a_slice_the_settings_are_one_s_own(call):
    told = call("--stage1-settings=--mesh.tensor 2", "--answer-settings=--mesh.tensor 4")
    assert (
        "/data/images --mesh.tensor 2" in told
        and "/data --mesh" not in told
        and "--batch-size 32 --mesh.tensor 4" in told
    )
    assert "hours and dollars: name a slice with --slice" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--visual-tokens", "9"], "--visual-tokens 9 is no row of QueCC .* choose from 1, 4, 16, 36"),
        (["--slice", "v6e-8"], "--slice v6e-8: nothing was compiled for it; choose from v5e-16"),
        (["--download"], "--download goes with --run"),
        (["--by", "srun"], "--by goes with --run"),
        (["--price", "1"], "--price goes with --slice"),
        (["--mirror", "m", "--run"], "--mirror goes with --download"),
        (["--rehearsal", "--slice", "v5e-16"], "leave --slice out"),
        (["--again", "stage3"], "--again stage3 is no step; did you mean stage"),
        (["--score", "gqa=60"], "gqa is scored here, not by a server"),
        (["--stage2-settings=--train.stpes 3"], "--train.stpes is not an option; did you mean --train.steps"),
        (["--stage1-settings", "'open"], "--stage1-settings .* cannot be read: no closing quotation"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(call, options, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        call(*options)
    assert "\n" not in str(told.value)
