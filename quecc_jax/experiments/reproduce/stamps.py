"""What became of each step: steps/NAME.json, and whether it still holds.

A stamp is written before a step begins, with a checksum of its settings and of what it needs, and again when it has
ended, with one of what it made. So a run that was begun from other weights or settings is not gone on with.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from quecc_jax.checksums import FILE
from quecc_jax.data.files import size_and_time
from quecc_jax.evaluate.results import Results
from quecc_jax.experiments.reproduce import fetch
from quecc_jax.experiments.reproduce.downloads import Download, Remote
from quecc_jax.experiments.reproduce.steps import TASKS, Step
from quecc_jax.records import Count, Damaged, NonNegative, read_record, write_record
from quecc_jax.train.run_dir import CHECKPOINTS

RESULTS = "results.json"


class FileStamp(TypedDict):
    """A file that was fetched."""

    bytes: Count
    time: float
    """Of its last change, in seconds since the epoch."""
    sha256: str


class Stamp(TypedDict):
    """What steps/NAME.json says."""

    step: str
    settings: str
    needs: dict[str, str]
    """What each step that it needs had made."""
    made: str
    """A checksum of what it made; empty while it runs, and where it was stopped."""
    files: dict[str, FileStamp]
    """Of a download, by path below the kit's directory."""
    seconds: NonNegative
    """From its begin to its end, the last time."""


Word = Literal["done", "ready", "to fetch", "by hand", "waits", "stale", "not needed"]


Fetches = Callable[[Download, Remote], bool]
"""Whether a file can be fetched."""


class State(NamedTuple):
    """Where a step stands."""

    word: Word
    why: str = ""
    made: str = ""


def stamp_file(root: Path, step: Step) -> Path:
    """Where the stamp of a step lies: in the kit's directory, of a row's own beside its runs."""
    own = step.kind in ("train", "evaluate")
    return ((root / step.out).parent if own else root) / "steps" / f"{step.name}.json"


def read_stamp(root: Path, step: Step) -> Stamp | None:
    """The stamp of a step, if there is one.

    Raises:
      Damaged: it does not hold what was written, or is another step's.
    """
    file = stamp_file(root, step)
    advice = f"delete it and what {step.name} made, which is then made again"
    try:
        found = read_record(file, Stamp, advice)
    except FileNotFoundError:
        return None
    if found["step"] != step.name:
        raise Damaged(f"{file} is the stamp of {found['step']}; {advice}")
    return found


def write_stamp(
    root: Path,
    step: Step,
    needs: dict[str, str],
    made: str,
    began: float,
    files: dict[str, FileStamp] | None = None,
) -> None:
    """Writes the stamp of a step that begins (`made` is empty) or has ended.

    Args:
      files: of a download, by path.
    """
    stamp: Stamp = {
        "step": step.name,
        "settings": step.settings,
        "needs": needs,
        "made": made,
        "files": files or {},
        "seconds": max(0.0, time.time() - began),
    }
    write_record(stamp_file(root, step), stamp)


def states_of(steps: Sequence[Step], root: Path, fetches: Fetches | None = None) -> dict[str, State]:
    """Where each step stands, by name.

    Args:
      fetches: which missing files can be fetched; None for none, which a person has to.
    """
    found: dict[str, State] = {}
    for step in steps:
        found[step.name] = (
            _download_state(step, root, fetches) if step.download else _state(step, root, found)
        )
    for step in reversed(steps):
        # Whoever makes room by deleting what others were made from does not want it back.
        uses = [found[one.name].word for one in steps if step.name in one.needs]
        gone = found[step.name].word in ("ready", "to fetch", "by hand", "waits")
        if uses and gone and {*uses} <= {"done", "not needed"}:
            found[step.name] = State("not needed", "what it made is gone, and has been used")
    return found


def needed(step: Step, found: dict[str, State]) -> dict[str, str]:
    """What the steps that one needs have made, as far as they are done."""
    return {name: found[name].made for name in step.needs if found[name].word == "done"}


def _state(step: Step, root: Path, found: dict[str, State]) -> State:
    stamp, made, have = read_stamp(root, step), digest(step, root), needed(step, found)
    waits = [name for name in step.needs if name not in have]
    state = State("waits", f"for {', '.join(waits)}") if waits else State("ready")
    if not made and not _begun(step, root):
        return state
    if stamp is None:
        return State("stale", f"{root / step.out} is there, but nothing says that it was made so")
    changed = [f"what {name} made" for name, one in have.items() if stamp["needs"].get(name) != one]
    if stamp["settings"] != step.settings:
        changed.insert(0, "its settings")
    if stamp["made"] and made and made != stamp["made"]:
        changed.append(f"{root / step.out} itself")
    if changed:
        return State("stale", f"{' and '.join(changed)} changed since it was begun")
    if stamp["made"] and made:
        return State("done", made=made)
    return state


