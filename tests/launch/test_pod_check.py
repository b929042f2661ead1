"""The check of a pod: rehearsed on emulated devices, and each part where something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pod_check
from quecc_jax.errors import UserError
from quecc_jax.train.logs.records import Records

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_is_rehearsed_on_emulated_devices(tmp_path):
    """Real but for the model's size and the devices; about two minutes."""
    ran = subprocess.run(
        ["launch/pod_check.sh", str(tmp_path / "out"), "cpu", "--mesh.tensor", "2"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(tmp_path / "c"),
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = [line.removeprefix("== ") for line in ran.stdout.splitlines() if line.startswith("== ")]
    assert parts[:3] == ["devices", "stage 1", "stage 2"] and parts[-1] == "all of it is as it should be"
    assert "process 0 of 1: 8 x cpu" in ran.stdout and "saved after step" in ran.stdout
    assert "20 steps of" in ran.stdout and "s a step" in ran.stdout


def logged(run: Path, losses: list[float]) -> str:
    run.mkdir(parents=True)
    with Records(run, 0, 1) as records:
        for step, loss in enumerate(losses, start=1):
            rest = dict.fromkeys(
                ("grad_norm", "learning_rate", "skipped", "steps_per_s", "tokens_per_s", "flops_per_s"), 2.0
            )
            records.write({"step": step, "loss": loss} | rest)
    return str(run)


def test_logs_that_differ_are_told_apart(tmp_path, capsys):
    one, same, other, short = (
        logged(tmp_path / name, losses)
        for name, losses in {"a": [3.0, 2.0], "b": [3.0, 2.0], "c": [3.0, 2.5], "d": [3.0]}.items()
    )
    pod_check.main(["same", one, same])
    assert "2 steps" in capsys.readouterr().out
    for wrong, where in ((other, "step 2 on"), (short, "the end"), (str(tmp_path / "none"), "the end")):
        with pytest.raises(UserError, match=where):
            pod_check.main(["same", one, wrong])


def test_speed_is_held_against_the_prediction(tmp_path, capsys):
    for stage in ("stage1", "stage2"):
        logged(tmp_path / stage, [1.0] * 8)
    (tmp_path / "p.json").write_text(json.dumps({"step_seconds": 0.25, "topology": "v5e:4x4", "mfu": 0.6}))
    pod_check.main(["report", str(tmp_path), str(tmp_path / "p.json")])
    first, second = capsys.readouterr().out.splitlines()
    assert (
        first
        == "stage1: 0.500 s a step, predicted 0.250 on v5e:4x4: 2.00 times that; MFU 30.0%, predicted 60.0%"
    )
    assert second == "stage2: 0.500 s a step"
    with pytest.raises(UserError, match="no step behind the first 5"):
        pod_check.main(["report", str(tmp_path / "none")])


def test_a_run_that_ends_early_is_not_waited_for(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(UserError, match="ended before step 8"):
        pod_check.main(["reached", str(tmp_path / "run"), "8", str(ended.pid)])
    pod_check.main(["reached", logged(tmp_path / "b", [1.0, 1.0]), "2", str(ended.pid)])


@pytest.mark.parametrize("topology", ["v5e:4x4", "v9:2x2"])
def test_other_devices_than_the_topology_has_are_refused(topology):
    with pytest.raises(UserError, match=r"v5e:4x4 has 16 x TPU v5 lite|topology 'v9:2x2' is not known"):
        pod_check.main(["devices", topology])


def test_rows_of_the_examples_name_images_that_are_there(tmp_path):
    pod_check.main(["rows", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 30 and all(Path(row["image"]).is_file() for row in rows)
    assert rows[0]["conversations"][1]["value"] == "gray"
