"""A proposal of cells in words: its record, its tables, its page and its figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quecc_jax.pages.numbers import flops_text, size_name
from quecc_jax.pages.page import Section, bullets, figure_html, html_page, paragraph, table_html
from quecc_jax.pages.render import figure_to_png
from quecc_jax.pages.style import THEMES, Style
from scaling.design.proposal import Proposal
from scaling.design.worth import Step
from scaling.formatting import Record, percent
from scaling.report.plot import canvas, figure_in_both, legend_text, write_below

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
PRICE = "6 N (Q + V)"
_BY = {"by_regret": "by the regret of the decision", "by_information": "by what it tells of the constants"}
_PETA = 1e15
_SHOWN = 12
"""Candidates in the page's table; the record holds all."""


def cell_name(found: Proposal, cell: int) -> str:
    """`7B, V = 64`, with a word where the law was not fitted on such a cell."""
    name = f"{size_name(found.params_b[cell])}, V = {found.visual_tokens[cell]:g}"
    return name + " (extrapolated)" * bool(found.is_outside[cell])


def advice(found: Proposal) -> str:
    """What to train, in a sentence or two."""
    told = f"by what cells tell of the constants per training FLOP {_named(found, found.by_information)}"
    if not found.by_regret:
        why = "no cell lowers the expected regret"
        if found.regret_now == 0:
            why = "all bootstrap laws buy the same, so no cell can change the decision"
        return f"For this decision train nothing: {why}. Train next {told}."
    first = _named(found, found.by_regret)
    return f"Train next, by the decision's expected regret per training FLOP, {first}; {told}."


def _named(found: Proposal, steps: Sequence[Step]) -> str:
    return ", then ".join(cell_name(found, step.cell) for step in steps)


def notes(found: Proposal) -> list[str]:
    """What a reader must know before acting on it."""
    law, said = found.fit.law, []
    for plan in found.plans:
        o, k, share = plan.options, plan.best, plan.share
        assert share is not None
        said.append(
            f"Now {flops_text(plan.budget)} per query buys {o.llms[k]} with V = {o.visual_tokens[k]:g} (predicted "
            f"error {percent(plan.error[k])}; {100 * share[k]:.0f} % of the bootstrap laws choose it)."
        )
    said.append(
        f"Deciding by {found.laws} bootstrap laws costs {100 * found.regret_now:.3f} points of regret on average. Each "
        f"of them was the truth once and gave each cell {found.draws} noisy scores, of a standard error of "
        f"{100 * found.noise.sigma:.2f} points ({found.noise.source})."
    )
    said.append(
        f"A cell's training counts {PRICE} FLOPs for each row, all cells the same rows, without the vision tower, "
        f"which costs each row alike; {law.convention}."
    )
    steps = found.by_regret[:1]
    if steps and not steps[0].gains[steps[0].cell] > 2 * steps[0].errors[steps[0].cell]:
        said.append(
            "The gain of the first cell is within two of its own standard errors; more --draws would tell."
        )
    named = {step.cell for step in (*found.by_regret, *found.by_information)}
    if any(found.is_outside[cell] for cell in named):
        said.append(
            "What is marked as extrapolated the law was not fitted on: its worth supposes that the law holds there."
        )
    return said


def tables(found: Proposal) -> dict[str, Table]:
    """The cells of each criterion, for page and terminal, by their titles."""
    regret, rows = found.regret_now, []
    for step in found.by_regret:
        gain = step.gains[step.cell]
        rows.append(
            [
                cell_name(found, step.cell),
                flops_text(found.prices[step.cell]),
                f"{100 * regret:.3f}",
                f"{100 * (regret - gain):.3f}",
                f"{100 * gain:.3f} ± {100 * step.errors[step.cell]:.3f}",
                f"{100 * gain / found.prices[step.cell] * _PETA:.3g}",
            ]
        )
        regret -= gain
    header = ["cell", "training per row", "regret before, points", "after", "gain", "gain per PFLOP"]
    told = [
        [
            cell_name(found, step.cell),
            flops_text(found.prices[step.cell]),
            f"{step.gains[step.cell]:.3f}",
            f"{step.gains[step.cell] / found.prices[step.cell] * _PETA:.3g}",
        ]
        for step in found.by_information
    ]
    by_regret = {f"Train next, {_BY['by_regret']}": (header, rows)} if rows else {}
    return by_regret | {
        f"Train next, {_BY['by_information']}": (["cell", "training per row", "log det F", "per PFLOP"], told)
    }


def candidates_table(found: Proposal) -> Table:
    """What each cell were worth as the first one, the best per price first."""
    regret = found.by_regret[0] if found.by_regret else None
    told = found.by_information[0]
    worth = (told if regret is None else regret).gains / found.prices
    header = ["cell", "training per row", "gain, points", "log det F"]
    rows = []
    for k in np.argsort(-worth, kind="stable")[:_SHOWN].tolist():
        gain = "–" if regret is None else f"{100 * regret.gains[k]:+.3f} ± {100 * regret.errors[k]:.3f}"
        rows.append([cell_name(found, k), flops_text(found.prices[k]), gain, f"{told.gains[k]:.3f}"])
    return header, rows


