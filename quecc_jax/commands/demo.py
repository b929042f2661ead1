"""The demo and the study: train the grid, answer test questions, fit the law, write the report.

python -m launch.demo --out runs/demo
"""

import dataclasses
import os
import sys
from pathlib import Path

from quecc_jax.commands.config_file import shipped
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import Grid


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains small vision-language models with QueCC on real images and reports what they learn. Started again
    with the same --out, it continues with the jobs that are missing."""

    out: str = ""
    """Directory for everything that is made; runs/demo, runs/quick or runs/study by default."""
    quick: bool = False
    """A smaller grid, which starts from the tower and the language models of examples/."""
    study: bool = False
    """A larger grid at length, with three seeds."""
    seeds: int = 0
    """Seeds of every model; 0 is one, the study's three. Several give every score a spread of its own."""


def run(options: Options) -> None:
    """Trains what is missing and prints the findings."""
    if options.quick and options.study:
        raise UserError("--quick and --study are different grids; give one of them")
    if options.seeds < 0:
        raise UserError(f"--seeds {options.seeds} is no number of seeds; give 1 or more, or leave it out")
    grids = shipped("study" if options.study else "demo")
    make = grids.quick if options.quick else grids.grid
    run_and_report(make(options.seeds), options.out, "launch.demo")


def run_and_report(grid: Grid, out: str, module: str) -> None:
    """Runs what is missing of a grid on the testbed over this machine's cores, and writes results.json and
    the report; the laws are fitted where it has one compressor.

    Args:
      out: directory in place of the grid's own, or "".
      module: what was started, for the record.

    Raises:
      InUse: another process does the same in this directory.
      UserError: the directory holds another grid's results, or a job failed (the others are finished first).
    """
    # Its jobs are sized for processors, and run there.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import shlex

    from quecc_jax.commands.grid_law import fit_laws, law_section
    from quecc_jax.experiments import runner
    from quecc_jax.experiments.grid import at
    from quecc_jax.experiments.report import write_report
    from quecc_jax.experiments.sizes_report import findings
    from quecc_jax.experiments.stats import one_compressor
    from quecc_jax.progress import duration
    from quecc_jax.records import write_record
    from quecc_jax.run_lock import run_lock

    grid = at(grid, out) if out else grid
    folder = Path(grid.out)
    # Jobs have locks of their own, but not what is made of them, nor this machine's cores.
    with run_lock(grid.out):
        runner.check(runner.run_grid(grid, parallel=True), grid)
        results = runner.collect(grid, shlex.join(["python", "-m", module, *sys.argv[1:]]))
        if one_compressor(results["rows"]):
            results["fits"] = fit_laws(results)
            print("\n".join(f"- {line}" for line in findings(results)))
        write_record(folder / "results.json", results)
        report = write_report(results, folder, law_section(results, folder)).resolve().as_uri()
    print(f"\n{duration(results['seconds']['total'])} minutes; report: {report}")
