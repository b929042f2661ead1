"""Files of rows that stay on disk: any JSON gives its values, damage gives its line."""

import json
import pickle
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.data import rowfile
from quecc_jax.data.rowfile import RowFile
from quecc_jax.errors import BadRow, UserError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=150, deadline=None)
@given(values=st.lists(json_values, max_size=8), indent=st.sampled_from([None, 1, 3]),
       ascii=st.booleans(), form=st.sampled_from(["json", "jsonl"]), chunk=st.integers(1, 64))
def test_every_value_comes_back_whatever_the_layout(folder, values, indent, ascii, form, chunk):
    path = folder / f"rows.{form}"
    if form == "json":
        text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    else:
        text = "".join(json.dumps(value, ensure_ascii=ascii) + "\n\n" * (k % 2) + "\n"
                       for k, value in enumerate(values))
    path.write_bytes(text.encode())
    with mock.patch.object(rowfile, "CHUNK", chunk):
        rows = RowFile(path)
        assert len(rows) == len(values) and rows[:] == values and list(rows) == values
        assert pickle.loads(pickle.dumps(rows))[:] == values


@pytest.mark.parametrize("text, line", [
    ('[\n{"a": 1},\n{"b": }\n]', 3), ('[\n{"a": 1}\n{"b": 2}]', 3), ('[{"a": 1},\n\n{"b": "x', 3),
    ('[1, 2]\n3', 2), ('[1,\n', 2), ('[1 2]', 1), ('[\n\n', 3), ('[1,]', 1),
])  # fmt: skip
def test_a_damaged_list_names_its_line(tmp_path, text, line):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"rows\.json, line {line} is not JSON"):
        RowFile(path)


@pytest.mark.parametrize("text", ["", "{}", "3", "x", "  "])
def test_what_is_no_list_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    if text:
        with pytest.raises(UserError, match="is not a list of rows"):
            RowFile(path)
    else:
        assert len(RowFile(path)) == 0
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        RowFile(tmp_path / "none.json")


def test_a_damaged_row_hurts_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n\n{"c": "\xff\xfe"}\n' + b"[" * 100_000 + b'\n{"d": 4}')
    rows = RowFile(path)
    assert len(rows) == 5 and rows[0] == {"a": 1} and rows[4] == {"d": 4}
    for number, fault, message in ((1, "not a row", "it is not JSON"), (2, "text", "UTF-8 text at byte 24"),
                                   (3, "not a row", "it is nested too deeply")):
        with pytest.raises(BadRow, match=message) as caught:
            rows[number]
        assert caught.value.fault == fault
    assert [rows.where(number) for number in range(5)] == [f"{path}, line {k}" for k in (1, 2, 4, 5, 6)]
    listed = tmp_path / "rows.json"
    listed.write_bytes(b'["\xff\xfe",\n"\xc3\xa9", 3]')
    rows = RowFile(listed)
    assert len(rows) == 3 and rows[1:] == ["é", 3]
    with pytest.raises(BadRow, match="it is not UTF-8"):
        rows[0]
    assert rows.where(1) == f"{listed}, row 2 (line 2)"


def test_a_bucket_s_file_is_copied_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bucket / "rows.json").write_text("[1, 2]")
    rows = RowFile("gs://bucket/rows.json")
    assert rows[:] == [1, 2] and rows.path == "gs://bucket/rows.json"
    assert len(list((tmp_path / "cache/quecc_jax").iterdir())) == 1
    (bucket / "rows.json").write_text("[1, 2, 3]")
    assert RowFile("gs://bucket/rows.json")[:] == [1, 2, 3]
    with pytest.raises(UserError, match=r"gs://bucket/none\.json cannot be read"):
        RowFile("gs://bucket/none.json")
