"""Readings and scores of answers, against those of the official programs that the scorers name.

Expected values in official/TASK.SCORER.json: what each program, named there with its commit, gave when it was
run on adversarial answers and on mixtures of words that such programs look for. "random choice" stands where
MMMU's draws one. Of MathVista's program the normalisation alone can be run without GPT-4.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import Sample
from quecc_jax.evaluate.tasks.mathvista import normalise

OFFICIAL = sorted((Path(__file__).parent / "official").glob("*.json"))
LISTED = [
    # From the programs too, one by one: answers in which they differ from what one may expect.
    ("scienceqa", "llava", "The answer is A", 4, "FAILED"),  # The pattern wants one more character.
    ("scienceqa", "llava", "A\nbecause it is", 4, "FAILED"),
    ("scienceqa", "llava", "The answer is A, not: The answer is B.", 4, "FAILED"),
    ("mmmu", "mmmu", "B. dog", ["cat", "dog", "red fox", "12"], "random"),
    ("mmmu", "lmms_eval", "B. dog", ["cat", "dog", "red fox", "12"], "B"),
    ("mmmu", "mmmu", "Option NBC 12 12 is DNA", ["cat", "dog", "red fox", "12"], "D"),
    ("mmmu", "lmms_eval", "Option NBC 12 12 is DNA", ["cat", "dog", "red fox", "12"], "A"),
    ("mmmu", "mmmu", "DNA 12 answer", ["cat", "dog", "red fox", "12"], "random"),
    ("mmmu", "lmms_eval", "DNA 12 answer", ["cat", "dog", "red fox", "12"], "A"),
    ("mme", "mme", "y", 0, "other"),
    ("mme", "lmms_eval", "y", 0, "yes"),
]


def judge(task: str, scorer: str, case: dict[str, Any]) -> tuple[Any, Any]:
    """Reading and score, where the program gave them; a drawn letter counts as "random choice"."""
    if scorer == "normalise":
        reading: str | None = normalise(case["answer"], case["extra"])
        score: float | None = float(reading == case["truth"])
    else:
        sample = Sample("q", (), "", case["truth"], case.get("extra", {}))
        reading, score = TASKS[task].scored_by(scorer).judge(sample, case["answer"])
    if reading and reading.startswith("random "):
        reading, score = "random choice", None
    rounded = None if score is None or "score" not in case else round(score, 9)
    return reading if "reading" in case else None, rounded


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_scorers_agree_with_the_programs_that_they_name(conforms, path):
    table = json.loads(path.read_text(encoding="utf-8"))
    task, scorer = path.stem.split(".")
    expected = [(case.get("reading"), case.get("score")) for case in table["cases"]]
    assert len(expected) > 90 and len(set(expected)) > 1
    obtained = [judge(task, scorer, case) for case in table["cases"]]
    wrong = [
        (case["answer"], *pair)
        for case, *pair in zip(table["cases"], expected, obtained, strict=True)
        if pair[0] != pair[1]
    ]
    agree = len(expected) - len(wrong)
    conforms(
        "scorer",
        f"{path.stem}, answers read alike",
        f"{len(expected)} of {len(expected)}",
        f"{agree} of {len(expected)} {wrong[:3] or ''}".strip(),
    )
    if scorer != "normalise":
        assert table["program"] == TASKS[task].scored_by(scorer).scorer.program


def test_every_scorer_has_been_held_against_its_program():
    """But for those whose program compares whole answers, or that have no truth here."""
    tested = {path.stem for path in OFFICIAL}
    all_of_them = {f"{task.name}.{scorer.name}" for task in TASKS.values() for scorer in task.scorers}
    assert all_of_them - tested == {
        "vqav2.llava",
        "vizwiz.llava",
        "seed.llava",
        "llava_bench.gpt4",
        "mmvet.gpt4",
        "mathvista.rules",
        "mmbench_cn.vlmevalkit",
        "mmbench_cn.vlmevalkit_2026",
        "mmbench_cn.lmms_eval",
    }


@pytest.mark.parametrize("task, scorer, answer, choices, reading", LISTED)
def test_listed_answers(conforms, task, scorer, answer, choices, reading):
    sample = Sample("q", (), "", "A", {"choices": choices})
    obtained = TASKS[task].scored_by(scorer).judge(sample, answer)[0].split(" ")[0]
    conforms("scorer", f"{task}, {scorer}: {answer!r}", reading, obtained)
