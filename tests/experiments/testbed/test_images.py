"""The demo tasks against their sources: every answer is worked out again from what was published."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from quecc_jax.data.sources import easy_vqa
from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES
from quecc_jax.experiments.testbed import reading
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.cells import UNKNOWN, label_grid
from quecc_jax.experiments.testbed.corpus import statements, write_questions
from quecc_jax.experiments.testbed.single import shape_and_color

SPLITS: tuple[easy_vqa.Split, ...] = ("train", "test")
RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


def turns(row):
    return [turn["value"] for turn in row["conversations"]]


def test_published_numbers():
    assert [len(easy_vqa.questions(split)) for split in SPLITS] == [38575, 9673]
    assert [len(easy_vqa.image_paths(split)) for split in SPLITS] == [4000, 1000]
    assert len(easy_vqa.rows("test")) == 9673


@pytest.mark.parametrize("split", SPLITS)
def test_derived_colors_are_those_of_the_pixels(split):
    """The shape's pixels are the darkest or most saturated; the background is nearly white."""
    paths = easy_vqa.image_paths(split)
    found = shape_and_color(easy_vqa.questions(split), len(paths))
    assert (found == UNKNOWN).any(axis=1).mean() < 0.12
    names = np.array(list(RGB.values()))
    for number in range(0, len(paths), 8):
        color = found[number, 1]
        pixels = np.asarray(Image.open(paths[number]).convert("RGB")).reshape(-1, 3).astype(int)
        ink = pixels[pixels.min(axis=1).argmin()]
        nearest = COLORS.index(list(RGB)[np.abs(names - ink).sum(axis=1).argmin()]) + 1
        assert color in (nearest, UNKNOWN), paths[number]


@pytest.mark.parametrize("split", SPLITS)
def test_no_published_answer_contradicts_the_derived_labels(split):
    published = easy_vqa.questions(split)
    found = shape_and_color(published, len(easy_vqa.image_paths(split)))
    checked = 0
    for question in published:
        shape, color = found[question.image]
        if UNKNOWN in (shape, color):
            continue
        here = {SHAPES[shape - 1], COLORS[color - 1]}
        if question.answer in ("yes", "no"):
            said = set(re.findall(r"\w+", question.text))
            named = said & {*SHAPES, *COLORS}
            truth = (named <= here) != bool(said & {"no", "not"})
            assert question.answer == ("yes" if truth else "no")
        else:
            assert question.answer in here
        checked += 1
    assert checked > 0.85 * len(published)


@pytest.mark.parametrize("split", SPLITS)
def test_single_is_easy_vqa_as_published(pools, split):
    pool = pools["single", split]
    chosen = pool.sources.reshape(-1).tolist()
    wanted = sorted(
        (q.image, f"<image>\n{q.text}", q.answer) for q in easy_vqa.questions(split) if q.image in set(chosen)
    )
    assert sorted((chosen[row["image"]], *turns(row)) for row in pool.rows) == wanted
    assert {row["kind"] for row in pool.rows} == {"single/yes-no", "single/shape", "single/color"}


def test_without_negations_single_has_all_other_questions(tmp_path):
    pool = build_pool("single", "test", tmp_path / "pool", 16, 1000, 0, negations=False)
    left = [q for q in easy_vqa.questions("test") if not re.search(r"\b(no|not)\b", q.text)]
    assert sorted(turns(row)[0] for row in pool.rows) == sorted(f"<image>\n{q.text}" for q in left)
    assert len(left) == 6068


def mosaic_answer(question, shapes, colors):
    if place := re.search(r"row (\d), column (\d)\?", question):
        values = colors if "what color" in question else shapes
        return values[int(place[1]) - 1][int(place[2]) - 1]
    (name,) = re.findall(r"^how many (\w+?)(?:s| shapes) are there\?$", question)
    return str(
        sum(
            name in pair
            for srow, crow in zip(shapes, colors, strict=True)
            for pair in zip(srow, crow, strict=True)
        )
    )


@pytest.mark.parametrize("split", SPLITS)
def test_mosaic_answers_follow_from_the_source_images(pools, split):
    pool = pools["mosaic", split]
    labels = shape_and_color(easy_vqa.questions(split), len(easy_vqa.image_paths(split)))
    for row in pool.rows:
        pairs = labels[pool.sources[row["image"]]]
        shapes = [[SHAPES[k - 1] for k in line] for line in pairs[..., 0]]
        colors = [[COLORS[k - 1] for k in line] for line in pairs[..., 1]]
        question, answer = turns(row)
        assert mosaic_answer(question.removeprefix("<image>\n"), shapes, colors) == answer
        assert row["kind"] == ("mosaic/whole" if "how many" in question else "mosaic/cell")
    assert {row["kind"] for row in pool.rows} == {"mosaic/whole", "mosaic/cell"}


@pytest.mark.parametrize("split", SPLITS)
def test_reading_answers_follow_from_the_source_digits(pools, split):
    pool = pools["reading", split]
    digits = load_digits().target
    for row in pool.rows:
        block = digits[pool.sources[row["image"]]]
        question, answer = turns(row)
        if place := re.search(r"which digit is in row (\d), column (\d)\?", question):
            wanted, kind = str(block[int(place[1]) - 1, int(place[2]) - 1]), "reading/cell"
        else:
            (line,) = map(int, re.findall(r"written in row (\d)\?", question))
            wanted, kind = " ".join(map(str, block[line - 1])), "reading/row"
        assert (answer, row["kind"]) == (wanted, kind)
    assert {row["kind"] for row in pool.rows} == {"reading/row", "reading/cell"}


