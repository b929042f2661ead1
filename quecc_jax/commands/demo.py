"""The demo and the study: train the grid, answer test questions, fit the law, write the report.

python -m launch.demo --out runs/demo
"""

import dataclasses
import os
from pathlib import Path

from quecc_jax.commands.config_file import shipped
from quecc_jax.errors import UserError
from quecc_jax.experiments.scheduler import clock
from quecc_jax.experiments.study import command_line, run_study
from quecc_jax.xla_flags import FAST_COMPILE, with_flags


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains small vision-language models with QueCC on real images and reports what they learn. Started again
    with the same --out, it continues with the jobs that are missing."""

    out: str = ""
    """Directory for everything that is made; runs/demo, runs/quick or runs/study by default."""
    quick: bool = False
    """A smaller grid with far less training, to see every part work."""
    study: bool = False
    """The same grid at length, with three seeds."""


def run(options: Options) -> None:
    """Trains what is missing and prints the findings."""
    if options.quick and options.study:
        raise UserError("--quick and --study are different plans; give one of them")
    name = "study" if options.study else "quick" if options.quick else "demo"
    plans = shipped("study" if options.study else "demo")
    plan = plans.quick() if options.quick else plans.plan()
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
