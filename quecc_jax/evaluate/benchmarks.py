"""Scores a run on benchmarks: what `python -m launch.evaluate --tasks pope,gqa` does."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from quecc_jax.config import MeshConfig
from quecc_jax.config.weights import Weights
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import question_engine
from quecc_jax.evaluate.failures_page import write_failures
from quecc_jax.evaluate.published import published
from quecc_jax.evaluate.results import Results
from quecc_jax.evaluate.task_answers import cut_questions, fingerprint, missing_images, run_task, summary
from quecc_jax.evaluate.tasks import chosen
from quecc_jax.evaluate.tasks.base import Judged, Sample, Task, limited, missing_files
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Reuse
from quecc_jax.groups import check_same, gathered, group_of
from quecc_jax.load import load_vlm, with_decoding
from quecc_jax.paths import write_text
from quecc_jax.records import write_record
from quecc_jax.run_lock import run_lock

RESULTS, TABLE, FAILURES = "results.json", "table1.md", "failures.html"


def run(
    checkpoint: Path,
    names: str,
    data: Path,
    out: Path,
    *,
    name: str = "",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    html: bool = False,
    visual_tokens: int = 0,
    template: str = "",
    weights: Weights = "run",
    scorers: str = "",
    image_decoding: str = "run",
    mesh: MeshConfig | None = None,
    progress: Callable[[str, int, int], None] = lambda task, questions, answered: None,
) -> Results:
    """Answers, scores and writes everything below `out`; a run that was stopped goes on.

    Several processes share out the questions, see `groups`; the first scores and writes, and all return the results.

    Args:
      visual_tokens: V of a model that serves several; 0 is its largest.
      template: conversation template to ask with; "" is the run's own.
      weights: see `load.load_vlm`.
      scorers: whose rules read the answers, see `tasks.chosen`.
      image_decoding: see `load.with_decoding`.
      mesh: devices that answer; None is the first one.
      progress: called with a benchmark, the number of its questions, and how many of them are answered.
      The others are as in `launch.evaluate`.

    Raises:
      UserError: unknown benchmarks, missing files or images, processes that do not see the same files, another
        process at work in `out`, or what `run_task` says.
    """
    tasks = chosen(names, scorers)
    questions = _load(tasks, data, limit)
    alone = jax.process_count() == 1
    with contextlib.nullcontext() if alone else run_lock(str(out)):
        group = group_of(mesh)
        config, params = load_vlm(checkpoint, group.mesh, visual_tokens, template, weights)
        config, model_id = with_decoding(config, image_decoding), fingerprint(params)
        params = decoding_params(params, config.model)
        model = name or checkpoint.absolute().name
        check_same(
            "settings, parameters or questions",
            lambda: [
                {task: [(one.id, one.prompt) for one in samples] for task, samples in questions.items()},
                [repr(config), model_id, max_new_tokens, batch_size],
            ],
        )
        judged: dict[str, list[Judged]] = {}
        results: Results = {
            "model": model,
            "checkpoint": str(checkpoint),
            "visual_tokens": config.model.visual_tokens,
            "weights": weights,
            "image_decoding": config.data.image_decoding,
            "limit": limit,
            "resamples": 1000,
            "seed": seed,
            "tasks": {},
        }
        for task in tasks:
            began, samples, reuse = time.monotonic(), questions[task.name], Reuse()
            judged[task.name] = run_task(
                task,
                samples,
                out / task.name,
                question_engine(config, params, reuse, group.mesh),
                model_id,
                batch_size=batch_size,
                data=data,
                model=model,
                max_new_tokens=max_new_tokens or task.max_new_tokens,
                group=group,
                progress=functools.partial(progress, task.name, len(samples)),
            )
            if jax.process_index():
                continue
            results["tasks"][task.name] = {
                **summary(task, judged[task.name], 1000, seed),
                "cut_questions": cut_questions(samples, config),
                "seconds": round(time.monotonic() - began, 1),
                "reuse": reuse.report(),
            }
            # After every benchmark, so that a run stopped later has told what it knew.
            write_record(out / RESULTS, results)
            write_text(out / TABLE, table1(results, tasks))
        if html and jax.process_index() == 0:
            write_failures(out / FAILURES, results, judged)
        # Nobody leaves before all is written.
        return gathered(results)[0]


def _load(tasks: Sequence[Task], data: Path, limit: int | None) -> dict[str, list[Sample]]:
    """Questions by benchmark; every missing file is named at once."""
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder; give the one that holds the benchmarks' folders")
    if missing := missing_files(tasks, data):
        listed = "".join(f"\n  {data / file.path}  from {file.source}" for file in missing)
        raise UserError(f"{len(missing)} files or folders are missing; download them:{listed}")
    questions = {task.name: limited(task, task.load(data), limit) for task in tasks}
    lost = missing_images(sample for samples in questions.values() for sample in samples)
    if lost:
        listed = "".join(f"\n  {path}" for path in lost[:10])
        more = f"\n  and {len(lost) - 10:,} more" if len(lost) > 10 else ""
        raise UserError(f"{len(lost):,} images are missing; unpack the benchmark's there:{listed}{more}")
    return questions


def table1(results: Results, tasks: Sequence[Task]) -> str:
    """The paper's table 1 in Markdown with this run as its last row, standard errors behind ±.

    A benchmark on fewer questions than it has, or without public truth, is marked below the table.
    """
    paper = published()
    columns = paper["columns"]
    own: dict[str, str] = {}
    notes = [f"Published rows: {paper['source']}."]
    if results["limit"] is not None:
        notes.append(f"{results['model']}: about {results['limit']} questions of each benchmark, not all.")
    for task in tasks:
        done = results["tasks"].get(task.name)
        if done is None or not task.column:
            continue
        if done["headline"] is None:
            why = (
                f"answers are scored by the server; send {task.submit}"
                if task.submit
                else f"none of the questions asked counts for {task.headline}"
            )
            notes.append(f"{task.column}: {why}.")
            continue
        metric = done["metrics"][done["headline"]]
        own[task.column] = _plus_minus(metric["value"], metric["standard_error"])
        if task.note:
            notes.append(f"{task.column}: {task.note}.")
    rows: list[list[object]] = [
        [row["method"], row["visual_tokens"], *(row["scores"].get(c, "–") for c in columns)]
        for row in paper["rows"]
    ]
    rows.append([f"**{results['model']}**", results["visual_tokens"], *(own.get(c, "–") for c in columns)])
    lines: list[list[object]] = [["Method", "V", *columns], ["---", *["---:"] * (len(columns) + 1)], *rows]
    table = "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
    return table + "".join(f"\n{note}\n" for note in notes)


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"
