"""easy-VQA: the images, questions and answers of the installed `easy_vqa` package (MIT licence).

4,000 training and 1,000 test images of 64 x 64 pixels, each with one coloured shape, and 38,575
and 9,673 questions with 13 possible answers. The splits are the published ones.
"""

from typing import Any, Literal, NamedTuple

from quecc_jax.data.references import Row

Split = Literal["train", "test"]
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
"""The answers, besides yes and no."""


class Question(NamedTuple):
    """One published question."""

    text: str
    answer: str
    image: int


def questions(split: Split) -> list[Question]:
    """Questions of a split in their published order."""
    import easy_vqa

    read = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    return [Question(*row) for row in zip(*read(), strict=True)]


def image_paths(split: Split) -> list[str]:
    """Files of a split; the position in the list is the image's published number."""
    import easy_vqa

    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return [paths[number] for number in range(len(paths))]


def kind(answer: str) -> str:
    """Type of question by its answer: single/yes-no, single/shape or single/color."""
    return "single/shape" if answer in SHAPES else "single/color" if answer in COLORS else "single/yes-no"


def rows(split: Split) -> list[Row]:
    """LLaVA-format rows whose "image" is a file."""
    paths = image_paths(split)
    return [
        question_row(q.image, q.text, q.answer, kind(q.answer)) | {"image": paths[q.image]}
        for q in questions(split)
    ]


def question_row(image: int, question: str, answer: str, kind: str) -> dict[str, Any]:
    """One LLaVA-format row that asks a question about one image."""
    return {
        "image": image,
        "kind": kind,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }
