"""Rows mutated in two thousand ways: nothing crashes, nothing bad reaches a batch, nothing good is lost.

Each mutation knows what it does to a row: a fault that must be reported, or None where it stays good.
"""

import copy
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.errors import BadRow, UserError
from tests.laid_out import encode

ROWS, EXAMPLES, LENGTH = 16, 170, 48
counted = {"mutated": 0}


def talk(*turns, image=None, **more):
    said = [{"from": "human" if k % 2 == 0 else "gpt", "value": text} for k, text in enumerate(turns)]
    return {"conversations": said, **({} if image is None else {"image": image}), **more}


GOOD = [
    talk("red?", "blue"),
    talk("<image>\none two?", "green", image="good.png"),
    talk("<image>\none?", "red", "three?", "good image", "bad?", "one", image="good.jpg"),
    talk("<image> two <image>", "green", "three?", "red", image=["good.png", "grey.png"]),
]


def bomb(width, height):
    """A PNG that says it is large; its pixels are not there."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for name in ("good.png", "good.jpg", "good.webp", "good.gif", "good.bmp", "good.tif"):
        colours.save(root / name)
    colours.convert("L").save(root / "grey.png")
    colours.convert("RGBA").save(root / "alpha.png")
    colours.convert("P").save(root / "palette.png")
    colours.resize((199, 1)).save(root / "narrow.png")
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)).save(root / "deep.png")
    colours.resize((400, 1)).save(root / "strip.png")
    (root / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (root / "wide.png").write_bytes(bomb(2**30, 1))
    (root / "nothing.png").write_bytes(bomb(0, 5))
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no image")
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:200])
    (root / "cut.jpg").write_bytes((root / "good.jpg").read_bytes()[:300])
    (root / "headless.jpg").write_bytes((root / "good.jpg").read_bytes()[30:])
    (root / "folder.png").mkdir()
    return root


FINE_IMAGES = [
    "good.webp",
    "good.gif",
    "good.bmp",
    "good.tif",
    "alpha.png",
    "palette.png",
    "narrow.png",
    "deep.png",
    "./good.png",
]
POOR_IMAGES: dict[str, Any] = {
    "none.png": "picture missing",
    "no/such/folder.png": "picture missing",
    "folder.png": "picture missing",
    "empty.png": "picture broken",
    "text.png": "picture broken",
    "cut.png": "picture broken",
    "cut.jpg": "picture broken",
    "headless.jpg": "picture broken",
    "a\0b.png": "picture broken",
    "x" * 300 + ".png": "picture broken",
    "strip.png": "picture size",
    "bomb.png": "picture size",
    "wide.png": "picture size",
    "nothing.png": ("picture size", "picture broken"),
}
ODD: list[Any] = [None, 3, -1, 2.5, True, False, "", "text", [], ["a"], {}, {"a": 1}, [[]]]


def mutate(row, data):
    """(the row as bytes of JSON, its fault or faults, None for a good one)"""
    draw = data.draw
    row, turns = copy.deepcopy(row), copy.deepcopy(row["conversations"])
    with_images = "image" in row
    kind = draw(
        st.sampled_from(
            [
                "as it is",
                "extra",
                "names",
                "system",
                "greeting",
                "unicode",
                "fine image",
                "list of one",
                "odd row",
                "odd turns",
                "odd turn",
                "odd value",
                "odd speaker",
                "one-sided",
                "order",
                "empty",
                "surrogate",
                "bytes",
                "syntax",
                "deep",
                "number",
                "more placeholders",
                "fewer placeholders",
                "picture",
                "odd image",
                "too many",
                "long",
                "long image",
                "unanswered",
            ]
        )
    )
    fault: Any = None
    if kind == "extra":
        row |= {"id": draw(st.sampled_from(ODD)), "extra": draw(st.sampled_from(ODD)), "score": float("nan")}
    elif kind == "names":
        for turn in row["conversations"]:
            turn["from"] = {"human": "user", "gpt": "assistant"}[turn["from"]]
    elif kind == "system":
        row["conversations"].insert(0, {"from": "system", "value": "red"})
    elif kind == "greeting":
        row["conversations"].insert(0, {"from": "gpt", "value": "good"})
    elif kind == "unicode":
        row["conversations"][-1]["value"] = draw(st.text(max_size=8))
    elif kind == "fine image" and with_images:
        row["image"] = draw(st.sampled_from(FINE_IMAGES))
        row["conversations"][0]["value"] = "<image>\none?"
    elif kind == "list of one" and isinstance(row.get("image"), str):
        row["image"] = [row["image"]]
    elif kind == "odd row":
        odd = [x for x in ODD if not isinstance(x, dict)]
        return json.dumps(draw(st.sampled_from(odd))).encode(), "not a row"
    elif kind == "odd turns":
        row["conversations"], fault = draw(st.sampled_from(ODD)), "turns"
    elif kind == "odd turn":
        row["conversations"][draw(st.integers(0, len(turns) - 1))] = draw(st.sampled_from(ODD))
        fault = "turns"
    elif kind == "odd value":
        odd = [x for x in ODD if not isinstance(x, str)]
        row["conversations"][draw(st.integers(0, len(turns) - 1))]["value"] = draw(st.sampled_from(odd))
        fault = "turns"
    elif kind == "odd speaker":
        odd = [*ODD, "Human", "robot", "GPT"]
        row["conversations"][draw(st.integers(0, len(turns) - 1))]["from"] = draw(st.sampled_from(odd))
        fault = "turns"
    elif kind == "one-sided":
        who = draw(st.sampled_from(["human", "gpt"]))
        row["conversations"] = [{"from": who, "value": turn["value"]} for turn in turns]
        fault = "turns"
    elif kind == "order":
        row["conversations"], fault = [*turns, turns[0], turns[0]], "turns"
    elif kind == "empty":
        row["conversations"], fault = draw(st.sampled_from([[], [{"from": "system", "value": "a"}]])), "turns"
    elif kind == "unanswered":
        row["conversations"], fault = turns[:-1], "turns"
    elif kind == "surrogate":
        row["conversations"][-1]["value"], fault = "half a \ud83d smile", "text"
    elif kind == "bytes":
        raw = json.dumps(row).encode()
        return raw.replace(b"red", b"r\xffd").replace(b"green", b"\xc3("), "text"
    elif kind == "syntax":
        raw = json.dumps(row).encode()
        broken = [raw[:-1], raw + b"x", raw[1:], raw + b"," + raw, b"{", b"null,"]
        return draw(st.sampled_from(broken)), "not a row"
    elif kind == "deep":
        return b"[" * 100_000, "not a row"
    elif kind == "number":
        digits = json.dumps({**row, "id": 0}).replace('"id": 0', '"id": ' + "9" * 5000)
        return digits.encode(), "not a row"
    elif kind == "more placeholders":
        row["conversations"][-1]["value"] += " <image>" * draw(st.integers(1, 3))
        fault = "placeholders"
    elif kind == "fewer placeholders" and with_images:
        row["conversations"][0]["value"], fault = "red?", "placeholders"
    elif kind == "picture" and with_images:
        name = draw(st.sampled_from(sorted(POOR_IMAGES)))
        row["image"] = [*image_refs(row)[:-1], name] if draw(st.booleans()) else name
        if isinstance(row["image"], str):
            row["conversations"][0]["value"] = "<image>\none?"
        fault = POOR_IMAGES[name]
    elif kind == "odd image":
        row["image"] = draw(st.sampled_from([True, 2.5, {}, {"path": "good.png"}, [[]], "", [None]]))
        fault = "not a row"
    elif kind == "too many":
        row = talk("<image>" * 3, "blue", image=["good.png"] * 3)
        fault = "too many pictures"
    elif kind == "long":
        # Cut, and still good.
        row["conversations"][-1]["value"] = "one two " * draw(st.integers(LENGTH, 3 * LENGTH))
    elif kind == "long image":
        row = talk("red?", "blue " * LENGTH, "<image> one?", "green", image="good.png")
        fault = "too long"
    return json.dumps(row).encode(), fault


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def mutated_rows(data, folder, tokenizer, model, patch):
    path = folder / "rows.jsonl"
    made = [mutate(data.draw(st.sampled_from(GOOD)), data) for _ in range(ROWS)]
    counted["mutated"] += sum(raw not in plain for raw, _ in made)
    path.write_bytes(b"\n".join(raw for raw, _ in made) + b"\n")
    source = SourceConfig(path=str(path), images=str(folder))
    config = DataConfig(
        sources=(source,),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=LENGTH,
        query_length=8,
        images_per_row=2,
        packed_images=4,
        batching=data.draw(st.sampled_from(["pad", "grouped", "packed"])),
        cache=str(folder / "cache"),
        bad_rows="skip",
        max_bad_share=1.0,
    )
    held, left_out = set[int](), {}
    with make_iterator(config, model, 4, 0) as iterator:
        seen = set[int]()
        while len(seen) < ROWS:
            batch: Any = next(iterator)
            left_out = iterator.tally.left_out
            rows = batch.ids.reshape(4, -1)
            seen |= {int(one) for one in rows.reshape(-1) if one >= 0}
            for index, ids in enumerate(rows.tolist()):
                good = [one for one in ids if one >= 0 and one not in left_out]
                assert batch.segments[index].max() == len(good)
                held |= set(good)
                check(batch, index, good, config, tokenizer, model, folder, path)
    for row, (raw, fault) in enumerate(made):
        wanted = {None} if fault is None else {fault} if isinstance(fault, str) else set(fault)
        found = left_out[row].reason if row in left_out else None
        assert found in wanted, (raw[:300], fault, left_out.get(row))
        assert (row in held) == (fault is None)
        assert row not in left_out or left_out[row].message.startswith(f"{path}, line {row + 1}")
    assert json.dumps([one._asdict() for one in left_out.values()])


plain = {json.dumps(row).encode() for row in GOOD}


def check(batch, index, good, config, tokenizer, model, folder, path):
    """Whether a row of a batch holds these rows of the file and nothing else."""
    start = image = 0
    for one in good:
        row = RowFile(path)[one]
        made = encode(row, tokenizer, config, model.visual_tokens)
        length, refs = len(made.tokens), image_refs(row)
        here = slice(start, start + length)
        assert np.array_equal(batch.tokens[index, here], made.tokens)
        assert np.array_equal(batch.labels[index, here], made.labels)
        for ref in refs:
            wanted = load_pixels(str(folder / ref), model.vision)
            assert np.array_equal(batch.pixels[index, image], wanted)
            image += 1
        start += length
    assert not batch.tokens[index, start:].any() and (batch.labels[index, start:] == IGNORE).all()
    assert batch.pixels is None or not batch.pixels[index, image:].any()
    assert (batch.query_ends[index, image:] == -1).all()


def test_two_thousand_mutated_rows(folder, tokenizer, model):
    counted["mutated"] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quecc_jax.data.sources.open.load_tokenizer", lambda *_: tokenizer)
        mutated_rows(folder=folder, tokenizer=tokenizer, model=model, patch=patch)
    assert counted["mutated"] >= 2000


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def damaged_images(data, folder, model):
    names = ["good.png", "good.jpg", "good.webp", "good.gif", "deep.png", "good.tif"]
    raw = bytearray((folder / data.draw(st.sampled_from(names))).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        pixels = load_pixels(folder / "damaged", model.vision)
    except BadRow as error:
        assert error.fault.startswith("picture ") and "damaged" in str(error)
    else:
        assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8


def test_images_with_damaged_bytes_are_read_or_refused(folder, model):
    damaged_images(folder=folder, model=model)


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_fatal_row_names_its_file_and_line(tmp_path, tokenizer, model, form):
    rows = [GOOD[0], GOOD[0], talk("three?"), GOOD[0]]
    path = tmp_path / f"rows.{form}"
    text = json.dumps(rows, indent=2) if form == "json" else "\n\n".join(map(json.dumps, rows))
    path.write_text(text)
    line = text[: text.index('"three?"')].count("\n") + 1
    source = SourceConfig(path=str(path))
    data = DataConfig(sources=(source,), tokenizer=tokenizer.directory, template="short", cache=str(tmp_path))
    for batching in ("pad", "packed"):
        config = DataConfig(**{**vars(data), "batching": batching})
        said = rf"rows\.{form}, .*line (\d+).*: its last turn has no answer"
        with pytest.raises(UserError, match=said) as caught, make_iterator(config, model, 4, 0) as iterator:
            next(iterator)
        named = int(str(caught.value).split("line ")[1].split(":")[0].rstrip(")"))
        # The line on which the row begins: in the indented form, its brace.
        assert named == line - (form == "json") * 4


@pytest.mark.parametrize("batching", ["pad", "packed"])
def test_more_than_a_share_of_bad_rows_ends_the_run_in_one_sentence(tmp_path, tokenizer, model, batching):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(talk("red?") if k % 20 == 3 else GOOD[0]) for k in range(200)))
    source = SourceConfig(path=str(path))
    config: dict[str, Any] = {
        "sources": (source,),
        "tokenizer": tokenizer.directory,
        "template": "short",
        "batching": batching,
        "bad_rows": "skip",
        "max_length": 24,
        "cache": str(tmp_path / "cache"),
    }
    with make_iterator(DataConfig(**config, max_bad_share=0.06), model, 20, 0) as iterator:
        while iterator.tally.read < 200:
            next(iterator)
        assert sorted(iterator.tally.left_out) == list(range(3, 200, 20))
    said = r"^\d+ of the \d+ rows read so far are bad \(\d+ turns\), more than data.max_bad_share 0.04 "
    with (
        pytest.raises(UserError, match=said),
        make_iterator(DataConfig(**config, max_bad_share=0.04), model, 20, 0) as iterator,
    ):
        for _ in range(10):
            next(iterator)
