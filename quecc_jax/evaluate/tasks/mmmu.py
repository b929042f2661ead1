"""MMMU validation: college questions in 30 subjects, by choice or open."""

import ast
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quecc_jax.data.files import write_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import (
    LETTER,
    LMMS_EVAL,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    asked,
    letters,
    options,
)

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""Subjects by domain (Yue et al. 2023, "MMMU", table 1)."""
_FILE = "validation-00000-of-00001.parquet"
_MARKS = ",.!?;:'"
_RANDOM = "random "
"""Begins the reading of an answer in which no choice was found."""
Forms = tuple[tuple[str, str], ...]
"""How an answer may write a letter, and the form in which its position is looked up."""
_MMMU_FORMS: Forms = (("({})", "({})"), (" {} ", " {} "))
_LMMS_EVAL_FORMS: Forms = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def load(data: Path) -> list[Sample]:
    """All subjects' questions, with their images in order of mention in front.

    LLaVA-1.5's setting (configs/llava1.5.yaml of github.com/MMMU-Benchmark/MMMU) asks about one image
    and leaves "<image 1>" in the text, as here; it guesses where a question has several, while here all
    of them are shown.
    """
    return [
        _sample(row, domain, subject)
        for domain, subjects in DOMAINS.items()
        for subject in subjects
        for row in _rows(data / "mmmu" / subject / _FILE)
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file ({error}); download it again") from None


def _sample(row: Mapping[str, Any], domain: str, subject: str) -> Sample:
    choices = [str(choice) for choice in ast.literal_eval(row["options"])]
    if row["question_type"] == "multiple-choice":
        lines = options(choices, "({}) {}")
        prompt, truth = asked(f"{row['question']}\n{lines}\n", LETTER), row["answer"]
    else:
        prompt, truth = asked(row["question"]), _open_truths(row["answer"])
        choices = []
    mentioned = sorted(set(re.findall(r"<image (\d)>", row["question"] + row["options"])))
    images = [row[f"image_{number}"]["bytes"] for number in mentioned or ["1"] if row.get(f"image_{number}")]
    extra = {"choices": choices, "kinds": [domain, f"{domain}/{subject}"]}
    return Sample(row["id"], tuple(images), prompt, truth, extra)


def _open_truths(answer: str) -> list[str]:
    """One or several right answers; several are stored as the text of a Python list."""
    if answer.startswith("["):
        try:
            return [str(truth) for truth in ast.literal_eval(answer)]
        except (ValueError, SyntaxError):
            pass
    return [answer]


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The letter of a choice, or whether any part of an open answer is right (Yue et al. 2023).

    Where no choice is found the official program draws one, seeded once for all questions, so that a guess
    hangs on every answer before it. Here it hangs on the question alone, and the reading says "random".
    """
    return _judged(sample, answer, _MMMU_FORMS)


def _judge_lmms_eval(sample: Sample, answer: str) -> tuple[str, float]:
    """lmms-eval's letters, which need no blank before them. Open answers are read as `judge` does: lmms-eval
    keeps one candidate of an unordered set, so that its score differs from process to process."""
    return _judged(sample, answer, _LMMS_EVAL_FORMS)


def _judged(sample: Sample, answer: str, forms: Forms) -> tuple[str, float]:
    if choices := sample.extra["choices"]:
        letter = parse_choice(answer, choices, forms)
        if letter:
            return letter, float(letter == sample.truth)
        letter = random.Random(str(sample.id)).choice(letters(len(choices)))
        return f"{_RANDOM}{letter}", float(letter == sample.truth)
    found = parse_open(answer)
    truths = [part for truth in sample.truth for part in _normalised(truth)]
    right = any(
        any(isinstance(t, str) and t in part for t in truths) if isinstance(part, str) else part in truths
        for part in found
    )
    return "; ".join(map(str, found)), float(right)


def parse_choice(answer: str, choices: Sequence[str], forms: Forms = _MMMU_FORMS) -> str:
    """The letter that an answer names last, in the first form that occurs, or by the text of the choice.

    Text counts in answers of more than five words only. "" without any of these.
    """
    for mark in _MARKS:
        answer = answer.strip(mark)
    answer, names = f" {answer} ", letters(len(choices))
    for written, sought in forms:
        named = [name for name in names if written.format(name) in answer]
        if named:
            return max(named, key=lambda name: answer.rfind(sought.format(name)))
    if len(answer.split()) > 5:
        lower = answer.lower()
        within = [
            (lower.rfind(choice.lower()), -i, name)
            for i, (name, choice) in enumerate(zip(names, choices, strict=True))
            if choice.lower() in lower
        ]
        if within:
            return max(within)[2]
    return ""


def parse_open(answer: str) -> list[str | float]:
    """Candidate answers: what follows the last words such as "is" in each sentence, and its numbers."""
    answer = answer.strip().strip(".").lower()
    # The official pattern looks for a capital after it has made all letters small, so lines alone count.
    sentences = answer.split("\n")
    keys = []
    for number, sentence in enumerate(sentences, start=1):
        indicators = (*_INDICATORS, "=") if number == len(sentences) else _INDICATORS
        tails = [sentence.split(word)[-1].strip() for word in indicators if word in sentence]
        shortest = ""
        for tail in tails:
            # An empty tail gives way to whatever follows it.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in set(_MARKS):
            keys.append(shortest)
    keys = keys or [answer]
    parts = [*keys, *(number for key in keys for number in _numbers(key))]
    return list(dict.fromkeys(form for part in parts for form in _normalised(part)))


def _numbers(text: str) -> list[str]:
    """Numbers with thousands commas, then in scientific, then in plain notation."""
    return [
        *re.findall(r"-?\b\d{1,3}(?:,\d{3})+\b", text),
        *re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", text),
        *re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])", text),
    ]


def _normalised(text: str) -> list[str | float]:
    """A number to two decimals, or lower-case text; one letter gets a blank on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """mmmu_answers.json: the letter, or the answer to an open question, by id (main_eval_only.py)."""
    write_json(
        folder / "mmmu_answers.json",
        {
            one.sample.id: one.parsed.removeprefix(_RANDOM) if one.sample.extra["choices"] else one.answer
            for one in judged
        },
    )


MMMU = Task(
    "mmmu",
    "MMMU validation, 900 questions in 30 subjects",
    tuple(
        File(f"mmmu/{subject}/{_FILE}", "huggingface.co/datasets/MMMU/MMMU")
        for subjects in DOMAINS.values()
        for subject in subjects
    ),
    load,
    (
        Scorer(
            "mmmu",
            "mmmu/utils/eval_utils.py of github.com/MMMU-Benchmark/MMMU at commit bb0b95a",
            judge,
            _RANDOM,
        ),
        Scorer(
            "lmms_eval",
            f"tasks/mmmu/utils.py of {LMMS_EVAL}, open answers as MMMU reads them",
            _judge_lmms_eval,
            _RANDOM,
        ),
    ),
    write=write,
    note="a random choice, drawn by the question's name, stands for each unread answer",
)
