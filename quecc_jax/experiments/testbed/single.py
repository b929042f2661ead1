"""The task "single": easy-VQA as published, one shape per image."""

import re
from collections.abc import Sequence

import numpy as np

from quecc_jax.config import PixelConfig
from quecc_jax.data.images import fit, open_image
from quecc_jax.data.sources.easy_vqa import (
    COLORS,
    SHAPES,
    Question,
    image_paths,
    kind,
    question_row,
    questions,
)
from quecc_jax.experiments.testbed.cells import UNKNOWN, Drawn
from quecc_jax.experiments.testbed.settings import Split


def shape_and_color(published: Sequence[Question], num_images: int) -> np.ndarray:
    """What the questions and answers about each image imply: int8 [images, 2] of shape and colour
    numbers (see `cells`), UNKNOWN where they leave more than one possibility."""
    possible = [[set(SHAPES), set(COLORS)] for _ in range(num_images)]
    for question in published:
        words, negated = re.findall(r"\w+", question.text), is_negated(question)
        for values, candidates in zip((SHAPES, COLORS), possible[question.image], strict=True):
            named = {word for word in words if word in values}
            if question.answer in values:
                candidates &= {question.answer}
            elif question.answer not in ("yes", "no"):
                candidates &= named or candidates
            elif named:
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


def is_negated(question: Question) -> bool:
    """Whether a question says no or not."""
    return not {"no", "not"}.isdisjoint(re.findall(r"\w+", question.text))


def tiles(split: Split, size: int) -> np.ndarray:
    """All images of a split, resized (bicubic): uint8 [N, size, size, 3]."""
    read = (fit(open_image(path), size, "square", PixelConfig()) for path in image_paths(split))
    return np.stack([np.asarray(image) for image in read])


def draw(
    split: Split,
    image_size: int,
    num_images: int,
    questions_per_image: int,
    rng: np.random.Generator,
    negations: bool = True,
) -> Drawn:
    """Images and questions of one published split.

    Args:
      num_images: Taken at random; all when there are no more.
      questions_per_image: At most so many of each image's questions, at random; 0 keeps all.
      negations: Keep the questions that say no or not.
    """
    published, sources = questions(split), tiles(split, image_size)
    chosen = np.sort(rng.permutation(len(sources))[:num_images]).astype(np.int32)
    number = {int(image): number for number, image in enumerate(chosen)}
    order = rng.permutation(len(published)) if questions_per_image else np.arange(len(published))
    asked = np.zeros(len(sources), int)
    kept = []
    for index in order:
        image = published[index].image
        if not negations and is_negated(published[index]):
            continue
        if image in number and (not questions_per_image or asked[image] < questions_per_image):
            asked[image] += 1
            kept.append(published[index])
    found = shape_and_color(published, len(sources))[chosen]
    cells = np.pad(found, ((0, 0), (0, 1)))[:, None, None]
    rows = [question_row(number[q.image], q.text, q.answer, kind(q.answer)) for q in kept]
    return Drawn(sources, chosen[:, None, None], cells, rows)
