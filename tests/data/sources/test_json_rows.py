"""Files of rows that stay on disk: any JSON gives its values, damage gives its line."""

import gzip
import json
import pickle
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quecc_jax.data.files import read_json
from quecc_jax.data.sources import json_rows
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.errors import BadRow, UserError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(json_values, max_size=8),
    indent=st.sampled_from([None, 1, 3]),
    ascii=st.booleans(),
    form=st.sampled_from(["json", "jsonl"]),
    chunk=st.integers(1, 64),
)
def test_every_value_comes_back_whatever_the_layout(folder, values, indent, ascii, form, chunk):
    # A single line that is a list of objects is one list of rows, see below.
    assume(
        form == "json"
        or not (len(values) == 1 and isinstance(values[0], list) and isinstance((*values[0], 0)[0], dict))
    )
    path = folder / f"rows.{form}"
    if form == "json":
        text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    else:
        text = "".join(
            json.dumps(value, ensure_ascii=ascii) + "\n\n" * (k % 2) + "\n" for k, value in enumerate(values)
        )
    path.write_bytes(text.encode())
    with mock.patch.object(json_rows, "CHUNK", chunk):
        rows = RowFile(path)
        assert len(rows) == len(values) and list(rows) == values
        assert list(pickle.loads(pickle.dumps(rows))) == values


@pytest.mark.parametrize(
    "text, line",
    [
        ('[\n{"a": 1},\n{"b": }\n]', 3),
        ('[\n{"a": 1}\n{"b": 2}]', 3),
        ('[{"a": 1},\n\n{"b": "x', 3),
        ("[1, 2]\n3", 2),
        ("[1,\n", 2),
        ("[1 2]", 1),
        ("[\n\n", 3),
        ("[1,]", 1),
    ],
)
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


def test_a_first_line_that_is_nested_too_deeply_hurts_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"[" * 100_000 + b'\n{"a": 1}\n{"b": 2}\n')
    rows = RowFile(path)
    assert len(rows) == 3 and [rows[1], rows[2]] == [{"a": 1}, {"b": 2}]
    with pytest.raises(BadRow, match="it is nested too deeply"):
        rows[0]


def test_a_damaged_row_hurts_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": \n\n{"c": "\xff\xfe"}\n' + b"[" * 100_000 + b'\n{"d": 4}')
    rows = RowFile(path)
    assert len(rows) == 5 and rows[0] == {"a": 1} and rows[4] == {"d": 4}
    for number, fault, message in (
        (1, "not a row", "it is not JSON"),
        (2, "text", "UTF-8 text at byte 24"),
        (3, "not a row", "it is nested too deeply"),
    ):
        with pytest.raises(BadRow, match=message) as caught:
            rows[number]
        assert caught.value.fault == fault
    assert [rows.where(number) for number in range(5)] == [f"{path}, line {k}" for k in (1, 2, 4, 5, 6)]
    listed = tmp_path / "rows.json"
    listed.write_bytes(b'["\xff\xfe",\n"\xc3\xa9", 3]')
    rows = RowFile(listed)
    assert len(rows) == 3 and [rows[1], rows[2]] == ["é", 3]
    with pytest.raises(BadRow, match="it is not UTF-8"):
        rows[0]
    assert rows.where(1) == f"{listed}, row 2 (line 2)"


def test_a_bucket_s_file_is_copied_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bucket / "rows.json").write_text("[1, 2]")
    rows = RowFile("gs://bucket/rows.json")
    assert list(rows) == [1, 2] and rows.path == "gs://bucket/rows.json"
    assert len(list((tmp_path / "cache/quecc_jax").iterdir())) == 1
    (bucket / "rows.json").write_text("[1, 2, 3]")
    assert list(RowFile("gs://bucket/rows.json")) == [1, 2, 3]
    with pytest.raises(UserError, match=r"gs://bucket/none\.json cannot be read"):
        RowFile("gs://bucket/none.json")


ROWS = [{"id": 1, "text": "a\u2028b\r\nc"}, {"id": 2, "text": "\ufeffd"}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
LIST = json.dumps(ROWS, ensure_ascii=False)


@pytest.mark.parametrize(
    "form, text",
    [
        ("json", "\ufeff" + LIST),
        ("json", LIST.replace(", {", ",\r\n{") + "\r\n\r\n"),
        ("json", json.dumps(ROWS, indent=1)),
        ("jsonl", "\ufeff" + "\r\n".join(LINES) + "\r\n\r\n"),
        ("jsonl", "\n\ufeff".join(LINES)),
        ("jsonl", "\ufeff\n" + "\n".join(LINES)),
        ("jsonl", LIST),
        ("jsonl", "\ufeff" + json.dumps(ROWS, indent=1)),
        ("jsonl", "\n".join(LINES)),
    ],
)
def test_rows_are_read_as_other_programs_write_them(tmp_path, form, text):
    """Byte order marks in front and between joined files, line ends of Windows, blank lines, a separator of
    lines inside a text, and a list that is called .jsonl."""
    path = tmp_path / f"rows.{form}"
    path.write_bytes(text.encode())
    assert list(RowFile(path)) == read_json(path) == ROWS


def test_lines_that_are_called_json_are_rows_but_no_value(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\ufeff" + "\n".join(LINES), encoding="utf-8")
    rows = RowFile(path)
    assert list(rows) == ROWS and rows.where(1) == f"{path}, line 2"
    with pytest.raises(UserError, match=r"line 2 is not JSON: Extra data \(one value a line\? then name it"):
        read_json(path)


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize(
    "raw, says",
    [
        (LIST.encode("utf-16"), "UTF-16"),
        (LIST.encode("utf-16-be"), "NUL byte"),
        (LIST.encode("utf-16-le"), "UTF-16"),
        (LIST.encode("utf-32"), "UTF-32"),
        (gzip.compress(LIST.encode(), mtime=0), "is compressed by gzip; unpack it"),
        (b"PK\x03\x04", "ZIP"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh91AY", "bzip2"),
        (b"PAR1", "Parquet"),
        (b"\x28\xb5\x2f\xfd\0", "zstd"),
    ],
)
def test_what_is_no_utf8_text_is_refused_by_name(tmp_path, form, raw, says):
    path = tmp_path / f"rows.{form}"
    path.write_bytes(raw)
    for read in (RowFile, read_json):
        with pytest.raises(UserError, match=says):
            read(path)


@pytest.mark.parametrize(
    "text, says",
    [
        ('[{"a": 1},]', "a comma stands in front of the closing bracket"),
        ('[{"a": 1,}]', "a comma stands in front of the closing bracket"),
        ('[{"a": 1, "a": 2}]', "an object holds 'a' twice"),
    ],
)
def test_damage_is_named(tmp_path, text, says):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        list(RowFile(path))
    with pytest.raises(UserError, match=says):
        read_json(path)
    lines = tmp_path / "rows.jsonl"
    lines.write_text(text[1:-1].rstrip(",") + "\n")
    if "twice" in says:
        with pytest.raises(UserError, match=says):
            read_json(lines)


def test_an_empty_file_is_named(tmp_path):
    for form in ("json", "jsonl"):
        path = tmp_path / f"rows.{form}"
        path.write_text("\ufeff\n", encoding="utf-8")
        if form == "json":
            with pytest.raises(UserError, match=r"rows\.json is empty"):
                read_json(path)
        else:
            assert len(RowFile(path)) == 0 and read_json(path) == []
