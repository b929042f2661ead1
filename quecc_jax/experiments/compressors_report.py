"""The page on compressors side by side: findings, accuracy, what was tried, what each costs."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from quecc_jax.experiments import stats
from quecc_jax.experiments.findings import brief, title
from quecc_jax.experiments.stats import Difference, Key, Results, Score
from quecc_jax.pages.page import Section, bullets, paragraph, table_html
from quecc_jax.pages.render import embed
from quecc_jax.pages.style import DPI, THEMES, Style, dress

QUECC = "QueCC"
MARKERS = "osD^vPX*<>hd"


def content(results: Results, out: Path) -> tuple[str, str, list[Section]]:
    """Title, lead and sections; the figure is written to `out` too."""
    sections = [
        Section("Findings", [bullets(findings(results)), _figure(results, out)]),
        *_score_sections(results),
        *_ladder_section(results),
        *_elastic_section(results),
        _kinds_section(results),
        _cost_section(results),
    ]
    lead = (
        f"{results['models']} training runs of one decoder behind "
        f"{len(_labels(results, 'comparison'))} compressors, same data, same steps, "
        f"{len(results['seeds'])} seeds. Every number on this page was measured."
    )
    return "Every compressor, side by side", lead, sections


def _labels(results: Results, part: str = "") -> list[str]:
    return stats.compressors(results["rows"], part)


def _scores(results: Results, what: str, part: str = "") -> dict[tuple[str, int], Score]:
    found = stats.scores(results["rows"], what, part)
    return {(key.compressor, key.visual_tokens): score for key, score in found.items() if key.visual_tokens}


def _flops(results: Results, task: str) -> dict[tuple[str, int], float]:
    return {(k.compressor, k.visual_tokens): f for k, f in stats.flops(results["rows"], task).items()}


def findings(results: Results) -> list[str]:
    """What the numbers say, in sentences."""
    return [*_best_findings(results), *_rival_findings(results), *_own_findings(results)]


def _best_findings(results: Results) -> Iterator[str]:
    for task in stats.tasks(results["rows"]):
        found = _scores(results, task, "comparison")
        parts = []
        for v in results["visual_tokens"]:
            here = {label: score for (label, one), score in found.items() if one == v}
            label, top = max(here.items(), key=lambda item: item[1].mean)
            parts.append(f"{label} with V = {v} ({brief(top)} %)")
        yield f"{title(task)}: the best are {', '.join(parts)}."


def _rival_findings(results: Results) -> Iterator[str]:
    compared = [
        (task, v, d)
        for task in stats.tasks(results["rows"])
        for v in results["visual_tokens"]
        if (d := _between(results, task, (QUECC, v), ("TokenPacker", v))) is not None
    ]
    clear = [f"{task} at V = {v} ({signed(d)})" for task, v, d in compared if abs(d.errors) > 2]
    rest = len(compared) - len(clear)
    if compared:
        said = f"more than two standard errors apart on {', '.join(clear)}" if clear else ""
        none = f"within two standard errors of each other in {rest} of {len(compared)} comparisons"
        yield f"QueCC and TokenPacker, points in QueCC's favour: {'; '.join(x for x in (said, none) if x)}."


def _own_findings(results: Results) -> Iterator[str]:
    own = results["own"]
    for v in results["visual_tokens"]:
        parts = []
        for task in stats.tasks(results["rows"]):
            d = _between(results, task, (own, v), (QUECC, v))
            if d is not None:
                parts.append(f"{task} {signed(d)} ({d.errors:+.1f} standard errors)")
        if parts:
            yield f"{own} against QueCC at V = {v}: {', '.join(parts)}."


def _between(results: Results, what: str, a: tuple[str, int], b: tuple[str, int]) -> Difference | None:
    llm = results["llms"][0]["name"]
    return stats.difference(results["rows"], what, Key(llm, *a), Key(llm, *b))


def signed(d: Difference) -> str:
    """Points with their standard error."""
    return f"{100 * d.gain:+.1f} ± {100 * d.error:.1f}"


def _score_sections(results: Results) -> Iterator[Section]:
    note = (
        "Right answers in %, greedy generation, exact match: the mean over seeds and its standard error "
        "over seeds. The test questions themselves leave a binomial standard error of "
        f"at most {100 * _binomial(results):.1f} points; differences below use the larger of the two."
    )
    fragments = [paragraph(note, "muted")]
    for task in stats.tasks(results["rows"]):
        found = _scores(results, task, "comparison")
        others = sorted({v for _, v in found} - {*results["visual_tokens"]})
        columns = [*results["visual_tokens"], *others]
        labels = _labels(results, "comparison")
        rows = [[label, *(_cell(found.get((label, v))) for v in columns)] for label in labels]
        blind = 100 * next(iter(stats.baseline(results["rows"], task).values())).mean
        rows.append(["no image", f"{blind:.1f}", *("" for _ in columns[1:])])
        head = ["compressor", *(f"V = {v}" for v in columns)]
        fragments += [f"<h3>{title(task)}</h3>", table_html(rows, head)]
    yield Section("Accuracy", fragments)
    rows = []
    for task in stats.tasks(results["rows"]):
        for v in results["visual_tokens"]:
            d = _between(results, task, (QUECC, v), ("TokenPacker", v))
            if d is not None:
                verdict = "yes" if abs(d.errors) > 2 else "no"
                rows.append([f"{task}, V = {v}", signed(d), f"{d.errors:+.1f}", _p(d), verdict])
    if rows:
        yield Section(
            "QueCC against TokenPacker",
            [
                paragraph(
                    "Points in QueCC's favour. p is Welch's two-sided t test over seeds, not corrected for "
                    "the number of comparisons; three seeds make it a blunt instrument."
                ),
                table_html(rows, ["task", "difference", "in standard errors", "p", "beyond two"]),
            ],
        )


def _ladder_section(results: Results) -> Iterator[Section]:
    labels = _labels(results, "ladder")
    if not labels:
        return
    rows = []
    costs = {(c["compressor"], c["visual_tokens"]): c for c in results["steps"]["timing"]}
    base = costs[QUECC, 1]
    for label in (QUECC, *labels):
        cells = [label]
        for task in stats.tasks(results["rows"]):
            score = _scores(results, task).get((label, 1))
            cells.append(_cell(score))
        d = _between(results, "mosaic", (label, 1), (QUECC, 1))
        cells.append("" if label == QUECC or d is None else signed(d))
        one = costs[label, 1]
        cells.append(f"{_answer_cost(results, label) / _answer_cost(results, QUECC):.3f}")
        cells.append(f"{one['flops'] / base['flops']:.2f}")
        rows.append(cells)
    yield Section(
        "One token: the ladder",
        [
            paragraph(
                "Each rung changes QueCC at V = 1 in the way that its name says; what failed stands here "
                "too. FLOPs are relative to QueCC's: of a whole answer to a mosaic question, tower "
                "included, and of the compressor alone."
            ),
            table_html(
                rows,
                [
                    "compressor",
                    *stats.tasks(results["rows"]),
                    "mosaic, points to QueCC",
                    "FLOPs of an answer",
                    "of the compressor",
                ],
            ),
        ],
    )


def _answer_cost(results: Results, label: str) -> float:
    return _flops(results, "mosaic")[label, 1]


def _elastic_section(results: Results) -> Iterator[Section]:
    labels = _labels(results, "elastic")
    if not labels:
        return
    fragments = [
        paragraph(
            "One set of weights, trained with V drawn anew for each batch and tested at every V, against "
            "one model for each V with the same number of steps."
        )
    ]
    for task in stats.tasks(results["rows"]):
        found = _scores(results, task, "elastic")
        columns = sorted({v for _, v in found})
        rows = [[label, *(_cell(found.get((label, v))) for v in columns)] for label in labels]
        alone = _scores(results, task, "comparison")
        rows.append([f"{QUECC}, one for each V", *(_cell(alone.get((QUECC, v))) for v in columns)])
        head = ["compressor", *(f"V = {v}" for v in columns)]
        fragments += [f"<h3>{title(task)}</h3>", table_html(rows, head)]
    yield Section("Elastic: one set of weights for every V", fragments)


def _kinds_section(results: Results) -> Section:
    kinds = stats.kinds(results["rows"])
    labels = _labels(results)
    found = {kind: _scores(results, kind) for kind in kinds}
    rows = [
        [label, *(_cell(found[kind].get((label, 1))) for kind in kinds)]
        for label in labels
        if any((label, 1) in found[kind] for kind in kinds)
    ]
    return Section("By kind of question, V = 1", [table_html(rows, ["compressor", *kinds])])


def _cost_section(results: Results) -> Section:
    rows = [
        [
            c["compressor"],
            c["visual_tokens"],
            f"{c['params'] / 1e3:,.0f}k",
            f"{c['flops'] / 1e6:.2f}",
            f"{c['query_flops'] / 1e6:.2f}",
            f"{c['projector_flops'] / 1e6:.2f}",
            f"{c['milliseconds']:.2f}",
        ]
        for c in results["steps"]["timing"]
    ]
    return Section(
        "What each costs",
        [
            paragraph(
                "Per image, from the tower's states to visual tokens: weights of the compressor, MFLOPs "
                "of compressor, the question's pass and the projector, and measured time of all three on "
                "one core in float32, batches of 32, the median of 15 rounds in which all took turns."
            ),
            table_html(
                rows, ["compressor", "V", "weights", "compressor, MFLOP", "query pass", "projector", "ms"]
            ),
        ],
    )


def figure_flops(results: Results, style: Style = "light") -> Figure:
    """Accuracy against FLOPs of an answer, a panel per task, a line per compressor through its V."""
    theme, tasks = THEMES[style], stats.tasks(results["rows"])
    labels = _labels(results, "comparison")
    figure = Figure(figsize=(7, 2.9 * len(tasks) + 0.8), dpi=DPI, facecolor=theme.paper, layout="constrained")
    colours = theme.colours(max(len(labels) - 1, 1))
    looks = {}
    for number, label in enumerate(labels):
        colour = theme.accent if label == results["own"] else colours[min(number, len(colours) - 1)]
        looks[label] = (colour, MARKERS[number % len(MARKERS)])
    for number, task in enumerate(tasks):
        axes: Axes = figure.add_subplot(len(tasks), 1, number + 1)
        dress(axes, theme, 10)
        found = _scores(results, task, "comparison")
        spent = _flops(results, task)
        for label in labels:
            here = sorted(v for one, v in found if one == label)
            colour, marker = looks[label]
            axes.errorbar(
                [spent[label, v] / 1e6 for v in here],
                [100 * found[label, v].mean for v in here],
                yerr=[100 * found[label, v].stderr for v in here],
                color=colour,
                marker=marker,
                ms=5.5,
                lw=1.3,
                elinewidth=1,
                zorder=4 if label == results["own"] else 3,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_xlim()
        ticks = np.unique(np.round(np.geomspace(low, high, 6)[1:-1]))
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_title(task, color=theme.ink, fontsize=12, fontweight="bold", loc="left")
        axes.set_ylabel("right answers (%)")
    axes.set_xlabel("MFLOPs of an answer, tower included")
    handles = [
        Line2D([], [], color=c, marker=m, ms=5.5, lw=1.3, label=label) for label, (c, m) in looks.items()
    ]
    figure.legend(
        handles=handles,
        ncols=4,
        loc="outside upper left",
        frameon=False,
        fontsize=10,
        labelcolor=theme.ink,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    return figure


def _figure(results: Results, out: Path) -> str:
    marks = ", ".join(f"{v}" for v in results["visual_tokens"])
    return embed(
        out,
        "flops",
        lambda style: figure_flops(results, style),
        "Accuracy against FLOPs of an answer for each task and compressor",
        f"Each line joins one compressor's V = {marks}, from left to right, with standard errors over seeds.",
    )


def _binomial(results: Results) -> float:
    found = (_scores(results, task) for task in stats.tasks(results["rows"]))
    return max(score.binomial for scores in found for score in scores.values())


def _cell(score: Score | None) -> str:
    return "" if score is None else brief(score)


def _p(d: Difference) -> str:
    return "" if math.isnan(d.p) else f"{d.p:.2f}" if d.p >= 0.01 else f"{d.p:.1g}"
