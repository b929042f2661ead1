"""ScienceQA test: school questions with choices, some about a picture."""

from collections.abc import Sequence
from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.data.templates import PLACEHOLDER
from quecc_jax.errors import UserError
from quecc_jax.evaluate.metrics import leading_letter
from quecc_jax.evaluate.tasks.base import EVAL_ZIP, File, Judged, Sample, Task, field, letters, write_json

_QUESTIONS = "scienceqa/llava_test_CQM-A.json"
_SITE = "data/scienceqa of github.com/lupantech/ScienceQA"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions of the test split, with ScienceQA's answers."""
    problems, samples = read_json(data / "scienceqa/problems.json"), []
    test = set(read_json(data / "scienceqa/pid_splits.json")["test"])
    for number, line in enumerate(read_json(data / _QUESTIONS), start=1):
        identity = str(field(line, "id", data / _QUESTIONS, number))
        if identity not in test or identity not in problems:
            raise UserError(f"{data / _QUESTIONS}, record {number}: problem {identity} is not of the test "
                            "split of problems.json; take all three files of one release")
        problem = problems[identity]
        images: tuple[str, ...] = ()
        if "image" in line:
            images = (str(data / "scienceqa/images/test" / line["image"]),)
        prompt = line["conversations"][0]["value"].replace(PLACEHOLDER, "").strip()
        text = f"{PLACEHOLDER}\n{prompt}" if images else prompt
        samples.append(Sample(identity, images, prompt, letters(problem["answer"] + 1)[-1],
                              {"choices": len(problem["choices"]), "text": text,
                               "kinds": ["image" if images else "text"]}))  # fmt: skip
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The option that `metrics.leading_letter` reads among A to E, right if it is the answer's.

    Lu et al. 2022, "Learn to Explain"; LLaVA's eval_science_qa.py. An answer that names no choice of
    the question is wrong. `accuracy/image` is the IMG subset that papers report for LLaVA.
    """
    parsed = leading_letter(answer, letters(5))
    parsed = parsed if parsed in letters(sample.extra["choices"]) else ""
    return parsed, float(parsed == sample.truth)


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """result.json with the chosen index of every problem (-1 for none), as LLaVA's script writes it."""
    right = sum(one.score or 0 for one in judged)
    write_json(folder / "result.json", {
        "acc": 100 * right / len(judged) if judged else None, "correct": int(right), "count": len(judged),
        "results": {one.sample.id: "ABCDE".index(one.parsed) if one.parsed else -1 for one in judged},
        "outputs": {one.sample.id: one.answer for one in judged},
    })  # fmt: skip


SCIENCEQA = Task(
    "scienceqa", "ScienceQA test, 4,241 questions, 2,017 with a picture",
    (File(_QUESTIONS, EVAL_ZIP), File("scienceqa/problems.json", _SITE),
     File("scienceqa/pid_splits.json", _SITE), File("scienceqa/images/test/", _SITE)),
    load, judge, headline="accuracy/image", column="SQA", write=write,
)  # fmt: skip
