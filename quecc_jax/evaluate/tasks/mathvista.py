"""MathVista testmini: mathematics in images, by choice or with a number or list for an answer."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quecc_jax.data.files import read_json, write_json
from quecc_jax.evaluate.metrics import edit_distance
from quecc_jax.evaluate.tasks.base import File, Judged, Sample, Scorer, Task, letters, options, records

_FILE = "mathvista/annot_testmini.json"
_SITE = "huggingface.co/datasets/AI4Math/MathVista"
_CHOICE = "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
_NUMBER = "Please answer the question requiring {} and provide the final {}, e.g., {}, at the end."
_HINTS = {
    "integer": _NUMBER.format("an integer answer", "value", "1, 2, 3"),
    "float1": _NUMBER.format("a floating-point number with one decimal place", "value", "1.2, 1.3, 1.4"),
    "float2": _NUMBER.format("a floating-point number with two decimal places", "value", "1.23, 1.34, 1.45"),
    "list": _NUMBER.format("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
}

_NUMBER_FORM = re.compile(r"(?:(?<![\w.)])-)?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?:/\d+)?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")


def load(data: Path) -> list[Sample]:
    """Problems with the benchmark's own query text, built where the file does not carry it."""
    path, samples = data / _FILE, []
    problems = read_json(path)
    for identity, problem in zip(problems, records(path, problems.values()), strict=True):
        facts = {name: problem.get(name) for name in ("question_type", "answer_type", "choices", "precision")}
        image = str(data / "mathvista" / problem["image"])
        kinds = [value for name in ("task", "context") if (value := problem.get("metadata", {}).get(name))]
        samples.append(
            Sample(
                identity,
                (image,),
                problem.get("query") or query(problem),
                str(problem["answer"]),
                {**facts, "kinds": [problem["question_type"], *kinds]},
            )
        )
    return samples


def query(problem: Mapping[str, Any]) -> str:
    """Hint, question and choices as MathVista's zero-shot setting words them (Lu et al. 2024, app. D.2)."""
    kind = str(problem["answer_type"])
    kind += str(int(problem["precision"])) if kind == "float" and problem.get("precision") else ""
    hint = _CHOICE if problem["question_type"] == "multi_choice" else _HINTS.get(kind, _HINTS["integer"])
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    lines = [f"Hint: {hint}", f"Question: {problem['question']}{unit}"]
    if choices := problem.get("choices"):
        lines += ["Choices:", options(choices, "({}) {}")]
    return "\n".join(lines).strip()


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The extracted answer and whether it equals the truth.

    Lu et al. 2024, "MathVista", section 4.1. Officially GPT-4 extracts the answer from any response that is
    not itself a choice, an integer or a float. Nothing here asks a language model: `extract` has rules for
    that step alone, and what follows is the official normalisation. Scores can differ from published ones
    by the responses that need a reader: of LLaVA's 1,000 responses in that repository (LLaMA-2-13B) 913 are
    judged as published, and the score is 24.2 % instead of 26.1 %.
    """
    parsed = normalise(extract(answer, sample.extra), sample.extra)
    return parsed or "", float(parsed == sample.truth)


def extract(answer: str, facts: Mapping[str, Any]) -> str:
    """The part of a response that answers; the response itself where no rule finds one.

    A choice, integer or float as it stands; 'The answer is "..."'; then, in GPT-4's place: a letter in
    parentheses or before a period or colon at the begin, or the only choice whose text occurs; the last
    number; the last list, or all numbers as one. A hyphen behind a digit or letter is no minus: in
    "2019-2020" the last number is 2020.
    """
    text, choices = answer.strip().replace("\N{MINUS SIGN}", "-"), facts.get("choices") or []
    quoted = re.search(r'The answer is "(.*)"\.', text)
    if facts["question_type"] == "multi_choice":
        if text in choices:
            return text
        if quoted:
            return quoted[1]
        given = "".join(letters(len(choices)))
        named = re.search(rf"\(([{given}])\)", text) or re.search(
            rf"^(?:[Tt]he )?(?:[Cc]orrect )?(?:[Aa]nswer(?: is)?:? )?([{given}])(?:[.:,)]|$)", text
        )
        if named:
            return named[1]
        told = [
            choice
            for choice in choices
            if re.search(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", text, re.IGNORECASE)
        ]
        return told[0] if len(told) == 1 else text
    if quoted:
        return quoted[1]
    if facts["answer_type"] == "list":
        if lists := re.findall(r"\[[^\[\]]*\]", text):
            return lists[-1]
        numbers = _NUMBER_FORM.findall(text)
        return f"[{', '.join(numbers)}]" if numbers else text
    if _is_number(text):
        return text
    numbers = _NUMBER_FORM.findall(_THOUSANDS.sub(lambda found: found[0].replace(",", ""), text))
    return numbers[-1] if numbers else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def normalise(part: str, facts: Mapping[str, Any]) -> str | None:
    """An extracted answer in the form of the truths: choice text, integer, rounded float or list.

    A letter stands for its choice, and any other text for the choice nearest to it in edits. None for
    what is not a number where one is asked for.
    """
    if facts["question_type"] == "multi_choice":
        choices = facts["choices"]
        named = re.search(r"\(([a-zA-Z])\)", part)
        part = named[1].upper() if named else part.strip()
        names = letters(len(choices))
        if part in names:
            return choices[names.index(part)]
        return min(choices, key=lambda choice: edit_distance(part, choice))
    try:
        if facts["answer_type"] == "integer":
            return str(int(float(part)))
        if facts["answer_type"] == "float":
            return str(round(float(part), int(facts["precision"])))
    except (ValueError, OverflowError, TypeError):
        return None
    return part


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """mathvista_responses.json: problem, response and extraction by id, for the official GPT-4 scoring."""
    write_json(
        folder / "mathvista_responses.json",
        {
            one.sample.id: {
                "pid": one.sample.id,
                "query": one.sample.prompt,
                "answer": one.sample.truth,
                **{
                    name: one.sample.extra[name]
                    for name in ("question_type", "answer_type", "choices", "precision")
                },
                "response": one.answer,
                "extraction": one.parsed,
            }
            for one in judged
        },
    )


MATHVISTA = Task(
    "mathvista",
    "MathVista testmini, 1,000 problems, scored without a language model as judge",
    (File(_FILE, _SITE), File("mathvista/images/", f"images.zip from {_SITE}")),
    load,
    (
        Scorer(
            "rules",
            "evaluation/calculate_score.py of github.com/lupantech/MathVista at commit "
            "53d5258, after rules in the place of extract_answer.py's GPT-4",
            judge,
        ),
    ),
    write=write,
    max_new_tokens=512,
    note="rules extract the answer, where published scores have GPT-4",
)
