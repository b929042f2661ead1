"""Fits one law to several compressors: `python -m scaling joint --scores quecc=FILE avgpool=FILE --out DIR`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from quecc_jax.commands.checks import check_folder, check_least
from quecc_jax.commands.plan import columns
from quecc_jax.errors import UserError
from scaling.limits import MOST_TOKENS, refuse_letters


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclasses.dataclass(frozen=True)
class Options:
    """Asks whether the scaling law depends on the compressor: one law for all, shared alpha and D with an A and a beta
    of each compressor, and a law for each, by F tests and AICc. Writes joint.json and joint.html."""

    scores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE [NAME=FILE ...]")]
    """The scores of each compressor, two at least: its name, and a file as `scaling fit` takes."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; created if missing."""
    tokens: Literal["V", "Q+V"] = "V"
    """What T counts: visual tokens (the paper's code) or text and visual tokens (its text)."""
    query_tokens: float | None = None
    """Text tokens of one query; by default as each file says, else 50."""
    percent: bool = False
    """Scores run from 0 to 100."""
    seed: int = 0
    """Seed of the starting points."""


def run(options: Options) -> None:
    """Fits all tables together and writes everything to the folder."""
    check_least(options, {"seed": 0})
    if options.query_tokens is not None and not 0 <= options.query_tokens <= MOST_TOKENS:
        raise UserError(
            f"--query-tokens is {options.query_tokens:g}; give a number of at least 0 and at most {MOST_TOKENS:g}"
        )
    named = _named(options.scores)
    check_folder("--out", options.out)
    # float64 is slow or missing on accelerators, and the problems are small.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from scaling.scores import read_scores

    tables = {name: read_scores(source, percent=options.percent) for name, source in named.items()}

    from quecc_jax.pages import page
    from quecc_jax.records import write_record
    from scaling.diagnostics.joint import fit_joint
    from scaling.report import joint_report

    found = fit_joint(tables, options.tokens, options.query_tokens, options.seed)
    out = options.out
    try:
        page.write_atomically(out / "joint.html", joint_report.page(found))
        write_record(out / "joint.json", joint_report.record(found) | {"seed": options.seed})
    except OSError as problem:
        raise UserError(f"--out {out} cannot be written ({problem.strerror}); choose another") from None
    for title, (header, rows) in joint_report.tables(found).items():
        print(f"{title}\n{columns([header, *rows])}\n")
    print(joint_report.advice(found))
    for sentence in joint_report.notes(found):
        print(f"note: {sentence}")
    print(f"written to {out / 'joint.html'}")


def _named(scores: tuple[str, ...]) -> dict[str, str]:
    """Sources of scores by the names of their compressors."""
    named = dict[str, str]()
    for text in scores:
        name, mark, source = text.partition("=")
        if not (mark and name and source):
            raise UserError(
                f"--scores has {text!r}; name each file's compressor, as in quecc=runs/quecc/scores.json"
            )
        if name in named:
            raise UserError(f"--scores names {name} twice; give each compressor one file")
        refuse_letters(name, "The compressor's name")
        named[name] = source
    if len(named) < 2:
        raise UserError("--scores needs the scores of at least two compressors, as NAME=FILE NAME=FILE")
    return named
