"""Does the loss spike with QueCC when V is large, and what makes it?

    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.loss_spikes

Method: the study's small testbed with a 12 x 12 patch grid, so that V is 1, 16, 36 or 144. Runs differ in one
factor at a time: V, initial values (ours, or those that PyTorch gives the original's modules), scale of the
first visual tokens against the text embeddings, learning rate, gradient clipping, type of activations, and
the stage. Runs of one seed read the same rows in the same order, whatever V is, and every step is recorded.

A spike, fixed before any run was looked at: from step 50 on, a loss above the median m of the 50 losses
before it by five of their median absolute deviations, by 30 % of m, and by 0.1 nats; within ten steps of one
another they are one spike, whose size is the largest loss - m. A relapse is the largest rise of the mean of
20 losses above the least such mean before it.

Added when runs were there: those of one seed go up and down together, as their batches do, and some batches
are hard for every run. So the table ends with the largest height, from step 50 on, of a loss above the median
at the same step of all runs of the same seed and stage, which read the same batch.

Parts and runs that lie in --out are not made again; tables and figures follow from them. --runs adapters makes
those of the second table alone: a stage 2 with adapters (LoRA), as the spikes were reported, each step of which is
compared with the runs of that table.
"""

import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks import markdown
from benchmarks.loss_spike_runs import (
    INITS,
    Case,
    adapter_cases,
    cases,
    fine_testbed,
    first_stage,
    prepare,
    run_all,
)
from quecc_jax.pages.style import DPI, THEMES, Style, dress

DOCS = Path(__file__).parents[1] / "docs"
WINDOW, MERGE, RELAPSE = 50, 10, 20
HIGHEST = 2.5
"""Loss at the figure's upper edge; spikes beyond it are marked there."""
CALM = 1.0
"""Nats above the median run; upper edge where none gets there."""


def spikes(loss: np.ndarray) -> list[tuple[int, float]]:
    """(step, size in nats) of every spike, as the module's head defines it."""
    found: list[tuple[int, float]] = []
    last = -MERGE - 1
    for t in range(WINDOW, len(loss)):
        before = loss[t - WINDOW : t]
        median = float(np.median(before))
        spread = float(np.median(np.abs(before - median)))
        excess = float(loss[t]) - median
        if not excess > max(5 * spread, 0.3 * median, 0.1) and np.isfinite(loss[t]):
            continue
        if t - last <= MERGE:
            found[-1] = (found[-1][0], max(found[-1][1], excess))
        else:
            found.append((t, excess))
        last = t
    return found


def relapse(loss: np.ndarray) -> float:
    """Largest rise, in nats, of the mean of RELAPSE losses above the least such mean before it."""
    means = np.convolve(loss, np.ones(RELAPSE) / RELAPSE, "valid")
    return float(np.max(means - np.minimum.accumulate(means)))


def summary(result: dict[str, Any]) -> str:
    """One line about a run."""
    return ", ".join(f"{name} {value}" for name, value in zip(COLUMNS, figures([result]), strict=True))


COLUMNS = ("spikes", "largest", "relapse", "last loss", "visual / text", "gradient norm")


def figures(results: list[dict[str, Any]]) -> list[str]:
    """COLUMNS of the runs of one case: spikes in each, then the largest spike and relapse of any, and means
    over them of the last 50 losses, of the scale of visual tokens at start and end, of the median norm."""
    losses = [np.array(r["loss"]) for r in results]
    found = [spikes(loss) for loss in losses]
    sizes = [size for one in found for _, size in one]
    first, last = (np.mean([r["scale"][k] / r["text"] for r in results]) for k in (0, -1))
    return [
        " ".join(str(len(one)) for one in found),
        f"{max(sizes):.2f}" if sizes else "-",
        f"{max(map(relapse, losses)):.2f}",
        f"{np.mean([loss[-WINDOW:] for loss in losses]):.2f}",
        f"{first:.2g} to {last:.2g}",
        f"{np.mean([np.median(r['grad_norm']) for r in results]):.2f}",
    ]


def excess(results: list[dict[str, Any]]) -> list[np.ndarray]:
    """For each run its losses above the median run of its seed and stage, which reads the same batches."""
    batches: dict[tuple[int, int], list[np.ndarray]] = {}
    for r in results:
        batches.setdefault((r["case"]["seed"], r["case"]["stage"]), []).append(np.array(r["loss"]))
    medians = {key: np.median(losses, axis=0) for key, losses in batches.items()}
    return [np.array(r["loss"]) - medians[r["case"]["seed"], r["case"]["stage"]] for r in results]


