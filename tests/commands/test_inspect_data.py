"""The data inspector: what it shows is what the model gets."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from quecc_jax.commands.cli import execute
from quecc_jax.commands.inspect_data import Options
from quecc_jax.commands.options import parse
from quecc_jax.config import DataConfig, RunConfig, SourceConfig
from quecc_jax.data.preview.page import page
from quecc_jax.data.preview.rows import look
from quecc_jax.data.preview.terminal import show
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError
from tests.tiny import run

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    return coloured_rows(tmp_path_factory.mktemp("rows"))


def coloured_rows(root: Path) -> RunConfig:
    """Questions about plain images; one image is missing, and some rows are text alone."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 12), colour).save(root / f"{name}.png")
    rows = []
    for number in range(24):
        name = list(COLOURS)[number % 3]
        row = {
            "image": f"{name}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat <color> is it?"},
                {"from": "gpt", "value": f"it is {name}"},
                {"from": "human", "value": "are you sure?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
        if number % 5 == 4:
            row = {"conversations": [{"from": "human", "value": "say yes"}, {"from": "gpt", "value": "yes"}]}
        if number == 7:
            row["image"] = "gone.png"
        rows.append(row)
    (root / "rows.json").write_text(json.dumps(rows))
    train_word_tokenizer(["what <color> is it? are you sure? say yes red green blue"], root / "tokenizer")
    source = SourceConfig(path=str(root / "rows.json"), images=str(root))
    data = DataConfig(
        sources=(source,),
        tokenizer=str(root / "tokenizer"),
        template="short",
        max_length=64,
        query_length=8,
        packed_images=3,
        cache=str(root / "cache"),
        bad_rows="skip",
        image_aspect="square",
    )
    return dataclasses.replace(run(batch_size=4), data=data)


def batched(config: RunConfig, batching) -> RunConfig:
    """`pooled` packs rows of which two share room for six images."""
    pools = {"batching": "packed", "pooled_rows": 2, "packed_images": 6}
    changes = pools if batching == "pooled" else {"batching": batching}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


@pytest.mark.parametrize("batching", ["pad", "grouped", "packed", "pooled"])
def test_rows_are_read_back_from_the_arrays(config, batching):
    seen = look(batched(config, batching), 10)
    assert [(row.batch, row.number) for row in seen.rows] == [(k // 4, k % 4) for k in range(10)]
    with_images = 0
    for row in seen.rows:
        assert sum(talk.tokens for talk in row.talks) <= row.length
        for talk in row.talks:
            number = int(talk.where.split("row ")[-1].split(" ")[0]) - 1
            assert sum(span.tokens for span in talk.spans) == talk.tokens
            learned = [span for span in talk.spans if span.kind == "answer"]
            assert sum(span.tokens for span in learned) == talk.learned
            if number % 5 == 4:
                assert [span.text for span in learned] == ["yes <eos>"] and not talk.views
                continue
            name = list(COLOURS)[number % 3]
            assert [span.text for span in learned] == [f"it is {name} <eos>", "yes <eos>"]
            assert [span.tokens for span in talk.spans if span.kind == "image"] == [4]
            (view,) = talk.views
            assert np.all(view.pixels == COLOURS[name]) and view.query == "what < color > is it?"
            with_images += 1
        assert all("gone.png" in why for why in row.left_out)
    assert with_images >= 5
    assert (max(len(row.talks) for row in seen.rows) > 1) == (batching in ("packed", "pooled"))
    slots = dict(seen.facts).get("image slots in use", "")
    assert ("of 6 a pool of 2 packed rows" in slots) == (batching == "pooled")


def test_part_of_a_pool_is_shown_where_fewer_rows_are_asked_for(config):
    pooled = batched(config, "pooled")
    few, more = look(pooled, 5), look(pooled, 8)
    assert [row.talks[0].where for row in few.rows] == [row.talks[0].where for row in more.rows[:5]]
    assert len(few.rows) == 5


def test_steps_and_rows_that_the_data_decides_are_those_shown(config):
    train = dataclasses.replace(config.train, conversations=9, epochs=1.0)
    facts = dict(look(dataclasses.replace(batched(config, "packed"), train=train), 3).facts)
    assert re.fullmatch(r"[\d.]+ of (2|3|4) packed rows", facts["steps of an epoch"])


def test_a_missing_image_is_shown_as_left_out(config):
    seen = look(config, 24)
    assert sum(len(row.left_out) for row in seen.rows) == 1
    assert "gone.png does not exist" in page(seen)
    with pytest.raises(UserError, match=r"gone\.png"):
        look(dataclasses.replace(config, data=dataclasses.replace(config.data, bad_rows="error")), 24)


def test_the_page_stands_alone_and_escapes_text(config):
    text = page(look(batched(config, "packed"), 10))
    assert text.startswith("<!doctype html>") and "prefers-color-scheme: dark" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "&lt; color &gt;" in text and "<color>" not in text
    assert text.count('<img src="data:image/png;base64,') >= 5
    widths = re.findall(r'class="bar".*?</div>', text)
    assert len(widths) == 10
    for bar in widths:
        assert sum(map(float, re.findall(r"width:([\d.]+)%", bar))) <= 100.1
    assert "positions that hold tokens" in text and "image slots in use" in text


def test_the_terminal_shows_text_queries_and_images(config):
    console = Console(
        width=120, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    show(look(batched(config, "packed"), 3), console)
    plain = console.export_text(clear=False)
    for wanted in ("segment 2", "what < color > is it?", "▀", "carries loss"):
        assert wanted in plain
    assert re.search(r"1: batch 0, row 0, \d+ of 64 tokens", plain)


def test_its_options_stand_beside_the_settings(config, tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from tests.tiny import RUN\ndef config():\n    return RUN\n")
    arguments = [str(file), "--rows", "3", "--data.lookahead_rows=5", "--page=x.html"]
    options = parse(Options, arguments, "prog")
    assert (options.rows, str(options.page), options.config.data.lookahead_rows) == (3, "x.html", 5)
    for wrong in (
        ["--rows", "no"],
        ["--rows=0"],
        ["--page", "x.txt"],
        ["--page", f"{file}/x.html"],
        ["--page"],
        ["--out", "x.html"],
    ):
        with pytest.raises(UserError, match=wrong[0].partition("=")[0]):
            execute("inspect-data", [str(file), *wrong])


def test_images_become_half_blocks():
    from quecc_jax.data.preview.terminal import half_blocks

    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:, 24:] = 255
    lines = half_blocks(pixels, 4).plain.splitlines()
    assert lines == ["▀▀▀▀"] * 2
