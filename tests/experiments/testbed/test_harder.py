"""The harder tasks against their sources: every question is read and answered again from what was published."""

import dataclasses
import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs import harder
from quecc_jax.config import VisionConfig
from quecc_jax.data.sources import easy_vqa
from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES
from quecc_jax.data.text.conversation import lay_out
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.tokenizer import SPECIALS, load_tokenizer
from quecc_jax.data.text.turns import read_row
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.experiments.report import write_report
from quecc_jax.experiments.runner import check, collect, run_grid
from quecc_jax.experiments.testbed import reading, tower
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.cells import CLASSES
from quecc_jax.experiments.testbed.corpus import write_corpus, write_questions
from quecc_jax.experiments.testbed.grids import Decoder, blind_data, size_grid
from quecc_jax.experiments.testbed.harder import digits, emoji, shapes
from quecc_jax.experiments.testbed.settings import HARDER, SPLITS, Task
from quecc_jax.experiments.testbed.single import shape_and_color
from tests.experiments.testbed.emoji_package import GROUPS, write_package

END = "<eos>"
PLURALS = {"animals": "animal-mammal", "foods": "food-fruit", "vehicles": "transport-ground"}
SIZE, IMAGES, QUESTIONS = 60, 40, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = write_package(tmp_path_factory.mktemp("emoji"))
        patch.setattr(emoji, "FOLDER", made)
        yield made


@pytest.fixture(scope="module")
def pools(folder, tmp_path_factory):
    """{(task, split): pool} of 60-pixel images."""
    root = tmp_path_factory.mktemp("pools")
    return {
        (task, split): build_pool(task, split, root / f"{task}-{split}", SIZE, IMAGES, QUESTIONS, seed=3)
        for task in HARDER
        for split in SPLITS
    }


def turns(row) -> list[tuple[str, str]]:
    said = [turn["value"] for turn in row["conversations"]]
    assert said[0].startswith("<image>\n") and not any("<image>" in text for text in said[1:])
    said[0] = said[0].removeprefix("<image>\n")
    return list(zip(said[::2], said[1::2], strict=True))


