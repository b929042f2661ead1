"""The report of a grid: one self-contained HTML page and PNG figures."""

import html
from pathlib import Path

from quecc_jax.experiments import compressors_report, sizes_report, stats
from quecc_jax.experiments.results import Results, check_results
from quecc_jax.pages.page import Section, bullets, html_page, paragraph, part, table_html, write_atomically


def write_report(results: Results, out_dir: str | Path, law: Section | None = None) -> Path:
    """Writes report.html and NAME.png, NAME-dark.png of each figure; returns the page's path.

    Args:
      out_dir: sample images are read from it, relative to which `results` names them.
      law: a section on the fitted laws of a grid of one compressor, which this package knows nothing of.

    Raises:
      UserError: a field is absent from the results, or a sample image cannot be read.
    """
    check_results(results)
    out, models, seeds = Path(out_dir), results["models"], len(results["seeds"])
    compared = len(stats.compressors(results["rows"], "comparison"))
    if stats.one_compressor(results["rows"]):
        heading, sections = sizes_report.TITLE, sizes_report.sections(results, out, law)
        lead = (
            f"{models} vision-language models, trained and tested in {_duration(results['seconds']['total'])} "
            f"on {results['machine']}. Every number on this page was measured in that run, on test images "
            "that no model was trained on."
        )
    else:
        heading, sections = compressors_report.TITLE, compressors_report.sections(results, out)
        lead = (
            f"{models} training runs of one decoder behind {compared} compressors, same data, same steps, "
            f"{seeds} seeds. Every number on this page was measured."
        )
    every = [*sections, _making(results)]
    write_atomically(out / "report.html", html_page(heading, every, lead))
    return out / "report.html"


def _making(results: Results) -> Section:
    seconds = dict(results["seconds"])
    total = seconds.pop("total")
    worked = sum(seconds.values())
    whole = max(total, worked)
    phases = [(name, f"{spent:,.0f} s", spent / whole) for name, spent in seconds.items()]
    # Nothing ran side by side where phases fit into what passed, up to their rounding.
    beside = [
        paragraph(
            f"Phases are summed over jobs that ran side by side: {worked:,.0f} s of work in {total:,.0f} s.",
            "muted",
        )
    ] * (worked > 1.01 * total)
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
        shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in tower.items())
        told = "The vision tower was trained first and then frozen; its accuracy on test images"
        facts.append(f"{told}: {shares}.")
    return Section(
        "How it was made",
        [
            f"<pre>{html.escape(results['command'])}</pre>",
            bullets(facts),
            part(
                "meters", "Time of each phase", [("phase", False), ("time", False), ("share", False)], phases
            ),
            *beside,
            table_html(
                decoders,
                ["decoder", "width", "depth", "parameters", "models", "training each"],
                "Decoders and their training",
            ),
            paragraph("Parameters are the decoder's, without embeddings.", "muted"),
        ],
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
