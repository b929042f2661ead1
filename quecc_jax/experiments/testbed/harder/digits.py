"""The tasks "digits3" to "digits5": blocks of 3 x 3 to 5 x 5 handwritten digits, read out and looked up.

The digits, and their split, are those of the task "reading".
"""

from itertools import combinations

import numpy as np

from quecc_jax.experiments.testbed.cells import Drawn, named
from quecc_jax.experiments.testbed.harder.questions import (
    COLUMNS,
    ROWS,
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
from quecc_jax.experiments.testbed.reading import digit_split, digit_tiles
from quecc_jax.experiments.testbed.settings import Split

WORDINGS = ("which digit is in {at}?", "in {at}, what digit is there?", "name the digit in {at}.")
HELD_OUT = "in {at} is which digit?"
"""The wording that only test questions have."""


def draw(
    split: Split, image_size: int, num_images: int, questions_per_image: int, m: int, rng: np.random.Generator
) -> Drawn:
    """Blocks of digits from one split; kinds as `asked`.

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    from sklearn.datasets import load_digits

    published = load_digits()
    labels = np.zeros((len(published.target), 3), np.int8)
    labels[:, 2] = published.target + 1
    usable = digit_split(split, published.target)
    sources = usable[rng.integers(len(usable), size=(num_images, m, m))]
    rows = ask(f"digits{m}", split, labels[sources], asked, questions_per_image, rng)
    return Drawn(digit_tiles(published.images, image_size // m), sources, labels[sources], rows)


def asked(cells: np.ndarray, rng: np.random.Generator) -> dict[str, list[Question]]:
    """Questions about one image: the digit in a cell, or beside one that is there once; the number in a row or a
    column; where a digit is; how often it is there; which of two is larger."""
    m, digits = len(cells), cells[..., 2] - 1
    relations, places = list[Question](), list[Question]()
    for place in alone(digits):
        digit = str(digits[place])
        text, where = f"in which row and column is the {digit}?", f"{place[0] + 1} {place[1] + 1}"
        places.append(Question(text, where, digit, (place,)))
        for direction, other in beside(place, m):
            text, topic = f"which digit is {direction} the {digit}?", f"{digit} {direction}"
            relations.append(Question(text, named(cells[other]), topic, (place, other)))
    lines = {"row": (digits, ROWS, False), "column": (digits.T, COLUMNS, True)}
    read = {
        kind: [
            Question(
                f"what number is written in {kind} {number + 1}?",
                " ".join(map(str, line)),
                2 * letters[number],
                tuple((place, number) if turned else (number, place) for place in range(m)),
            )
            for number, line in enumerate(table)
        ]
        for kind, (table, letters, turned) in lines.items()
    }
    compared = [
        Question(
            f"is {at(a)} larger than {at(b)}?",
            "yes" if digits[a] > digits[b] else "no",
            f"{cell_word(a)} {cell_word(b)}",
            (a, b),
        )
        for a, b in combinations(every(m), 2)
        if digits[a] != digits[b]
    ]
    return {
        "cell": [q for place in every(m) for q in worded(WORDINGS, place, named(cells[place]))],
        **read,
        "relation": relations,
        "where": places,
        "count": [
            Question(
                f"how many times is the digit {digit} there?",
                str(np.count_nonzero(digits == digit)),
                str(digit),
            )
            for digit in range(10)
        ],
        "compare": balanced(compared, rng),
        "reworded": [q for place in every(m) for q in worded((HELD_OUT,), place, named(cells[place]))],
    }
