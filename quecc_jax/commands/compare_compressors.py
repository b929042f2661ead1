"""The comparison of compressors: train each on the same bed, time them, write the report.

python -m launch.compare_compressors --out runs/compressors
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from quecc_jax.commands.config_file import shipped
from quecc_jax.config import CompressorConfig
from quecc_jax.config.shapes import output_tokens
from quecc_jax.experiments.comparison_plan import Comparison, Entry
from quecc_jax.experiments.plan import TASKS, TEXT_TOKENS
from quecc_jax.experiments.scheduler import Job, clock, write_json
from quecc_jax.experiments.study import (
    claim,
    command_line,
    job_results,
    making,
    run_all,
    shared_jobs,
    training_seconds,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains one small vision-language model behind every compressor and compares them. Started again with the
    same --out, it continues with the jobs that are missing."""

    out: str = "runs/compressors"
    """Directory for everything that is made."""
    quick: bool = False
    """A few steps of everything, to see every part work."""


def comparison_jobs(comparison: Comparison) -> list[Job]:
    """The shared parts, one job for each entry, and the timing, which runs alone at the end."""
    plan, name = comparison.plan, comparison.plan.decoders[0].name
    jobs = shared_jobs(plan)
    for entry in comparison.entries:
        tokens = max(output_tokens(c, plan.vision.grid) for c in (*entry.tested, entry.trained))
        cost = 25 + training_seconds(plan, plan.stage1_steps + plan.stage2_steps, TEXT_TOKENS + tokens, name)
        needs = ("tower", f"language-{name}")
        jobs.append(
            Job(
                entry.name,
                "quecc_jax.experiments.comparison_jobs:train_entry",
                (entry,),
                needs,
                cost,
                entry.part,
            )
        )
    configs = timed(comparison.entries)
    jobs.append(
        Job(
            "timing",
            "quecc_jax.experiments.comparison_jobs:measure",
            (configs,),
            tuple(j.name for j in jobs),
            3.0 * len(configs),
            "timing",
        )
    )
    return jobs


def timed(entries: tuple[Entry, ...]) -> tuple[tuple[str, CompressorConfig], ...]:
    """Every (label, settings) that is tested, once."""
    return tuple(dict.fromkeys((entry.label, config) for entry in entries for config in entry.tested))


def run_comparison(comparison: Comparison, out: str, command: str) -> dict[str, Any]:
    """Runs what is missing and writes results.json and the report into `out`.

    Raises:
      UserError: `out` holds another comparison's results, or a job failed.
    """
    folder, jobs = Path(out), comparison_jobs(comparison)
    claim(folder, comparison)
    run_all(jobs, comparison.plan, folder)
    found, seconds = job_results(jobs, folder)
    results = {
        **making(folder, command, seconds),
        "plan": dataclasses.asdict(comparison.plan),
        "tasks": list(TASKS),
        "own": comparison.own,
        "runs": len(comparison.entries),
        "rows": [row for entry in comparison.entries for row in found[entry.name]],
        "costs": found["timing"],
        "baseline": found["baseline"],
        "tower": found["tower"],
        "data": found["data"],
    }
    write_json(folder / "results.json", results)

    from quecc_jax.experiments.comparison_report import write_report

    write_report(results, folder)
    return results


def run(options: Options) -> None:
    """Trains what is missing and writes the report."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    shipped_plans = shipped("study_compressors")
    comparison = shipped_plans.quick() if options.quick else shipped_plans.comparison()
    results = run_comparison(comparison, options.out, command_line("launch.compare_compressors"))
    report = Path(options.out, "report.html").resolve().as_uri()
    print(f"\n{clock(results['seconds']['total'])} minutes; report: {report}")