def heights(results: list[dict[str, Any]]) -> list[float]:
    """The largest `excess` of each run from WINDOW on."""
    return [float(np.max(above[WINDOW:])) for above in excess(results)]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a row per case, seeds together."""
    above = heights(results)
    groups: dict[Case, list[int]] = {}
    for number, result in enumerate(results):
        groups.setdefault(Case(**result["case"])._replace(seed=0), []).append(number)
    head = ("V", "first values", "embeddings", "stage", "rate", "other", *COLUMNS, "above the median run")
    lines = []
    for case, group in groups.items():
        init = f"{case.init}, ratio {case.ratio:g}" if case.ratio else case.init
        rest = ("rank", "scale", "projector_rate", "clip", "warmup", "b2", "dtype", "steps")
        set_ = {k: v for k in rest if (v := getattr(case, k)) != Case._field_defaults[k]}
        other = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in set_.items())
        what = [case.visual_tokens, init, case.text, case.stage, case.rate, other or "-"]
        highest = f"{max(above[k] for k in group):.2f}"
        lines.append([*what, *figures([results[k] for k in group]), highest])
    return markdown.table(head, lines)


def figure(results: list[dict[str, Any]], style: Style) -> Figure:
    """Losses of every step: a column for each initial values, a row for each rate, a colour for each V."""
    theme = THEMES[style]
    known = {Case(**r["case"]): np.array(r["loss"]) for r in results}
    values = sorted({c.visual_tokens for c in known if c == Case(c.visual_tokens, seed=c.seed)})
    colours = dict(zip(values, theme.colours(len(values)), strict=True))
    drawn = Figure(figsize=(8, 6), dpi=DPI, facecolor=theme.paper, layout="constrained")
    grid = drawn.subplots(2, 2, sharex=True, sharey=True)
    for axes, (rate, init) in zip(grid.flat, itertools.product((1e-3, 1e-2), INITS), strict=True):
        dress(axes, theme)
        axes.set_title(f"first values: {init}, rate {rate:g}", color=theme.ink, fontsize=12, loc="left")
        for v, colour in colours.items():
            of_v = [loss for case, loss in known.items() if case == Case(v, init, rate=rate, seed=case.seed)]
            for loss in of_v:
                axes.plot(loss, color=colour, lw=0.6, alpha=0.35)
                at = [t for t, _ in spikes(loss)]
                height = np.minimum(loss[at], 0.97 * HIGHEST)
                axes.plot(at, height, "o", ms=7, mfc="none", mec=theme.accent, mew=1.5, zorder=3)
            if of_v:
                smooth = np.convolve(np.mean(of_v, axis=0), np.ones(RELAPSE) / RELAPSE, "valid")
                steps = np.arange(RELAPSE - 1, len(of_v[0]))
                axes.plot(steps, smooth, color=colour, lw=2.2, label=f"V = {v}")
        axes.set_ylim(0, HIGHEST)
    grid[0, 0].legend(frameon=False, labelcolor=theme.ink, ncols=2)
    drawn.supxlabel("step of stage 1", color=theme.ink, fontsize=12)
    drawn.supylabel("loss (nats per label token)", color=theme.ink, fontsize=12)
    return drawn


def adapter_figure(results: list[dict[str, Any]], style: Style) -> Figure:
    """`excess` at every step: a row for each V, a column for each kind of run, a line for each seed. Columns that
    stay below CALM have one scale."""
    theme = THEMES[style]
    above = dict(zip((Case(**r["case"]) for r in results), excess(results), strict=True))
    whole, lora = (next(c for c in above if bool(c.rank) == adapted) for adapted in (False, True))
    kinds = {
        "whole decoder": whole,
        "adapters, LLaVA's rates": lora,
        "and no clipping": lora._replace(clip=float("inf")),
        "one rate for all": lora._replace(projector_rate=0.0),
        "ten times the rates": lora._replace(rate=4e-2, projector_rate=4e-3),
    }
    values = sorted({c.visual_tokens for c in above})
    drawn = Figure(figsize=(11, 5), dpi=DPI, facecolor=theme.paper, layout="constrained")
    grid = drawn.subplots(len(values), len(kinds), sharex=True, sharey="col", squeeze=False)
    for column, (title, kind) in zip(grid.T, kinds.items(), strict=True):
        for axes, v in zip(column, values, strict=True):
            dress(axes, theme)
            runs = [a for c, a in above.items() if c == kind._replace(visual_tokens=v, seed=c.seed)]
            for seed, (line, colour) in enumerate(zip(runs, theme.colours(len(runs)), strict=True)):
                axes.plot(line, color=colour, lw=1, label=f"seed {seed}")
            axes.axvline(WINDOW, color=theme.muted, lw=1, ls=":")
        top = max(float(np.max(line.get_ydata())) for axes in column for line in axes.lines[:-1])
        column[0].set_ylim(-0.3, CALM if top < CALM else 1.05 * top)
        column[0].set_title(title, color=theme.ink, fontsize=11, loc="left")
        for axes in column:
            axes.tick_params(labelleft=kind is whole or top >= CALM)
    for axes, v in zip(grid[:, 0], values, strict=True):
        axes.set_ylabel(f"V = {v}")
    grid[0, 0].legend(frameon=False, labelcolor=theme.ink)
    drawn.supxlabel("step of stage 2", color=theme.ink, fontsize=12)
    drawn.supylabel("loss above the median run (nats)", color=theme.ink, fontsize=12)
    return drawn


def main(
    out: str = "runs/loss_spikes", seeds: int = 2, runs: Literal["all", "whole", "adapters"] = "all"
) -> None:
    """Loss spikes with QueCC at small scale.

    Args:
      out: parts and runs, kept between calls.
      seeds: repetitions of the runs that decide; with adapters there is one more.
      runs: which of the two tables, with its figure; `adapters` makes only the first stages that it continues.
    """
    recipe = fine_testbed()
    Path(out).mkdir(parents=True, exist_ok=True)
    prepare(out, recipe)
    drawings: tuple[tuple[Style, str], ...] = (("light", ""), ("dark", "-dark"))
    if runs != "adapters":
        results = run_all(out, recipe, cases(seeds), summary)
        print(table(results))
        for style, ending in drawings:
            figure(results, style).savefig(DOCS / f"loss_spikes{ending}.png")
    if runs != "whole":
        wanted = adapter_cases(seeds + 1)
        run_all(out, recipe, list(dict.fromkeys(map(first_stage, wanted))), summary)
        results = run_all(out, recipe, wanted, summary)
        print(table(results))
        for style, ending in drawings:
            adapter_figure(results, style).savefig(DOCS / f"loss_spikes_lora{ending}.png")


if __name__ == "__main__":
    tyro.cli(main)
