"""GQA: compositional questions about scenes, test-dev balanced."""

from collections.abc import Sequence
from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import (
    EVAL_ZIP,
    LLAVA,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    field,
    write_json,
)

_SITE = "cs.stanford.edu/people/dorarad/gqa/download.html"
_QUESTIONS = "gqa/llava_gqa_testdev_balanced.jsonl"
_TRUTHS = "gqa/data/testdev_balanced_questions.json"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions with the answers of GQA's file."""
    truths, samples = read_json(data / _TRUTHS), []
    for number, line in enumerate(read_json(data / _QUESTIONS), start=1):
        identity = str(field(line, "question_id", data / _QUESTIONS, number))
        if identity not in truths:
            raise UserError(f"{data / _TRUTHS} has no question {identity}; take the testdev_balanced split")
        truth = truths[identity]
        structure = truth.get("types", {}).get("structural")
        kinds = [] if structure is None else ["open" if structure == "query" else "binary"]
        samples.append(
            Sample(
                identity,
                (str(data / "gqa/data/images" / line["image"]),),
                line["text"],
                field(truth, "answer", data / _TRUTHS, number),
                {"kinds": kinds},
            )
        )
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Exact match in lower case without a final period.

    Accuracy of Hudson and Manning 2019 (GQA's eval.py) on predictions made as LLaVA's
    convert_gqa_for_eval.py makes them. Kinds are GQA's open (structure "query") and binary (all other).
    """
    parsed = answer.rstrip(".").lower()
    return parsed, float(parsed == sample.truth)


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """testdev_balanced_predictions.json, which GQA's eval.py reads."""
    write_json(
        folder / "testdev_balanced_predictions.json",
        [{"questionId": one.sample.id, "prediction": one.parsed} for one in judged],
    )


GQA = Task(
    "gqa",
    "GQA test-dev balanced, 12,578 questions",
    (
        File(_QUESTIONS, EVAL_ZIP),
        File(_TRUTHS, f"questions1.2.zip from {_SITE}"),
        File("gqa/data/images/", f"images.zip from {_SITE}"),
    ),
    load,
    (Scorer("llava", f"scripts/convert_gqa_for_eval.py of {LLAVA} and GQA's eval.py", judge),),
    column="GQA",
    write=write,
)
