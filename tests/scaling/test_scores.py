"""What may be named as scores: a file alone, evaluations together, and the options that each reads."""

import json

import pytest

from quecc_jax.errors import UserError
from scaling.scores import read_scores

TABLE = {"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.1, 0.2], [0.2, 0.4]]}


@pytest.fixture
def names(tmp_path):
    """Paths of a scores file in JSON and in CSV, of a grid, of an evaluation, and of folders of none and two."""
    texts = {
        "s.json": json.dumps(TABLE),
        "s.csv": "params_b,1,4\n1,0.1,0.2\n2,0.2,0.4",
        "grid.json": json.dumps({"cells": [], "decoders": [], "tasks": []}),
        "one.json": json.dumps({"checkpoint": "c", "accuracy": 0.5, "data": "d", "visual_tokens": 4}),
        "other.json": "{}",
        "two/a_results.json": "{}",
        "two/b_results.json": "{}",
    }
    for folder in ("none", "two"):
        (tmp_path / folder).mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = {name: str(tmp_path / name) for name in (*texts, "none", "two")}
    return found | {"general": "general"}


@pytest.mark.parametrize(
    "sources, says",
    [
        (["s.json", "s.json"], "s.json holds the scores of several models; give it alone and without @"),
        (["s.json@7B,36"], "s.json holds the scores of several models; give it alone and without @"),
        (["s.csv@7B,36"], "s.csv holds the scores of several models; give it alone and without @"),
        (["one.json@7B", "s.csv"], "s.csv holds the scores of several models; give it alone"),
        (["grid.json", "grid.json"], "grid.json holds the scores of several models; give it alone"),
        (["general@7B"], "general is a published table; give it alone and without @"),
        (["general", "s.json"], "general is a published table; give it alone and without @"),
        (["other.json@7B,36"], "is no results file of launch.evaluate or lmms-eval, nor a scores file"),
        (["none"], "none holds no results files"),
        (["two"], "two holds 2 results files; name one"),
    ],
)
def test_what_is_given_alone_is_said(names, sources, says):
    parts = [source.partition("@") for source in sources]
    with pytest.raises(UserError, match=says):
        read_scores(*(names[name] + at + size for name, at, size in parts))


@pytest.mark.parametrize(
    "source, options, says",
    [
        ("s.csv", {"metrics": {"gqa": "x"}}, "s.csv: It is a table of scores, .*; leave --metrics out"),
        ("s.json", {"metrics": {"gqa": "x"}}, "s.json: It is a table of scores, .*; leave --metrics out"),
        ("grid.json", {"metrics": {"gqa": "x"}}, "leave --metrics out"),
        ("grid.json", {"percent": True}, "leave --percent out"),
        ("general", {"metrics": {"gqa": "x"}}, "general is a table of scores, .*; leave --metrics out"),
        ("general", {"percent": True}, "general says its scale itself; leave --percent out"),
        ("one.json@7B", {"metrics": {"gpa": "x"}}, "--metrics names gpa, of which no evaluation has a score"),
    ],
)
def test_options_that_a_source_does_not_read_are_refused(names, source, options, says):
    name, at, size = source.partition("@")
    with pytest.raises(UserError, match=says):
        read_scores(names[name] + at + size, **options)
