"""A row of the paper's table 1, from the public files to the verdict.

python -m launch.reproduce --root /disk/table1 --slice v5e-16              # what is done, missing, and what it takes
python -m launch.reproduce --root /disk/table1 --slice v5e-16 --run --download
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quecc_jax.commands.checks import refuse_unread
from quecc_jax.config import RunConfig
from quecc_jax.config.io import nearest
from quecc_jax.errors import UserError

if TYPE_CHECKING:
    from quecc_jax.experiments.reproduce.stamps import State
    from quecc_jax.experiments.reproduce.steps import Step

CHOICES = (1, 4, 16, 36)
"""V of the table's rows of QueCC."""
GET = 'get() { curl -fL -C - --create-dirs -o "$1.part" "$2" && mv "$1.part" "$1"; }'
"""Fetches a file in a shell; one that is not whole has another name, and is gone on with."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and scores a row of QueCC in the paper's table 1, step by step, and holds it against the paper's. Without
    --run it says what is done and what is missing, and what that takes."""

    root: Path = Path("runs/table1")
    """Directory of everything: downloads, data, weights, runs, scores. All hosts must see it."""
    visual_tokens: int = 16
    """The row: V = 1, 4, 16 or 36. Rows share a root, and with it data and weights."""
    run: bool = False
    """Run the steps that are not done; started again, it goes on."""
    download: bool = False
    """With --run: fetch files that are missing, where they have an address."""
    mirror: str = ""
    """Fetch from MIRROR/STEP/FILE, an address or a folder, instead of from the files' own addresses."""
    slice: str = ""
    """TPU slice, for its settings and what it costs: v5e-16, v5e-64, v5e-256 or v5p-64. Without it the devices that are
    here share the work as --stage1-settings, --stage2-settings and --answer-settings say."""
    price: float | None = None
    """Dollars per chip and hour; by default the list price."""
    by: str = ""
    """What stands in front of the commands that need the devices, such as "srun", to start them on every host."""
    stage1_settings: str = ""
    """Further settings of stage 1, with = before them: --stage1-settings="--mesh.tensor 2". They count: a stage that
    was begun under others is not gone on with."""
    stage2_settings: str = ""
    """The same of stage 2: --stage2-settings="--data.bad-rows skip"."""
    answer_settings: str = ""
    """Further options of launch.evaluate for the devices: --answer-settings="--mesh.tensor 8"."""
    score: tuple[str, ...] = ()
    """Scores of benchmarks' servers, once their files were uploaded: vqav2=74.5 vizwiz=47.7."""
    again: str = ""
    """Put aside what this step made, and what follows from it; --run makes it anew."""
    rehearsal: bool = False
    """The same steps with a small model, on stand-ins that --mirror has; its scores mean nothing."""


def run(options: Options) -> None:
    """Says where things stand, or goes on."""
    _check(options)
    # What runs on the devices are other processes, which could not have them if this one did.
    environment = dict(os.environ)
    os.environ["JAX_PLATFORMS"] = "cpu"
    from quecc_jax.experiments.reproduce import run as runner
    from quecc_jax.experiments.reproduce.stamps import following, set_aside, states_of
    from quecc_jax.experiments.reproduce.verdict import give
    from quecc_jax.run_lock import run_lock

    root = options.root.absolute()
    steps, runs = _steps(options, root)
    answers, scores = root / steps[-1].out, root / f"{steps[-1].out}/servers.json"
    if not (options.run or options.again or options.score):
        _show(options, root, steps, runs)
        return
    with run_lock(str(root)):
        if options.again:
            names = [step.name for step in steps]
            if options.again not in names:
                raise UserError(f"--again {options.again} is no step; {nearest(options.again, names)}")
            for step in following(options.again, steps):
                moved = set_aside(step, root)
                print(f"{step.name} is forgotten" + (f"; what it made is in {moved}" if moved else ""))
        for one in options.score:
            give(scores, one, answers)
        if options.run:
            how = runner.How(options.download, options.mirror, tuple(_words("--by", options.by)), environment)
            runner.run_steps(steps, root, how)
        if states_of(steps, root)[steps[-1].name].word == "done":
            _verdict(options, root, answers, scores)


def _check(options: Options) -> None:
    if options.visual_tokens not in CHOICES:
        raise UserError(
            f"--visual-tokens {options.visual_tokens} is no row of QueCC in the paper's table; choose from "
            f"{', '.join(map(str, CHOICES))}"
        )
    if not options.run:
        refuse_unread(options, ("download", "by"), "goes with --run; add it or leave this out")
    if not options.slice:
        refuse_unread(options, ("price",), "goes with --slice; add it or leave this out")
    if options.mirror and options.run and not options.download and not options.rehearsal:
        raise UserError("--mirror goes with --download; add it or leave this out")
    if options.rehearsal and options.slice:
        raise UserError("--rehearsal runs on the devices that are here; leave --slice out")


