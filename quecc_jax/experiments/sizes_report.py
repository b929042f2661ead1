"""The page on decoders and visual tokens: findings, accuracy, what the query adds, losses, sample answers."""

import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from quecc_jax.errors import UserError
from quecc_jax.experiments import stats
from quecc_jax.experiments.figures import ablation_figure, accuracy_figure, loss_figure
from quecc_jax.experiments.results import Results
from quecc_jax.experiments.stats import Difference, Score, title
from quecc_jax.pages.numbers import flops_text, size_name
from quecc_jax.pages.page import Section, data_uri, paragraph, part, table_html
from quecc_jax.pages.render import embed
from quecc_jax.records import Damaged

TITLE = "Which decoder, how many visual tokens?"
CLEAR = 3
"""Standard errors from which a difference is called one."""


def sections(results: Results, out: Path, law: Section | None) -> list[Section]:
    """All of the page but how it was made; figures are written to `out`, sample images read from it."""
    # First, so that an unreadable image is reported at once.
    samples = list(_samples(results, out))
    return [
        _headline(results, out),
        _accuracy(results),
        *_query(results, out),
        *([law] if law else []),
        _losses(results, out),
        *samples,
    ]


def findings(results: Results) -> list[str]:
    """What the numbers say, in sentences, each about one task or one question; most important first."""
    tasks = stats.tasks(results["rows"])
    return [
        *(_task_finding(results, task) for task in tasks),
        *_query_findings(results),
        *(said for task in tasks for said in _recommendation(results, task)),
    ]


def _task_finding(results: Results, task: str) -> str:
    counts = results["visual_tokens"]
    (decoder, v), top = stats.best(stats.scores(results["rows"], task))
    first = (
        f"{title(task)}: the best model (decoder {decoder}, V = {v}) answers {top} % of "
        f"{top.questions:,} test questions"
    )
    sentences = [first]
    if without := stats.baseline(results["rows"], task):
        blind = stats.best(without)[1]
        margin = stats.difference(top, blind)
        sentences = [
            f"{first}, against {blind} % for the best model that sees no image",
            f"The margin is {100 * margin.gain:+.1f} points, {_in_errors(margin)}",
        ]
    by_tokens, by_size = stats.spread(results, task)
    moves = []
    if by_tokens is not None:
        moves.append(f"{100 * by_tokens:+.1f} points from V = {min(counts)} to V = {max(counts)}")
    if by_size is not None:
        moves.append(f"{100 * by_size:+.1f} points from the smallest to the largest decoder")
    if moves:
        sentences.append(f"On average accuracy moves by {' and by '.join(moves)}")
    return ". ".join(sentences) + "."


def _in_errors(margin: Difference) -> str:
    if not margin.error:
        return "without any measurable error"
    count = margin.errors
    return (
        f"{count:.0f} standard errors"
        if abs(count) >= CLEAR
        else f"within noise ({count:.1f} standard errors)"
    )


def _query_findings(results: Results) -> Iterator[str]:
    pairs = stats.ablation(results["rows"])
    for v in sorted({pair.visual_tokens for pair in pairs}):
        chosen = [pair for pair in pairs if pair.visual_tokens == v]
        effect = stats.ablation_effect(chosen)
        gain, error = (100 * x for x in effect)
        change = f"{'adds' if gain > 0 else 'costs'} {abs(gain):.1f} ± {error:.1f} points"
        if abs(gain) < 2 * error:
            change = f"makes no difference that these questions can resolve ({effect} points)"
        models = "one pair" if len(chosen) == 1 else f"{len(chosen)} pairs"
        yield (
            f"The query: on questions about one mosaic cell at V = {v}, giving the compressor "
            f"the question instead of zeros {change}; {models} of models, "
            f"{chosen[0].question.questions:,} questions each."
        )
    for decoder in sorted({pair.llm for pair in pairs if pair.visual_tokens == 1}):
        asked, blind = (stats.attention(results, decoder, query) for query in ("question", "zero"))
        if asked is not None and blind is not None:
            chance = 100 / results["steps"]["data"]["side"] ** 2
            yield (
                f"Attention: at V = 1, decoder {decoder}, {100 * asked:.0f} % of it falls on the cell that "
                f"the question names, {100 * blind:.0f} % with zeros; looking everywhere alike gives "
                f"{chance:.0f} %."
            )


