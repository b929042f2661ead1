"""Text made from pools: statements are true and tell the answers, and no test image takes part."""

import re

import numpy as np
import pytest

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.corpus import statements, topic, write_corpus, write_questions

END = "<eos>"


def question_answer(row):
    human, gpt = row["conversations"]
    return human["value"].removeprefix("<image>\n"), gpt["value"]


def sentences(told):
    """{place: what it holds} of "row 1, column 2: red circle. row 3: 4 5 6."."""
    return dict(sentence.split(": ") for sentence in told.removesuffix(".").split(". ")) if told else {}


def said(cell):
    shape, color, digit = (int(label) for label in cell)
    return f"{digit - 1}" if digit else f"{COLORS[color - 1]} {SHAPES[shape - 1]}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["mosaic", "reading"])
def test_statements_are_true(pools, task, seed):
    pool, rng = pools[task, "train"], np.random.default_rng(seed)
    for row in pool.rows:
        cells = pool.cells[row["image"]]
        told = sentences(statements(pool, row["image"], [question_answer(row)[0]], rng))
        for place, content in told.items():
            r, *c = (int(number) - 1 for number in re.findall(r"\d+", place))
            assert content == (said(cells[r, c[0]]) if c else " ".join(said(cell) for cell in cells[r]))


def test_statements_tell_the_answers(pools):
    """Whoever knows the sentences alone answers right."""
    rng, told_kinds = np.random.default_rng(0), set()
    for task in ("mosaic", "reading"):
        pool = pools[task, "train"]
        for row in pool.rows:
            question, answer = question_answer(row)
            told = sentences(statements(pool, row["image"], [question], rng))
            if not told:
                assert row["kind"] == "mosaic/whole"
                continue
            place = re.search(r"row \d+(, column \d+)?", question)
            assert place
            words = told[place[0]].split()
            wanted = words[-1] if "shape is" in question else words[0] if "color" in question else words
            assert "".join(wanted) == answer.replace(" ", "")
            told_kinds.add(row["kind"])
    assert told_kinds == {"mosaic/cell", "reading/cell", "reading/row"}


def test_statements_about_a_single_shape_name_it(pools):
    pool = pools["single", "train"]
    named = 0
    for row in pool.rows:
        question, answer = question_answer(row)
        told = statements(pool, row["image"], [question], np.random.default_rng(0))
        if told and answer in SHAPES + COLORS:
            assert answer in told.rstrip(".").split()
            named += 1
    assert named > 20


def test_documents_hold_every_question_and_end(pools, tmp_path):
    trains = [pools[task, "train"] for task in ("single", "mosaic", "reading")]
    corpus = write_corpus(trains, tmp_path / "text", 0, END, joined=1)
    documents = [row["conversations"][1]["value"] for row in corpus.rows]
    assert all(document.endswith(END) for document in documents)
    assert sum(document.count("?") for document in documents) == sum(len(pool.rows) for pool in trains)
    everything = "\n".join(documents)
    for question, answer in (question_answer(row) for pool in trains for row in pool.rows):
        told = re.search(rf"{re.escape(question)} [a-z]+: {answer}", everything)
        assert told or f"{question} ASSISTANT: {answer}{END}" in everything
    chat = [document.startswith("USER: ") for document in documents]
    # A question opens every document that states nothing.
    bare = [re.match(r"(USER: )?(row \d|an? )", document) is None for document in documents]
    assert 0.35 < np.mean(chat) < 0.65 and 0.2 < np.mean(bare) < 0.5
    assert len({row["id"] for row in corpus.rows}) == corpus.meta["rows"]
    assert not any("image" in row for row in corpus.rows) and len(corpus.images) == 0


@pytest.mark.parametrize(
    ("question", "m", "word"),
    [
        ("what color is the shape in row 1, column 2?", 2, "northeast"),
        ("which digit is in row 2, column 1?", 2, "southwest"),
        ("what shape is in row 2, column 2?", 3, "center"),
        ("which digit is in row 3, column 1?", 3, "southwest"),
        ("what shape is in row 2, column 4?", 4, "cell"),
        ("what number is written in row 2?", 2, "bottom"),
        ("what number is written in row 4?", 4, "row"),
        ("how many red shapes are there?", 2, "red"),
        ("how many circles are there?", 2, "circle"),
        ("is there a teal shape in the image?", 1, "teal"),
        ("what color is the shape?", 1, "picture"),
    ],
)
def test_topic_names_what_a_question_is_about(question, m, word):
    assert topic(question, m) == word


def test_bare_documents_name_the_topic_before_the_answer(pools, tmp_path):
    corpus = write_corpus([pools["reading", "train"]], tmp_path / "text", 0, END, joined=1)
    named = 0
    for row in corpus.rows:
        text = row["conversations"][1]["value"]
        for r, c, word in re.findall(r"digit is in row (\d), column (\d)\? (\w+):", text):
            if word != "ASSISTANT":
                m = len(pools["reading", "train"].cells[0])
                assert word == topic(f"in row {r}, column {c}?", m)
                named += 1
    assert named > 20


def test_documents_are_joined_and_limited(pools, tmp_path):
    source = [pools["reading", "train"]]

    def texts(limit, joined, seed=0):
        corpus = write_corpus(source, tmp_path / "text", limit, END, joined, seed)
        return [row["conversations"][1]["value"] for row in corpus.rows]

    alone = texts(0, joined=1)
    joined = texts(0, joined=3)
    assert joined == ["".join(alone[i : i + 3]) for i in range(0, len(alone), 3)]
    assert texts(10, joined=1) == alone[:10] and texts(10, joined=4)[-1] == "".join(alone[8:10])
    assert texts(0, joined=1, seed=1) != alone


def test_training_text_never_comes_from_a_test_split(pools, tmp_path):
    with pytest.raises(UserError, match="test split"):
        write_corpus([pools["mosaic", "train"], pools["mosaic", "test"]], tmp_path / "text", 0, END)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_without_images(pools, tmp_path, split):
    pool = pools["mosaic", split]
    blind = write_questions(pool, tmp_path / "blind")
    assert blind.meta["split"] == split and blind.meta["pictures"] == 0 and len(blind.images) == 0
    assert len(blind.rows) == len(pool.rows)
    for row, source in zip(blind.rows, pool.rows, strict=True):
        assert row.keys() == {"id", "kind", "conversations"}
        assert (row["id"], row["kind"]) == (source["id"], source["kind"])
        assert question_answer(row) == question_answer(source)