def test_no_image_is_asked_the_same_question_twice(pools):
    for task in ("mosaic", "reading"):
        rows = pools[task, "train"].rows
        assert len({(row["image"], turns(row)[0]) for row in rows}) == len(rows)


@pytest.mark.parametrize("task", ["mosaic", "reading"])
def test_cells_show_their_sources(pools, task):
    pool = pools[task, "test"]
    for image in (0, 7):
        for row in range(3):
            for column in range(3):
                source = pool.sources[image, row, column]
                shown = pool.images[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].astype(float)
                if task == "mosaic":
                    whole = Image.open(easy_vqa.image_paths("test")[source]).convert("RGB")
                    wanted = np.asarray(whole.resize((8, 8), Image.Resampling.BICUBIC)).astype(float)
                else:
                    ink = (load_digits().images[source] * 255 / 16).round().astype(np.uint8)
                    small = Image.fromarray(ink).resize((6, 6), Image.Resampling.BICUBIC)
                    wanted = np.repeat(np.pad(np.asarray(small).astype(float), 1)[..., None], 3, axis=-1)
                assert np.abs(shown - wanted).max() <= 1


def test_train_and_test_share_no_source_image(pools):
    files = [{Path(path).read_bytes() for path in easy_vqa.image_paths(split)} for split in SPLITS]
    assert not files[0] & files[1]
    labels = load_digits().target
    train, test = (set(reading.digit_split(split, labels).tolist()) for split in SPLITS)
    assert not train & test and len(train | test) == 1797
    assert 0.19 < len(test) / 1797 < 0.21
    share = np.bincount(labels[sorted(test)]) / np.bincount(labels)
    assert (np.abs(share - 0.2) < 0.01).all()
    for split, usable in (("train", train), ("test", test)):
        assert set(pools["reading", split].sources.ravel().tolist()) <= usable


def test_a_single_shape_is_told_where_it_is_known(pools):
    single, rng = pools["single", "train"], np.random.default_rng(0)
    unknown = 0
    for image, ((cell,),) in enumerate(single.cells):
        told = statements(single, image, [], rng)
        shape, color, _ = cell
        unknown += not told
        assert told == ("" if UNKNOWN in cell else f"a {COLORS[color - 1]} {SHAPES[shape - 1]}.")
    assert 0 < unknown < len(single.cells)


def test_label_grid_repeats_the_cell_under_each_patch(pools):
    cells = pools["mosaic", "train"].cells[:5]
    exact = label_grid(cells, 12)
    assert exact.shape == (5, 12, 12, 3)
    assert np.array_equal(exact, cells.repeat(4, axis=1).repeat(4, axis=2))
    # A grid of 4 over 3 cells: patch centres at 1/8, 3/8, 5/8, 7/8 fall into cells 0, 1, 1, 2.
    assert np.array_equal(label_grid(cells, 4)[:, :, 0], cells[:, [0, 1, 1, 2], 0])
    assert label_grid(np.zeros((1, 1, 3), np.int8) + 2, 6).shape == (6, 6, 3)


PUBLISHED = {
    "single-train": {"images": 2212886278, "cells": 889791446, "sources": 2744276846, "rows": 3709796519},
    "single-test": {"images": 2067917773, "cells": 3554514546, "sources": 4007187172, "rows": 4239573134},
    "mosaic-train": {"images": 3500453371, "cells": 3635085433, "sources": 117074088, "rows": 4486267},
    "mosaic-test": {"images": 3847679943, "cells": 2166426834, "sources": 1685695950, "rows": 3758984745},
    "reading-train": {"images": 1077361584, "cells": 4279738807, "sources": 3949464019, "rows": 108037447},
    "reading-test": {"images": 645293949, "cells": 2361617961, "sources": 790880654, "rows": 3158805689},
    "text": 2684481923,
    "blind": 4121897196,
}
"""CRC-32 of the arrays and rows of `pools`, their corpus, and one without images, as of before the harder tasks."""


def checksums(pool) -> dict[str, int]:
    """CRC-32 of each array's bytes and of the rows."""
    found = {name: zlib.crc32(getattr(pool, name).tobytes()) for name in ("images", "cells", "sources")}
    return found | {"rows": zlib.crc32((pool.directory / "rows.jsonl").read_bytes())}


def test_pools_and_texts_are_those_of_the_published_numbers(pools, text_pool, tmp_path):
    """The examples, the study and the demo were made of these, to the byte; a seed means the same for ever."""
    for (task, split), pool in pools.items():
        assert checksums(pool) == PUBLISHED[f"{task}-{split}"], (task, split)
    assert zlib.crc32((text_pool.directory / "rows.jsonl").read_bytes()) == PUBLISHED["text"]
    blind = write_questions(pools["mosaic", "test"], tmp_path / "blind")
    assert zlib.crc32((blind.directory / "rows.jsonl").read_bytes()) == PUBLISHED["blind"]
