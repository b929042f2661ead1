"""SEED-Bench: multiple choice about images and about the middle frames of videos."""

from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import EVAL_ZIP, LLAVA, File, Sample, Scorer, Task, records, upload

_QUESTIONS, _TRUTHS = "seed_bench/llava-seed-bench.jsonl", "seed_bench/SEED-Bench.json"
_SITE = "DATASET.md of github.com/AILab-CVC/SEED-Bench"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions with SEED-Bench's answers and types."""
    book = read_json(data / _TRUTHS)
    types = {number: name for name, number in book["question_type"].items()}
    truths = {str(question["question_id"]): question for question in book["questions"]}
    samples = []
    for line in records(data / _QUESTIONS):
        truth = truths.get(str(line["question_id"]))
        if truth is None:
            raise UserError(f"{data / _TRUTHS} has no question {line['question_id']}; take SEED-Bench 1")
        kinds = [truth["data_type"], types[truth["question_type_id"]]]
        samples.append(
            Sample(
                line["question_id"],
                (str(data / "seed_bench" / line["image"]),),
                line["text"],
                truth["answer"],
                {"kinds": kinds, "sent_id": truth["question_id"]},
            )
        )
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Whether the whole answer is the right letter, as LLaVA's convert_seed_for_submission.py compares.

    The benchmark's own evaluation (Li et al. 2023, "SEED-Bench", section 3.3) ranks the choices by their
    likelihood instead; LLaVA's and QueCC's numbers come from answers.
    """
    return answer, float(answer == sample.truth)


SEED = Task(
    "seed",
    "SEED-Bench, 19,242 questions on images and video frames",
    (
        File(_QUESTIONS, EVAL_ZIP),
        File(_TRUTHS, _SITE),
        File("seed_bench/SEED-Bench-image/", _SITE),
        File("seed_bench/SEED-Bench-video-image/", f"videos of {_SITE}; LLaVA's eval.zip has a script"),
    ),
    load,
    (Scorer("llava", f"scripts/convert_seed_for_submission.py of {LLAVA}", judge),),
    # For the leaderboard.
    write=upload(
        "seed_upload.jsonl",
        lambda one: {"question_id": one.sample.extra["sent_id"], "prediction": one.answer},
    ),
)
