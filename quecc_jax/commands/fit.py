"""Fits the scaling law to scores: `python -m scaling fit --scores FILE --out DIR`."""

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from quecc_jax.commands.checks import check_folder, check_least
from quecc_jax.errors import UserError
from scaling.limits import MOST_TOKENS

_MOST = 1_000_000
"""Starts and refits of so many are held in memory at once."""
_PREDICTED = 10


@tyro.conf.configure(tyro.conf.DisallowNone)
@dataclasses.dataclass(frozen=True)
class Options:
    """Fits the law error = A / N^alpha / T^beta + D and writes fit.json, fit.html and PNG figures."""

    scores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE [FILE ...]")]
    """JSON with params_b [n], visual_tokens [m], score [n x m] (null = missing), and optionally tasks
    {name: [n x m]}, query_tokens, stderr [n x m]; .csv or .tsv, wide (params_b, then a column for each V) or
    tidy (params_b, visual_tokens, score, stderr, task, seed); a folder of launch.sweep or launch.demo; results
    of launch.evaluate or lmms-eval, one for each model, as FILE@7B,36 (size, visual tokens); or a published
    table by name: general, ocr."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the results; created if missing."""
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK=METRIC [TASK=METRIC ...]")] = ()
    """The metric that counts of lmms-eval's task, as gqa=exact_match, with its best value where that is not 1,
    as mme=mme_perception_score/2000."""
    tokens: Literal["V", "Q+V"] = "V"
    """What T counts: visual tokens (the paper's code) or text and visual tokens (its text)."""
    query_tokens: float | None = None
    """Text tokens of one query; by default as the file says, else 50."""
    fix_d: float | None = None
    """Hold D at this value in 0..1; by default D is fitted."""
    loss: Literal["least_squares", "weighted", "huber"] = "least_squares"
    """Squares; squares over stderr squared; Huber on the log of the error."""
    huber_delta: float | None = None
    """Log error up to which --loss huber counts squared; by default 0.001."""
    method: Literal["starts", "grid"] = "starts"
    """Many starts at once, or the published grid of 5,000,000 points, all of it."""
    box: Literal["non-negative", "published"] = "non-negative"
    """Bounds: zero, or the published search's (A 0.2-0.7, alpha 0-0.2, beta 0-0.05, D 0-0.3)."""
    percent: bool = False
    """Scores run from 0 to 100."""
    starts: int = 256
    """Starting points."""
    predict: tuple[float, ...] | None = None
    """Sizes in billions to predict scores for; by default twice the largest."""
    resample: Literal["residual", "parametric", "cell", "task"] = "residual"
    """What the bootstrap draws anew."""
    interval: Literal["profile", "bootstrap"] = "profile"
    """Profile likelihood, which covers the truth as often as it says, or bootstrap percentiles."""
    refits: int = 1000
    """Bootstrap refits."""
    seed: int = 0
    """Seed of starts and bootstrap."""


