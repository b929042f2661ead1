"""A plan's jobs, and what becomes of their results: the fitted laws, results.json, the report."""

import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from quecc_jax.errors import UserError
from quecc_jax.experiments.plan import DOCUMENT_TOKENS, TASKS, TEXT_TOKENS, Cell, Plan, cells, decoder_size
from quecc_jax.experiments.scheduler import Job, run_jobs, write_json


def shared_jobs(plan: Plan) -> list[Job]:
    """What every model of a plan needs or is compared with: data, tower, language models, the baseline."""
    cost = plan.tower_steps * plan.tower_batch / 320
    jobs = [
        Job("data", "quecc_jax.experiments.jobs:make_data", cost=15, phase="data"),
        Job("tower", "quecc_jax.experiments.jobs:make_tower", (), ("data",), cost, "tower"),
    ]
    for d in plan.decoders:
        cost = 15 + training_seconds(plan, plan.language_steps, DOCUMENT_TOKENS, d.name)
        job = Job(
            f"language-{d.name}", "quecc_jax.experiments.jobs:train_language", (d.name,), ("data",), cost
        )
        jobs.append(dataclasses.replace(job, phase="language models"))
    name = plan.decoders[-1].name
    cost = 20 + training_seconds(plan, plan.stage2_steps, TEXT_TOKENS, name)
    job = Job("baseline", "quecc_jax.experiments.jobs:train_baseline", (name,), (f"language-{name}",), cost)
    return [*jobs, dataclasses.replace(job, phase="question-only baseline")]


def training_seconds(plan: Plan, steps: int, tokens: int, decoder: str) -> float:
    """Measured on one core of a 2.6 GHz EPYC; only the order of jobs and the time left depend on it."""
    d = decoder_size(plan, decoder)
    weights = 13 * d.width**2 * d.depth
    return steps * plan.batch_size / 64 * tokens * (9e-4 + 1.2e-8 * weights)


def plan_jobs(plan: Plan) -> list[Job]:
    """All jobs of a plan, each after those it needs."""
    jobs = shared_jobs(plan)
    for cell in cells(plan):
        steps, tokens = plan.stage1_steps + plan.stage2_steps, TEXT_TOKENS + cell.visual_tokens
        cost = 35 + training_seconds(plan, steps, tokens, cell.decoder)
        needs = ("tower", f"language-{cell.decoder}")
        jobs.append(
            Job(f"cell-{cell.name}", "quecc_jax.experiments.jobs:train_cell", (cell,), needs, cost, "cells")
        )
    if single := tuple(f"cell-{c.name}" for c in cells(plan) if c.visual_tokens == 1):
        cost = 5.0 * len(single)
        jobs.append(
            Job("attention", "quecc_jax.experiments.jobs:measure_attention", (), single, cost, "attention")
        )
    return jobs


def run_study(plan: Plan, out: str, command: str) -> dict[str, Any]:
    """Runs what is missing of a plan and writes results.json and the report into `out`.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: `out` holds another plan's results, or a job failed (the others are finished first).
    """
    folder, jobs = Path(out), plan_jobs(plan)
    claim(folder, plan)
    run_all(jobs, plan, folder)
    results = collect(plan, jobs, folder, command)
    write_json(folder / "results.json", results)

    from quecc_jax.experiments.report import write_report

    write_report(results, folder)
    return results


def run_all(jobs: list[Job], plan: Plan, folder: Path) -> None:
    """Runs the jobs that have no result yet, and adds the time that this took to the directory's.

    Raises:
      UserError: a job failed (the others are finished first).
    """
    began = time.time()
    try:
        failed, skipped = run_jobs(jobs, plan, folder)
    finally:
        add_seconds(folder, time.time() - began)
    if failed:
        files = ", ".join(str(folder / "jobs" / f"{name}.error") for name in failed)
        left = f", and {', '.join(skipped)} could not run without" if skipped else ""
        raise UserError(f"failed: {', '.join(failed)}{left}; see {files}, then start it again to retry")


