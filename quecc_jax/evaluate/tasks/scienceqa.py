"""ScienceQA test: school questions with choices, some about an image."""

import re
from collections.abc import Sequence
from pathlib import Path

from quecc_jax.data.files import read_json, write_json
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import (
    EVAL_ZIP,
    LETTER,
    LLAVA,
    LMMS_EVAL,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    asked,
    letters,
    records,
)

_QUESTIONS = "scienceqa/llava_test_CQM-A.json"
FAILED = "FAILED"
"""LLaVA's reading of an answer in which it finds no letter."""
_SITE = "data/scienceqa of github.com/lupantech/ScienceQA"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions of the test split, with ScienceQA's answers.

    The file ends a question with its choices; the response format is what LLaVA's script adds to it
    (llava/eval/model_vqa_science.py with --single-pred-prompt).
    """
    problems, samples = read_json(data / "scienceqa/problems.json"), []
    test = set(read_json(data / "scienceqa/pid_splits.json")["test"])
    for number, line in enumerate(records(data / _QUESTIONS), start=1):
        identity = str(line["id"])
        if identity not in test or identity not in problems:
            raise UserError(
                f"{data / _QUESTIONS}, record {number}: problem {identity} is not of the test "
                "split of problems.json; take all three files of one release"
            )
        problem = problems[identity]
        images: tuple[str, ...] = ()
        if "image" in line:
            images = (str(data / "scienceqa/images/test" / line["image"]),)
        question = line["conversations"][0]["value"]
        prompt = asked(question.replace(PLACEHOLDER, "").strip(), LETTER)
        text = f"{PLACEHOLDER}\n{prompt}" if images else prompt
        samples.append(
            Sample(
                identity,
                images,
                prompt,
                letters(problem["answer"] + 1)[-1],
                {"choices": len(problem["choices"]), "text": text, "kinds": ["image" if images else "text"]},
            )
        )
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The letter that `read_letter` finds, right if it is the answer's.

    Lu et al. 2022, "Learn to Explain". `accuracy/image` is the IMG subset that papers report for LLaVA.
    """
    parsed = read_letter(answer)
    return parsed, float(parsed == sample.truth)


def read_letter(answer: str) -> str:
    """The letter A to E that is the whole answer or begins it before ". ", or else the one capital that
    follows "The answer is " with any sign behind it; FAILED where there is none, or where there are two."""
    if answer in letters(5) or (answer[:1] in letters(5) and answer[1:3] == ". "):
        return answer[0]
    named = re.findall("The answer is ([A-Z]).", answer)
    return named[0] if len(named) == 1 else FAILED


def _judge_lmms_eval(sample: Sample, answer: str) -> tuple[str, float]:
    """lmms-eval's rule: the letter in either case is the whole answer, or a capital begins it before a
    period."""
    text = answer.strip()
    parsed = text.upper() if len(text) == 1 else text[0] if text[1:2] == "." and text[0].isupper() else FAILED
    return parsed, float(parsed == sample.truth)


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """result.json with the chosen index of every problem (-1 for none), as LLaVA's script writes it."""
    right = sum(one.score or 0 for one in judged)
    write_json(
        folder / "result.json",
        {
            "acc": 100 * right / len(judged) if judged else None,
            "correct": int(right),
            "count": len(judged),
            "results": {one.sample.id: _index(one) for one in judged},
            "outputs": {one.sample.id: one.answer for one in judged},
        },
    )


def _index(one: Judged) -> int:
    names = letters(one.sample.extra["choices"])
    return names.index(one.parsed) if one.parsed in names else -1


SCIENCEQA = Task(
    "scienceqa",
    "ScienceQA test, 4,241 questions, 2,017 with an image",
    (
        File(_QUESTIONS, EVAL_ZIP),
        File("scienceqa/problems.json", _SITE),
        File("scienceqa/pid_splits.json", _SITE),
        File("scienceqa/images/test/", _SITE),
    ),
    load,
    (
        Scorer("llava", f"llava/eval/eval_science_qa.py of {LLAVA}", judge, FAILED),
        Scorer("lmms_eval", f"tasks/scienceqa/utils.py of {LMMS_EVAL}", _judge_lmms_eval, FAILED),
    ),
    headline="accuracy/image",
    column="SQA",
    write=write,
    max_new_tokens=1024,
)