def _begun(step: Step, root: Path) -> bool:
    """Whether there is something that would be gone on with; a run that has saved nothing begins anew."""
    folder = root / step.out
    return any((folder / CHECKPOINTS).glob("*")) if step.kind == "train" else folder.exists()


def digest(step: Step, root: Path) -> str:
    """A checksum of what a step made; empty where that is not all there."""
    folder = root / step.out
    if step.kind == "evaluate":
        return _of_files(folder, [RESULTS]) if asked_all(folder) else ""
    numbers = [int(one.name) for one in (folder / CHECKPOINTS).glob("*") if one.name.isdecimal()]
    newest = max(numbers, default=-1)
    # Training that was told to end saves, and ends with status 0.
    if newest < step.last:
        return ""
    frozen = [f"frozen/{FILE}"] if (folder / "frozen").exists() else []
    return _of_files(folder, ["config.json", *frozen, f"{CHECKPOINTS}/{newest}/{FILE}"])


def read_results(folder: Path) -> Results | None:
    """results.json of the benchmarks, if it is there.

    Raises:
      Damaged: it does not hold what was written.
    """
    try:
        return read_record(folder / RESULTS, Results, "evaluate again: delete it")
    except FileNotFoundError:
        return None


def asked_all(folder: Path) -> bool:
    """Whether every question of every benchmark was asked."""
    results = read_results(folder)
    return results is not None and results["limit"] is None and {*results["tasks"]} >= {*TASKS}


def _of_files(folder: Path, names: Sequence[str]) -> str:
    total = hashlib.sha256()
    try:
        for name in names:
            total.update(f"{name}\0{fetch.sha256(folder / name)}".encode())
    except FileNotFoundError:
        return ""
    return total.hexdigest()[:16]


def _download_state(step: Step, root: Path, fetches: Fetches | None) -> State:
    download, stamp = step.download, read_stamp(root, step)
    assert download is not None
    lost = fetch.missing(root, download.makes)
    if not download.remotes:
        return State("by hand", download.note) if lost else State("done", made=_counted(root, download))
    if stamp is not None and stamp["settings"] != step.settings:
        return State("stale", "what it should be changed since it was fetched")
    if stamp is not None and stamp["made"]:
        if changed := _changed(root, download, stamp["files"]):
            return State("stale", f"{root / changed} is not the file that was here first")
        if not lost and not _gone(root, download):
            return State("done", made=stamp["made"])
    absent = [one for one in download.remotes if not fetch.place(one, root).is_file()]
    if all(fetches is not None and fetches(download, one) for one in absent):
        return State("ready")
    return State("to fetch", f"{len(absent)} of {len(download.remotes)} files")


def _counted(root: Path, download: Download) -> str:
    """How many files are in folders that were filled by hand."""
    return " ".join(str(sum(1 for _ in (root / one).iterdir())) for one in download.makes)


def _gone(root: Path, download: Download) -> bool:
    """Whether a file is missing that is read where it lies; an archive may go once it is unpacked."""
    return any(not one.into and not fetch.place(one, root).is_file() for one in download.remotes)


def _changed(root: Path, download: Download, files: dict[str, FileStamp]) -> str:
    """The path of a file that is not what its stamp says; a file that was touched is read."""
    for one in download.remotes:
        path, before = fetch.place(one, root), files.get(one.path)
        if not path.is_file() or before is None:
            continue
        if size_and_time(path) == (before["bytes"], before["time"]):
            continue
        if path.stat().st_size != before["bytes"] or fetch.sha256(path) != before["sha256"]:
            return one.path
    return ""


def following(name: str, steps: Sequence[Step]) -> list[Step]:
    """A step, and all that need what it made, in their order."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.name == name or found.keys() & {*step.needs}:
            found[step.name] = step
    return [*found.values()]


def set_aside(step: Step, root: Path) -> Path | None:
    """Forgets a step, and moves what it made to aside/NAME-NUMBER; the new place, if there was something."""
    stamp_file(root, step).unlink(missing_ok=True)
    made = root / step.out
    if step.download or not made.exists():
        return None
    number = 1
    while (target := root / "aside" / f"{step.name}-{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
    return target
