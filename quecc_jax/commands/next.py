"""Proposes the cells of a grid to train next: `python -m scaling next --fit DIR --flops 3e12 --out DIR`."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Annotated

import tyro

from quecc_jax.commands.checks import check_folder, check_least
from quecc_jax.commands.plan import columns, distinct, sizes_of
from quecc_jax.errors import UserError

_MOST = {"count": 50, "draws": 64}
_BUDGETS = 20


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclasses.dataclass(frozen=True)
class Options:
    """Proposes which cells (N, V) to train next for the most knowledge per training FLOP: by how far a cell lowers the
    regret that a budget's choice must expect, and by how much it tells of the law's constants. Writes next.json,
    next.html and a PNG figure."""

    fit: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """fit.json of `scaling fit` (or its folder), or a published table: general, ocr."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; created if missing."""
    flops: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOPS [FLOPS ...]")]
    """Budgets to decide for, in FLOPs per query by the paper's cost 2N(Q + V), such as 3e12; several count alike."""
    llms: tuple[str, ...] = ()
    """Sizes in billions, or names such as qwen1.5-4b, to choose and to train; by default the fit's sizes."""
    visual_tokens: tuple[float, ...] = ()
    """Token counts to choose and to train; by default the fit's."""
    query_tokens: int | None = None
    """Text tokens of a query; by default the fit's."""
    count: int = 3
    """Cells to propose."""
    again: bool = False
    """Cells that have a score may be trained once more, with another seed."""
    draws: int = 8
    """Noisy scores that each bootstrap law gives a cell."""
    seed: int = 0
    """Seed of the noise."""


def run(options: Options) -> None:
    """Proposes cells and writes everything to the folder."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _check(options)
    check_folder("--out", options.out)
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.pages import page
    from quecc_jax.records import write_record
    from scaling.design.proposal import propose
    from scaling.limits import refuse_choices
    from scaling.report import next_report
    from scaling.saved_fit import load_fit

    fit = load_fit(options.fit)
    text = fit.law.query_tokens if options.query_tokens is None else float(options.query_tokens)
    sizes = distinct(sizes_of(options.llms or [f"{n:.12g}" for n in fit.params_b]), "LLMs")
    counts = distinct(options.visual_tokens or fit.visual_tokens.tolist(), "visual tokens")
    refuse_choices(len(sizes) * len(counts), 1 if fit.samples is None else len(fit.samples.A))
    budgets = distinct(options.flops, "budgets")
    found = propose(
        fit, sizes, counts, budgets, text, options.count, options.draws, options.again, options.seed
    )
    out = options.out
    try:
        for name, content in next_report.files(found).items():
            page.write_atomically(out / name, content)
        write_record(out / "next.json", next_report.record(found) | {"seed": options.seed})
    except OSError as problem:
        raise UserError(f"--out {out} cannot be written ({problem.strerror}); choose another") from None
    print(fit.law.formula())
    for title, table in next_report.tables(found).items():
        print(f"\n{title}\n{columns([table[0], *table[1]])}")
    print(f"\n{next_report.advice(found)}")
    for sentence in next_report.notes(found):
        print(f"note: {sentence}")
    print(f"written to {out / 'next.html'}")


def _check(options: Options) -> None:
    """Numbers out of range are mistakes."""
    for budget in options.flops:
        if not 0 < budget < math.inf:
            raise UserError(f"--flops has {budget:g}; give positive numbers")
    if not 1 <= len(options.flops) <= _BUDGETS:
        raise UserError(f"--flops has {len(options.flops)} budgets; give one to {_BUDGETS}")
    check_least(options, {"query_tokens": 0, "count": 1, "draws": 1, "seed": 0})
    for name, most in _MOST.items():
        if getattr(options, name) > most:
            raise UserError(f"--{name} is {getattr(options, name)}; give at most {most}")
    for count in options.visual_tokens:
        if not 0 < count < math.inf:
            raise UserError(f"--visual-tokens has {count:g}; give positive numbers")
