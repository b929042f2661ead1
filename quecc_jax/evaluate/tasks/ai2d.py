"""AI2D test: multiple choice about diagrams of school science."""

import io
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from quecc_jax.data.files import read_json, read_text
from quecc_jax.data.images import open_image
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import (
    LETTER,
    LMMS_EVAL,
    File,
    Sample,
    Scorer,
    Task,
    asked,
    letters,
    options,
    records,
)

_ZIP = "ai2-website.s3.amazonaws.com/data/ai2d-all.zip"
_IDS = "s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv"

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def load(data: Path) -> list[Sample]:
    """Questions about the images of the test split.

    Questions such as "What is A?" are about an image whose labels are covered by letters
    (Kembhavi et al. 2016, section 5); the data set says where, and `covered` draws them. The prompt is that
    of lmms-eval's ai2d.
    """
    folder, samples = data / "ai2d", []
    listed = read_text(folder / "ai2d_test_ids.csv").replace(",", "\n").split()
    for identity in listed:
        path = folder / f"questions/{identity}.png.json"
        if not path.is_file():
            continue  # Some images have no question.
        (record,) = records(path, [read_json(path)])
        image = str(folder / "images" / record["imageName"])
        lettered: bytes | None = None
        questions = record["questions"]
        for question, truth in zip(questions, records(path, questions.values()), strict=True):
            choices = truth["answerTexts"]
            if truth.get("abcLabel") and lettered is None:
                lettered = covered(image, read_json(folder / f"annotations/{identity}.png.json"))
            shown = lettered if truth.get("abcLabel") and lettered is not None else image
            samples.append(
                Sample(
                    truth["questionId"],
                    (shown,),
                    asked(f"{question}\n{options(choices)}", LETTER),
                    letters(truth["correctAnswer"] + 1)[-1],
                    {"choices": len(choices)},
                )
            )
    if not samples:
        raise UserError(
            f"{folder / 'questions'} has no NAME.png.json of an image that ai2d_test_ids.csv "
            "lists; unpack the whole data set"
        )
    return samples


def covered(image: str, annotation: Mapping[str, Any]) -> bytes:
    """The image as PNG, every text in it under a white box with the letter that questions call it by."""
    found = open_image(image, "original")  # The boxes are of the pixels as stored.
    draw = ImageDraw.Draw(found)
    for text in annotation.get("text", {}).values():
        (left, top), (right, bottom) = text["rectangle"]
        draw.rectangle((left, top, right, bottom), fill="white", outline="black")
        font = ImageFont.load_default(size=max(8, min(32, int(0.8 * (bottom - top)))))
        middle = ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, text["replacementText"], fill="black", font=font, anchor="mm")
    out = io.BytesIO()
    found.save(out, "PNG")
    return out.getvalue()


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Accuracy of the chosen letter (Kembhavi et al. 2016, "A Diagram Is Worth A Dozen Images").

    lmms-eval's rule: a capital that begins the answer before a period, or else the whole answer, is
    compared without punctuation and case.
    """
    begin = re.match(r"\s*([A-Z])\.", answer)
    bare = (begin[1] if begin else answer).translate(_NO_PUNCTUATION).lower()
    return bare.upper() if bare.upper() in letters(26) else "", float(bare == sample.truth.lower())


AI2D = Task(
    "ai2d",
    "AI2D test, 3,088 questions on diagrams",
    (
        File("ai2d/ai2d_test_ids.csv", _IDS),
        File("ai2d/questions/", _ZIP),
        File("ai2d/annotations/", _ZIP),
        File("ai2d/images/", _ZIP),
    ),
    load,
    (Scorer("lmms_eval", f"tasks/ai2d/utils.py and ai2d.yaml of {LMMS_EVAL}", judge),),
    max_new_tokens=16,
)
