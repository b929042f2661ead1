"""A model's answers to a benchmark: asked, judged and kept one by one, so that a killed run goes on.

OUT/TASK/ holds
    settings.json        what must be equal for answers to be of one run
    answers.jsonl        one question a line: exact prompt, answer, score, checksum
    answers-NUMBER.jsonl the same of one of several groups of processes, until all have answered
    llava_answers.jsonl  all answers in LLaVA's form, beside what the benchmark's server takes
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.text.conversation import prompt_text, query_ids
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import answer_questions, gather
from quecc_jax.evaluate.bootstrap import evaluate
from quecc_jax.evaluate.kept_answers import (
    ANSWERS,
    check_settings,
    line_of,
    part_name,
    read_answers,
    write_answers,
)
from quecc_jax.evaluate.kept_answers import Answer as Kept
from quecc_jax.evaluate.results import Summary
from quecc_jax.evaluate.tasks.base import Judged, Sample, Task, llava_answers, write_lines
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.groups import Group, gathered
from quecc_jax.paths import Lines
from quecc_jax.sharding import on_host

LLAVA = "llava_answers.jsonl"


def run_task(
    task: Task,
    samples: Sequence[Sample],
    folder: Path,
    engine: Engine,
    model_id: str,
    *,
    max_new_tokens: int,
    batch_size: int,
    data: Path,
    model: str,
    progress: Callable[[int], None] = lambda answered: None,
    group: Group | None = None,
) -> list[Judged]:
    """Greedy answers to the samples, in their order; those that the folder holds are not asked again.

    Of several processes the first gets them all, and the others none.

    Args:
      task: the benchmark.
      samples: its questions, or some of them.
      folder: where answers are kept; made where it is missing.
      engine: see `answers.question_engine`; template and image handling are the run's own.
      model_id: what tells its parameters from others, see `fingerprint`.
      max_new_tokens: longest answer.
      batch_size: questions answered at a time.
      data: the data directory, for files that the benchmark's server takes.
      model: name of the model in LLaVA's answer file.
      progress: called with the number of answered samples, at the start and after every answer; where several groups
        answer, with what that would be if all were as far as this one.
      group: that answers its share, with its own engine; `engine.reuse` then counts for all of them.

    Raises:
      UserError: the folder holds answers of another run, an image or prompt cannot be used, or the folder is not
        the same for all processes.
    """
    config, group, first = engine.config, group or Group(), jax.process_index() == 0
    settings: dict[str, str | int] = {
        "task": task.name,
        "model": model_id,
        "visual_tokens": config.model.visual_tokens,
        "max_new_tokens": max_new_tokens,
        "template": config.data.template,
        "dtype": config.model.dtype,
        "image_aspect": config.data.image_aspect,
        "image_decoding": config.data.image_decoding,
        "query": config.model.compressor.query,
        "query_length": config.data.query_length,
    }
    kept = list[Kept]()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        check_settings(folder, settings)
        # Rewritten whole at the start: a line that a kill cut short goes, and so do readings of another scorer.
        kept = list(_read_anew(read_answers(folder, samples, settings), samples, task))
        write_answers(folder, kept, settings)
    # What the first process read: files of faster groups may be there already.
    answered = set(gathered([record["id"] for record in kept])[0])
    missing = [sample for sample in samples if sample.id not in answered]
    pending, before = group.share(missing), len(samples) - len(missing)
    progress(before)
    name, begin = (part_name(group.number), ()) if group.total > 1 else (ANSWERS, kept)
    lines = Lines(folder / name, (line_of(record, settings) for record in begin)) if group.writes else None

    def keep(number: int, answer: str) -> None:
        sample = pending[number]
        answer = answer.strip()
        if lines is None:
            return
        parsed, score = task.judge(sample, answer)
        images = _named(sample.images)
        lines.add(
            line_of(
                {
                    "id": sample.id,
                    "images": images,
                    "kinds": list(sample.extra.get("kinds", ())),
                    "question": sample.prompt,
                    "prompt": prompt_text(sample.prompt, len(images), engine.tokenizer, config.data),
                    "answer": answer,
                    "parsed": parsed,
                    "truth": sample.truth,
                    "score": score,
                },
                settings,
            )
        )
        progress(before + len(missing) * (number + 1) // len(pending))

    try:
        answer_questions(
            engine,
            (Question(sample.prompt, sample.images, name=str(sample.id)) for sample in pending),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            keep=keep,
        )
    finally:
        if lines is not None:
            lines.close()
    gather(None, engine.reuse, group)
    if not first:
        return []
    kept = read_answers(folder, samples, settings)
    answers = {record["id"]: record["answer"] for record in kept}
    if lost := sum(sample.id not in answers for sample in samples):
        raise UserError(
            f"{lost} answers that were just given are not in {folder}; name a folder that all hosts see, and that "
            "nobody else writes to"
        )
    write_answers(folder, kept, settings)
    judged = [
        Judged(sample, answer, *task.judge(sample, answer))
        for sample in samples
        for answer in (answers[sample.id],)
    ]
    write_lines(folder / LLAVA, llava_answers(judged, model))
    task.write(folder, judged, data)
    return judged


def cut_questions(samples: Iterable[Sample], config: RunConfig) -> int:
    """How many of the questions about images data.query_length cuts before the compressor reads them."""
    if not config.model.compressor.reads_question:
        return 0
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.query_tokenizer)
    return sum(query_ids(sample.prompt, tokenizer, config.data)[1] > 0 for sample in samples if sample.images)


def fingerprint(params: Params) -> str:
    """Tells models apart: a hash of every parameter's name, shape and first corner of 8 a side, on any mesh."""
    known = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        corner = on_host(leaf[(slice(8),) * leaf.ndim])
        known.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        known.update(np.ascontiguousarray(corner, np.float32).tobytes())
    return known.hexdigest()[:16]


