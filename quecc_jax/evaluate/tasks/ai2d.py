"""AI2D test: multiple choice about diagrams of school science."""

from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.metrics import leading_letter
from quecc_jax.evaluate.tasks.base import LETTER, File, Sample, Task, asked, field, letters, options

_SITE = "allenai.org/data/diagrams"


def load(data: Path) -> list[Sample]:
    """Questions about the pictures of the test split."""
    folder, samples = data / "ai2d", []
    listed = (folder / "ai2d_test_ids.csv").read_text(encoding="utf-8").replace(",", "\n").split()
    for identity in listed:
        path = folder / f"questions/{identity}.png.json"
        if not path.is_file():
            continue  # Some pictures have no question.
        record = read_json(path)
        image = str(folder / "images" / field(record, "imageName", path, 1))
        for number, (question, truth) in enumerate(record["questions"].items(), start=1):
            choices = field(truth, "answerTexts", path, number)
            samples.append(Sample(truth["questionId"], (image,),
                                  asked(f"{question}\n{options(choices)}", LETTER),
                                  letters(truth["correctAnswer"] + 1)[-1],
                                  {"choices": len(choices)}))  # fmt: skip
    if not samples:
        raise UserError(f"{folder / 'questions'} has no NAME.png.json of a picture that ai2d_test_ids.csv "
                        "lists; unpack the whole data set")
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Accuracy of the chosen letter (Kembhavi et al. 2016, "A Diagram Is Worth A Dozen Images").

    The letter alone, or at the begin before a period as LLaVA's ScienceQA script reads it.
    """
    parsed = leading_letter(answer.strip().removesuffix("."), letters(sample.extra["choices"]))
    return parsed, float(parsed == sample.truth)


AI2D = Task(
    "ai2d", "AI2D test, 3,088 questions on diagrams",
    (File("ai2d/ai2d_test_ids.csv", _SITE), File("ai2d/questions/", f"ai2d-all.zip from {_SITE}"),
     File("ai2d/images/", f"ai2d-all.zip from {_SITE}")),
    load, judge,
)  # fmt: skip
