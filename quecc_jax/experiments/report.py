"""The report of a grid: one self-contained HTML page and PNG figures."""

import base64
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from quecc_jax.errors import UserError
from quecc_jax.experiments import compressors_report, stats
from quecc_jax.experiments.figures import figure_ablation, figure_accuracy, figure_losses
from quecc_jax.experiments.findings import brief, findings, title
from quecc_jax.experiments.stats import Results, Score
from quecc_jax.pages.numbers import size_name
from quecc_jax.pages.page import Section, bullets, html_page, paragraph, table_html, write_atomically
from quecc_jax.pages.render import embed
from quecc_jax.pages.style import Style

_STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
.tile { background: var(--soft); border-radius: 10px; padding: .9rem 1rem; font-size: .88rem;
  color: var(--muted); line-height: 1.4; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.25; color: var(--ink); letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile strong { color: var(--ink); }
.heat { width: 100%; }
.heat td, .heat th { padding: .45rem .7rem; text-align: center; border: 2px solid var(--paper); }
.heat th:first-child, .heat td:first-child { text-align: left; padding-left: 0; }
.heat td small { display: block; color: var(--muted); font-size: .78rem; }
.heat .best { outline: 2px solid var(--accent); outline-offset: -3px; font-weight: 700; }
.heat .best small { font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem;
  margin: 1rem 0; }
.card { background: var(--soft); border: 2px solid transparent; border-radius: 10px; padding: .6rem;
  font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
.card.wrong { border: 2px dashed var(--accent); }
.card img { display: block; width: 100%; border-radius: 6px; margin-bottom: .5rem; }
.card .mark { font-weight: 700; }
.card.wrong .mark { color: var(--accent); }
.bar { display: inline-block; height: .7em; border-radius: 2px; background: var(--accent); opacity: .7; }
.bars { width: 100%; }
.bars td:last-child { text-align: left; width: 60%; min-width: 8rem; }
pre { background: var(--soft); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .9rem; }
"""

_DRAWN: dict[str, Callable[[Results, Style], Figure]] = {
    "accuracy": figure_accuracy,
    "query": figure_ablation,
    "losses": figure_losses,
}


def write_report(results: Results, out_dir: str | Path, law: Section | None = None) -> Path:
    """Writes report.html and NAME.png, NAME-dark.png of each figure; returns the page's path.

    Args:
      out_dir: sample images are read from it, relative to which `results` names them.
      law: a section on the fitted laws, which this package knows nothing of.

    Raises:
      UserError: a field is absent from the results, or a sample image cannot be read.
    """
    stats.check_results(results)
    out = Path(out_dir)
    if len(stats.compressors(results["rows"])) > 1:
        heading, lead, sections = compressors_report.content(results, out)
    else:
        heading, lead, sections = _content(results, out, law)
    page = html_page(heading, [*sections, _making_section(results)], lead, style=_STYLE)
    write_atomically(out / "report.html", page)
    return out / "report.html"


def _content(results: Results, out: Path, law: Section | None) -> tuple[str, str, list[Section]]:
    """Title, lead and sections of a page on decoders and visual tokens."""
    # Before the figures, so that an unreadable image is reported at once.
    samples = list(_sample_sections(results, out))
    sections = [
        _headline_section(results, out),
        *_accuracy_sections(results),
        *_query_sections(results, out),
        *([law] if law else []),
        _loss_section(results, out),
        *samples,
    ]
    minutes = _duration(results["seconds"]["total"])
    lead = (
        f"{results['models']} vision-language models, trained and tested in {minutes} on {results['machine']}. "
        "Every number on this page was measured in that run, on test images that no model was trained on."
    )
    return "Which decoder, how many visual tokens?", lead, sections


def _headline_section(results: Results, out: Path) -> Section:
    tiles = []
    for task in stats.tasks(results["rows"]):
        (decoder, v), top = stats.best(stats.grid(results["rows"], task))
        without = stats.baseline(results["rows"], task)
        blind = f"<br>{100 * stats.best(without)[1].mean:.1f} % without the image" if without else ""
        tiles.append(
            f"<strong>{_text(title(task))}</strong><b>{100 * top.mean:.1f} %</b>± {100 * top.stderr:.1f}, "
            f"{top.questions:,} questions{blind}<br>decoder {_text(decoder)}, V = {v}"
        )
    pairs = stats.ablation(results["rows"])
    fewest = [pair for pair in pairs if pair.visual_tokens == min(p.visual_tokens for p in pairs)]
    if fewest:
        gain, error = stats.ablation_effect(fewest)
        tiles.append(
            f"<strong>Query effect</strong><b>{100 * gain:+.1f}</b>± {100 * error:.1f} points "
            f"against zeros<br>questions about one cell, V = {fewest[0].visual_tokens}"
        )
    drawn = '<div class="tiles">' + "".join(f'<div class="tile">{tile}</div>' for tile in tiles) + "</div>"
    figure = _figure(
        results,
        out,
        "accuracy",
        "Accuracy against visual tokens for each task and decoder",
        "Right answers on test images, with standard errors. Dashed: models of the same decoder that read "
        "the question and see no image.",
    )
    said = (sentence.partition(":") for sentence in findings(results))
    listed = "".join(f"<li><strong>{_text(head)}:</strong>{_text(rest)}</li>" for head, _, rest in said)
    return Section("Findings", [drawn, f"<ul>{listed}</ul>", figure])


def _accuracy_sections(results: Results) -> Iterator[Section]:
    fragments = [paragraph(_error_note(results), "muted")]
    for task in stats.tasks(results["rows"]):
        fragments += [
            f"<h3>{_text(title(task))}</h3>",
            _heat_html(results, task),
            *_kinds_html(results, task),
        ]
    yield Section("Accuracy", fragments)


def _heat_html(results: Results, task: str) -> str:
    """Decoders by V, shaded; the question-only model of each decoder stands in the first column."""
    scores, without = stats.grid(results["rows"], task), stats.baseline(results["rows"], task)
    top, _ = stats.best(scores)
    means = [score.mean for score in scores.values()]
    low, span = min(means), max(max(means) - min(means), 1e-9)

    def cell(score: Score | None, mark: str = "", shaded: bool = True) -> str:
        if score is None:
            return "<td>–</td>"
        shade = 0.05 + 0.45 * (score.mean - low) / span if shaded else 0.0
        return (
            f'<td{mark} style="background: rgba(40, 130, 220, {shade:.2f})">{100 * score.mean:.1f}'
            f"<small>± {100 * score.stderr:.1f}</small></td>"
        )

    counts = results["visual_tokens"]
    head = "".join(f"<th>{name}</th>" for name in ("decoder", "no image", *(f"V = {v}" for v in counts)))
    body = ""
    for decoder in results["llms"]:
        name = decoder["name"]
        cells = [cell(without.get(name), shaded=False)]
        cells += [cell(scores.get((name, v)), ' class="best"' if (name, v) == top else "") for v in counts]
        label = f"<td>{_text(name)}<small>{size_name(decoder['params'] / 1e9)} parameters</small></td>"
        body += f"<tr>{label}{''.join(cells)}</tr>"
    asked = sorted({score.questions for score in scores.values()})
    number = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
    caption = f"Right answers in % of {number} test questions. Shaded from least to most; outlined: the best."
    return (
        f'<div class="scroll"><table class="heat"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"{paragraph(caption, 'muted')}"
    )


def _kinds_html(results: Results, task: str) -> Iterator[str]:
    kinds, counts = stats.kinds(results["rows"], task), results["visual_tokens"]
    if len(kinds) < 2:
        return
    name = max(results["llms"], key=lambda decoder: decoder["params"])["name"]
    rows = []
    for kind in kinds:
        scores, without = stats.grid(results["rows"], kind), stats.baseline(results["rows"], kind)
        cells = [without.get(name), *(scores.get((name, v)) for v in counts)]
        asked = max((score.questions for score in cells if score), default=0)
        rows.append([kind.split("/", 1)[1], f"{asked:,}", *("–" if s is None else brief(s) for s in cells)])
    yield paragraph(f"By kind of question, decoder {name}, in %:")
    yield table_html(rows, ["kind", "questions", "no image", *(f"V = {v}" for v in counts)])


def _query_sections(results: Results, out: Path) -> Iterator[Section]:
    pairs = stats.ablation(results["rows"])
    if not pairs:
        return
    rows = []
    for pair in pairs:
        gain, error = stats.margin(pair.question, pair.zero)
        rows.append(
            [
                pair.llm,
                pair.visual_tokens,
                pair.seed,
                brief(pair.question),
                brief(pair.zero),
                f"{100 * gain:+.1f} ± {100 * error:.1f}",
                f"{pair.question.questions:,}",
            ]
        )
    yield Section(
        "Does the query matter?",
        [
            paragraph(
                "Each pair of models differs in one thing only: the compressor is given the question's "
                "feature, or zeros in its place, in training and in testing alike. The questions are about "
                "one cell of a mosaic, so a compressor that does not know it must carry them all."
            ),
            _figure(
                results,
                out,
                "query",
                "Accuracy with the question and with zeros in the compressor",
                "Right answers to questions about one cell, with binomial standard errors.",
            ),
            table_html(
                rows, ["decoder", "V", "seed", "question, %", "zeros, %", "difference, points", "questions"]
            ),
        ],
    )


def _loss_section(results: Results, out: Path) -> Section:
    return Section(
        "Training losses",
        [
            _figure(
                results,
                out,
                "losses",
                "Training loss against step for each decoder and V",
                "Mean over seeds, smoothed. The dotted line is where the second stage begins, with new data "
                "and the decoder's own weights free.",
            )
        ],
    )


def _sample_sections(results: Results, out: Path) -> Iterator[Section]:
    samples: Sequence[Mapping[str, Any]] = results["samples"]
    if not samples:
        return
    fragments = []
    for task in stats.tasks(results["rows"]):
        chosen = [sample for sample in samples if sample["task"] == task]
        if chosen:
            models = sorted({f"decoder {s['llm']}, V = {s['visual_tokens']}" for s in chosen})
            fragments += [
                f"<h3>{_text(title(task))}</h3>",
                paragraph("; ".join(models), "muted"),
                '<div class="cards">' + "".join(_card(sample, out) for sample in chosen) + "</div>",
            ]
    yield Section("Test images, questions and answers", fragments)


def _card(sample: Mapping[str, Any], out: Path) -> str:
    path = out / sample["image"]
    try:
        encoded = base64.b64encode(path.read_bytes()).decode()
    except OSError as problem:
        raise UserError(f"cannot read the sample image {path}: {problem.strerror}") from None
    right = sample["prediction"].strip() == sample["truth"].strip()
    verdict = '<span class="mark">✓ right</span>' if right else '<span class="mark">✗ wrong</span>'
    truth = "" if right else f"<br>truth: <strong>{_text(sample['truth'])}</strong>"
    return (
        f'<div class="card{"" if right else " wrong"}"><img src="data:image/png;base64,{encoded}" '
        f'alt="test image, {_text(sample["kind"])}">{_text(sample["question"])}<br>'
        f"answer: <strong>{_text(sample['prediction'])}</strong>{truth}<br>{verdict}</div>"
    )


def _making_section(results: Results) -> Section:
    seconds = dict(results["seconds"])
    total = seconds.pop("total")
    phases = "".join(
        f"<tr><td>{_text(name)}</td><td>{spent:,.0f} s</td>"
        f'<td><span class="bar" style="width: {100 * min(spent / total, 1):.1f}%"></span></td></tr>'
        for name, spent in seconds.items()
    )
    trained = {row["cell"]: row for row in results["rows"]}.values()
    decoders = []
    for d in results["llms"]:
        spent = [r["train_seconds"] for r in trained if r["llm"] == d["name"] and r["visual_tokens"]]
        each = f"{sum(spent) / max(len(spent), 1):.0f} s"
        decoders.append([d["name"], d["width"], d["depth"], f"{d['params']:,}", len(spent), each])
    blind = sum(not row["visual_tokens"] for row in trained)
    seeds = results["seeds"]
    facts = [
        f"Started {results['started'].replace('T', ' ')}, took {_duration(total)} on {results['machine']}.",
        f"{'Seed' if len(seeds) == 1 else 'Seeds'} {', '.join(map(str, seeds))}; "
        f"{results['models']} models with an image, {blind} without.",
        "; ".join(f"stage {stage}: {steps:,} steps of {size}" for stage, steps, size in results["stages"])
        + " questions, the same for all.",
    ]
    if tower := results["steps"].get("tower", {}).get("accuracy"):
        facts.append(
            "The vision tower was trained first and then frozen; its accuracy on test images: "
            + ", ".join(f"{name} {100 * value:.1f} %" for name, value in tower.items())
            + "."
        )
    return Section(
        "How it was made",
        [
            f"<pre>{_text(results['command'])}</pre>",
            bullets(facts),
            '<div class="scroll"><table class="bars"><thead><tr><th>phase</th><th>time</th><th></th></tr>'
            f"</thead><tbody>{phases}</tbody></table></div>",
            table_html(decoders, ["decoder", "width", "depth", "parameters", "models", "training each"]),
            paragraph("Parameters are the decoder's, without embeddings.", "muted"),
        ],
    )


def _figure(results: Results, out: Path, name: str, alt: str, caption: str) -> str:
    return embed(out, name, lambda style: _DRAWN[name](results, style), alt, caption)


def _error_note(results: Results) -> str:
    chance = "The best of several models is a little flattered by chance."
    seeds = len(results["seeds"])
    if seeds == 1:
        return f"± is the binomial standard error of the test questions, sqrt(p (1 - p) / n). {chance}"
    worst = max(
        s.binomial
        for task in stats.tasks(results["rows"])
        for s in stats.grid(results["rows"], task).values()
    )
    return (
        f"Means over {seeds} seeds; ± is the standard error over seeds. All seeds answer the same test "
        f"questions, whose own binomial standard error is at most {100 * worst:.1f} points. {chance}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
