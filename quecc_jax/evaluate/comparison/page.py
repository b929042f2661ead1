"""The page of a comparison: differences, what each keeps, and where they come from."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from quecc_jax.evaluate.comparison.record import Against, Comparison, Number, Part
from quecc_jax.pages.numbers import p_text
from quecc_jax.pages.page import Section, bullets, html_page, paragraph, part, table_html, write_atomically
from quecc_jax.pages.render import embed
from quecc_jax.pages.style import DPI, THEMES, Style, dress

PAGE = "compare.html"
_MARKERS = "osD^vPX*<>hd"


def write_page(record: Comparison, out: Path) -> Path:
    """Writes OUT/compare.html and its figure; the page's path."""
    lead = (
        f"{len(record['models'])} models on the same questions of {', '.join(record['tasks'])}. "
        f"Points are in favour of each model against {record['first']}."
    )
    write_atomically(out / PAGE, html_page("Models compared", sections(record, out), lead))
    return out / PAGE


def sections(record: Comparison, out: Path) -> Iterator[Section]:
    """The page's parts; the figure is written to `out`."""
    if against_rows(record):
        figure = embed(
            out,
            "differences",
            partial(_figure, record),
            "Difference of each model to the first, with 95 % intervals, by benchmark",
            f"Paired differences to {record['first']} in points, and their 95 % intervals.",
        )
        told = paragraph(
            f"Intervals and p by the paired bootstrap over images ({record['resamples']:,} replicates); McNemar's "
            "exact test by questions. Both p are corrected by Holm over all lines of the table; the mean of "
            "benchmarks is corrected apart.",
            "muted",
        )
        table = table_html(against_rows(record), AGAINST, "Differences to the first model")
        yield Section(f"Against {record['first']}", [figure, told, table])
    yield Section("Scores", [_scores(record)])
    if record["uncompressed"]:
        told = paragraph(
            f"Score in percent of that of {record['uncompressed']}, with standard errors.", "muted"
        )
        table = table_html(retention_rows(record), ["model", *_columns(record)], "Retention")
        yield Section("What each keeps", [told, table])
    for title, key, note in (
        (
            "By what a shrunk image tells",
            "fineness",
            "Questions by the fewest tokens of a shrunk image that answer them. Where compressors differ on questions "
            "that a shrunk image answers, the image's detail is not what they differ in.",
        ),
        ("By turn", "turns", "First and later turns of conversations about one image."),
        ("By kind of question", "kinds", "A question may be of several kinds."),
    ):
        tables = [
            fragment
            for task, found in record["tasks"].items()
            if found[key]  # type: ignore[literal-required]
            for fragment in _parts(record, task, title, found[key])  # type: ignore[literal-required]
        ]
        if tables:
            yield Section(title, [paragraph(note, "muted"), *tables])
    rows = [[one["name"], one["visual_tokens"], one["folder"]] for one in record["models"]]
    made = [table_html(rows, ["model", "V", "answers"], "The models")]
    if record["notes"]:
        made.append(bullets(record["notes"], "note"))
    yield Section("What was compared", made)


AGAINST = (
    "benchmark",
    "model",
    "points",
    "95 % interval",
    "p",
    "p corrected",
    "right alone",
    "McNemar p",
    "McNemar corrected",
)
"""Heads of the table of differences."""
BRIEF = (0, 1, 2, 3, 5, 8)
"""Those of its columns that a terminal has room for."""


def against_rows(record: Comparison) -> list[list[object]]:
    """The table of differences, as AGAINST heads it."""
    rows = [_against(task, one) for task, found in record["tasks"].items() for one in found["against"]]
    return rows + [_against("mean of all", one) for one in record.get("overall", [])]