def _recommendation(results: Results, task: str) -> Iterator[str]:
    found = stats.scores(results["rows"], task)
    (best, top), cheap = stats.best(found), stats.cheapest_near_best(found)
    cost, most = found[cheap].flops, top.flops
    if cost is None or most is None:
        return
    if without := stats.baseline(results["rows"], task):
        margin = stats.difference(top, stats.best(without)[1])
        if margin.errors < CLEAR:
            yield (
                f"Recommended for {task}: none of these models. The best is not measurably better than one that "
                f"sees no image ({margin} points); train longer."
            )
            return
    choice = f"decoder {cheap[0]} with V = {cheap[1]} ({found[cheap]} %, {flops_text(cost)})"
    if cheap == best:
        yield f"Recommended for {task}: {choice}; no cheaper model comes within one standard error."
    else:
        yield (
            f"Recommended for {task}: {choice}. It is within one standard error of the best model, "
            f"at {100 * cost / most:.0f} % of its compute for each question."
        )


def _headline(results: Results, out: Path) -> Section:
    tiles = []
    for task in stats.tasks(results["rows"]):
        (decoder, v), top = stats.best(stats.scores(results["rows"], task))
        lines = [f"± {100 * top.stderr:.1f}, {top.questions:,} questions", f"decoder {decoder}, V = {v}"]
        if without := stats.baseline(results["rows"], task):
            lines.insert(1, f"{100 * stats.best(without)[1].mean:.1f} % without the image")
        tiles.append((title(task), f"{100 * top.mean:.1f} %", lines))
    if pairs := stats.ablation(results["rows"]):
        fewest = min(pair.visual_tokens for pair in pairs)
        gain, error = stats.ablation_effect([pair for pair in pairs if pair.visual_tokens == fewest])
        lines = [f"± {100 * error:.1f} points against zeros", f"questions about one cell, V = {fewest}"]
        tiles.append(("Query effect", f"{100 * gain:+.1f}", lines))
    figure = embed(
        out,
        "accuracy",
        partial(accuracy_figure, results),
        "Accuracy against visual tokens for each task and decoder",
        "Right answers on test images, with standard errors. Dashed: models of the same decoder that read "
        "the question and see no image.",
    )
    return Section("Findings", [part("tiles", tiles), part("findings", findings(results)), figure])


def _accuracy(results: Results) -> Section:
    fragments = [paragraph(_error_note(results), "muted")]
    for task in stats.tasks(results["rows"]):
        fragments += [part("heading", title(task)), *_heat(results, task), *_kinds(results, task)]
    return Section("Accuracy", fragments)


def _error_note(results: Results) -> str:
    chance = "The best of several models is a little flattered by chance."
    seeds, tasks = len(results["seeds"]), stats.tasks(results["rows"])
    if seeds == 1:
        told = "± is the binomial standard error of the test questions, sqrt(p (1 - p) / n)"
        if any(row.get("seed_spread") for row in results["rows"]):
            told += (
                ", together with the spread over three seeds of the same decoder and kind of question "
                "(docs/demo.md), for this grid has one seed"
            )
        return f"{told}. {chance}"
    worst = max(score.binomial for task in tasks for score in stats.scores(results["rows"], task).values())
    return (
        f"Means over {seeds} seeds; ± is the standard error over seeds. All seeds answer the same test "
        f"questions, whose own binomial standard error is at most {100 * worst:.1f} points. {chance}"
    )


