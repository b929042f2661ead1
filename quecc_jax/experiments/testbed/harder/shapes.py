"""The tasks "shapes3" and "shapes4": grids of 3 x 3 and 4 x 4 easy-VQA images, asked about cells and how they lie."""

from itertools import combinations

import numpy as np

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES, image_paths, questions
from quecc_jax.experiments.testbed.cells import UNKNOWN, Drawn
from quecc_jax.experiments.testbed.harder.questions import (
    Place,
    Question,
    alone,
    ask,
    at,
    balanced,
    beside,
    cell_word,
    every,
    worded,
)
from quecc_jax.experiments.testbed.settings import Split
from quecc_jax.experiments.testbed.single import shape_and_color, tiles

WORDINGS = (
    ("what shape is in {at}?", "in {at}, which shape is there?", "name the shape in {at}."),
    ("what color is the shape in {at}?", "in {at}, which color is there?", "name the color in {at}."),
)
"""Of questions about a cell, by label."""
HELD_OUT = ("in {at} is which shape?", "in {at} is which color?")
"""A wording of each that only test questions have."""


def draw(
    split: Split, image_size: int, num_images: int, questions_per_image: int, m: int, rng: np.random.Generator
) -> Drawn:
    """Grids of images from one published split whose shape and colour its questions tell; kinds as `asked`.

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    known = shape_and_color(questions(split), len(image_paths(split)))
    usable = np.flatnonzero((known != UNKNOWN).all(axis=1)).astype(np.int32)
    sources = usable[rng.integers(len(usable), size=(num_images, m, m))]
    cells = np.pad(known, ((0, 0), (0, 1)))[sources]
    rows = ask(f"shapes{m}", split, cells, asked, questions_per_image, rng)
    return Drawn(tiles(split, image_size // m), sources, cells, rows)


def asked(cells: np.ndarray, rng: np.random.Generator) -> dict[str, list[Question]]:
    """Questions about one image: the shape or colour of a cell, and of the one beside a cell that is named by what it
    shows; where something is; how many there are; whether two cells agree."""
    m = len(cells)
    relations, places = list[Question](), list[Question]()
    for place in alone(cells[..., 0] * (len(COLORS) + 1) + cells[..., 1]):
        shape, color = _words(cells, place)
        places.append(
            Question(
                f"in which row and column is the {color} {shape}?",
                f"{place[0] + 1} {place[1] + 1}",
                f"{color}{shape}",
                (place,),
            )
        )
        for direction, other in beside(place, m):
            topic = f"{color}{shape} {direction}"
            for label, question in enumerate(("what shape is", "what color is the shape")):
                text = f"{question} {direction} the {color} {shape}?"
                relations.append(Question(text, _words(cells, other)[label], topic, (place, other)))
    return {
        "cell": [
            question
            for place in every(m)
            for answer, wordings in zip(_words(cells, place), WORDINGS, strict=True)
            for question in worded(wordings, place, answer)
        ],
        "relation": relations,
        "where": places,
        "count": [
            *(_count(f"{color} shapes", color, cells[..., 1] == k) for k, color in enumerate(COLORS, 1)),
            *(_count(f"{shape}s", shape, cells[..., 0] == k) for k, shape in enumerate(SHAPES, 1)),
        ],
        "compare": _comparisons(cells, rng),
        "reworded": [
            question
            for place in every(m)
            for answer, wording in zip(_words(cells, place), HELD_OUT, strict=True)
            for question in worded((wording,), place, answer)
        ],
    }


def _words(cells: np.ndarray, place: Place) -> tuple[str, str]:
    """Shape and colour of a cell."""
    return SHAPES[cells[place][0] - 1], COLORS[cells[place][1] - 1]


def _count(what: str, topic: str, found: np.ndarray) -> Question:
    return Question(f"how many {what} are there?", str(np.count_nonzero(found)), topic)


def _comparisons(cells: np.ndarray, rng: np.random.Generator) -> list[Question]:
    """Pairs of cells that do and do not agree, equally many of both, for shape and colour each."""
    found = list[Question]()
    for label, word in enumerate(("shape", "color")):
        pairs = [
            Question(
                f"are {at(a)} and {at(b)} the same {word}?",
                "yes" if cells[a][label] == cells[b][label] else "no",
                f"{cell_word(a)} {cell_word(b)}",
                (a, b),
            )
            for a, b in combinations(every(len(cells)), 2)
        ]
        found += balanced(pairs, rng)
    return found
