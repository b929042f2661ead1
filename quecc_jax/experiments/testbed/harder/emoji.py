"""The tasks "emoji2" to "emoji4": grids of small pictures with several hundred names.

The pictures are Google's (Noto, Apache licence 2.0) of 64 x 64 pixels, as npm's package emoji-datasource-google has
them; `make emoji` puts them into .venv-emoji. Those are taken, 475, whose name is one word and which show an animal, a
plant, food, a place, a vehicle, an activity or a thing.

A name has one drawing, so both splits show the same ones: a test image has them on other backgrounds, whose hues lie
between those of training, in other sizes and at other places of their cells.
"""

import colorsys
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.cells import Drawn
from quecc_jax.experiments.testbed.harder.questions import Question, alone, ask, beside, every, worded
from quecc_jax.experiments.testbed.settings import Split

FOLDER = Path(".venv-emoji")
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
GROUPS = {"animals": "animal", "foods": "food", "vehicles": "transport"}
"""What is counted: pictures whose subcategory begins so."""
VARIANTS = 12
"""Backgrounds, sizes and places of each picture in a split."""
WORDINGS = ("what is in {at}?", "in {at}, which picture is there?", "name the picture in {at}.")
HELD_OUT = "in {at} is which picture?"
"""The wording that only test questions have."""
SEED = 0


class Emoji(NamedTuple):
    """One picture."""

    name: str
    file: Path
    group: str
    """Key of GROUPS, or empty."""


def published(folder: Path | None = None) -> list[Emoji]:
    """The pictures of a folder, by default FOLDER, that are taken, in the order of their code points.

    Raises:
      UserError: they are not installed.
    """
    folder = folder or FOLDER
    try:
        listed = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(
            f"the emoji are not in {folder} ({problem.strerror}); make emoji brings them by npm, or choose other tasks"
        ) from None
    return [
        Emoji(
            one["short_name"],
            folder / "img" / "google" / "64" / one["image"],
            next((word for word, start in GROUPS.items() if one["subcategory"].startswith(start)), ""),
        )
        for one in sorted(listed, key=lambda one: one["unified"])
        if one["category"] in CATEGORIES
        and re.fullmatch("[a-z]+", one["short_name"])
        and one["has_img_google"]
    ]


def draw(
    split: Split, image_size: int, num_images: int, questions_per_image: int, m: int, rng: np.random.Generator
) -> Drawn:
    """Grids of pictures; kinds as `asked`. Their number in `names`, from 1, is the fourth label.

    Raises:
      UserError: an image has fewer different questions than are asked for, or the pictures are not installed.
    """
    pictures = published()
    names = tuple(picture.name for picture in pictures)
    sources = rng.integers(len(pictures) * VARIANTS, size=(num_images, m, m), dtype=np.int32)
    cells = np.zeros((*sources.shape, 4), np.int16)
    cells[..., 3] = sources // VARIANTS + 1
    asker = partial(asked, names=names, groups=[picture.group for picture in pictures])
    rows = ask(f"emoji{m}", split, cells, asker, questions_per_image, rng, names)
    return Drawn(tiles(pictures, split, image_size // m), sources, cells, rows, names)


def asked(
    cells: np.ndarray, rng: np.random.Generator, names: Sequence[str], groups: Sequence[str]
) -> dict[str, list[Question]]:
    """Questions about one image: what is in a cell, or beside something that is there once; where something is; how
    many there are of a group; whether something is there."""
    m, numbers = len(cells), cells[..., 3] - 1
    relations, places = list[Question](), list[Question]()
    for place in alone(numbers):
        name = names[numbers[place]]
        text, where = f"in which row and column is the {name}?", f"{place[0] + 1} {place[1] + 1}"
        places.append(Question(text, where, name, (place,)))
        for direction, other in beside(place, m):
            text, topic = f"what is {direction} the {name}?", f"{name} {direction}"
            relations.append(Question(text, names[numbers[other]], topic, (place, other)))
    here = dict.fromkeys(numbers.ravel().tolist())
    # As many names that are not there.
    others = rng.permutation(len(names)).tolist()
    absent = [number for number in others if number not in here][: len(here)]
    told = {number: tuple(place for place in every(m) if numbers[place] == number) for number in here}
    seen = np.array(groups)[numbers]
    return {
        "cell": [q for place in every(m) for q in worded(WORDINGS, place, names[numbers[place]])],
        "relation": relations,
        "where": places,
        "count": [
            Question(f"how many {word} are there?", str(np.count_nonzero(seen == word)), word)
            for word in GROUPS
        ],
        "exists": [
            Question(
                f"is the {names[number]} there?",
                "yes" if number in here else "no",
                names[number],
                told.get(number, ()),
            )
            for number in (*here, *absent)
        ],
        "reworded": [q for place in every(m) for q in worded((HELD_OUT,), place, names[numbers[place]])],
    }


def tiles(pictures: Sequence[Emoji], split: Split, size: int) -> np.ndarray:
    """VARIANTS of each picture on pale backgrounds, one behind the other: uint8 [N, size, size, 3]."""
    made = np.zeros((len(pictures), VARIANTS, size, size, 3), np.uint8)
    for number, picture in enumerate(pictures):
        rng = np.random.default_rng([SEED, number, split == "test"])
        with Image.open(picture.file) as file:
            drawing = file.convert("RGBA")
        for variant in range(VARIANTS):
            hue = (2 * variant + (split == "test")) / (2 * VARIANTS)
            paper = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.25, 1.0))
            inner = size - int(rng.integers(size // 16, size // 4 + 1))
            left, top = (int(rng.integers(size - inner + 1)) for _ in range(2))
            small = drawing.resize((inner, inner), Image.Resampling.BICUBIC)
            tile = Image.new("RGB", (size, size), paper)
            tile.paste(small, (left, top), small)
            made[number, variant] = np.asarray(tile)
    return made.reshape(-1, size, size, 3)
