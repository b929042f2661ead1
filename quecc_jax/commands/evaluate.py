"""Scores a run on a data set or on benchmarks.

python -m launch.evaluate --checkpoint RUN --data POOL --out DIR
python -m launch.evaluate --checkpoint RUN --tasks pope,gqa --data DIR --out DIR
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from quecc_jax.commands.checks import check_folder, check_least, refuse_unread
from quecc_jax.config import MeshConfig, SourceConfig
from quecc_jax.config.weights import Weights
from quecc_jax.errors import UserError
from quecc_jax.progress import bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from quecc_jax.evaluate.results import Results


@dataclasses.dataclass(frozen=True)
class Options:
    """Scores a run's greedy answers. On a data set: exact-match accuracy, ignoring case and spacing, overall and
    per kind of question. With --tasks: each benchmark's own metrics. Images always pass through the vision tower;
    features cached in a pool are not used."""

    checkpoint: Path
    """Directory of a trained run."""
    data: Path
    """A pool's directory or a LLaVA-format .json or .jsonl file; the first question of each row is asked,
    or all of them.
    With --tasks: the folder of benchmarks, laid out like LLaVA's playground/data/eval."""
    out: Path
    """Directory for results.json and answers; created if missing. Benchmarks resume where they stopped."""
    tasks: str = ""
    """Benchmarks, separated by commas: pope, gqa, vqav2, vqav2_val, vizwiz, vizwiz_val, textvqa, scienceqa, mme,
    mmbench, mmbench_cn, seed, mmmu, ai2d, chartqa, docvqa, mathvista, llava_bench, mmvet."""
    scorer: str = ""
    """Benchmarks: scoring rule where official programs differ, such as mmmu=lmms_eval,mme=lmms_eval.
    By default the rule that papers use; results.json names it."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder that a .json file's image paths are relative to; by default the file's own."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens. By default 32; on benchmarks, the limit of the program that made the prompts."""
    visual_tokens: int = 0
    """Visual tokens V per image, for an elastic model; 0 takes the largest V that it serves."""
    template: str = ""
    """Conversation template for the prompts, one of data.template; by default the run's own."""
    weights: Weights = "run"
    """How the model is kept and computes: `run` as the run's model.dtype says, `float32` or `bfloat16`; or with the
    matrices of the decoder's layers in 8 or 4 bits."""
    turns: Literal["first", "all"] = "first"
    """Data sets: which questions of a row's conversation are asked; before a later one stand the row's own answers."""
    query: Literal["own", "latest"] = "own"
    """Data sets, later turns: whose words condition the compressor, those of the turn that holds the image or of the
    one that asks."""
    image_decoding: Literal["run", "upright", "original"] = "run"
    """How image files are decoded; `run` keeps the run's data.image_decoding.
    Published numbers come from `original`: not rotated by EXIF, 16-bit grey clipped."""
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(1, 1, 1))
    """Devices per mesh axis: `fsdp` and `tensor` share parameters, `data` and `fsdp` the questions. Of several
    processes each is started by the same command, as for `launch.train`, and answers its share."""
    batch_size: int = 64
    """Questions per batch, of each group of processes that holds the parameters."""
    limit: int | None = None
    """Benchmarks: ask about this many questions of each, evenly spaced; by default all."""
    name: str = ""
    """Benchmarks: the model's name in tables and answer files; by default that of the checkpoint's directory."""
    seed: int = 0
    """Benchmarks: seed of the bootstrap."""
    html: bool = False
    """Benchmarks: also write failures.html, which shows wrong answers with their images."""


def run(options: Options) -> None:
    """Scores what the options name."""
    check_least(options, {"max_new_tokens": 1, "batch_size": 1, "limit": 1, "seed": 0})
    score = score_benchmarks if options.tasks else score_source
    score(options)


def score_benchmarks(options: Options) -> None:
    """Runs the benchmarks and prints their table."""
    import jax

    from quecc_jax.distributed import joined
    from quecc_jax.evaluate import benchmarks

    refuse_unread(options, ("images",), "goes with a .json file; benchmarks have theirs in --data")
    refuse_unread(options, ("turns", "query"), "goes with a data set; benchmarks ask one question a row")
    check_folder("--out", options.out)
    shown: list[Progress] = []
    lines: dict[str, TaskID] = {}
    with joined(preemption=False), contextlib.ExitStack() as stack:

        def progress(task: str, questions: int, answered: int) -> None:
            if jax.process_index():
                return
            # The first call opens the display, so that a mistake before it is one line.
            if not shown:
                shown.append(stack.enter_context(bars()))
            if task not in lines:
                lines[task] = shown[0].add_task(task, total=questions)
            shown[0].update(lines[task], completed=answered)

        results = benchmarks.run(
            options.checkpoint,
            options.tasks,
            options.data,
            options.out,
            name=options.name,
            limit=options.limit,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            seed=options.seed,
            html=options.html,
            visual_tokens=options.visual_tokens,
            template=options.template,
            weights=options.weights,
            scorers=options.scorer,
            image_decoding=options.image_decoding,
            mesh=options.mesh,
            progress=progress,
        )
        stack.close()
        if jax.process_index() == 0:
            show_benchmarks(results, options.out)


