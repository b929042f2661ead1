"""The page on compressors side by side: findings, accuracy, what was tried, what each costs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from quecc_jax.experiments import stats
from quecc_jax.experiments.figures import flops_figure
from quecc_jax.experiments.results import Results
from quecc_jax.experiments.stats import Difference, Score, title
from quecc_jax.pages.numbers import p_text
from quecc_jax.pages.page import Section, bullets, paragraph, part, table_html
from quecc_jax.pages.render import embed

TITLE = "Every compressor, side by side"
QUECC, TOKENPACKER = "QueCC", "TokenPacker"


def sections(results: Results, out: Path) -> list[Section]:
    """All of the page but how it was made; the figure is written to `out`."""
    marks = ", ".join(map(str, results["visual_tokens"]))
    figure = embed(
        out,
        "flops",
        partial(flops_figure, results),
        "Accuracy against FLOPs of an answer for each task and compressor",
        f"Each line joins one compressor's V = {marks}, from left to right, with standard errors over seeds.",
    )
    return [
        Section("Findings", [bullets(findings(results)), figure]),
        _accuracy(results),
        *_rivals(results),
        *_ladder(results),
        *_elastic(results),
        _kinds(results),
        _costs(results),
    ]


def findings(results: Results) -> list[str]:
    """What the numbers say, in sentences."""
    tasks, own = stats.tasks(results["rows"]), results["own"]
    said = []
    for task in tasks:
        found = _scores(results, task, "comparison")
        parts = []
        for v in results["visual_tokens"]:
            (label, _), top = stats.best({key: score for key, score in found.items() if key[1] == v})
            parts.append(f"{label} with V = {v} ({top} %)")
        said.append(f"{title(task)}: the best are {', '.join(parts)}.")
    if compared := _compared(results, QUECC, TOKENPACKER):
        clear = [f"{task} at V = {v} ({d})" for task, v, d, _ in compared if abs(d.errors) > 2]
        rest = f"within two standard errors of each other in {len(compared) - len(clear)} of {len(compared)} "
        parts = [f"more than two standard errors apart on {', '.join(clear)}"] if clear else []
        parts.append(f"{rest}comparisons")
        said.append(f"QueCC and TokenPacker, points in QueCC's favour: {'; '.join(parts)}.")
    for v in results["visual_tokens"]:
        parts = [
            f"{task} {d} ({d.errors:+.1f} standard errors)"
            for task, one, d, _ in _compared(results, own, QUECC)
            if one == v
        ]
        if parts:
            said.append(f"{own} against QueCC at V = {v}: {', '.join(parts)}.")
    return said


Scores = Mapping[tuple[str, int], Score]
"""By compressor and V."""


def _scores(results: Results, what: str, part: str = "") -> Scores:
    return stats.scores(results["rows"], what, "compressor", part)


def _compared(results: Results, a: str, b: str) -> list[tuple[str, int, Difference, float]]:
    """Task, V, difference and Welch's p wherever both compressors were trained."""
    found = []
    for task in stats.tasks(results["rows"]):
        scores = _scores(results, task)
        for v in results["visual_tokens"]:
            if (a, v) in scores and (b, v) in scores:
                pair = scores[a, v], scores[b, v]
                found.append((task, v, stats.difference(*pair), stats.welch_p(*pair)))
    return found


def _table(name: str, found: Scores, labels: Iterable[str], counts: Sequence[int], further: list[str]) -> str:
    """Compressors by V, and a row for comparison; `name` as in `table_html`."""
    rows = [[label, *(found.get((label, v), "") for v in counts)] for label in labels]
    return table_html([*rows, further], ["compressor", *(f"V = {v}" for v in counts)], name)


def _accuracy(results: Results) -> Section:
    tasks, labels = stats.tasks(results["rows"]), stats.compressors(results["rows"], "comparison")
    worst = max(score.binomial for task in tasks for score in _scores(results, task).values())
    note = (
        "Right answers in %, greedy generation, exact match: the mean over seeds and its standard error "
        "over seeds. The test questions themselves leave a binomial standard error of "
        f"at most {100 * worst:.1f} points; differences below use the larger of the two."
    )
    fragments = [paragraph(note, "muted")]
    for task in tasks:
        found = _scores(results, task, "comparison")
        others = {v for _, v in found} - {*results["visual_tokens"]}
        columns = [*results["visual_tokens"], *sorted(others)]
        without = next(iter(stats.baseline(results["rows"], task).values()))
        blind = ["no image", f"{100 * without.mean:.1f}", *("" for _ in columns[1:])]
        fragments += [
            part("heading", title(task)),
            _table(f"Accuracy, {task}", found, labels, columns, blind),
        ]
    return Section("Accuracy", fragments)


