"""A grid as one array job of Slurm: each cell is a task of the array, with one process or several."""

import dataclasses
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from quecc_jax.errors import UserError
from quecc_jax.experiments.clusters.command import PREEMPTED, cell_command
from quecc_jax.experiments.grid import Cell, Grid
from quecc_jax.paths import is_remote, write_text

NOTICE_S = 240
"""Seconds before the time limit at which the processes are told to save."""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """What a cell gets of a Slurm cluster."""

    nodes: int = 1
    """Nodes of each cell."""
    gpus_per_node: int = 0
    """GPUs of each node."""
    tasks_per_node: int = 0
    """Processes of each node; 0 takes one for all GPUs where there is one node, and one for each GPU where there are
    several: JAX gives each of several processes under Slurm one GPU."""
    time: str = ""
    """Longest time at a stretch, as 04:00:00; what has not ended by then saves, and goes on in another stretch."""
    at_once: int = 0
    """Cells that run at once, at most; 0 leaves that to Slurm."""
    restarts: int = 3
    """A cell that fails is started again until it was started so many times more, preemptions included."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as "--partition=a100 --account=me", in one word or several."""
    setup: str = ""
    """A line of bash before the command, such as "module load cuda"."""


def check(settings: Slurm, out: str) -> None:
    """Raises UserError for settings that do not fit together, or an `out` that holds no logs."""
    least = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 0, "at_once": 0, "restarts": 0}
    for name, lowest in least.items():
        if (value := getattr(settings, name)) < lowest:
            raise UserError(f"--slurm.{name.replace('_', '-')} is {value}; give at least {lowest}")
    tasks, gpus = _tasks_per_node(settings), settings.gpus_per_node
    if gpus and tasks * settings.nodes > 1 and tasks != gpus:
        raise UserError(
            f"--slurm.tasks-per-node {tasks} does not fit {gpus} GPUs a node: JAX gives each of several processes "
            "under Slurm one GPU, and the others would be idle; leave it out"
        )
    if is_remote(out):
        raise UserError(f"--out {out} is in a bucket, but Slurm's logs need a directory that all nodes see")
    for name in ("setup", "time", *settings.options):
        if "\n" in getattr(settings, name, name):
            raise UserError(f"--slurm.{name} has several lines; give one")


def script(grid: Grid, cells: Sequence[Cell], config: str, settings: Slurm, folder: Path) -> str:
    """The file for sbatch: an array with a task for each cell.

    Args:
      config: as it was named on the command line.
      folder: where its commands run: this one.
    """
    logs = Path(grid.out).absolute() / "slurm"
    # As all of it is for --only, which is the last word.
    quecc = str(Path(sys.executable).with_name("quecc"))
    clone = importlib.util.find_spec("launch") is not None
    program = [sys.executable, "-m", "launch.sweep"] if clone else [quecc, "sweep"]
    command = shlex.join(cell_command(program, config, str(Path(grid.out).absolute()), "")[:-1])
    head = {
        "job-name": f"quecc-{grid.name}",
        "array": f"0-{len(cells) - 1}" + (f"%{settings.at_once}" if settings.at_once else ""),
        "nodes": settings.nodes,
        "ntasks-per-node": _tasks_per_node(settings),
        "gpus-per-node": settings.gpus_per_node or None,
        "time": settings.time or None,
        "output": logs / "%A_%a.log",
        "open-mode": "append",
        "signal": f"B:TERM@{NOTICE_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in head.items() if value is not None]
    given = [f"#SBATCH {option}" for option in settings.options]
    names = "\n".join(f"  {shlex.quote(cell.name)}" for cell in cells)
    return _SCRIPT.format(
        head="\n".join([*lines, "#SBATCH --requeue", *given]),
        names=names,
        folder=shlex.quote(str(folder)),
        setup=f"{settings.setup}\n" if settings.setup else "",
        command=command,
        late=NOTICE_S - 60,
        preempted=PREEMPTED,
        restarts=settings.restarts,
    )


_SCRIPT = """\
#!/bin/bash
{head}

cells=(
{names}
)
cell=${{cells[$SLURM_ARRAY_TASK_ID]}}
cd -- {folder} || exit 1
{setup}
again() {{
  echo "$cell is queued again"
  scontrol requeue "$SLURM_JOB_ID"
}}

# Close to the time limit the processes are told to save; what has not ended shortly before it is queued again as it is.
late=
waiter=
trap 'late=1; scancel --signal=TERM "$SLURM_JOB_ID"; (sleep {late}; again) & waiter=$!' TERM

srun --kill-on-bad-exit=1 {command} "$cell" &
step=$!
# A trapped signal ends one wait, and not what is waited for.
while wait "$step"; status=$?; kill -0 "$step" 2>/dev/null; do :; done
[[ $waiter ]] && kill "$waiter"

if [[ $status == {preempted} ]] || [[ $status != 0 && $late ]]; then
  again
elif [[ $status != 0 ]] && (( ${{SLURM_RESTART_COUNT:-0}} < {restarts} )); then
  again
fi
exit "$status"
"""


def submit(grid: Grid, text: str) -> str:
    """Writes the script beside the logs and submits it; returns the array's job number.

    Raises:
      UserError: there is no Slurm here, or it refuses.
    """
    file = Path(grid.out).absolute() / "slurm" / f"{grid.name}.sbatch"
    write_text(file, text)
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(f"sbatch is not here; submit {file} where it is, or see it with --dry-run") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise UserError(f"sbatch refused {file}: {said}")
    return done.stdout.strip().partition(";")[0]


def _tasks_per_node(settings: Slurm) -> int:
    return settings.tasks_per_node or (1 if settings.nodes == 1 else max(1, settings.gpus_per_node))