def _read_anew(kept: Iterable[Kept], samples: Iterable[Sample], task: Task) -> Iterator[Kept]:
    """The records with the readings and scores of the task's scorer, and with what the sample says."""
    asked = {sample.id: sample for sample in samples}
    for record in kept:
        if record["id"] in asked:
            sample = asked[record["id"]]
            parsed, score = task.judge(sample, record["answer"])
            kinds = list(sample.extra.get("kinds", ()))
            images = _named(sample.images)
            record = {**record, "images": images, "kinds": kinds, "parsed": parsed, "score": score}
        yield record


def _named(images: Iterable[str | bytes]) -> list[str]:
    """Paths of images, and hashes of those that stand in the data file: equal for equal images."""
    return [
        image if isinstance(image, str) else f"sha256:{hashlib.sha256(image).hexdigest()[:16]}"
        for image in images
    ]


def summary(task: Task, judged: Sequence[Judged], resamples: int = 1000, seed: int = 0) -> Summary:
    """Numbers of questions and all metrics with bootstrap standard errors."""
    scored = [one for one in judged if one.score is not None]
    tallies = [task.tally(unit) for unit in task.units(scored)]
    found = evaluate(tallies, task.metrics, resamples, seed)
    said: Summary = {
        "about": task.about,
        "questions": len(judged),
        "units": len(task.units(judged)),
        "unread": sum(task.scorer.unread(one.parsed) for one in judged),
        "scorer": {
            "name": task.scorer.name,
            "follows": task.scorer.program,
            "others": [other.name for other in task.scorers[1:]],
        },
        "headline": task.headline if task.headline in found else None,
        "metrics": {
            name: {"value": value, "standard_error": None if math.isnan(error) else error}
            for name, (value, error) in found.items()
        },
    }
    if task.submit:
        said["submit"] = task.submit
    if task.note:
        said["note"] = task.note
    return said


def missing_images(samples: Iterable[Sample]) -> list[str]:
    """Paths of images that do not exist, each once."""
    paths = dict.fromkeys(image for sample in samples for image in sample.images if isinstance(image, str))
    return [path for path in paths if not Path(path).is_file()]