def record(found: Proposal) -> Record:
    """What next.json holds; plain JSON values."""
    law = found.fit.law
    regret, told = (steps[0] if steps else None for steps in (found.by_regret, found.by_information))
    assert told is not None

    def cell(k: int) -> Record:
        return {
            "params_b": float(found.params_b[k]),
            "visual_tokens": float(found.visual_tokens[k]),
            "training_flops_per_row": float(found.prices[k]),
            "extrapolated": bool(found.is_outside[k]),
        }

    return {
        "fit": found.fit.name,
        "law": {
            **{k: float(v) for k, v in law.params._asdict().items()},
            "tokens_convention": law.tokens,
            "formula": law.formula(),
        },
        "query_tokens": law.query_tokens,
        "decisions": [
            {
                "flops": plan.budget,
                "params_b": float(plan.options.params_b[plan.best]),
                "visual_tokens": float(plan.options.visual_tokens[plan.best]),
                "error": float(plan.error[plan.best]),
                "chosen_share": None if plan.share is None else float(plan.share[plan.best]),
                "worst_regret_95": plan.worst_regret,
            }
            for plan in found.plans
        ],
        "training_cost": f"{PRICE} FLOPs for each row",
        "stderr": found.noise.sigma,
        "stderr_source": found.noise.source,
        "laws": found.laws,
        "draws": found.draws,
        "regret_now": found.regret_now,
        "by_regret": [
            cell(s.cell) | {"gain": float(s.gains[s.cell]), "gain_stderr": float(s.errors[s.cell])}
            for s in found.by_regret
        ],
        "by_information": [cell(s.cell) | {"log_det": float(s.gains[s.cell])} for s in found.by_information],
        "candidates": [
            cell(k)
            | {
                "gain": None if regret is None else float(regret.gains[k]),
                "gain_stderr": None if regret is None else float(regret.errors[k]),
                "log_det": float(told.gains[k]),
            }
            for k in range(len(found.prices))
        ],
        "advice": advice(found),
        "notes": notes(found),
    }


def files(found: Proposal) -> dict[str, str | bytes]:
    """Name and content of next.html and its PNG figure."""
    return {"cells.png": figure_to_png(figure_cells(found)), "next.html": _page(found)}


def _page(found: Proposal) -> str:
    light, dark = figure_in_both(figure_cells(found))
    caption = (
        "Dots: cells with a score. Rings: candidates. Numbers: what to train next, above by the regret, below by what "
        "it tells of the constants."
    )
    header, candidates = candidates_table(found)
    sections = [
        Section(
            "What to train next",
            [
                paragraph(advice(found)),
                *(table_html(rows, head, title) for title, (head, rows) in tables(found).items()),
                figure_html(light, dark, "The grid and the cells to train next", caption),
                bullets(notes(found), "note"),
            ],
        ),
        Section(
            "The candidates",
            [
                paragraph(
                    "What each cell were worth as the first one, the best per training FLOP on top: how far it lowers "
                    "the expected regret, and by how much it raises the log determinant of the constants' information."
                ),
                table_html(candidates, header, "Candidates"),
            ],
        ),
    ]
    return html_page(f"Next cells: {found.fit.name}", sections, found.fit.law.formula())


def figure_cells(found: Proposal, style: Style = "light") -> Figure:
    """The grid: scores, candidates, and the order of both proposals."""
    theme, table = THEMES[style], found.fit.table
    assert table is not None
    figure, axes = canvas(theme)
    i, j = np.nonzero(np.isfinite(table.score))
    axes.plot(found.visual_tokens, found.params_b, "o", ms=11, mfc="none", mec=theme.muted, ls="none")
    axes.plot(table.visual_tokens[j], table.params_b[i], "o", ms=6, color=theme.ink, ls="none")
    ways = (("by_regret", 12, theme.accent, "bottom"), ("by_information", -12, theme.muted, "top"))
    for name, offset, colour, side in ways:
        for number, step in enumerate(getattr(found, name), 1):
            axes.annotate(
                str(number),
                (found.visual_tokens[step.cell], found.params_b[step.cell]),
                xytext=(0, 0.6 * offset),
                textcoords="offset points",
                ha="center",
                va=side,
                color=colour,
                fontsize=12,
                fontweight="bold",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.1, 0.15)
    axes.set_xlabel("visual tokens V")
    axes.set_ylabel("size N (billions)")
    named = [(_BY[name], colour) for name, _, colour, _ in ways]
    handles = [Line2D([], [], ls="none", marker="$1$", color=c, label=f"order {text}") for text, c in named]
    figure.legend(handles=handles, ncols=2, loc="outside upper left", **legend_text(theme))
    write_below(figure, theme, f"{found.fit.law.convention}; training {PRICE} FLOPs per row.")
    return figure
