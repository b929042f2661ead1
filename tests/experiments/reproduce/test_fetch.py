"""Files of others: fetched over HTTP from a stand-in of their places, resumed, refused, unpacked."""

import hashlib
import zipfile

import pytest

from quecc_jax.errors import UserError
from quecc_jax.experiments.reproduce import fetch
from quecc_jax.experiments.reproduce.downloads import DOWNLOADS, Remote
from tests.experiments.reproduce.server import served

CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.bin").write_bytes(CONTENT)
    with served(tmp_path / "there") as one:
        yield one


def remote(**changes) -> Remote:
    return Remote("sub/a.bin", "", sha256=SHA, source="a page")._replace(**changes)


def got(place, root, **changes) -> str:
    return fetch.fetch(remote(**changes), f"{place.address}/a.bin", root)


def test_a_file_is_fetched_and_checked(place, tmp_path):
    root = tmp_path / "root"
    assert got(place, root, bytes=len(CONTENT)) == SHA
    assert (root / "sub/a.bin").read_bytes() == CONTENT
    assert [path.name for path in (root / "sub").iterdir()] == ["a.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_here_already_is_gone_on_with_where_the_server_can(place, tmp_path, ranges):
    place.ranges, part = ranges, tmp_path / "root/sub/a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    assert got(place, tmp_path / "root") == SHA
    assert place.asked == [("/a.bin", 1000)] and not part.exists()
    assert (tmp_path / "root/sub/a.bin").read_bytes() == CONTENT


def test_a_part_that_is_all_is_taken_and_one_that_is_too_long_begins_anew(place, tmp_path):
    part = tmp_path / "root/sub/a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert got(place, tmp_path / "root") == SHA and place.asked == [("/a.bin", len(CONTENT))]
    (tmp_path / "root/sub/a.bin").unlink()
    part.write_bytes(CONTENT + b"x")
    assert got(place, tmp_path / "root") == SHA and len(place.asked) == 3


def test_lost_connections_are_gone_on_with_while_each_brings_something(place, tmp_path):
    place.cut = [100_000, 50_000]
    assert got(place, tmp_path / "root") == SHA
    assert [begin for _, begin in place.asked] == [0, 100_000, 150_000]
    (tmp_path / "root/sub/a.bin").unlink()
    place.cut = [70_000, 0]
    with pytest.raises(UserError, match=r"the connection ended after 70,000 of 1,280,000 bytes.*goes on"):
        got(place, tmp_path / "root")
    # Nothing that is not whole has a whole file's name.
    assert [path.name for path in (tmp_path / "root/sub").iterdir()] == ["a.bin.part"]
    assert got(place, tmp_path / "root") == SHA and place.asked[-1][1] == 70_000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"sha256": "0" * 64},
            rf"sub/a\.bin has the SHA-256 {SHA}, not 0+, which a page states; fetch it again",
        ),
        ({"bytes": 7}, r"sub/a\.bin has 1,280,000 bytes, not the 7 that a page states"),
    ],
)
def test_another_file_is_refused_by_name_and_not_kept(place, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        got(place, tmp_path / "root", **changes)
    assert [*(tmp_path / "root/sub").iterdir()] == []


def test_what_is_not_there_is_one_sentence(place, tmp_path):
    for where, why in (
        (f"{place.address}/b.bin", "Not Found"),
        ("http://127.0.0.1:1/a", "refused"),
        (str(tmp_path / "none"), "No such file"),
    ):
        with pytest.raises(
            UserError, match=rf"{where} could not be fetched \(.*{why}.*put the file there yourself"
        ):
            fetch.fetch(remote(), where, tmp_path / "root")


def test_a_folder_is_a_mirror_too(tmp_path, place):
    assert fetch.fetch(remote(), str(place.folder / "a.bin"), tmp_path / "root") == SHA
    download = DOWNLOADS[0]
    assert fetch.address(download, download.remotes[0], "http://m/") == "http://m/vicuna/config.json"
    assert fetch.address(download, download.remotes[0], "").startswith("https://huggingface.co/lmsys/")


def archive(root, members: dict[str, bytes]) -> Remote:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "a.zip", "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return Remote("a.zip", "", into="out")


def found(root) -> dict[str, bytes]:
    return {
        str(one.relative_to(root / "out")): one.read_bytes()
        for one in (root / "out").rglob("*")
        if one.is_file()
    }


def test_an_archive_is_unpacked_and_what_a_kill_left_is_made_whole(tmp_path):
    members = {"a/1.jpg": b"one", "a/2.jpg": b"two", "b.txt": b"three"}
    packed = archive(tmp_path, members)
    assert fetch.unpack(packed, tmp_path) == 3 and found(tmp_path) == members
    (tmp_path / "out/a/1.jpg").write_bytes(b"on")
    (tmp_path / "out/a/2.jpg").write_bytes(b"\0\0\0")
    (tmp_path / "out/b.txt").unlink()
    kept = (tmp_path / "out/own").write_bytes(b"mine")
    fetch.unpack(packed, tmp_path)
    assert found(tmp_path) == {**members, "own": b"mine"} and kept == 4


def test_a_part_of_an_archive_alone(tmp_path):
    packed = archive(tmp_path, {"top/in/1": b"1", "top/other/2": b"2"})
    assert fetch.unpack(packed._replace(strip="top/in/"), tmp_path) == 1 and found(tmp_path) == {"1": b"1"}
    assert fetch.unpack(packed._replace(only="top/other/2"), tmp_path) == 1
    assert found(tmp_path) == {"1": b"1", "top/other/2": b"2"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_members_that_lie_outside_are_refused(tmp_path, name):
    packed = archive(tmp_path, {"fine": b"1", name: b"x"})
    with pytest.raises(UserError, match="which lies outside of its folder"):
        fetch.unpack(packed, tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_damaged_archive_is_one_sentence(tmp_path):
    packed = archive(tmp_path, {"a": b"some text", "b": b"more"})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"some text")] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    for damaged in (bytes(content), b"no archive"):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.zip cannot be unpacked \(.*fetch it again"):
            fetch.unpack(packed, tmp_path)
    assert not (tmp_path / "out/a").exists()


def test_a_second_place_shows_the_first_and_takes_nothing_s_place(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first/1").write_text("1")
    fetch.link(tmp_path, "deep/second", "first")
    assert (tmp_path / "deep/second/1").read_text() == "1"
    (tmp_path / "own").mkdir()
    fetch.link(tmp_path, "own", "first")
    assert [*(tmp_path / "own").iterdir()] == []


def test_folders_with_nothing_in_them_are_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/1").write_text("1")
    assert fetch.missing(tmp_path, ("empty/", "full/", "full/1", "full/2", "none/")) == [
        "empty/",
        "full/2",
        "none/",
    ]
