"""Compares models on the questions that all have answered.

python -m launch.compare runs/eval-quecc runs/eval-avgpool --uncompressed runs/eval-full
"""

import dataclasses
from pathlib import Path

import tyro

from quecc_jax.commands.checks import check_folder, check_least


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares models by answers that launch.evaluate has kept: paired differences to the first with intervals and
    tests, what each keeps of an uncompressed model, and where the differences come from. Prints tables, and writes
    a page and compare.json."""

    answers: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of answers, each an --out of launch.evaluate (or one below a grid's `answers`); the first is what the
    others are compared with."""
    out: Path = Path("runs/compare")
    """Directory for compare.html and compare.json."""
    uncompressed: Path | None = None
    """Answers of the model without compression, by whose scores retention is counted."""
    downsample: tuple[Path, ...] = ()
    """Answers of models that see a shrunk image, one or more V: questions are grouped by the fewest tokens at which a
    shrunk image answers them, and those that none answers."""
    resamples: int = 2000
    """Replicates of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""


def run(options: Options) -> None:
    """Prints the tables and writes the page."""
    from rich.console import Console
    from rich.table import Table

    from quecc_jax.errors import UserError
    from quecc_jax.evaluate.comparison.compare import compare
    from quecc_jax.evaluate.comparison.page import AGAINST, BRIEF, against_rows, retention_rows, write_page
    from quecc_jax.records import write_record

    check_least(options, {"resamples": 100, "seed": 0})
    check_folder("--out", options.out)
    if not options.answers:
        raise UserError("no answers are named; name folders that launch.evaluate has written")
    record = compare(
        options.answers, options.uncompressed, options.downsample, options.resamples, options.seed
    )
    write_record(options.out / "compare.json", record)
    page, console = write_page(record, options.out), Console()
    tables: list[tuple[str, tuple[str, ...], list[list[object]]]] = [
        (
            f"points against {record['first']}",
            tuple(AGAINST[k] for k in BRIEF),
            [[row[k] for k in BRIEF] for row in against_rows(record)],
        )
    ]
    if record["uncompressed"]:
        columns = ("model", *record["tasks"], *(["mean of all"] if "overall" in record else []))
        tables.append((f"score, % of {record['uncompressed']}", columns, retention_rows(record)))
    for title, header, rows in tables:
        if rows:
            table = Table(*header, title=title)
            for row in rows:
                table.add_row(*map(str, row))
            console.print(table)
    for note in record["notes"]:
        print(note)
    print(page)