def _words(option: str, text: str) -> list[str]:
    """The words of a part of a command line, as a shell reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{option} {text!r} cannot be read: {str(error).lower()}") from None


def _steps(options: Options, root: Path) -> "tuple[tuple[Step, ...], list[RunConfig]]":
    """The steps, and the settings of the two runs among them."""
    from quecc_jax.commands.options import parse_run
    from quecc_jax.experiments.reproduce.cost import find_slice
    from quecc_jax.experiments.reproduce.steps import Recipe, steps_of

    runs: list[RunConfig] = []

    def resolve(argv: Sequence[str]) -> RunConfig:
        runs.append(parse_run(argv, "python -m launch.train"))
        return runs[-1]

    training, answering = ("", ""), options.answer_settings
    if options.slice:
        chosen = find_slice(options.slice)
        training, answering = chosen.training, f"{chosen.answering} {options.answer_settings}"
    recipe = Recipe(
        options.visual_tokens,
        options.rehearsal,
        (shlex.split(training[0]), shlex.split(training[1])),
        _words("--answer-settings", answering),
        (
            _words("--stage1-settings", options.stage1_settings),
            _words("--stage2-settings", options.stage2_settings),
        ),
    )
    return steps_of(recipe, root, resolve), runs


def _show(options: Options, root: Path, steps: "Sequence[Step]", runs: Sequence[RunConfig]) -> None:
    """Prints every step and its state, what to fetch, hours, dollars and disk, and the verdict so far."""
    from quecc_jax.experiments.reproduce import cost
    from quecc_jax.experiments.reproduce.stamps import states_of

    found = states_of(steps, root)
    print(f"QueCC at V = {options.visual_tokens} in the paper's table 1, in {root}\n")
    wide = max(len(step.name) for step in steps)
    word = max(len(state.word) for state in found.values())
    for number, step in enumerate(steps, start=1):
        state = found[step.name]
        print(f"{number:2} {step.name:{wide}}  {state.word:{word}}  {step.about}{_why(state)}")
    _show_downloads(root, steps, found, options.mirror)
    _show_commands(steps, found)
    print()
    if options.slice:
        print(cost.estimate(options.slice, runs, options.price))
    elif not options.rehearsal:
        print("hours and dollars: name a slice with --slice")
    if not options.rehearsal:
        downloads = [step.download for step in steps if step.download]
        packed, unpacked, kept = cost.disk(downloads, runs)
        free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free / 1e9
        print(
            f"disk: {packed:,.0f} GB of downloads, {unpacked:,.0f} GB unpacked (archives may go then), {kept:,.0f} GB "
            f"of weights and checkpoints at most; {free:,.0f} GB are free; files whose size nobody states come on top"
        )
    if found[steps[-1].name].word == "done":
        print()
        _verdict(options, root, root / steps[-1].out, root / f"{steps[-1].out}/servers.json", keep=False)
    elif stale := [name for name, state in found.items() if state.word == "stale"]:
        print(f"{', '.join(stale)}: see above; --again {stale[0]} puts it aside, with what follows from it")
    else:
        print("go on: the same command with --run")


def _why(state: "State") -> str:
    return f" ({state.why})" if state.why and state.word != "by hand" else ""


def _show_downloads(root: Path, steps: "Sequence[Step]", found: "dict[str, State]", mirror: str) -> None:
    """Prints the commands that fetch what is missing, with sizes and checksums."""
    from quecc_jax.experiments.reproduce import fetch

    lines = list[str]()
    for step in steps:
        if step.download is None or found[step.name].word == "done":
            continue
        absent = [one for one in step.download.remotes if not fetch.place(one, root).is_file()]
        if not absent and found[step.name].word != "by hand":
            continue
        lines.append(f"# {step.name}{f': {step.download.note}' if step.download.note else ''}")
        for one in absent:
            size = f"{one.bytes:,} bytes" if one.bytes else f"{one.gb:g} GB" if one.gb else ""
            known = ", ".join(part for part in (size, one.sha256 and f"sha256 {one.sha256}") if part)
            where = fetch.address(step.download, one, mirror)
            # curl takes addresses alone.
            where = where if "://" in where else Path(where).absolute().as_uri()
            by_hand = one.how and not mirror
            how = (
                one.how.format(path=shlex.quote(one.path))
                if by_hand
                else f"get {shlex.quote(one.path)} {shlex.quote(where)}"
            )
            lines.append(how + (f"   # {known}" if known else ""))
    if lines:
        print(f"\nto fetch, or with --run --download:\ncd {shlex.quote(str(root))}\n{GET}")
        print("\n".join(lines))


def _show_commands(steps: "Sequence[Step]", found: "dict[str, State]") -> None:
    """Prints the commands that are left."""
    from quecc_jax.experiments.reproduce.run import command

    left = [step for step in steps if step.command and found[step.name].word != "done"]
    if left:
        print("\nto run, or with --run:")
    for step in left:
        print(f"# {step.name}")
        print(shlex.join(["python", *command(step)[1:]]))


def _verdict(options: Options, root: Path, answers: Path, scores: Path, keep: bool = True) -> None:
    """Prints the row beside the paper's, and writes it as verdict.md and verdict.json beside the answers."""
    from quecc_jax.experiments.reproduce import verdict
    from quecc_jax.experiments.reproduce.stamps import read_results
    from quecc_jax.paths import write_text
    from quecc_jax.records import write_record

    found = verdict.cells(options.visual_tokens, read_results(answers), verdict.read_given(scores), answers)
    text = verdict.markdown(found, options.visual_tokens, options.rehearsal)
    print(text, end="")
    if keep:
        write_text(answers / "verdict.md", text)
        write_record(
            answers / "verdict.json", verdict.record(found, options.visual_tokens, options.rehearsal)
        )
        print(f"\n{answers / 'verdict.md'}, verdict.json")
