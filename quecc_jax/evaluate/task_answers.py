"""A model's answers to a benchmark: asked, judged and kept one by one, so that a killed run goes on.

OUT/TASK/ holds
    settings.json        what must be equal for answers to be of one run
    answers.jsonl        one question a line: exact prompt, answer, score
    llava_answers.jsonl  all answers in LLaVA's form, beside what the benchmark's server takes
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.files import read_json
from quecc_jax.data.text.conversation import prompt_text, query_ids
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import answer_questions
from quecc_jax.evaluate.bootstrap import evaluate
from quecc_jax.evaluate.results import Summary
from quecc_jax.evaluate.tasks.base import Judged, Sample, Task, llava_answers, write_json, write_lines
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.paths import Lines

ANSWERS, SETTINGS, LLAVA = "answers.jsonl", "settings.json", "llava_answers.jsonl"


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
    _check_settings(
        folder,
        {
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
        },
    )
    kept = _kept(folder / ANSWERS, samples)
    wanted = {sample.id for sample in samples}
    answers = {record["id"]: str(record["answer"]) for record in kept if record["id"] in wanted}
    pending = [sample for sample in samples if sample.id not in answers]
    progress(len(answers))
    # Rewritten whole at the start: a line that a kill cut short goes, and so do readings of another scorer.
    lines = Lines(
        folder / ANSWERS,
        (json.dumps(record, ensure_ascii=False) for record in _read_anew(kept, samples, task)),
    )

    def keep(number: int, answer: str) -> None:
        sample = pending[number]
        answer = answer.strip()
        answers[sample.id] = answer
        parsed, score = task.judge(sample, answer)
        images = [image if isinstance(image, str) else "in the data file" for image in sample.images]
        lines.add(
            json.dumps(
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
                ensure_ascii=False,
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


def _check_settings(folder: Path, settings: Mapping[str, object]) -> None:
    path = folder / SETTINGS
    if not path.is_file():
        write_json(path, settings)
        return
    found = read_json(path)
    found = {"image_decoding": "upright", **found}  # What was read before there was a choice.
    differ = [
        f"{name} {found.get(name)} -> {value}" for name, value in settings.items() if found.get(name) != value
    ]
    if differ:
        raise UserError(
            f"{folder} holds answers under other settings ({', '.join(differ)}); choose another "
            "--out or remove that folder"
        )


def _kept(path: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Records of an earlier run, each question once; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    prompts = {sample.id: sample.prompt for sample in samples}
    records: dict[int | str, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            question = record["question"], record["answer"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is damaged; remove that line") from None
        if prompts.get(record["id"], question[0]) != question[0]:
            raise UserError(
                f"{path}, line {number} answers another question than the data files now ask as "
                f"{record['id']}; choose another --out"
            )
        records[record["id"]] = record
    return list(records.values())


def _read_anew(
    kept: Iterable[dict[str, Any]], samples: Iterable[Sample], task: Task
) -> Iterator[dict[str, Any]]:
    """The records with the readings and scores of the task's scorer."""
    asked = {sample.id: sample for sample in samples}
    for record in kept:
        if record["id"] in asked:
            parsed, score = task.judge(asked[record["id"]], str(record["answer"]))
            record = {**record, "parsed": parsed, "score": score}
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
