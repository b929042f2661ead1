"""How the harder tasks ask: kinds of question in turn, wordings, a sentence that distracts, conversations.

Rows of these tasks say what text about them needs: "topics", a word or two of each turn for what it is about, and
"places", the cells [row, column], from 0, that tell its answer (none where it takes the whole).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.data.sources.easy_vqa import question_row
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.cells import named
from quecc_jax.experiments.testbed.settings import Split

Place = tuple[int, int]
"""Row and column of a cell, from 0."""
ROWS, COLUMNS = "abcde", "vwxyz"
"""Text calls the cells av to ez, a row aa to ee, a column vv to zz: one word each, so that a language model's state at
the end of a question has to hold the cell whole."""
DIRECTIONS = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (-1, 0),
    "below": (1, 0),
    "two left of": (0, -2),
    "two right of": (0, 2),
    "two above": (-2, 0),
    "two below": (2, 0),
}
"""Steps in rows and columns from the cell that a question names to the one that it asks about."""


class Question(NamedTuple):
    """One question about an image."""

    text: str
    answer: str
    topic: str
    places: tuple[Place, ...] = ()


Asker = Callable[[np.ndarray, np.random.Generator], dict[str, list[Question]]]
"""All questions about an image of these cells [m, m, labels], by kind: `cell` among them, and `reworded`, the same in
wordings that training never uses."""


def every(m: int) -> list[Place]:
    """The cells of an image in raster order."""
    return [divmod(cell, m) for cell in range(m * m)]


def at(place: Place) -> str:
    """A cell as questions name it."""
    return f"row {place[0] + 1}, column {place[1] + 1}"


def cell_word(place: Place) -> str:
    """A cell as topics name it."""
    return ROWS[place[0]] + COLUMNS[place[1]]


def worded(wordings: Iterable[str], place: Place, answer: str) -> list[Question]:
    """One question about a cell in several wordings, texts with {at} in them."""
    return [Question(text.format(at=at(place)), answer, cell_word(place), (place,)) for text in wordings]


def alone(keys: np.ndarray) -> list[Place]:
    """The cells whose key [m, m] no other cell of the image has."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    found = np.argwhere((counts[inverse] == 1).reshape(keys.shape)).tolist()
    return [(row, column) for row, column in found]


def beside(place: Place, m: int) -> list[tuple[str, Place]]:
    """Direction and cell of everything that lies one or two cells away in a row or a column."""
    found = [(word, (place[0] + down, place[1] + right)) for word, (down, right) in DIRECTIONS.items()]
    return [(word, (row, column)) for word, (row, column) in found if 0 <= row < m and 0 <= column < m]


def balanced(asked: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """As many of the questions, at random, as are answered by yes and by no equally often."""
    order = [asked[i] for i in rng.permutation(len(asked))]
    yes, no = ([one for one in order if one.answer == word] for word in ("yes", "no"))
    return [one for both in zip(yes, no, strict=False) for one in both]


class _Sheet:
    """Questions about one image that have not been asked yet, by kind, in random order."""

    def __init__(self, found: dict[str, list[Question]], rng: np.random.Generator):
        self.left = {
            kind: [questions[i] for i in rng.permutation(len(questions))] for kind, questions in found.items()
        }
        self.asked = set[str]()

    def take(self, kind: str) -> tuple[str, Question]:
        """A question of the kind, or one about a cell where there is none left; and which it is.

        Raises:
          UserError: there is none of either.
        """
        for one in (kind, "cell"):
            while self.left[one]:
                question = self.left[one].pop()
                if question.text not in self.asked:
                    self.asked.add(question.text)
                    return one, question
        raise UserError(
            f"an image has too few different questions of the kind {kind}; lower questions_per_image"
        )


def ask(
    task: str,
    split: Split,
    cells: np.ndarray,
    asker: Asker,
    questions_per_image: int,
    rng: np.random.Generator,
    names: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rows about images of cells [P, m, m, labels]; no image is asked the same question twice.

    The kinds take turns: those of `asker` (`reworded` in the test split alone), `distractor`, a question about a cell
    behind a true sentence about another, and `turns`, a conversation of two questions, the first about a cell.

    Args:
      names: of the fourth label.

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    rows: list[dict[str, Any]] = []
    for image, labels in enumerate(cells):
        found = asker(labels, rng)
        plain = [kind for kind in found if kind != "reworded"]
        kinds = [*plain, "distractor", "turns", *(["reworded"] if split == "test" else [])]
        sheet, m = _Sheet(found, rng), len(labels)
        for number in range(questions_per_image):
            kind = kinds[(image * questions_per_image + number) % len(kinds)]
            if kind == "distractor":
                _, question = sheet.take("cell")
                others = [place for place in every(m) if place not in question.places]
                other = others[rng.integers(len(others))]
                told = f"{at(other)}: {named(labels[other], names)}."
                asked = [question._replace(text=f"{told} {question.text}")]
            elif kind == "turns":
                later = plain[rng.integers(len(plain))]
                asked = [sheet.take("cell")[1], sheet.take(later)[1]]
            else:
                kind, question = sheet.take(kind)
                asked = [question]
            rows.append(_row(image, f"{task}/{kind}", asked))
    return rows


def _row(image: int, kind: str, asked: Sequence[Question]) -> dict[str, Any]:
    row = question_row(image, asked[0].text, asked[0].answer, kind)
    for question in asked[1:]:
        row["conversations"] += [
            {"from": "human", "value": question.text},
            {"from": "gpt", "value": question.answer},
        ]
    row["topics"] = [question.topic for question in asked]
    row["places"] = [[list(place) for place in question.places] for question in asked]
    return row
