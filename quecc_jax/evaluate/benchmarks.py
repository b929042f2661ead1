"""Scores a run on benchmarks: what `python -m launch.evaluate --tasks pope,gqa` does."""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quecc_jax.errors import UserError
from quecc_jax.paths import write_text
from quecc_jax.progress import bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from quecc_jax.evaluate.tasks.base import Judged, Sample, Task

RESULTS, TABLE, FAILURES = "results.json", "table1.md", "failures.html"
_PUBLISHED = Path(__file__).with_name("table1.json")


def run(
    checkpoint: Path,
    names: str,
    data: Path,
    out: Path,
    *,
    name: str,
    limit: int | None,
    max_new_tokens: int | None,
    batch_size: int,
    seed: int,
    html: bool,
    visual_tokens: int = 0,
    template: str = "",
    scorers: str = "",
    image_decoding: str = "run",
) -> dict[str, Any]:
    """Answers, scores and writes everything below `out`; a run that was stopped goes on.

    Args:
      visual_tokens: V of a model that serves several; 0 is its largest.
      template: conversation template to ask with; "" is the run's own.
      scorers: whose rules read the answers, see `tasks.chosen`.
      image_decoding: see `load.with_decoding`. The others are as in `launch.evaluate`.

    Returns:
      What results.json holds.

    Raises:
      UserError: unknown benchmarks, missing files or pictures, or what `run_task` says.
    """
    from quecc_jax.evaluate.answers import question_engine
    from quecc_jax.evaluate.benchmark import cut_questions, fingerprint, run_task, summary
    from quecc_jax.evaluate.tasks import chosen
    from quecc_jax.generate.decode import decoding_params
    from quecc_jax.generate.reuse import Reuse
    from quecc_jax.load import load_vlm, with_decoding

    tasks = chosen(names, scorers)
    questions = _load(tasks, data, limit)
    config, params = load_vlm(checkpoint, visual_tokens=visual_tokens, template=template)
    config, model_id = with_decoding(config, image_decoding), fingerprint(params)
    params = decoding_params(params, config.model)
    model = name or checkpoint.absolute().name
    judged: dict[str, list[Judged]] = {}
    results: dict[str, Any] = {
        "model": model,
        "checkpoint": str(checkpoint),
        "visual_tokens": config.model.visual_tokens,
        "image_decoding": config.data.image_decoding,
        "limit": limit,
        "resamples": 1000,
        "seed": seed,
        "tasks": {},
    }
    with bars() as bar:
        for task in tasks:
            began, samples, reuse = time.monotonic(), questions[task.name], Reuse()
            advance = functools.partial(_advance, bar, bar.add_task(task.name, total=len(samples)))
            judged[task.name] = run_task(
                task,
                samples,
                out / task.name,
                question_engine(config, params, reuse),
                model_id,
                batch_size=batch_size,
                data=data,
                model=model,
                max_new_tokens=max_new_tokens or task.max_new_tokens,
                progress=advance,
            )
            results["tasks"][task.name] = {
                **summary(task, judged[task.name], 1000, seed),
                "cut_questions": cut_questions(questions[task.name], config),
                "seconds": round(time.monotonic() - began, 1),
                "reuse": reuse.report(),
            }
            # After every benchmark, so that a run stopped later has told what it knew.
            write_text(out / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            write_text(out / TABLE, table1(results, tasks))
    if html:
        from quecc_jax.evaluate.failures_page import write_failures

        write_failures(out / FAILURES, results, judged)
    return results


def _load(tasks: "Sequence[Task]", data: Path, limit: int | None) -> "dict[str, list[Sample]]":
    """Questions by benchmark; every missing file is named at once."""
    from quecc_jax.evaluate.benchmark import missing_pictures
    from quecc_jax.evaluate.tasks.base import limited, missing_files

    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder; give the one that holds the benchmarks' folders")
    if missing := missing_files(tasks, data):
        listed = "".join(f"\n  {data / file.path}  from {file.source}" for file in missing)
        raise UserError(f"{len(missing)} files or folders are missing; download them:{listed}")
    questions = {task.name: limited(task, task.load(data), limit) for task in tasks}
    lost = missing_pictures(sample for samples in questions.values() for sample in samples)
    if lost:
        listed = "".join(f"\n  {path}" for path in lost[:10])
        more = f"\n  and {len(lost) - 10:,} more" if len(lost) > 10 else ""
        raise UserError(f"{len(lost):,} pictures are missing; unpack the benchmark's there:{listed}{more}")
    return questions


def _advance(bar: "Progress", line: "TaskID", answered: int) -> None:
    bar.update(line, completed=answered)


def table1(results: Mapping[str, Any], tasks: "Sequence[Task]") -> str:
    """The paper's table 1 in Markdown with this run as its last row, standard errors behind ±.

    A benchmark on fewer questions than it has, or without public truth, is marked below the table.
    """
    published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    columns = published["columns"]
    own: dict[str, str] = {}
    notes = [f"Published rows: {published['source']}."]
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
    rows = [
        [row["method"], row["visual_tokens"], *(row["scores"].get(c, "–") for c in columns)]
        for row in published["rows"]
    ]
    rows.append([f"**{results['model']}**", results["visual_tokens"], *(own.get(c, "–") for c in columns)])
    lines = [["Method", "V", *columns], ["---", *["---:"] * (len(columns) + 1)], *rows]
    table = "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
    return table + "".join(f"\n{note}\n" for note in notes)


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


def show(results: Mapping[str, Any], out: Path) -> None:
    """Prints each benchmark's headline metric and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "metric", title=f"{results['model']}, V = {results['visual_tokens']}")
    for heading in ("questions", "score", "± standard error"):
        table.add_column(heading, justify="right")
    for name, task in results["tasks"].items():
        head = task["headline"]
        if head is None:
            told = f"send {task['submit']}" if "submit" in task else "none asked that counts"
            table.add_row(name, told, str(task["questions"]), "–", "–")
            continue
        metric = task["metrics"][head]
        error = metric["standard_error"]
        table.add_row(
            name,
            head,
            str(task["questions"]),
            f"{metric['value']:.1f}",
            "–" if error is None else f"{error:.1f}",
        )
    console = Console()
    console.print(table)
    for name, task in results["tasks"].items():
        if task["cut_questions"]:
            cut = f"{task['cut_questions']} questions that the compressor reads"
            console.print(f"{name}: data.query_length cut {cut}", soft_wrap=True)
        parts = [
            f"{row['hits']} of {row['hits'] + row['misses']} features of {what}"
            for what, row in task["reuse"].items()
            if row["hits"]
        ]
        if parts:
            console.print(f"{name}: reused {' and '.join(parts)}", soft_wrap=True)
    console.print(f"{out / RESULTS}, {out / TABLE} and answers by benchmark", soft_wrap=True)
