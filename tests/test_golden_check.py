"""The program that compares this library with the original's arrays: what it says of files that are none."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden_check import main

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "does not exist"),
        (b"", "is not a file of arrays"),
        (b"# a text", "is not a file of arrays"),
        (b"PK\x03\x04 and no more", "is not a file of arrays"),
        ({"x": np.ones(2)}, "holds no compressor in the goldens' layout: it has no meta"),
        ({"meta": np.ones(6), "cotangent": np.ones(2)}, "holds no compressor in the goldens' layout"),
    ],
)
def test_what_is_no_golden_file_is_one_sentence(tmp_path, capsys, content, says):
    path = tmp_path / "some.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"error: {path} ") and says in said.err
    assert said.err.count("\n") == 1


def test_a_cut_file_is_one_sentence(tmp_path, capsys):
    whole = (GOLDEN / "mqt_g12_q16_v5.npz").read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: len(whole) // 2])
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is not a file of arrays")


def test_calls_without_one_path_show_the_usage(tmp_path, capsys):
    for arguments in ([], ["a", "b"]):
        assert main(arguments) == 2
        assert "usage: python -m tests.golden_check" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no model in the original format" in capsys.readouterr().err


def test_a_golden_file_agrees(capsys):
    assert main([str(GOLDEN / "mqt_g12_q16_v5.npz")]) == 0
    assert max(json.loads(capsys.readouterr().out).values()) < 1e-4