def run(options: Options) -> None:
    """Fits one scores file, its tasks and its variants, and writes everything to the folder."""
    _check(options)
    check_folder("--out", options.out)
    # float64 is slow or missing on accelerators, and the problems are small.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Imported late, so that --help and mistakes in the command line answer at once.
    from scaling.scores import read_scores

    out = options.out
    metrics = dict(pair.partition("=")[::2] for pair in options.metrics)
    if not all(metrics.values()):
        raise UserError("--metrics takes pairs such as gqa=exact_match.")
    table = read_scores(*options.scores, metrics=metrics, percent=options.percent)

    from scaling.solver import compile_in_background

    compiling = compile_in_background()
    import numpy as np

    from quecc_jax.pages import page, render
    from scaling.diagnostics.assess import assess
    from scaling.diagnostics.bootstrap import Resample
    from scaling.diagnostics.summary import diagnose, diagnostics_findings, diagnostics_record
    from scaling.fit import HUBER_DELTA, NON_NEGATIVE, PUBLISHED_BOX, Loss, fit_law
    from scaling.law import PARAMETERS, Tokens
    from scaling.report import fit_report, plot
    from scaling.report.diagnostics_report import diagnostics_sections
    from scaling.report.explorer import figure_map
    from scaling.saved_fit import save_fit

    fitted = functools.partial(
        fit_law,
        query_tokens=options.query_tokens,
        fix_d=options.fix_d,
        bounds=PUBLISHED_BOX if options.box == "published" else NON_NEGATIVE,
        n_starts=options.starts,
        seed=options.seed,
        loss=options.loss,
        huber_delta=HUBER_DELTA if options.huber_delta is None else options.huber_delta,
        method=options.method,
    )
    trusted = functools.partial(assess, count=options.refits, seed=options.seed, method=options.interval)
    compiling.join()
    tokens = options.tokens
    other: Tokens = "Q+V" if tokens == "V" else "V"
    fit = fitted(table, tokens)
    # What is said about a fit supposes that it is the best one, so the grid's point has a stand-in.
    best = fit if fit.method == "starts" else fitted(table, tokens, method="starts", bounds=PUBLISHED_BOX)
    trust = trusted(table, best, options.resample)
    rivals = {f"this page (T = {tokens})": fit, f"T = {other}": fitted(table, other)}
    if table.flagged:
        rivals["without doubtful scores"] = fitted(table.without_flagged(), tokens)
    sizes = [2 * float(table.params_b[-1])] if options.predict is None else list(options.predict)
    seen = diagnose(table, best, trust, sizes, options.seed)
    record = fit_report.fit_record(table, fit, trust) | diagnostics_record(seen)
    record |= {"params_b": table.params_b.tolist(), "visual_tokens": table.visual_tokens.tolist()}
    record["score"] = [[None if np.isnan(x) else x for x in row] for row in table.score.tolist()]
    if table.stderr is not None:
        record["stderr"] = [[None if np.isnan(x) else x for x in row] for row in table.stderr.tolist()]
    # What `plan` draws its intervals from; seven digits keep the file small.
    samples = zip(PARAMETERS, trust.samples or (), strict=False)
    record["samples"] = {name: [float(f"{x:.7g}") for x in leaf] for name, leaf in samples}
    record["rivals"] = {
        name: {
            "tokens_convention": rival.law.tokens,
            **rival.law.params._asdict(),
            "sse": rival.sse,
            "n_points": rival.n_points,
            "converged": rival.converged,
        }
        for name, rival in rivals.items()
        if rival is not fit
    }
    sections = fit_report.fit_sections(table, fit, trust, rivals)
    sections += diagnostics_sections(table, fit, seen)
    if table.tasks:
        parts = {name: table.for_task(name) for name in table.tasks}
        # Standard errors are of the mean score, not of its parts.
        loss: Loss = "least_squares" if options.loss == "weighted" else options.loss
        fits = {name: fitted(part, tokens, loss=loss) for name, part in parts.items()}
        # One task has no tasks of its own to draw from.
        alone: Resample = "residual" if options.resample == "task" else options.resample
        record["tasks"] = {
            name: fit_report.fit_record(parts[name], fits[name], trusted(parts[name], fits[name], alone))
            for name in parts
        }
        sections.append(page.Section("Each task alone", [fit_report.rivals_html(fits, "Fits of each task")]))
    try:
        figures = {
            "error_vs_flops": plot.figure_error_vs_flops(table, fit),
            "error_vs_tokens": plot.figure_error_vs_tokens(table, fit),
            "residuals": plot.figure_residuals(table, fit),
            "best_tokens": figure_map(table, fit),
        }
        if trust.profiles:
            figures["profiles"] = plot.figure_profiles(fit, trust.profiles)
        for name, figure in figures.items():
            page.write_atomically(out / f"{name}.png", render.figure_to_png(figure))
        title = f"Scaling law: {table.name}"
        page.write_atomically(out / "fit.html", page.html_page(title, sections))
        save_fit(out / "fit.json", record)
    except OSError as problem:
        raise UserError(f"--out {out} cannot be written ({problem.strerror}); choose another") from None
    print(fit.law.formula())
    if fit is not best:
        print(f"note: {fit_report.grid_note(fit, best)}")
    print(fit_report.advice(table, fit, trust))
    for sentence in trust.findings + diagnostics_findings(table, seen):
        print(f"note: {sentence}")
    print(f"SSE {fit.sse:.4e}, r2 {fit.r2:.4f}; written to {out / 'fit.html'}")


def _check(options: Options) -> None:
    """Numbers out of range are mistakes."""
    if not options.scores:
        raise UserError("--scores needs a file or the name of a published table")
    if options.huber_delta is not None:
        if not 0 < options.huber_delta < math.inf:
            raise UserError(f"--huber-delta is {options.huber_delta:g}; give a number above 0")
        if options.loss != "huber":
            raise UserError(f"--huber-delta is of --loss huber, not of {options.loss}; leave it out")
    check_least(options, {"starts": 1, "refits": 1, "seed": 0})
    for name, value in (("starts", options.starts), ("refits", options.refits)):
        if value > _MOST:
            raise UserError(f"--{name} is {value}; give at most {_MOST}")
    if options.query_tokens is not None and not 0 <= options.query_tokens <= MOST_TOKENS:
        raise UserError(
            f"--query-tokens is {options.query_tokens:g}; give a number of at least 0 and at most {MOST_TOKENS:g}"
        )
    if options.fix_d is not None and not 0 <= options.fix_d < 1:
        raise UserError(f"--fix-d is {options.fix_d:g}; give a number of at least 0 and below 1")
    if len(options.predict or ()) > _PREDICTED:
        raise UserError(
            f"--predict has {len(options.predict or ())} sizes; give at most {_PREDICTED}, since each is refitted for "
            "its intervals at every number of visual tokens"
        )
    for size in options.predict or ():
        if not 0 < size < math.inf:
            raise UserError(f"--predict has {size:g}; give positive numbers")
