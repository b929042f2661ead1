"""Kills a tiny run again and again: `python -m tests.soak --out runs/soak`, or `make soak`.

SIGKILL, SIGTERM and SIGINT come at random moments, a third of them while a checkpoint is being written. Whenever
the run has come to its end, its parameters, optimizer, position in the data and log must equal those of a run that
nobody disturbed, bit by bit. Stopped and started again, it goes on; OUT/summary.json says what came of it.
"""

import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import tyro

from tests.soak.tiny_run import DATA, STEPS

ROOT = Path(__file__).parents[2]
SIGNALS = {"SIGKILL": 2, "SIGTERM": 1, "SIGINT": 1}
"""What is sent, and how often in relation."""
MOMENTS = ("at any time", "behind a step", "during a save")
HANG_S = 60.0
"""Seconds after which a process that was told to end is taken to hang."""
ORDERLY = {
    # 0 where it had finished, or has saved; without `interrupted` it came while Python itself was starting.
    "SIGKILL": {0, -signal.SIGKILL},
    "SIGTERM": {0, -signal.SIGTERM, 128 + signal.SIGTERM},
    "SIGINT": {0, -signal.SIGINT, 128 + signal.SIGINT},
}
SAME = ("step", "loss", "grad_norm", "learning_rate", "skipped", "truncated", "dropped")
"""Parts of a record that do not depend on the time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Kills a tiny run again and again and compares what comes out."""

    out: Path = Path("runs/soak")
    """Directory for the runs and for what has been done so far."""
    signals: int = 200
    """How many to send in all."""


@dataclasses.dataclass
class Sent:
    """One signal and what came of it."""

    signal: str
    moment: str
    status: int
    seconds: float
    step: int
    saving: bool
    fault: str


def main(options: Options) -> int:
    """Sends what is left of the signals; returns 1 if anything went wrong."""
    # What a shell starts in the background ignores the signal, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["JAX_PLATFORMS"] = "cpu"
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_data(out)
    state = out / "state.json"
    done: dict[str, Any] = {"sent": [], "compared": 0, "different": []}
    if state.exists():
        done = json.loads(state.read_text())
    sent = [Sent(**one) for one in done["sent"]]
    if not (out / "straight" / "checkpoints" / str(STEPS)).is_dir():
        started(out, "straight").communicate()
    began, before = time.monotonic(), len(sent)
    run = ""
    while len(sent) < options.signals or run:
        if not run:
            run = Path(tempfile.mkdtemp(prefix="run-", dir=out)).name
        one = None
        if len(sent) < options.signals:
            one = disturbed(out, run, len(sent))
        else:
            undisturbed(out, run)
        if one is not None:
            sent.append(one)
            left = (time.monotonic() - began) / (len(sent) - before) * (options.signals - len(sent))
            where = "during a save" if one.saving else f"after step {one.step}"
            print(
                f"{len(sent)}/{options.signals} {one.signal} {where}: status {one.status} in {one.seconds:.1f} s"
                f"{', ' + one.fault if one.fault else ''}; {left / 60:.0f} min left",
                flush=True,
            )
        if (out / run / "checkpoints" / str(STEPS)).is_dir():
            difference = compared(out / "straight", out / run)
            done["compared"] += 1
            done["different"] += [f"{run}: {difference}"] if difference else []
            print(f"{run} has ended {'differently: ' + difference if difference else 'the same'}", flush=True)
            if not difference:
                shutil.rmtree(out / run)
            run = ""
        done["sent"] = [dataclasses.asdict(one) for one in sent]
        write(state, done)
        write(out / "summary.json", summary(sent, done))
    print((out / "summary.json").read_text())
    return int(bool(done["different"] or any(one.fault for one in sent)))


