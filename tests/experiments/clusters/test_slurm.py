"""A grid as an array job: its script, and one that a real Slurm of one node runs."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.experiments.attempts import read_attempts
from quecc_jax.experiments.clusters.slurm import Slurm, check, script
from quecc_jax.experiments.store import result_file
from tests.experiments.clusters.slurm_node import MISSING, said, slurm_node, wait_for
from tests.experiments.small_grid import small_grid, write_config
from tests.processes import ROOT

FULL = Slurm(
    2, 8, time="04:00:00", at_once=3, options=("--partition=a100 --account=me",), setup="module load cuda"
)


@pytest.mark.parametrize("settings", [Slurm(), FULL])
def test_the_script_is_sound_bash(tmp_path, settings):
    grid = small_grid(tmp_path / "a place")
    file = tmp_path / "script.sh"
    file.write_text(script(grid, grid.cells, "a config.py", settings, tmp_path / "a clone"))
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_script_asks_for_what_was_asked_for(tmp_path):
    grid = small_grid(tmp_path / "out")
    text = script(grid, grid.cells[:3], "configs/a.py", FULL, Path("/clone"))
    head = {line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {
        "--array=0-2%3",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=04:00:00",
    } <= head
    assert {"--requeue", "--partition=a100", "--open-mode=append"} <= head
    assert "#SBATCH --partition=a100 --account=me\n" in text and "\nmodule load cuda\n" in text
    names = "\n".join(f"  {cell.name}" for cell in grid.cells[:3])
    assert f"cells=(\n{names}\n)" in text and "cd -- /clone " in text
    assert f"-m launch.sweep configs/a.py --out {tmp_path}/out --only" in text


@pytest.mark.parametrize(
    ("settings", "tasks"),
    [
        (Slurm(), 1),
        (Slurm(gpus_per_node=8), 1),
        (Slurm(nodes=3), 1),
        (Slurm(nodes=2, gpus_per_node=4), 4),
        (Slurm(gpus_per_node=4, tasks_per_node=4), 4),
    ],
)
def test_several_processes_have_one_gpu_each(tmp_path, settings, tasks):
    check(settings, "out")
    grid = small_grid(tmp_path / "out")
    assert f"--ntasks-per-node={tasks}\n" in script(grid, grid.cells, "a.py", settings, tmp_path)


@pytest.mark.parametrize(
    ("settings", "out", "sentence"),
    [
        (
            Slurm(nodes=2, gpus_per_node=8, tasks_per_node=1),
            "out",
            "--slurm.tasks-per-node 1 does not fit 8 GPUs",
        ),
        (
            Slurm(gpus_per_node=8, tasks_per_node=2),
            "out",
            "JAX gives each of several processes under Slurm one",
        ),
        (Slurm(nodes=0), "out", "--slurm.nodes is 0; give at least 1"),
        (Slurm(setup="a\nb"), "out", "--slurm.setup has several lines"),
        (Slurm(options=("--a\n#",)), "out", "several lines"),
        (Slurm(), "gs://bucket/out", "is in a bucket, but Slurm's logs need a directory"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, out, sentence):
    with pytest.raises(UserError, match=sentence):
        check(settings, out)


def test_without_slurm_the_script_is_there_and_shown(tmp_path, capsys, monkeypatch):
    file = write_config(tmp_path)
    execute("sweep", [str(file), "--on", "slurm", "--dry-run"])
    shown = capsys.readouterr().out
    assert "4 cells," in shown and "#SBATCH --array=0-3" in shown
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^sbatch is not here; submit .*/out/slurm/sweep\.sbatch where"):
        execute("sweep", [str(file), "--on", "slurm"])
    assert (tmp_path / "out/slurm/sweep.sbatch").read_text() == shown[shown.index("#!/bin/bash") :].rstrip(
        "\n"
    ) + "\n"


def test_options_of_another_place_are_refused(tmp_path):
    file = write_config(tmp_path)
    for option, sentence in (
        ("--slurm.nodes=2", "^--slurm goes with --on slurm"),
        ("--kubernetes.pods=2", "^--kubernetes goes with --on kubernetes"),
    ):
        with pytest.raises(UserError, match=sentence):
            execute("sweep", [str(file), option])


def run_script(tmp_path, step, restarts=0, term=False):
    """The script of one cell where stand-ins take the place of Slurm's commands: (status, what was called)."""
    grid = small_grid(tmp_path / "out")
    (tmp_path / "script.sh").write_text(script(grid, grid.cells[:1], "a.py", Slurm(restarts=3), tmp_path))
    for name, text in {"srun": step, "scontrol": "", "scancel": "touch stop"}.items():
        file = tmp_path / name
        file.write_text(f'#!/bin/bash\necho "{name} $@" >> called\n{text}\n')
        file.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    process = subprocess.Popen(
        ["bash", "script.sh"], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    if term:
        wait_for((tmp_path / "called").exists, tmp_path, 20)
        process.terminate()
    status = process.wait(timeout=30)
    called = (tmp_path / "called").read_text().splitlines()
    assert called[0].startswith("srun ") and called[0].endswith(f"--only {grid.cells[0].name}")
    return status, called[1:]


AGAIN = "scontrol requeue 17"


@pytest.mark.parametrize(
    ("step", "restarts", "status", "called"),
    [("exit 0", 0, 0, []), ("exit 143", 9, 143, [AGAIN]), ("exit 1", 2, 1, [AGAIN]), ("exit 1", 3, 1, [])],
)
def test_what_was_preempted_is_queued_again_and_what_failed_some_times(
    tmp_path, step, restarts, status, called
):
    assert run_script(tmp_path, step, restarts) == (status, called)


@pytest.mark.parametrize(("ends", "calls"), [(143, [AGAIN]), (1, [AGAIN]), (0, [])])
def test_close_to_the_time_limit_processes_are_told_to_save(tmp_path, ends, calls):
    step = f"until [[ -e stop ]]; do sleep 0.05; done; exit {ends}"
    status, called = run_script(tmp_path, step, restarts=9, term=True)
    assert (status, called) == (ends, ["scancel --signal=TERM 17", *calls])


STEPS = 400
"""Of stage 2: enough to be stopped on the way, on a busy machine and on an idle one."""


def sweep(environment, file, *options):
    command = [sys.executable, "-m", "launch.sweep", str(file), *options]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logs(folder):
    return "\n".join(
        f"{file.name}: {file.read_text()[-3000:]}" for file in sorted((folder / "out/slurm").glob("*.log"))
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"there is no {', '.join(MISSING)}")
def test_on_a_real_slurm_a_cell_of_two_processes_is_preempted_and_goes_on(tmp_path):
    """A cell in two tasks, told to stop in the middle of its training; queued again; then it is done."""
    file = write_config(tmp_path, steps=STEPS)
    grid = small_grid(tmp_path / "out", steps=STEPS)
    first = grid.cells[0].name
    with slurm_node(tmp_path / "slurm") as environment:
        environment["XLA_FLAGS"] = re.sub(r"count=\d+", "count=1", environment["XLA_FLAGS"])
        told = sweep(environment, file, "--on=slurm", "--slurm.tasks-per-node=2", "--shard=0/4")
        job = re.match(r"1 cells are array job (\d+); logs: ", told)
        assert job, told
        progress = tmp_path / f"out/jobs/{first}.progress"
        wait_for(progress.exists, tmp_path / "slurm")
        table = sweep(environment, file, "--status")
        assert re.search(rf"{first} +running +1 .* x 2 \(slurm {job[1]}_0\)", table), table
        wait_for(lambda: progress.exists() and "stage 2" in progress.read_text(), tmp_path / "slurm")
        said(environment, "scancel", "--signal=TERM", f"{job[1]}_0")

        def waits() -> bool:
            return f"{first} is queued again" in logs(tmp_path)

        wait_for(waits, tmp_path / "slurm", 120)
        assert "saved after step" in logs(tmp_path), logs(tmp_path)
        # Slurm lets what is queued again wait for two minutes.
        wait_for(
            lambda: "JobState=PENDING" in said(environment, "scontrol", "show", "job", f"{job[1]}_0"),
            tmp_path / "slurm",
        )
        # Its node refuses what it has just ended.
        time.sleep(15)
        said(environment, "scontrol", "update", f"JobId={job[1]}_0", "StartTime=now")
        done = result_file(grid, first)
        wait_for(done.is_file, tmp_path / "slurm", 300)
        wait_for(lambda: read_attempts(grid, first)[-1]["ended"] is not None, tmp_path / "slurm")
        table = sweep(environment, file, "--status")
    attempts = read_attempts(grid, first)
    assert [(one["outcome"], one["processes"]) for one in attempts] == [("preempted", 2), ("done", 2)], logs(
        tmp_path
    )
    assert {one["place"] for one in attempts} == {f"slurm {job[1]}_0"}
    assert "4 cells: 1 done, 3 waiting" in table
    curve = json.loads(done.read_text())["result"]["losses"]["stage2"]
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
