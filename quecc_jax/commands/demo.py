"""The demo and the study: train the grid, answer test questions, fit the law, write the report.

python -m launch.demo --out runs/demo
"""

import dataclasses
import os
import sys
from pathlib import Path

from configs import demo, study
from quecc_jax.commands.cli import parse_options
from quecc_jax.errors import UserError
from quecc_jax.experiments.scheduler import clock
from quecc_jax.experiments.study import command_line, run_study
from quecc_jax.xla_flags import FAST_COMPILE, with_flags


@dataclasses.dataclass(frozen=True)
class Options:
    """How much to train, and where to."""

    out: str = ""
    """Directory for everything that is made; runs/demo, runs/quick or runs/study by default."""
    quick: bool = False
    """A smaller grid with far less training, to see every part work."""
    study: bool = False
    """The same grid at length, with three seeds."""


def main() -> None:
    """Command line."""
    options = parse_options(
        Options,
        sys.argv[1:],
        "python -m launch.demo",
        "Trains small vision-language models with QueCC on real pictures and reports what they learn. "
        "Started again with the same --out, it continues with the jobs that are missing.",
    )
    if options.quick and options.study:
        raise UserError("--quick and --study are different plans; give one of them")
    name = "study" if options.study else "quick" if options.quick else "demo"
    plan = {"study": study.plan, "quick": demo.quick, "demo": demo.plan}[name]()
    out = options.out or f"runs/{name}"
    if options.quick:
        os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""), FAST_COMPILE)
    # Its jobs are sized for processors, and run there.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    results = run_study(plan, out, command_line("launch.demo"))

    from quecc_jax.experiments.findings import findings

    print("\n".join(f"- {line}" for line in findings(results)))
    report = Path(out, "report.html").resolve().as_uri()
    print(f"\n{clock(results['seconds']['total'])} minutes; report: {report}")
