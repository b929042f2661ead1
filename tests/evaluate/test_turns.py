"""Later turns of a data set's conversations: each is asked as a chat would ask it, after the row's own answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quecc_jax.commands.cli import execute
from quecc_jax.config import SourceConfig
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import Answer, answer_rows, row_prompts
from quecc_jax.evaluate.comparison.compare import compare
from quecc_jax.evaluate.score import accuracy
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_vlm

EXAMPLE = Path(__file__).parents[2] / "examples" / "model"
SAID = [
    ["what color is the shape?", "red", "what shape is in row 1, column 2?", "circle"],
    ["how many red shapes are there?", "2"],
    [
        "which digit is in row 2, column 1?",
        "7",
        "what color is the shape in row 2, column 2?",
        "blue",
        "how many?",
        "4",
    ],
]


@pytest.fixture(scope="module")
def model():
    return load_vlm(EXAMPLE)


@pytest.fixture
def data(tmp_path) -> Path:
    """Rows of one, two and three questions, each about an image."""
    rows = []
    for number, said in enumerate(SAID):
        Image.new("RGB", (96, 96), (70 * number, 20, 200)).save(tmp_path / f"{number}.png")
        turns: list[Any] = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(said)]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        rows.append({"id": number, "image": f"{number}.png", "conversations": turns})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def asked(model, data: Path, **how: Any) -> list[Answer]:
    config, params = model
    source = SourceConfig("llava_json", str(data), images=str(data.parent))
    settings = dataclasses.replace(config.data, sources=(source,), cached_features=False, max_length=160)
    config = dataclasses.replace(config, data=settings)
    return answer_rows(config, params, max_new_tokens=6, batch_size=4, **how)


@pytest.mark.parametrize("query", ["own", "latest"])
def test_every_turn_is_answered_as_in_a_chat_that_went_as_the_row_does(model, data, query):
    config, params = model
    settings = dataclasses.replace(config.data, max_length=160)
    engine = Engine(dataclasses.replace(config, data=settings), params)
    found = asked(model, data, turns="all", query=query)
    assert [(one.row["id"], one.turn) for one in found] == [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (2, 3)]
    for one in found:
        said = SAID[one.row["id"]]
        at = 2 * one.turn - 2
        image = engine.image(data.parent / one.row["image"])
        question = Question(said[at], (image,), tuple(said[:at]), query)
        assert engine.answers([question], Limits(6)) == [one.prediction]
        assert (one.question, one.truth) == (said[at], said[at + 1])
    first = asked(model, data)
    assert [one.prediction for one in first] == [one.prediction for one in found if one.turn == 1]


def test_whose_words_count_changes_what_is_seen_in_later_turns_alone(model, data):
    config, _ = model
    source = SourceConfig("llava_json", str(data), images=str(data.parent))
    settings = dataclasses.replace(config.data, sources=(source,), cached_features=False, max_length=160)
    own, latest = (
        [prompt.encoded for prompt in row_prompts(config.model, settings, turns="all", query=query)]
        for query in ("own", "latest")
    )
    turns = [1, 2, 1, 1, 2, 3]
    for a, b, turn in zip(own, latest, turns, strict=True):
        assert a.codes.tolist() == b.codes.tolist()
        assert (a.queries.tolist() == b.queries.tolist()) == (turn == 1)


def test_what_stands_before_the_first_question_is_neither_question_nor_truth(model, data):
    rows = json.loads(data.read_text())[1:2]
    (row,) = rows
    (plain,) = asked(model, data)[1:2]
    for before in ([{"from": "system", "value": "be brief"}], [{"from": "gpt", "value": "hello"}]):
        data.write_text(json.dumps([{**row, "conversations": before + row["conversations"]}]))
        (one,) = asked(model, data)
        assert (one.question, one.truth) == (plain.question, plain.truth)


@pytest.mark.parametrize("turns", ["first", "all"])
def test_a_question_without_an_answer_is_refused(model, data, turns):
    rows = json.loads(data.read_text())
    rows[0]["conversations"] = rows[0]["conversations"][: 3 if turns == "all" else 1]
    data.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 1 has no answer to compare with; add one"):
        asked(model, data, turns=turns)


def test_the_command_asks_all_turns_and_a_comparison_tells_them_apart(data, tmp_path):
    folders = []
    for query in ("own", "latest"):
        out = tmp_path / query
        call = ["--checkpoint", str(EXAMPLE), "--data", str(data), "--out", str(out), "--turns", "all"]
        execute("evaluate", [*call, "--query", query, "--visual-tokens", "4"])
        folders.append(out)
    told = json.loads((folders[0] / "results.json").read_text())
    assert (told["questions"], told["turns"], told["query"]) == (6, "all", "own")
    record = compare(folders)
    (found,) = record["tasks"].values()
    assert [(part["name"], part["questions"]) for part in found["turns"]] == [
        ("turn 1", 3),
        ("turn 2", 2),
        ("turn 3", 1),
    ]
    assert found["images"] == 3 and record["notes"] == [
        "rows was asked with other settings of query (own: own, latest: latest)."
    ]


def test_turns_go_with_data_sets_alone(data, tmp_path):
    call = ["--checkpoint", str(EXAMPLE), "--data", str(data.parent), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--turns goes with a data set; benchmarks ask one question a row"):
        execute("evaluate", [*call, "--tasks", "pope", "--turns", "all"])


def test_accuracy_counts_the_turn_that_was_asked():
    said = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(SAID[0])]
    both = [Answer({"conversations": said}, "circle", turn=turn) for turn in (1, 2)]
    assert accuracy(both)["accuracy"] == 0.5
