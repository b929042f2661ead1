"""easy-VQA: the pictures, questions and answers of the installed `easy_vqa` package (MIT licence).

4,000 training and 1,000 test pictures of 64 x 64 pixels, each with one coloured shape, and 38,575
and 9,673 questions with 13 possible answers. The splits are the published ones.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from quecc_jax.data.images import fit, open_image
from quecc_jax.experiments.testbed.cells import COLORS, SHAPES, UNKNOWN, Drawn, question_row

Split = Literal["train", "test"]


class Question(NamedTuple):
    """One published question."""

    text: str
    answer: str
    picture: int


def questions(split: Split) -> list[Question]:
    """Questions of a split in their published order."""
    import easy_vqa

    read = easy_vqa.get_train_questions if split == "train" else easy_vqa.get_test_questions
    return [Question(*row) for row in zip(*read(), strict=True)]


def picture_paths(split: Split) -> list[str]:
    """Files of a split; the position in the list is the picture's published number."""
    import easy_vqa

    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return [paths[number] for number in range(len(paths))]


def kind(answer: str) -> str:
    """Type of question by its answer: single/yes-no, single/shape or single/color."""
    return "single/shape" if answer in SHAPES else "single/color" if answer in COLORS else "single/yes-no"


def rows(split: Split) -> list[dict[str, Any]]:
    """LLaVA-format rows whose "image" is a file."""
    paths = picture_paths(split)
    return [
        question_row(q.picture, q.text, q.answer, kind(q.answer)) | {"image": paths[q.picture]}
        for q in questions(split)
    ]


def shape_and_color(published: Sequence[Question], pictures: int) -> np.ndarray:
    """What the questions and answers about each picture imply: int8 [pictures, 2] of shape and colour
    numbers (see `cells`), UNKNOWN where they leave more than one possibility."""
    possible = [[set(SHAPES), set(COLORS)] for _ in range(pictures)]
    for question in published:
        words = re.findall(r"\w+", question.text)
        for values, candidates in zip((SHAPES, COLORS), possible[question.picture], strict=True):
            named = {word for word in words if word in values}
            if question.answer in values:
                candidates &= {question.answer}
            elif question.answer not in ("yes", "no"):
                candidates &= named or candidates
            elif named:
                negated = "not" in words or "no" in words
                present = (question.answer == "yes") != negated
                if present:
                    candidates &= named
                else:
                    candidates -= named
    return np.array(
        [
            [
                values.index(next(iter(left))) + 1 if len(left) == 1 else UNKNOWN
                for values, left in zip((SHAPES, COLORS), pair, strict=True)
            ]
            for pair in possible
        ],
        np.int8,
    )


def tiles(split: Split, size: int) -> np.ndarray:
    """All pictures of a split, resized (bicubic): uint8 [N, size, size, 3]."""
    return np.stack([np.asarray(fit(open_image(path), size, "square")) for path in picture_paths(split)])


def draw(
    split: Split, image_size: int, pictures: int, questions_per_picture: int, rng: np.random.Generator
) -> Drawn:
    """The task "single": easy-VQA as published.

    Args:
      pictures: Taken at random; all when there are no more.
      questions_per_picture: At most so many of each picture's questions, at random; 0 keeps all.
    """
    published, sources = questions(split), tiles(split, image_size)
    chosen = np.sort(rng.permutation(len(sources))[:pictures]).astype(np.int32)
    place = {int(number): place for place, number in enumerate(chosen)}
    order = rng.permutation(len(published)) if questions_per_picture else np.arange(len(published))
    asked = np.zeros(len(sources), int)
    kept = []
    for index in order:
        picture = published[index].picture
        if picture in place and (not questions_per_picture or asked[picture] < questions_per_picture):
            asked[picture] += 1
            kept.append(published[index])
    found = shape_and_color(published, len(sources))[chosen]
    cells = np.concatenate([found, np.zeros((len(found), 1), np.int8)], axis=1)[:, None, None]
    return Drawn(
        tiles=sources,
        sources=chosen[:, None, None],
        picks=chosen[:, None, None],
        cells=cells,
        rows=[question_row(place[q.picture], q.text, q.answer, kind(q.answer)) for q in kept],
    )
