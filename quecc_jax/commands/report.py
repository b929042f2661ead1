"""Writes the report of a finished grid again: python -m launch.report --results runs/demo/results.json"""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the report of a finished grid again, such as the demo's."""

    results: Path
    """The grid's results.json; the report goes beside it."""


def run(options: Options) -> None:
    """Writes the page and prints where it lies."""
    from quecc_jax.commands.grid_law import law_section
    from quecc_jax.experiments.report import write_report
    from quecc_jax.experiments.results import read_results

    results, folder = read_results(options.results), options.results.parent
    print(write_report(results, folder, law_section(results, folder)))
