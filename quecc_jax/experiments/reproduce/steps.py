"""The steps from public files to a row of table 1, as values: what each needs, makes and runs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from quecc_jax.config import RunConfig
from quecc_jax.config.io import to_dict
from quecc_jax.experiments.reproduce.downloads import (
    BENCHMARKS,
    CAPTIONS,
    CLIP,
    DOWNLOADS,
    IMAGES,
    INSTRUCTIONS,
    TRAINING,
    WEIGHTS,
    Download,
    stand_in,
)

TASKS = ("gqa", "mmbench", "mme", "pope", "scienceqa", "textvqa", "vizwiz", "vqav2")
"""The benchmarks of table 1."""
CONFIG = "configs/table1.py"
Kind = Literal["download", "import", "train", "evaluate"]


class Step(NamedTuple):
    """One step."""

    name: str
    about: str
    kind: Kind
    needs: tuple[str, ...]
    """Names of steps."""
    settings: str
    """A checksum of all that its result depends on, beside what it needs."""
    out: str = ""
    """What it makes, below the kit's directory; a download says so itself."""
    command: tuple[str, ...] = ()
    """A command of `launch/` and its arguments, but for those of the devices."""
    device: tuple[str, ...] = ()
    """Arguments that say how devices share the work, which changes no result."""
    last: int = 0
    """Steps of a finished training run."""
    download: Download | None = None


class Recipe(NamedTuple):
    """What is reproduced, and on which devices."""

    visual_tokens: int
    rehearsal: bool = False
    """The same on stand-ins, with a small model."""
    training: tuple[Sequence[str], Sequence[str]] = ((), ())
    """Arguments of the devices, of both stages."""
    answering: Sequence[str] = ()
    """The same of the benchmarks."""
    more: tuple[Sequence[str], Sequence[str]] = ((), ())
    """Further settings of each stage."""


Resolve = Callable[[Sequence[str]], RunConfig]
"""From the arguments of `launch.train` to the run that they describe."""


def steps_of(recipe: Recipe, root: Path, resolve: Resolve) -> tuple[Step, ...]:
    """All steps, each behind those that it needs."""
    downloads = tuple(map(stand_in, DOWNLOADS)) if recipe.rehearsal else DOWNLOADS
    return (*map(_download, downloads), *_rest(recipe, root, resolve))


def _rest(recipe: Recipe, root: Path, resolve: Resolve) -> tuple[Step, ...]:
    small = "-small" if recipe.rehearsal else ""
    runs, start = f"runs/v{recipe.visual_tokens}{small}", "weights/start"
    one, two, answers = f"{runs}/stage1", f"{runs}/stage2", f"{runs}/eval"
    imported = (
        "convert",
        "import",
        *("--from", f"{root / WEIGHTS}", "--vision", f"{root / CLIP}", "--out", f"{root / start}"),
        *("--allow-pickle", "--template", "v1"),
    )

    def train(stage: int, out: str, begin: str, rows: str, images: str) -> Step:
        argv = (
            f"{CONFIG}:stage{stage}-v{recipe.visual_tokens}{small}",
            *("--out", f"{root / out}", "--init-from", f"{root / begin}"),
            *("--data.tokenizer", f"{root / start}/tokenizer"),
            *("--data.sources.0.path", f"{root / rows}", "--data.sources.0.images", f"{root / images}"),
            *recipe.more[stage - 1],
        )
        config = resolve(argv)
        before = (
            ("import", "captions") if stage == 1 else ("stage1", *(n for n in TRAINING if n != "captions"))
        )
        about = "compressor and projector on captions" if stage == 1 else "the decoder too, on instructions"
        return Step(
            f"stage{stage}",
            about,
            "train",
            before,
            _checksum(root, argv, to_dict(config)),
            out,
            ("train", *argv),
            tuple(recipe.training[stage - 1]),
            config.train.steps,
        )

    # Answers of the rehearsal's model, which has learned nothing, would not end by themselves.
    limits = ("--max-new-tokens", "8") if recipe.rehearsal else ()
    evaluate = (
        "evaluate",
        *("--checkpoint", f"{root / two}", "--tasks", ",".join(TASKS), "--data", f"{root / 'eval'}"),
        *("--out", f"{root / answers}", "--name", "QueCC, ours"),
        *("--image-decoding", "original", *limits),
    )
    return (
        Step(
            "import",
            "Vicuna and CLIP as a run",
            "import",
            ("vicuna", "clip"),
            _checksum(root, imported),
            start,
            imported,
        ),
        train(1, one, start, CAPTIONS, IMAGES),
        train(2, two, one, INSTRUCTIONS, "data"),
        Step(
            "evaluate",
            "the eight benchmarks of the table",
            "evaluate",
            ("stage2", *BENCHMARKS),
            _checksum(root, evaluate),
            answers,
            evaluate,
            ("--batch-size", "32", *recipe.answering),
        ),
    )


def _download(download: Download) -> Step:
    known = [[one.path, one.sha256, one.into, one.strip, one.only] for one in download.remotes]
    return Step(download.name, download.about, "download", (), _checksum(Path(), known), download=download)


def _checksum(root: Path, *parts: object) -> str:
    """Of JSON values, with the kit's directory left out: it may be moved."""
    text = json.dumps(parts, sort_keys=True)
    if root.parts:
        text = text.replace(json.dumps(f"{root}/")[1:-1], "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
