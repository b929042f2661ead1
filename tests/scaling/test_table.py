import json

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling.scores import published, read_scores
from scaling.table import parse_scores

GOOD = {"params_b": [0.5, 2], "visual_tokens": [1, 4, 16], "score": [[0.1, 0.2, 0.3], [0.2, None, 0.4]]}


def test_good_file_reads_with_missing_cells(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(GOOD | {"query_tokens": 12, "tasks": {"a": GOOD["score"]}, "extra": 1}))
    table = read_scores(path)
    assert table.name == "results"
    assert table.query_tokens == 12
    assert table.score.shape == (2, 3)
    assert np.isnan(table.score).sum() == 1
    np.testing.assert_array_equal(table.for_task("a").score, table.score)


def test_rows_and_columns_are_sorted_together():
    table = parse_scores(
        {
            "params_b": [2, 0.5],
            "visual_tokens": [4, 1],
            "score": [[0.22, 0.21], [0.12, 0.11]],
            "tasks": {"t": [[0.32, 0.31], [0.42, 0.41]]},
        }
    )
    np.testing.assert_array_equal(table.params_b, [0.5, 2])
    np.testing.assert_array_equal(table.score, [[0.11, 0.12], [0.21, 0.22]])
    np.testing.assert_array_equal(table.tasks["t"], [[0.41, 0.42], [0.31, 0.32]])


def test_percent_divides_scores():
    table = parse_scores(GOOD | {"score": [[10, 20, 30], [20, 40, 40]]}, percent=True)
    np.testing.assert_allclose(table.score[0], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": [[0.1, 0.2], [0.2, 0.3, 0.4]]}, "ragged"),
        ({"score": [[0.1, 0.2, 0.3]]}, "1 rows, but params_b has 2"),
        ({"score": 0.5}, "list of rows"),
        ({"score": [[0.1, 0.2, float("nan")], [0.2, 0.3, 0.4]]}, "write null"),
        ({"score": [[0.1, 0.2, "0.3"], [0.2, 0.3, 0.4]]}, "write null"),
        ({"score": [[0.1, 0.2, True], [0.2, 0.3, 0.4]]}, "write null"),
        ({"score": [[0.1, 0.2, 30], [0.2, 0.3, 0.4]]}, "0.5B, 16 visual tokens is 30.*--percent"),
        ({"score": [[0.1, 0.2, -0.3], [0.2, 0.3, 0.4]]}, "outside 0..1"),
        ({"score": [[None] * 3] * 2}, "Every cell"),
        ({"score": [[0.1, 0.2, 0.3], [None] * 3]}, "one LLM size only"),
        ({"score": [[0.1, None, None], [0.2, None, None]]}, "one visual token count only"),
        ({"score": [[0.1, None, None], [None, None, 0.2]]}, "change together"),
        ({"params_b": [2, 2]}, "2 twice"),
        ({"visual_tokens": [1, 4, 4]}, "4 twice"),
        ({"params_b": [0, 2]}, "positive"),
        ({"params_b": []}, "list of numbers"),
        ({"params_b": ["7B", 2]}, "positive numbers"),
        ({"tasks": [1]}, "'tasks' must be an object"),
        ({"tasks": {"read": [[0.1]]}}, "read"),
        ({"stderr": [[0.1]]}, "stderr"),
        ({"query_tokens": -1}, "query_tokens"),
        ({"visual_token": [1]}, "did you mean 'visual_tokens'"),
        ({"flagged": [{"params_b": 3, "visual_tokens": 1, "reason": "?"}]}, "not a cell"),
        ({"flagged": [{"params_b": 3}]}, "flagged"),
    ],
)
def test_each_defect_has_its_sentence(change, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        parse_scores(GOOD | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["params_b", "visual_tokens", "score"])
def test_missing_key_is_named(key):
    with pytest.raises(UserError, match=key):
        parse_scores({k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"{", "not valid JSON"), (b"[1]", "one JSON object"), (b"\xff\xfe\x00", "text")],
)
def test_files_that_are_not_scores(tmp_path, content, sentence):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_scores(path)
    assert "bad.json" in str(caught.value)


def test_absent_file_and_unknown_published_name(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        read_scores(tmp_path / "absent.json")
    with pytest.raises(UserError, match="general, ocr"):
        published("vision")


def test_published_tables():
    general, ocr = published("general"), published("ocr")
    assert general.score.shape == ocr.score.shape == (4, 7)
    assert general.score[3, 6] == 0.5354
    assert {(f.params_b, f.visual_tokens) for f in ocr.flagged} == {(7, 576), (4, 4)}
    assert np.isnan(ocr.without_flagged().score).sum() == 2
    assert np.isfinite(ocr.score).all()
