"""GQA: compositional questions about scenes, test-dev balanced."""

from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import EVAL_ZIP, LLAVA, File, Record, Sample, Scorer, Task, records, upload

_SITE = "cs.stanford.edu/people/dorarad/gqa/download.html"
_QUESTIONS = "gqa/llava_gqa_testdev_balanced.jsonl"
_TRUTHS = "gqa/data/testdev_balanced_questions.json"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions with the answers of GQA's file."""
    truths, samples = read_json(data / _TRUTHS), []
    for number, line in enumerate(records(data / _QUESTIONS), start=1):
        identity = str(line["question_id"])
        if identity not in truths:
            raise UserError(f"{data / _TRUTHS} has no question {identity}; take the testdev_balanced split")
        truth = Record(truths[identity], f"{data / _TRUTHS}, record {number}")
        structure = truth.get("types", {}).get("structural")
        kinds = [] if structure is None else ["open" if structure == "query" else "binary"]
        samples.append(
            Sample(
                identity,
                (str(data / "gqa/data/images" / line["image"]),),
                line["text"],
                truth["answer"],
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
    # What GQA's eval.py reads.
    write=upload(
        "testdev_balanced_predictions.json",
        lambda one: {"questionId": one.sample.id, "prediction": one.parsed},
    ),
)