def show_benchmarks(results: "Results", out: Path) -> None:
    """Prints each benchmark's headline metric and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    from quecc_jax.evaluate import benchmarks

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
    console.print(
        f"{out / benchmarks.RESULTS}, {out / benchmarks.TABLE} and answers by benchmark", soft_wrap=True
    )


def score_source(options: Options) -> None:
    """Answers every question of a data set, writes the files and prints the table."""
    of_benchmarks = ("limit", "name", "html", "scorer", "seed")
    refuse_unread(options, of_benchmarks, "goes with --tasks; name benchmarks or leave it out")
    source = _source(options.data, options.images)
    check_folder("--out", options.out)
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.distributed import joined

    with joined(preemption=False):
        results = answer_source(options, source)
        if jax.process_index() == 0:
            _show(results)


def answer_source(options: Options, source: SourceConfig) -> dict[str, Any]:
    """Answers every question of a data set; the first process writes the files. The results."""
    import jax

    from quecc_jax.evaluate.answers import answer_rows
    from quecc_jax.evaluate.score import write_scored
    from quecc_jax.generate.reuse import Reuse
    from quecc_jax.groups import gathered, group_of
    from quecc_jax.load import load_vlm, with_decoding

    first, group = jax.process_index() == 0, group_of(options.mesh)
    began, reuse = time.monotonic(), Reuse()
    longest = options.max_new_tokens or 32
    config, params = load_vlm(
        options.checkpoint, group.mesh, options.visual_tokens, options.template, options.weights
    )
    config = with_decoding(config, options.image_decoding)
    data = dataclasses.replace(config.data, sources=(source,), cached_features=False, cached_queries=False)
    with contextlib.ExitStack() as stack:

        def show(answered: int, total: int) -> None:
            for bar, task in shown:
                bar.update(task, completed=answered, total=total)

        bar = stack.enter_context(bars()) if first else None
        shown = [] if bar is None else [(bar, bar.add_task("answering", total=None))]
        answers = answer_rows(
            dataclasses.replace(config, data=data),
            params,
            max_new_tokens=longest,
            reuse=reuse,
            batch_size=options.batch_size,
            progress=show,
            group=group,
            turns=options.turns,
            query=options.query,
        )
    about = {
        "checkpoint": str(options.checkpoint),
        "data": str(options.data),
        "max_new_tokens": longest,
        "turns": options.turns,
        "query": options.query,
        "seconds": round(time.monotonic() - began, 1),
        "visual_tokens": config.model.visual_tokens,
        "weights": options.weights,
        "image_decoding": config.data.image_decoding,
        "reuse": reuse.report(),
    }
    results = write_scored(options.out, answers, about) if first else {}
    # Nobody leaves before all is written.
    return gathered(results)[0]


def _source(data: Path, images: Path | None) -> SourceConfig:
    """The data set behind `--data` and `--images`.

    Raises:
      UserError: there is no such file or folder.
    """
    if not data.exists():
        raise UserError(f"--data {data} does not exist; give a pool's directory or a LLaVA-format .json file")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder; give the one that holds the images")
    if data.is_dir():
        if images is not None:
            raise UserError(f"--images goes with a .json file; the pool {data} has its own, so leave it out")
        return SourceConfig(kind="pool", path=str(data))
    return SourceConfig(kind="llava_json", path=str(data), images=str(images or data.parent))


def _show(results: dict[str, Any]) -> None:
    """Prints the accuracies as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", title=f"{results['checkpoint']} on {results['data']}")
    for heading in ("questions", "exact, %", "± standard error"):
        table.add_column(heading, justify="right")
    lines = list(results["kinds"].items())
    for name, row in [*lines, ("all", results)]:
        percent = (f"{100 * row[part]:.1f}" for part in ("accuracy", "standard_error"))
        table.add_row(name, str(row["questions"]), *percent, end_section=name == lines[-1][0])
    Console().print(table)
    if results["cut_questions"]:
        print(f"data.query_length cut {results['cut_questions']} questions for the compressor")
    for what, row in results["reuse"].items():
        saved = "" if row["seconds_saved"] is None else f", about {row['seconds_saved']:.1f} s saved"
        if row["hits"]:
            print(f"features of {what}: {row['misses']} computed, {row['hits']} reused{saved}")