def write_data(out: Path) -> None:
    """50 images with a question each, as `tests.train.conftest` has them."""
    import numpy as np
    from PIL import Image

    from quecc_jax.data.text.word_tokenizer import train_word_tokenizer

    folder = out / "data"
    if (folder / "rows.json").exists():
        return
    folder.mkdir(exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(50):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        turns = [("human", "<image>\nhow many dots"), ("gpt", str(number))]
        conversation = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": number, "image": f"{number}.png", "conversations": conversation})
    train_word_tokenizer(["how many dots"], folder / "tokenizer")
    (folder / "rows.json").write_text(json.dumps(rows))


def started(out: Path, run: str) -> "subprocess.Popen[str]":
    """The training, as a user starts it; compiled programs are kept."""
    environment = {
        **os.environ,
        DATA: str(out / "data"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "launch.train", "tests/soak/tiny_run.py", "--out", str(out / run)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=-1, text=True)


class Watched:
    """A process whose log lines are read as they come."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self.process, self.step, self.lines = process, 0, list[str]()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            # RUN STEP/STEPS  loss ...
            step, _, rest = line.partition(" ")[2].partition("/")
            if rest.startswith(f"{STEPS}  loss"):
                self.step = int(step)
            else:
                self.lines.append(line)

    def until(self, condition: Any, limit_s: float) -> bool:
        """Waits; returns whether the condition came to hold while the process ran."""
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.001)
        return False


def disturbed(out: Path, run: str, number: int) -> Sent | None:
    """Starts or continues the run and sends it the number-th signal; None if it ended before that."""
    chance = random.Random(number * 1000 + time.time_ns() % 1000)
    name = chance.choices([*SIGNALS], [*SIGNALS.values()])[0]
    moment, folder = MOMENTS[number % 3], out / run / "checkpoints"

    # What a killed process had begun is there until the next has started; then its numbers are free.
    before = unfinished(folder)

    def saving() -> bool:
        now = unfinished(folder)
        before.intersection_update(now)
        return bool(now - before)

    def reached(step: int) -> bool:
        saving()
        return watched.step >= step

    process = started(out, run)
    try:
        watched = Watched(process)
        if moment == "at any time":
            watched.until(lambda: reached(STEPS + 1), chance.uniform(0, 15))
        elif moment == "behind a step":
            last = saved(folder)
            goal = last + chance.randint(1, max(1, min(30, STEPS - last)))
            watched.until(lambda: reached(goal), 120)
        else:
            skipped = chance.randint(0, 2)
            for _ in range(skipped):
                watched.until(saving, 120)
                watched.until(lambda: not saving(), 120)
            watched.until(saving, 120)
            time.sleep(chance.uniform(0, 0.05))
        if process.poll() is not None:
            return None
        was_saving, step = saving(), watched.step
        process.send_signal(getattr(signal, name))
        sent_at = time.monotonic()
        hung = ""
        try:
            status = process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status, hung = process.wait(), "hung"
        seconds = time.monotonic() - sent_at
        watched.thread.join(10)
        fault = hung or fault_of(name, status, watched)
        if fault:
            (out / f"fault-{number}.txt").write_text("".join(watched.lines))
        return Sent(name, moment, status, round(seconds, 2), step, was_saving, fault)
    finally:
        process.kill()
        process.wait()


def fault_of(name: str, status: int, watched: Watched) -> str:
    """What was not as it should be in the end of a process."""
    if status not in ORDERLY[name]:
        return f"status {status}"
    # Before the program has begun, Python shows where it was interrupted.
    begun = watched.step > 0
    return "a traceback" if begun and any("Traceback" in line for line in watched.lines) else ""


def undisturbed(out: Path, run: str) -> None:
    """Lets the run come to its end."""
    _, err = started(out, run).communicate()
    if not (out / run / "checkpoints" / str(STEPS)).is_dir():
        raise SystemExit(f"{run} does not go on:\n{err}")


def unfinished(folder: Path) -> set[int]:
    """The directories that orbax is writing, by their numbers in the file system."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if "tmp" in entry.name:
                found.add(entry.inode())
    return found


def saved(folder: Path) -> int:
    """The newest checkpoint's step, or 0."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def compared(one: Path, other: Path) -> str:
    """What differs between the ends of two runs, or nothing."""
    ends = [end_of(run) for run in (one, other)]
    for name in ends[0].keys() | ends[1].keys():
        if ends[0].get(name) != ends[1].get(name):
            return name
    return ""


def end_of(run: Path) -> dict[str, Any]:
    """Every array's bytes by name, those of the frozen parameters too, the position in the data, and the log."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from quecc_jax.train.checkpoint import FROZEN, named_leaves

    path = run / "checkpoints" / str(STEPS)
    about = ocp.checkpointables_metadata(path)
    with warnings.catch_warnings():
        # That the arrays come as they were saved, which is what is wanted.
        warnings.filterwarnings("ignore", "Sharding info not provided")
        arrays = ocp.load_checkpointables(path, {"params": None, "optimizer": None})
        arrays[FROZEN] = ocp.load(run / FROZEN)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(arrays).items()}
    return {
        # What identifies the frozen parameters covers the time at which each run wrote its own.
        "position": {name: told for name, told in about.custom_metadata.items() if name != FROZEN},
        "metrics.jsonl": [[record.get(name) for name in SAME] for record in lines],
        **{name: (leaf.dtype, leaf.shape, leaf.tobytes()) for name, leaf in leaves.items()},
    }


def summary(sent: list[Sent], done: dict[str, Any]) -> dict[str, Any]:
    """Numbers for a report."""
    by = collections.Counter((one.signal, one.status) for one in sent)
    return {
        "signals": len(sent),
        "during_a_save": sum(one.saving for one in sent),
        "before_the_first_step": sum(one.step == 0 for one in sent),
        "statuses": {f"{name} {status}": count for (name, status), count in sorted(by.items())},
        "longest_end_seconds": max((one.seconds for one in sent), default=0.0),
        "runs_compared": done["compared"],
        "runs_different": done["different"],
        "faults": [f"{one.signal} {one.moment}: {one.fault}" for one in sent if one.fault],
    }


def write(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