def _heat(results: Results, task: str) -> list[str]:
    """Decoders by V, shaded; the question-only model of each decoder stands in the first column."""
    found, without = stats.scores(results["rows"], task), stats.baseline(results["rows"], task)
    top, _ = stats.best(found)
    means = [score.mean for score in found.values()]
    low, span = min(means), max(max(means) - min(means), 1e-9)

    def cell(score: Score | None, key: tuple[str, int] | None = None) -> tuple[str, str, float, bool]:
        if score is None:
            return "–", "", 0.0, False
        shade = 0.05 + 0.45 * (score.mean - low) / span if key else 0.0
        return f"{100 * score.mean:.1f}", f"± {100 * score.stderr:.1f}", shade, key == top

    rows = []
    for llm in results["llms"]:
        keys = [(llm["name"], v) for v in results["visual_tokens"]]
        cells = [cell(without.get(llm["name"])), *(cell(found.get(key), key) for key in keys)]
        rows.append(((llm["name"], f"{size_name(llm['params'] / 1e9)} parameters"), cells))
    header = [(name, False) for name in ("decoder", "no image", *_counts(results))]
    asked = sorted({score.questions for score in found.values()})
    number = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
    caption = f"Right answers in % of {number} test questions. Shaded from least to most; outlined: the best."
    return [part("heat", f"Accuracy, {task}", header, rows), paragraph(caption, "muted")]


def _kinds(results: Results, task: str) -> Iterator[str]:
    kinds, name = stats.kinds(results["rows"], task), stats.by_size(results)[-1]["name"]
    if len(kinds) < 2:
        return
    rows = []
    for kind in kinds:
        found, without = stats.scores(results["rows"], kind), stats.baseline(results["rows"], kind)
        cells = [without.get(name), *(found.get((name, v)) for v in results["visual_tokens"])]
        asked = max((score.questions for score in cells if score), default=0)
        rows.append([kind.split("/", 1)[1], f"{asked:,}", *(score or "–" for score in cells)])
    yield paragraph(f"By kind of question, decoder {name}, in %:")
    yield table_html(
        rows, ["kind", "questions", "no image", *_counts(results)], f"Accuracy by kind of question, {task}"
    )


def _counts(results: Results) -> list[str]:
    return [f"V = {v}" for v in results["visual_tokens"]]


def _query(results: Results, out: Path) -> Iterator[Section]:
    pairs = stats.ablation(results["rows"])
    if not pairs:
        return
    header = ["decoder", "V", "seed", "question, %", "zeros, %", "difference, points", "questions"]
    rows = [[*pair, stats.difference(*pair[-2:]), f"{pair.question.questions:,}"] for pair in pairs]
    told = paragraph(
        "Each pair of models differs in one thing only: the compressor is given the question's "
        "feature, or zeros in its place, in training and in testing alike. The questions are about "
        "one cell of a mosaic, so a compressor that does not know it must carry them all."
    )
    figure = embed(
        out,
        "query",
        partial(ablation_figure, results),
        "Accuracy with the question and with zeros in the compressor",
        "Right answers to questions about one cell, with standard errors.",
    )
    yield Section("Does the query matter?", [told, figure, table_html(rows, header, "Pairs of models")])


def _losses(results: Results, out: Path) -> Section:
    figure = embed(
        out,
        "losses",
        partial(loss_figure, results),
        "Training loss against step for each decoder and V",
        "Mean over seeds, smoothed. The dotted line is where the second stage begins, with new data "
        "and the decoder's own weights free.",
    )
    return Section("Training losses", [figure])


def _samples(results: Results, out: Path) -> Iterator[Section]:
    fragments = []
    for task in stats.tasks(results["rows"]):
        if chosen := [sample for sample in results["samples"] if sample["task"] == task]:
            models = sorted({f"decoder {s['llm']}, V = {s['visual_tokens']}" for s in chosen})
            cards = []
            for sample in chosen:
                right = sample["prediction"].strip() == sample["truth"].strip()
                cards.append(
                    {**sample, "right": right, "uri": sample_uri(out / sample["image"], sample.get("crc32"))}
                )
            fragments += [
                part("heading", title(task)),
                paragraph("; ".join(models), "muted"),
                part("cards", cards),
            ]
    if fragments:
        yield Section("Test images, questions and answers", fragments)


def sample_uri(path: Path, crc32: int | None) -> str:
    """A sample image inside the page.

    Raises:
      UserError: it cannot be read, or is another than that of this checksum.
    """
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UserError(f"cannot read the sample image {path}: {problem.strerror}") from None
    if crc32 not in (None, zlib.crc32(content)):
        raise Damaged(
            f"the sample image {path} is damaged, or another than the results were made with; restore it"
        )
    return data_uri(content, "png")