def shown(pool) -> np.ndarray:
    """What each cell shows [P, m, m], as words, from the published sources."""
    kind, split = pool.meta["task"][:-1], pool.meta["split"]
    if kind == "digits":
        return load_digits().target[pool.sources].astype(str)
    if kind == "emoji":
        listed = sorted(json.loads((emoji.FOLDER / "emoji.json").read_text()), key=lambda one: one["unified"])
        taken = [
            one["short_name"]
            for one in listed
            if one["short_name"] in sum((n for _, n in GROUPS.values()), ())
        ]
        return np.array(taken)[pool.sources // emoji.VARIANTS]
    labels = shape_and_color(easy_vqa.questions(split), len(easy_vqa.image_paths(split)))
    words = np.array([f"{COLORS[color - 1]} {SHAPES[shape - 1]}" for shape, color in labels])
    return words[pool.sources]


def is_of(thing: str, what: str) -> bool:
    """Whether what a cell shows is one of `what`: red shapes, circles, animals."""
    if what in PLURALS:
        return thing in GROUPS[PLURALS[what]][1]
    return (
        what.removesuffix(" shapes") if what.endswith("shapes") else what.removesuffix("s")
    ) in thing.split()


def part(thing: str, question: str) -> str:
    """The word of what a cell shows that a question asks for."""
    return thing.split()[0] if "color" in question else thing.split()[-1]


def solve(text: str, things: np.ndarray) -> str:
    """The answer of someone who reads the question and looks at the cells."""
    m = len(things)
    named = [(int(r) - 1, int(c) - 1) for r, c in re.findall(r"row (\d), column (\d)", text)]
    if told := re.match(r"row \d, column \d: ([\w ]+)\. (.*)", text):
        assert things[named[0]] == told[1] and named[0] not in named[1:]
        return solve(told[2], things)
    if found := re.match(r"are .* the same (shape|color)\?$", text):
        a, b = (part(things[place], found[1]) for place in named)
        return "yes" if a == b else "no"
    if "larger than" in text:
        return "yes" if int(things[named[0]]) > int(things[named[1]]) else "no"
    if named:
        assert len(named) == 1
        return part(things[named[0]], text)
    if found := re.search(r"written in (row|column) (\d)\?$", text):
        line = things[int(found[2]) - 1] if found[1] == "row" else things[:, int(found[2]) - 1]
        return " ".join(line)
    if found := re.match(r"how many times is the digit (\d) there\?$", text):
        return str((things == found[1]).sum())
    if found := re.match(r"how many (.*) are there\?$", text):
        return str(sum(is_of(thing, found[1]) for thing in things.ravel()))
    if found := re.match(r"is the (\w+) there\?$", text):
        return "yes" if found[1] in things else "no"
    (name,) = re.findall(r" the ([\w ]+)\?$", re.sub("the shape", "", text))
    ((row, column),) = [place for place in product(range(m), repeat=2) if things[place] == name]
    if text.startswith("in which row and column"):
        return f"{row + 1} {column + 1}"
    far = 2 if " two " in text else 1
    where = re.search("left of|right of|above|below", text)
    assert where
    row += far * (where[0] == "below") - far * (where[0] == "above")
    column += far * (where[0] == "right of") - far * (where[0] == "left of")
    assert min(row, column) >= 0
    return part(things[row, column], text)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", HARDER)
def test_answers_follow_from_what_the_cells_show(pools, task, split):
    pool = pools[task, split]
    things, kinds = (
        shown(pool),
        {"shapes": {"compare"}, "emoji": {"exists"}, "digits": {"compare", "row", "column"}},
    )
    wanted = kinds[task[:-1]] | {"cell", "relation", "where", "count", "distractor", "turns"}
    for row in pool.rows:
        for text, answer in turns(row):
            assert solve(text, things[row["image"]]) == answer, text
        assert len(turns(row)) == (2 if row["kind"] == f"{task}/turns" else 1)
        assert ("." in turns(row)[0][0].removesuffix(".")) == (row["kind"] == f"{task}/distractor")
    assert {row["kind"] for row in pool.rows} == {
        f"{task}/{kind}" for kind in wanted | ({"reworded"} if split == "test" else set())
    }
    assert len(pool.rows) == IMAGES * QUESTIONS and pool.meta["m"] == int(task[-1])


def test_yes_and_no_are_as_frequent(pools):
    for task in HARDER:
        said = [
            answer
            for row in pools[task, "train"].rows + pools[task, "test"].rows
            for _, answer in turns(row)
            if answer in ("yes", "no")
        ]
        share = said.count("yes") / len(said)
        assert abs(share - 0.5) < 3 * 0.5 / len(said) ** 0.5


@pytest.mark.parametrize("asked", [shapes.asked, digits.asked])
def test_no_place_tells_whether_two_cells_agree(asked):
    """Which cells are compared says nothing of the answer."""
    rng = np.random.default_rng(0)
    places: dict[str, list[int]] = {"yes": [], "no": []}
    for _ in range(150):
        cells = rng.integers(1, (4, 9, 11), size=(3, 3, 3))
        compared = asked(cells, rng)["compare"]
        for answer, found in places.items():
            found += [
                3 * row + column for one in compared if one.answer == answer for row, column in one.places
            ]
    yes, no = (np.bincount(found, minlength=9) / len(found) for found in places.values())
    assert len(places["yes"]) == len(places["no"]) > 1500 and np.abs(yes - no).max() < 0.03


def test_no_image_is_asked_the_same_question_twice(pools):
    for pool in pools.values():
        asked = [(row["image"], text) for row in pool.rows for text, _ in turns(row)]
        assert len(set(asked)) == len(asked) > IMAGES * QUESTIONS


def test_more_questions_than_there_are_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"too few different questions .* lower questions_per_image"):
        build_pool("emoji2", "train", tmp_path / "pool", SIZE, 1, 200)
    assert not list(tmp_path.iterdir())


def test_splits_share_no_source(pools):
    labels = load_digits().target
    for m in "345":
        for split in SPLITS:
            usable = set(reading.digit_split(split, labels).tolist())
            assert set(pools[f"digits{m}", split].sources.ravel().tolist()) <= usable
    # The files of easy-VQA's splits differ (test_images); no emoji looks the same in both.
    pictures = emoji.published()
    looks = [{tile.tobytes() for tile in emoji.tiles(pictures, split, 20)} for split in SPLITS]
    assert not looks[0] & looks[1] and len(looks[0]) == len(looks[1]) == len(pictures) * emoji.VARIANTS


def test_test_wordings_are_new_and_their_words_are_not(pools):
    for task in HARDER:
        said = {split: [t for row in pools[task, split].rows for t, _ in turns(row)] for split in SPLITS}
        new = [turns(row)[0][0] for row in pools[task, "test"].rows if row["kind"] == f"{task}/reworded"]
        shapes = {split: {re.sub(r"\d", "0", text) for text in texts} for split, texts in said.items()}
        assert new and not {re.sub(r"\d", "0", text) for text in new} & shapes["train"]
        words = set(re.findall(r"\w+", " ".join(said["train"])))
        assert set(re.findall(r"[a-z]+", " ".join(new))) <= words


def test_emoji_are_those_of_one_word_that_show_things(folder):
    pictures = emoji.published()
    assert [picture.name for picture in pictures] == [
        name for _, names in reversed(GROUPS.values()) for name in reversed(names)
    ]
    for picture in pictures:
        (group,) = (key for key, (_, names) in GROUPS.items() if picture.name in names)
        assert picture.group == {v: k for k, v in PLURALS.items()}.get(group, "")


