"""Answers that are kept: a changed letter, another run's line and lost settings are seen."""

import json

import pytest

from quecc_jax.errors import UserError
from quecc_jax.evaluate.kept_answers import ANSWERS, SETTINGS, check_settings, line_of, read_answers
from tests.stores_json import SAMPLES, make_answers, settings


@pytest.fixture
def folder(tmp_path):
    make_answers(tmp_path, 0)
    return tmp_path / "pope"


def kept(folder):
    return [answer["id"] for answer in read_answers(folder, SAMPLES, settings("pope"))]


def test_what_is_whole_is_kept_and_what_is_not_is_asked_again_and_said(folder, capsys):
    assert kept(folder) == [0, 1, 2, 3] and not capsys.readouterr().err
    path = folder / ANSWERS
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("pope says", "pope sags")
    lines[2] = (folder.parent / "gqa" / ANSWERS).read_text().splitlines()[2]
    path.write_text("\n".join([*lines, '{"id": 9, "que']))
    assert kept(folder) == [0, 3]
    assert (
        f"WARNING: {path}: lines 2, 3 are damaged or another run's, and asked again"
        in capsys.readouterr().err
    )
    other = line_of({"id": 1, "question": "what is 1?", "answer": "x"}, settings("pope", 1))
    path.write_text(other + "\n")
    assert kept(folder) == []


@pytest.mark.parametrize(
    "line",
    ["", "[]", "{", '{"id": 1}', '{"id": 1, "question": 2, "answer": "x"}', "[" * 9999, "9" * 5000, "\x00"],
)
def test_a_line_that_is_no_answer_is_asked_again(folder, capsys, line):
    (folder / ANSWERS).write_text(line + "\n")
    assert kept(folder) == []
    assert "lines 1 are damaged" in capsys.readouterr().err


def test_lines_of_an_earlier_version_are_kept(folder, capsys):
    lines = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    (folder / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = json.loads((folder / SETTINGS).read_text())
    del record["crc32"], record["image_decoding"]
    (folder / SETTINGS).write_text(json.dumps(record))
    check_settings(folder, settings("pope"))
    assert kept(folder) == [0, 1, 2, 3] and not capsys.readouterr().err


def test_settings_that_are_lost_damaged_or_another_task_s_are_one_sentence(folder):
    path = folder / SETTINGS
    with pytest.raises(UserError, match=r"under other settings \(task pope -> gqa\)"):
        check_settings(folder, settings("gqa"))
    path.write_text(path.read_text().replace("model-0", "model-1"))
    with pytest.raises(UserError, match=r"settings\.json is damaged.*; choose another --out or remove"):
        check_settings(folder, settings("pope", 1))
    path.unlink()
    with pytest.raises(UserError, match=r"settings\.json is lost"):
        check_settings(folder, settings("pope"))
