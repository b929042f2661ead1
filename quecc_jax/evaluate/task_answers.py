"""A model's answers to a benchmark: asked, judged and kept one by one, so that a killed run goes on.

OUT/TASK/ holds
    settings.json        what must be equal for answers to be of one run
    answers.jsonl        one question a line: exact prompt, answer, score, checksum
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
from quecc_jax.evaluate.answers import answer_questions
from quecc_jax.evaluate.bootstrap import evaluate
from quecc_jax.evaluate.kept_answers import ANSWERS, check_settings, line_of, read_answers
from quecc_jax.evaluate.kept_answers import Answer as Kept
from quecc_jax.evaluate.results import Summary
from quecc_jax.evaluate.tasks.base import Judged, Sample, Task, llava_answers, write_lines
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.paths import Lines

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
) -> list[Judged]:
    """Greedy answers to the samples, in their order; those that the folder holds are not asked again.

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
      progress: called with the number of answered samples, at the start and after every answer.

    Raises:
      UserError: the folder holds answers of another run, or an image or prompt cannot be used.
    """
    config = engine.config
    folder.mkdir(parents=True, exist_ok=True)
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
    check_settings(folder, settings)
    kept = read_answers(folder, samples, settings)
    wanted = {sample.id for sample in samples}
    answers = {record["id"]: record["answer"] for record in kept if record["id"] in wanted}
    pending = [sample for sample in samples if sample.id not in answers]
    progress(len(answers))
    # Rewritten whole at the start: a line that a kill cut short goes, and so do readings of another scorer.
    lines = Lines(folder / ANSWERS, (line_of(record, settings) for record in _read_anew(kept, samples, task)))

    def keep(number: int, answer: str) -> None:
        sample = pending[number]
        answer = answer.strip()
        answers[sample.id] = answer
        parsed, score = task.judge(sample, answer)
        images = [image if isinstance(image, str) else "in the data file" for image in sample.images]
        lines.add(
            line_of(
                {
                    "id": sample.id,
                    "images": images,
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
        progress(len(answers))

    try:
        answer_questions(
            engine,
            (Question(sample.prompt, sample.images, name=str(sample.id)) for sample in pending),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            keep=keep,
        )
    finally:
        lines.close()
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
    """Tells models apart: a hash of every parameter's name, shape and first corner of 8 a side."""
    known = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        corner = jax.device_get(leaf[(slice(8),) * leaf.ndim])
        known.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        known.update(np.ascontiguousarray(corner, np.float32).tobytes())
    return known.hexdigest()[:16]


def _read_anew(kept: Iterable[Kept], samples: Iterable[Sample], task: Task) -> Iterator[Kept]:
    """The records with the readings and scores of the task's scorer."""
    asked = {sample.id: sample for sample in samples}
    for record in kept:
        if record["id"] in asked:
            parsed, score = task.judge(asked[record["id"]], record["answer"])
            record = Kept(**{**record, "parsed": parsed, "score": score})
        yield record


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