def test_without_the_package_emoji_say_what_brings_it(tmp_path):
    with pytest.raises(UserError, match="make emoji brings them"):
        emoji.published(tmp_path)


@pytest.mark.skipif(
    not Path(".venv-emoji/emoji.json").exists(),
    reason=".venv-emoji has no emoji (make test brings them by npm)",
)
def test_the_package_has_several_hundred_names():
    pictures = emoji.published(Path(".venv-emoji"))
    names = [picture.name for picture in pictures]
    assert 300 < len(names) == len(set(names)) < 1000
    assert {group for _, _, group in pictures} == {"", *emoji.GROUPS}
    for picture in pictures:
        with Image.open(picture.file) as file:
            assert file.size == (64, 64)


@pytest.mark.parametrize("task", ["shapes3", "digits5", "emoji4"])
def test_cells_show_their_sources_and_are_labelled(pools, task):
    pool, m = pools[task, "test"], int(task[-1])
    side = SIZE // m
    for image, (row, column) in product((0, 7), product(range(m), repeat=2)):
        source, label = pool.sources[image, row, column], pool.cells[image, row, column]
        tile = pool.images[image, side * row : side * (row + 1), side * column : side * (column + 1)]
        if task == "emoji4":
            picture = emoji.published()[source // emoji.VARIANTS]
            assert label.tolist() == [0, 0, 0, pool.meta["names"].index(picture.name) + 1]
            with Image.open(picture.file) as file:
                ink = np.asarray(file)[10, 10, :3].astype(int)
            # The middle of the upper edge is the picture's own colour, the corner is pale paper.
            assert np.abs(tile.astype(int) - ink).sum(axis=-1).min() <= 6 and tile[0, 0].min() >= 190
        elif task == "digits5":
            assert label.tolist() == [0, 0, load_digits().target[source] + 1]
            ink = np.round(load_digits().images[source] * 255 / 16).astype(np.uint8)
            small = np.asarray(Image.fromarray(ink).resize((10, 10), Image.Resampling.BICUBIC))
            assert np.array_equal(tile[1:-1, 1:-1, 0], small)
        else:
            path = easy_vqa.image_paths("test")[source]
            whole = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            assert np.abs(tile.astype(int) - np.asarray(whole)).max() <= 1 and label[2] == 0


def test_text_covers_the_answers_and_says_where_they_come_from(pools, tmp_path):
    """Sentences are true, topics stand before answers, and no word of a test question is unknown."""
    trains = [pools[task, "train"] for task in HARDER]
    for pool in trains:
        corpus = write_corpus([pool], tmp_path / "text", 0, END, joined=1)
        documents = [row["conversations"][1]["value"] for row in corpus.rows]
        everything = "\n".join(documents)
        for row in pool.rows:
            for (text, answer), topic in zip(turns(row), row["topics"], strict=True):
                assert (
                    f"{text} {topic}: {answer}" in everything
                    or f"{text} ASSISTANT: {answer}{END}" in everything
                )
    texts = [row["conversations"][1]["value"] for row in write_corpus(trains, tmp_path / "text", 0, END).rows]
    train_word_tokenizer([*(t.replace(END, " ") for t in texts), template_text()], tmp_path / "words")
    tokenizer = load_tokenizer(str(tmp_path / "words"))
    unknown = tokenizer.encode(SPECIALS[3])[-1]
    for task in HARDER:
        for row in pools[task, "test"].rows:
            for pair in turns(row):
                for text in pair:
                    assert unknown not in tokenizer.encode(text), text


def told_places(document: str) -> dict[str, str]:
    """{place: what it holds} of the sentences that a document begins with."""
    told = re.match(r"(?:USER: )?((?:row [^:?]*: [\w ]+\. )+)", document)
    return dict(one.split(": ") for one in told[1].removesuffix(". ").split(". ")) if told else {}


def test_sentences_of_documents_are_true(folder, tmp_path):
    checked = 0
    tasks: tuple[Task, ...] = ("shapes4", "digits4", "emoji2")
    for task, seed in product(tasks, range(2)):
        # All sentences are about the only image.
        pool = build_pool(
            task, "train", tmp_path / "pool", SIZE, 1, 20 if task != "emoji2" else 14, seed=seed
        )
        things = shown(pool)[0]
        for row in write_corpus([pool], tmp_path / "text", 0, END, joined=1).rows:
            for place, content in told_places(row["conversations"][1]["value"]).items():
                r, *c = (int(number) - 1 for number in re.findall(r"\d", place))
                assert content == (things[r, c[0]] if c else " ".join(things[r]))
                checked += 1
    assert checked > 60


def test_conversations_without_images_keep_their_turns(pools, tmp_path):
    pool = pools["shapes3", "test"]
    for row, source in zip(write_questions(pool, tmp_path / "blind").rows, pool.rows, strict=True):
        said = [turn["value"] for turn in row["conversations"]]
        assert list(zip(said[::2], said[1::2], strict=True)) == turns(source)
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * len(turns(source))


def test_no_row_is_longer_than_its_place(pools, tmp_path):
    testbed = harder.RECIPE.testbed
    texts = [text for pool in pools.values() for row in pool.rows for pair in turns(row) for text in pair]
    train_word_tokenizer([*texts, template_text()], tmp_path / "words")
    tokenizer = load_tokenizer(str(tmp_path / "words"))
    settings: Any = blind_data("runs/x", "test", testbed)
    longest = {"text": 0, "query": 0, "answer": 0}
    for pool in pools.values():
        for row in pool.rows:
            plain = {
                "conversations": [
                    t | {"value": t["value"].replace("<image>\n", "")} for t in row["conversations"]
                ]
            }
            encoded = lay_out(read_row(plain), tokenizer, settings, 0)
            asked, answers = turns(row)[0][0], [answer for _, answer in turns(row)]
            longest["text"] = max(longest["text"], len(encoded.codes))
            longest["query"] = max(longest["query"], len(tokenizer.encode(asked)))
            longest["answer"] = max(longest["answer"], *(len(tokenizer.encode(one)) + 1 for one in answers))
    assert longest["text"] < testbed.text_tokens
    assert longest["query"] <= testbed.query_tokens and longest["answer"] <= testbed.answer_tokens


def test_the_tower_learns_which_emoji_a_cell_shows(pools):
    """Emoji are a fourth label, which other pools do not have: there it is nothing."""
    chosen = {split: [pools["shapes3", split], pools["emoji2", split]] for split in SPLITS}
    names = pools["emoji2", "train"].meta["names"]
    assert tower.label_classes(chosen["train"]) == (*CLASSES, len(names) + 1)
    assert tower.label_classes(chosen["train"][:1]) == CLASSES
    pick = np.array([3, 5])
    shapes, pictures = (tower._labels(pool, pick, 4) for pool in chosen["train"])
    assert np.array_equal(shapes[..., :3].reshape(2, 3, 3, 3), chosen["train"][0].cells[pick])
    assert not shapes[..., 3].any() and not pictures[..., :3].any() and pictures[..., 3].all()
    vision = VisionConfig(
        image_size=SIZE,
        patch_size=10,
        width=16,
        depth=2,
        heads=2,
        mlp_width=32,
        select_layer=-2,
        levels=(1, 2),
    )
    seen = list[float]()
    _, record = tower.train_tower(
        vision,
        chosen["train"],
        chosen["test"],
        steps=8,
        batch_size=16,
        learning_rate=3e-3,
        log_every=4,
        on_log=lambda _, loss: seen.append(loss),
    )
    assert record["accuracy"].keys() == {"shape", "color", "emoji"} and seen[-1] < seen[0]
    # One of many is right by chance, not every second.
    assert record["accuracy"]["emoji"] < 0.5


@pytest.mark.slow
def test_a_grid_of_harder_tasks_goes_from_data_to_results(folder, tmp_path):
    testbed = dataclasses.replace(
        harder.RECIPE.testbed,
        tasks=("shapes3", "emoji2"),
        images=12,
        test_images=10,
        documents=100,
        tower_steps=2,
        tower_batch=4,
    )
    recipe = dataclasses.replace(
        harder.PILOT,
        testbed=testbed,
        decoders=(Decoder("S", 32, 1),),
        visual_tokens=(1,),
        language_steps=2,
        stage1_steps=1,
        stage2_steps=2,
    )
    grid = size_grid(recipe, str(tmp_path / "out"), "harder")
    check(run_grid(grid), grid)
    results = collect(grid, "a test")
    seen = {(row["task"], row["kind"]) for row in results["rows"] if row["visual_tokens"]}
    assert {
        ("shapes3", "compare"),
        ("emoji2", "exists"),
        ("emoji2", "reworded"),
        ("shapes3", "turns"),
        ("shapes3", "turns-later"),
    } <= seen
    shapes = [row for row in results["rows"] if row["visual_tokens"] and row["task"] == "shapes3"]
    flops: dict[str, Any] = {row["kind"]: row["flops"] for row in shapes}
    assert flops["turns-later"] > flops["turns"] > 0
    (attention,) = results["steps"]["attention"]
    assert set(attention["kinds"]) == {
        f"{task}/{kind}" for task in testbed.tasks for kind in ("cell", "distractor", "reworded", "turns")
    }
    page = write_report(results, tmp_path / "out").read_text()
    assert "Shapes3" in page and "reworded" in page
