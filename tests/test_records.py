"""Records and lists of files: what is written comes back, and what was changed is named."""

import json
import os
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.checksums import FILE, WHOLE, check_files, list_files
from quecc_jax.data.files import fresh_directory
from quecc_jax.paths import write_text
from quecc_jax.records import CRC32, Count, Damaged, read_record, sealed, unsealed, write_record

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Form(TypedDict, total=False):
    name: str
    rows: Count
    shares: list[float]


@given(st.dictionaries(st.text().filter(lambda name: name != CRC32), VALUES, max_size=4))
def test_a_sealed_record_comes_back_whatever_its_layout(record):
    text = json.dumps(sealed(record), indent=3)
    assert unsealed(json.loads(text), "it", "go") == record


def test_a_changed_record_is_named_and_one_without_a_checksum_is_taken(tmp_path):
    path = tmp_path / "one.json"
    write_record(path, {"name": "a", "rows": 12, "shares": [0.25]})
    written = path.read_text()
    assert read_record(path, Form, "go") == {"name": "a", "rows": 12, "shares": [0.25]}
    for position, char in enumerate(written):
        if char.isspace():
            continue
        path.write_text(written[:position] + chr(ord(char) ^ 1) + written[position + 1 :])
        try:
            assert read_record(path, Form, "go") == {"name": "a", "rows": 12, "shares": [0.25]}
        except Damaged as error:
            assert str(path) in str(error)
            continue
        pytest.fail(f"{path.read_text()} was read")
    path.write_text('{"name": "a", "rows": 13}')
    assert read_record(path, Form, "go") == {"name": "a", "rows": 13}


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": -1}',
        '{"rows": 9223372036854775808}',
        '{"rows": ' + "9" * 5000 + "}",
        '{"shares": [1e999, "x"]}',
        '{"rows": 1.5}',
        '{"rows": true}',
        '{"rows": 1, "rows": 2}',
        '{"row": 1}',
        '{"name": {"a": 1}}',
        '{"shares": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "[1]",
        "null",
        "",
        "\x00",
        "{",
    ],
)
def test_what_is_of_no_such_form_is_one_sentence(tmp_path, text):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(Damaged, match=r"one\.json") as told:
        read_record(path, Form, "make it anew")
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)


def test_a_list_names_what_is_damaged_lost_swapped_or_another_s(tmp_path):
    folder = tmp_path / "a"
    (folder / "inner").mkdir(parents=True)
    large = bytes(range(256)) * (WHOLE // 128)
    texts = {"one": b"12345", "inner/two": b"12346", "large": large, "other": large[::-1]}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    list_files(folder, name="a")
    check_files(folder, "go", "a")
    with pytest.raises(Damaged, match="was written as 'a', not 'b'"):
        check_files(folder, "go", "b")
    for name, changed, told in [
        ("one", b"12344", "one is damaged"),
        ("one", b"1234", "one has 4 bytes, not 5"),
        ("inner/two", None, "two cannot be read"),
        ("large", large[::-1], "large is damaged"),
        ("large", large[:-1], "bytes, not"),
        (FILE, (folder / FILE).read_bytes().replace(b'"a"', b'"b"', 1), f"{FILE} is damaged"),
    ]:
        before = (folder / name).read_bytes()
        if changed is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(changed)
        with pytest.raises(Damaged, match=told):
            check_files(folder, "go", "a")
        (folder / name).write_bytes(before)
    (folder / FILE).unlink()
    check_files(folder, "go", "a")


def test_what_gets_a_name_is_on_the_disk_before(tmp_path, monkeypatch):
    done, sync, replace, rename = [], os.fsync, os.replace, os.rename

    def synced(handle):
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def moved(move):
        def record(source, target):
            done.append(("name", str(target)))
            move(source, target)

        return record

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    write_text(tmp_path / "file", "x")
    aside = str(tmp_path / f".file.{os.getpid()}")
    assert done == [("sync", aside), ("name", str(tmp_path / "file")), ("sync", str(tmp_path))]
    done.clear()
    with fresh_directory(tmp_path / "folder") as made:
        (made / "inner").mkdir()
        (made / "inner" / "one").write_text("x")
    wanted = {("sync", str(path)) for path in (made, made / "inner", made / "inner" / "one")}
    assert set(done[:3]) == wanted
    assert done[3:] == [("name", str(tmp_path / "folder")), ("sync", str(tmp_path))]


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"a": 1, "\\udfff": 2}'])
def test_half_a_character_is_damage(tmp_path, text):
    """JSON can write one, UTF-8 cannot."""
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(Damaged, match=r"one\.json is damaged \(it holds half of a character"):
        read_record(tmp_path / "one.json", dict[str, int], "go")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "one.json")
    with pytest.raises(Damaged, match=r"one\.json is a pipe and no file; go"):
        read_record(tmp_path / "one.json", dict[str, int], "go")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("x")
    list_files(folder)
    (folder / "a").unlink()
    os.mkfifo(folder / "a")
    with pytest.raises(Damaged, match="a is a pipe and no file; go"):
        check_files(folder, "go")


def test_a_closed_folder_holds_listed_files_alone(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "words.json").write_text("{}")
    list_files(tmp_path)
    (tmp_path / "more.txt").write_text("x")
    (tmp_path / "tokenizer" / ".hidden").write_text("x")
    check_files(tmp_path, "restore it", closed=["tokenizer", "absent"])
    (tmp_path / "tokenizer" / "added_tokens.json").write_text('{"x": 1}')
    check_files(tmp_path, "restore it")
    with pytest.raises(
        Damaged, match=r"added_tokens\.json is not one of the files .* delete it, or restore it"
    ):
        check_files(tmp_path, "restore it", closed=["tokenizer"])