def _rivals(results: Results) -> Iterator[Section]:
    rows = []
    for task, v, d, p in _compared(results, QUECC, TOKENPACKER):
        verdict = "yes" if abs(d.errors) > 2 else "no"
        rows.append([f"{task}, V = {v}", d, f"{d.errors:+.1f}", p_text(p), verdict])
    if rows:
        told = paragraph(
            "Points in QueCC's favour. p is Welch's two-sided t test over seeds, not corrected for "
            "the number of comparisons; three seeds make it a blunt instrument."
        )
        header = ["task", "difference", "in standard errors", "p", "beyond two"]
        yield Section(
            "QueCC against TokenPacker", [told, table_html(rows, header, "QueCC against TokenPacker")]
        )


def _ladder(results: Results) -> Iterator[Section]:
    labels, tasks = stats.compressors(results["rows"], "ladder"), stats.tasks(results["rows"])
    if not labels:
        return
    found = {task: _scores(results, task) for task in tasks}
    costs = {(c["compressor"], c["visual_tokens"]): c["flops"] for c in results["steps"]["timing"]}
    mosaic = {label: found["mosaic"][label, 1] for label in (QUECC, *labels)}
    rows = [
        [
            label,
            *(found[task].get((label, 1), "") for task in tasks),
            "" if label == QUECC else stats.difference(score, mosaic[QUECC]),
            f"{(score.flops or math.nan) / (mosaic[QUECC].flops or math.nan):.3f}",
            f"{costs[label, 1] / costs[QUECC, 1]:.2f}",
        ]
        for label, score in mosaic.items()
    ]
    told = paragraph(
        "Each rung changes QueCC at V = 1 in the way that its name says; what failed stands here "
        "too. FLOPs are relative to QueCC's: of a whole answer to a mosaic question, tower "
        "included, and of the compressor alone."
    )
    header = ["compressor", *tasks, "mosaic, points to QueCC", "FLOPs of an answer", "of the compressor"]
    yield Section("One token: the ladder", [told, table_html(rows, header, "The ladder")])


def _elastic(results: Results) -> Iterator[Section]:
    labels = stats.compressors(results["rows"], "elastic")
    if not labels:
        return
    told = (
        "One set of weights, trained with V drawn anew for each batch and tested at every V, against "
        "one model for each V with the same number of steps."
    )
    fragments = [paragraph(told)]
    for task in stats.tasks(results["rows"]):
        found, alone = _scores(results, task, "elastic"), _scores(results, task, "comparison")
        columns = sorted({v for _, v in found})
        apart = [f"{QUECC}, one for each V", *(str(alone.get((QUECC, v), "")) for v in columns)]
        fragments += [part("heading", title(task)), _table(f"Elastic, {task}", found, labels, columns, apart)]
    yield Section("Elastic: one set of weights for every V", fragments)


def _kinds(results: Results) -> Section:
    kinds = stats.kinds(results["rows"])
    found = {kind: _scores(results, kind) for kind in kinds}
    rows = [
        [label, *(found[kind].get((label, 1), "") for kind in kinds)]
        for label in stats.compressors(results["rows"])
        if any((label, 1) in found[kind] for kind in kinds)
    ]
    header = ["compressor", *(kind.replace("/", ", ") for kind in kinds)]
    return Section("By kind of question, V = 1", [table_html(rows, header, "Accuracy by kind of question")])


def _costs(results: Results) -> Section:
    told = paragraph(
        "Per image, from the tower's states to visual tokens: weights of the compressor, MFLOPs "
        "of compressor, the question's pass and the projector, and measured time of all three on "
        "one core in float32, batches of 32, the median of 15 rounds in which all took turns."
    )
    rows = [
        [c["compressor"], c["visual_tokens"], f"{c['params'] / 1e3:,.0f}k"]
        + [f"{x / 1e6:.2f}" for x in (c["flops"], c["query_flops"], c["projector_flops"])]
        + [f"{c['milliseconds']:.2f}"]
        for c in results["steps"]["timing"]
    ]
    header = ["compressor", "V", "weights", "compressor, MFLOP", "query pass", "projector", "ms"]
    return Section("What each costs", [told, table_html(rows, header, "Costs of each compressor")])