def _against(task: str, one: Against) -> list[object]:
    found = one["difference"]
    alone = f"{one['model_alone']} : {one['first_alone']}" if "first_alone" in one else ""
    mcnemar = [p_text(one[key]) if key in one else "" for key in ("mcnemar_p", "mcnemar_p_corrected")]  # type: ignore[literal-required]
    return [
        task,
        one["model"],
        plus_minus(found, "+"),
        interval(found),
        p_text(one["p"]),
        p_text(one["p_corrected"]),
        alone,
        *mcnemar,
    ]


def _columns(record: Comparison) -> list[str]:
    return [*record["tasks"], *(["mean of all"] if "overall" in record else [])]


def _scores(record: Comparison) -> str:
    header, rows = ["model"], [[model["name"]] for model in record["models"]]
    for task, found in record["tasks"].items():
        header.append(f"{task}, mean score of a question, %")
        for row in rows:
            row.append(plus_minus(found["scores"][row[0]]))
        if found["headlines"]:
            header.append("its own metric")
            for row in rows:
                row.append(found["headlines"].get(row[0], ""))
    return table_html(rows, header, "Scores")


def retention_rows(record: Comparison) -> list[list[object]]:
    """A line a model: what it keeps of each benchmark, and of their mean."""
    every = [found["retention"] for found in record["tasks"].values()]
    if "overall_retention" in record:
        every.append(record["overall_retention"])
    return [[name, *(plus_minus(kept[name]) for kept in every)] for name in (every[0] if every else ())]


def _parts(record: Comparison, task: str, title: str, parts: Sequence[Part]) -> Iterable[str]:
    names = [model["name"] for model in record["models"]]
    rivals = list(parts[0]["differences"])
    whole = record["tasks"][task]["questions"]
    rows = [
        [one["name"], f"{one['questions']:,} ({100 * one['questions'] / whole:.0f} %)"]
        + [plus_minus(one["scores"][name]) for name in names]
        + [plus_minus(one["differences"][name], "+") for name in rivals]
        for one in parts
    ]
    header = [
        "which",
        "questions",
        *(f"{name}, %" for name in names),
        *(f"{name}, points" for name in rivals),
    ]
    return part("heading", task), table_html(rows, header, f"{title}, {task}")


def plus_minus(found: Number, sign: str = "") -> str:
    """A number and its standard error; a dash where it is undefined."""
    if found["value"] is None:
        return "–"
    error = found["standard_error"]
    return f"{found['value']:{sign}.1f}" + ("" if error is None else f" ± {error:.1f}")


def interval(found: Number) -> str:
    """The 95 % interval."""
    if found["low"] is None or found["high"] is None:
        return "–"
    return f"{found['low']:+.1f} to {found['high']:+.1f}"


def _figure(record: Comparison, style: Style) -> Figure:
    theme = THEMES[style]
    groups = [(task, found["against"]) for task, found in record["tasks"].items()]
    if overall := record.get("overall"):
        groups.append(("mean of all", overall))
    rivals = [one["model"] for one in groups[0][1]]
    colours = theme.colours(len(rivals))
    height = 1.2 + 0.26 * len(rivals) * len(groups) + 0.2 * len(groups)
    figure = Figure(figsize=(7, height), dpi=DPI, layout="constrained", facecolor=theme.paper)
    axes = figure.subplots()
    dress(axes, theme)
    axes.axvline(0, color=theme.muted, lw=1.2)
    for row, (_, against) in enumerate(groups):
        for number, one in enumerate(against):
            found = one["difference"]
            if found["value"] is None:
                continue
            y = row + (number - (len(rivals) - 1) / 2) * 0.7 / len(rivals)
            if found["low"] is not None and found["high"] is not None:
                axes.plot([found["low"], found["high"]], [y, y], color=colours[number], lw=1.6)
            label = one["model"] if row == 0 else None
            axes.plot(
                found["value"], y, _MARKERS[number % len(_MARKERS)], color=colours[number], ms=7, label=label
            )
    axes.set_yticks(range(len(groups)), [task for task, _ in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(f"points against {record['first']}")
    legend = figure.legend(loc="outside upper center", ncols=min(len(rivals), 3), frameon=False)
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return figure