def claim(folder: Path, plan: Any) -> None:
    """Marks the directory as this plan's, a dataclass of plain values.

    Raises:
      UserError: it is another plan's, or cannot be made.
    """
    wanted, file = json.loads(json.dumps(dataclasses.asdict(plan))), folder / "plan.json"
    if file.is_file():
        if json.loads(file.read_text())["plan"] != wanted:
            raise UserError(f"{folder} holds results of another plan; delete it or give another --out")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "plan": wanted})
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another") from None


def add_seconds(folder: Path, seconds: float) -> None:
    """Adds to the time that all runs in this directory took together."""
    file = folder / "seconds.json"
    write_json(file, seconds + (json.loads(file.read_text()) if file.is_file() else 0.0))


def collect(plan: Plan, jobs: list[Job], folder: Path, command: str) -> dict[str, Any]:
    """Puts the jobs' results together and fits the law per task."""
    results, seconds = job_results(jobs, folder)
    done = [results[f"cell-{c.name}"] for c in cells(plan)]
    params = {c["decoder"]: c["params"] for c in done}
    extremes = dict.fromkeys((plan.visual_tokens[0], plan.visual_tokens[-1]))
    shown = [f"cell-{Cell(plan.decoders[-1].name, v, plan.seeds[0]).name}" for v in extremes]
    summary = {
        **making(folder, command, seconds),
        "plan": dataclasses.asdict(plan),
        "tasks": list(TASKS),
        "visual_tokens": list(plan.visual_tokens),
        "seeds": list(plan.seeds),
        "decoders": [
            {"name": d.name, "width": d.width, "depth": d.depth, "params": params[d.name]}
            for d in plan.decoders
        ],
        "cells": [{k: v for k, v in c.items() if k != "samples"} for c in done],
        "baseline": [results["baseline"]],
        "attention": results.get("attention", []),
        "tower": results["tower"],
        "data": results["data"],
        "samples": [sample for name in shown for sample in results[name]["samples"]],
    }
    return {**summary, "fits": fit_laws(summary)}


def job_results(jobs: list[Job], folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Every job's value by its name, and the seconds that all jobs of each phase took."""
    raw = {j.name: json.loads((folder / "jobs" / f"{j.name}.json").read_text()) for j in jobs}
    phases: dict[str, float] = {}
    for job in jobs:
        phases[job.phase] = phases.get(job.phase, 0.0) + raw[job.name]["seconds"]
    return {name: r["result"] for name, r in raw.items()}, phases


def making(folder: Path, command: str, seconds: dict[str, float]) -> dict[str, Any]:
    """How the results in a directory were made: command, machine, start, seconds by phase."""
    return {
        "command": command,
        "machine": machine(),
        "started": json.loads((folder / "plan.json").read_text())["started"],
        "seconds": {"total": json.loads((folder / "seconds.json").read_text()), **seconds},
    }


def fit_laws(results: dict[str, Any]) -> dict[str, Any]:
    """The scaling law of each task, fitted to the mean error over seeds.

    A grid that is too small for a law still has its answers to report: such tasks are left out.
    """
    from quecc_jax.errors import UserError
    from quecc_jax.experiments.summary import score_table
    from scaling.fit import fit_law
    from scaling.report.fit_report import fit_record
    from scaling.uncertainty import assess

    fits = {}
    for task in results["tasks"]:
        try:
            table = score_table(results, task)
            fit = fit_law(table, query_tokens=results["data"]["prompt_tokens"])
        except UserError as problem:
            print(f"no law was fitted for {task}: {problem}", file=sys.stderr)
            continue
        fits[task] = fit_record(table, fit, assess(table, fit))
    return fits


def machine() -> str:
    """Processor and core count."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"


def command_line(module: str) -> str:
    """How this process was started, for the record."""
    program = ["quecc"] if Path(sys.argv[0]).name == "quecc" else ["python", "-m", module]
    return shlex.join([*program, *sys.argv[1:]])
