"""Runs the steps that are not done, one after another, each as a process of its own."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from quecc_jax.data.files import size_and_time
from quecc_jax.errors import UserError
from quecc_jax.experiments.reproduce import fetch
from quecc_jax.experiments.reproduce.downloads import Download, Remote
from quecc_jax.experiments.reproduce.stamps import (
    FileStamp,
    State,
    digest,
    needed,
    read_stamp,
    states_of,
    write_stamp,
)
from quecc_jax.experiments.reproduce.steps import Step


class How(NamedTuple):
    """How steps are run."""

    fetches: bool = False
    """Whether missing files are fetched."""
    mirror: str = ""
    """Where from, in place of their own addresses."""
    by: tuple[str, ...] = ()
    """What stands in front of each command that needs the devices, such as srun."""
    environment: Mapping[str, str] | None = None
    """Of the commands; None is this process's."""

    def can_fetch(self, download: Download, remote: Remote) -> bool:
        """Whether a file is fetched if it is missing."""
        return self.fetches and bool(fetch.address(download, remote, self.mirror))


def run_steps(steps: Sequence[Step], root: Path, how: How) -> None:
    """Runs every step that is not done and whose needs are; what cannot be fetched here is named at the end.

    Raises:
      UserError: a step is stale or failed, or files are missing that a person has to fetch.
      SystemExit: Ctrl-C or SIGTERM, once the command in progress has ended.
      KeyboardInterrupt: Ctrl-C while something is fetched or unpacked.
    """
    found = states_of(steps, root, how.can_fetch)
    for step in steps:
        state = found[step.name]
        if state.word == "stale":
            raise UserError(
                f"{step.name}: {state.why}; --again {step.name} puts it aside, with what follows from it, and --run "
                "makes it anew"
            )
        if state.word != "ready":
            continue
        print(f"\n== {step.name}: {step.about}", flush=True)
        try:
            _run(step, root, how, found)
        except KeyboardInterrupt:
            print(f"stopped in {step.name}; the same command goes on there", file=sys.stderr)
            raise
        found = states_of(steps, root, how.can_fetch)
    _name_missing(found)


def _name_missing(found: Mapping[str, State]) -> None:
    missing = [
        f"{name} ({state.why})" if state.word == "to fetch" else f"{name} (by hand)"
        for name, state in found.items()
        if state.word in ("to fetch", "by hand")
    ]
    if missing:
        raise UserError(
            f"files are missing: {', '.join(missing)}; without --run the commands that fetch them are printed, and "
            "--download fetches those that have an address"
        )


def _run(step: Step, root: Path, how: How, found: Mapping[str, State]) -> None:
    began, needs = time.time(), needed(step, dict(found))
    if step.download is not None:
        files = bring(step, root, how)
        made = digest_of_files(files)
        write_stamp(root, step, needs, made, began, files)
        return
    if read_stamp(root, step) and (made := digest(step, root)):
        # It was killed between the end of the command and that of this.
        write_stamp(root, step, needs, made, began)
        return
    write_stamp(root, step, needs, "", began)
    argv = command(step, how.by)
    print(f"$ {shlex.join(argv)}", flush=True)
    status, told = _execute(argv, how.environment)
    made = digest(step, root)
    if made and status == 0:
        write_stamp(root, step, needs, made, began)
    if told:
        print(f"{step.name} has ended on {told.name}; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(128 + told)
    if status != 0:
        raise UserError(
            f"{step.name} ended with status {status}; see its last lines above; the same command tries it again"
        )
    if not made:
        raise UserError(
            f"{step.name} ended before all of {root / step.out} was made, as after a preemption; the same command goes "
            "on with it"
        )


def command(step: Step, by: Sequence[str] = ()) -> list[str]:
    """The command line of a step."""
    argv = [sys.executable, "-m", f"launch.{step.command[0]}", *step.command[1:], *step.device]
    return [*by, *argv] if step.kind in ("train", "evaluate") else argv


def _execute(argv: Sequence[str], environment: Mapping[str, str] | None) -> tuple[int, signal.Signals | None]:
    """Runs a command to its end; returns its status, and the signal that came meanwhile and was handed on.

    The command has a session of its own, so that Ctrl-C on the terminal reaches it once, from here.
    """
    told: list[signal.Signals] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        told.append(signal.Signals(number))
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(argv, env=environment, start_new_session=True)
        for number in tuple(told):
            process.send_signal(number)
        status = process.wait()
    except OSError as error:
        raise UserError(f"{argv[0]} cannot be started ({error.strerror}); see --by") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status, told[0] if told else None


def bring(step: Step, root: Path, how: How) -> dict[str, FileStamp]:
    """Brings, checks and unpacks the files of a download; what each of them is."""
    download = step.download
    assert download is not None
    before = read_stamp(root, step)
    files: dict[str, FileStamp] = {}
    for one in download.remotes:
        path, where = fetch.place(one, root), fetch.address(download, one, how.mirror)
        known = before["files"].get(one.path) if before else None
        if not path.is_file():
            if known and one.into and not fetch.missing(root, download.makes):
                # Unpacked, and deleted since.
                files[one.path] = known
                continue
            if not how.can_fetch(download, one):
                raise UserError(f"{path} is missing; {how_to_get(one.how or where, path)}")
            found = fetch.fetch(one, where, root)
        else:
            found = fetch.checked(one, path, path)
        if known and known["sha256"] != found:
            raise UserError(
                f"{path} is not the file that was here first: its SHA-256 was {known['sha256']} and is {found}; "
                f"restore it, or take this one with --again {step.name}"
            )
        size, changed = size_and_time(path)
        files[one.path] = {"bytes": size, "time": changed, "sha256": found}
        if one.into:
            fetch.unpack(one, root)
    for second, first in download.links:
        fetch.link(root, second, first)
    if lost := fetch.missing(root, download.makes):
        raise UserError(
            f"{step.name} is unpacked, but {', '.join(lost)} is not in {root}: its archives are laid out otherwise "
            "than was known; move it there by hand and start again"
        )
    return files


def how_to_get(how: str, path: Path) -> str:
    """A command or an address as half a sentence."""
    return (
        f"put it there: {how.format(path=path)}" if " " in how else f"fetch it from {how}, or with --download"
    )


def digest_of_files(files: Mapping[str, FileStamp]) -> str:
    """A checksum of what was fetched."""
    return " ".join(one["sha256"][:16] for one in files.values())
