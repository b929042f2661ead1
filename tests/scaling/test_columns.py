"""Scores in columns: the same table as JSON gives, and one sentence where they can be read in two ways."""

import json
from typing import Any

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling.scores import read_scores

SIZES, COUNTS = [0.5, 1.8, 7], [1, 16, 36]
SCORE: list[list[Any]] = [[0.31, 0.38, 0.4], [0.41, 0.5, None], [0.6, 0.65, 0.7]]


def rows(cell="{:g}", size="{:g}"):
    return [
        [size.format(n), *("" if x is None else cell.format(x) for x in row)]
        for n, row in zip(SIZES, SCORE, strict=True)
    ]


def wide(mark=",", header=("params_b", 1, 16, 36), **form):
    return "\n".join(mark.join(map(str, line)) for line in [header, *rows(**form)])


def tidy(extra=lambda k: "", more="", name="score", value=lambda x: "" if x is None else f"{x:g}"):
    lines = [f"params_b,visual_tokens,{name}{more}"]
    lines += [
        f"{n},{v},{value(x)}{extra(k)}"
        for n, row in zip(SIZES, SCORE, strict=True)
        for k, (v, x) in enumerate(zip(COUNTS, row, strict=True))
    ]
    return "\n".join(lines)


def read(tmp_path, text, name="scores.csv", **more):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_scores(path, **more)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", wide()),
        ("a.tsv", wide("\t")),
        ("a.csv", wide(";")),
        ("a.csv", "\ufeff" + wide()),
        ("a.csv", wide().replace("\n", "\r\n") + "\r\n\r\n"),
        ("a.csv", wide(size="{:g}B")),
        ("a.csv", wide(header=("Size", "V=1", "V16", "v 36"), size="{:g} b")),
        ("a.csv", wide(size=" {:g} ")),
        ("a.csv", wide(header=('"params_b"', '"1"', '"16"', '"36"'))),
        ("a.csv", "# notes\n\n" + wide()),
        ("a.csv", wide().replace(",\n", ",NA\n")),
        ("a.csv", wide(cell="{:.2%}")),
        ("a.csv", "\n".join(line + "," for line in wide().split("\n"))),
        ("a.csv", tidy()),
        ("a.csv", tidy(name="error", value=lambda x: "" if x is None else f"{1 - x:.4f}")),
        ("a.csv", tidy(name="error", value=lambda x: "" if x is None else f"{100 * (1 - x):.4f}%")),
        ("a.tsv", tidy().replace(",", "\t")),
        ("a.csv", tidy(name="Accuracy")),
        (
            "a.csv",
            "params,V,score\n"
            + tidy()
            .replace("0.5,", "500M,")
            .replace("1.8,", "1.8e9,")
            .replace("7,", "7B,")
            .split("\n", 1)[1],
        ),
    ],
)
def test_columns_give_the_table_of_the_same_json(tmp_path, name, text):
    (tmp_path / "same.json").write_text(
        json.dumps({"params_b": SIZES, "visual_tokens": COUNTS, "score": SCORE})
    )
    table, same = read(tmp_path, text, name), read_scores(tmp_path / "same.json")
    np.testing.assert_allclose(table.params_b, same.params_b)
    np.testing.assert_array_equal(table.visual_tokens, same.visual_tokens)
    np.testing.assert_allclose(table.score, same.score)


def test_percentages_are_said_or_refused(tmp_path):
    text = wide(cell="{0:.0%}").replace("%", "")
    with pytest.raises(UserError, match="--percent"):
        read(tmp_path, text)
    np.testing.assert_allclose(read(tmp_path, text, percent=True).score[0], SCORE[0])
    for name, shares in (
        ("a.csv", wide()),
        ("a.json", json.dumps({"params_b": SIZES, "visual_tokens": COUNTS, "score": SCORE})),
    ):
        with pytest.raises(UserError, match="no percentages; leave --percent out"):
            read(tmp_path, shares, name, percent=True)


MIXED = [[25, 40, 50], [0.4, 0.5, None], [0.6, 0.65, 0.67]]
SHARES = [[0.25, 0.4, 0.5], [0.4, 0.5, 0.55], [0.6, 0.65, 0.67]]


@pytest.mark.parametrize(
    "change",
    [
        {"score": MIXED},
        {"score": [[25, 40, 50], [40, 50, 1], [60, 65, 67]]},
        {"score": [[25, 40, 50], [40, 50, 55], [60, 65, 67]], "tasks": {"a": SHARES}},
        {"score": SHARES, "tasks": {"a": [[25, 40, 50], [40, 50, 55], [60, 65, 67]]}},
    ],
)
def test_fractions_beside_percentages_are_refused(tmp_path, change):
    scores = {"params_b": SIZES, "visual_tokens": COUNTS} | change
    with pytest.raises(UserError, match="may be a fraction or a percentage; write every score in percent"):
        read(tmp_path, json.dumps(scores), "a.json", percent=True)
    with pytest.raises(UserError, match=r"outside 0..1; if these are percentages, write all of them so"):
        read(tmp_path, json.dumps(scores), "a.json")


def test_fractions_beside_percentages_are_refused_in_columns_by_seed_too(tmp_path):
    mixed = wide(cell="{:g}").replace("0.31", "31")
    with pytest.raises(UserError, match=r"Line 2's score at 16 visual tokens is 0.38 and another is 31"):
        read(tmp_path, mixed, percent=True)
    with pytest.raises(UserError, match=r"Line 2's score at 1 visual tokens is 31, outside 0..1"):
        read(tmp_path, mixed)
    seeds = "seed,params_b,visual_tokens,score\n" + "\n".join(
        f"{seed},{n},{v},{score}"
        for n in (1, 3)
        for v in (4, 16)
        for seed, score in enumerate((0.2, n + 0.5))
    )
    with pytest.raises(UserError, match=r"0.2 and another is 3.5, so it may be a fraction"):
        read(tmp_path, seeds, percent=True)
    with pytest.raises(UserError, match=r"is 1.5, outside 0..1"):
        read(tmp_path, seeds)


def test_percent_signs_and_zeros_settle_what_small_scores_are(tmp_path):
    small = wide(cell="{:.2%}").replace("31.00%", "0.40%")
    assert read(tmp_path, small).score[0, 0] == 0.004
    assert read(tmp_path, small, percent=True).score[0, 0] == 0.004
    zero = wide(cell="{:.2%}").replace("31.00%", "0").replace("%", "")
    assert read(tmp_path, zero, percent=True).score[0, 0] == 0


def test_seeds_are_averaged_and_tasks_stay_apart(tmp_path):
    lines = ["task,seed,params_b,visual_tokens,score,stderr"]
    for task, up in (("b", 0.1), ("a", 0.0)):
        for seed, more in ((0, -0.01), (1, 0.01)):
            lines += [
                f"{task},{seed},{n},{v},{0.3 + up + more + n / 100 + v / 1000},0.03"
                for n in (1, 3)
                for v in (4, 16)
            ]
    table = read(tmp_path, "\n".join(lines))
    np.testing.assert_allclose(table.score, [[0.364, 0.376], [0.384, 0.396]])
    np.testing.assert_allclose(table.tasks["b"], np.array(table.score) + 0.05)
    np.testing.assert_allclose(table.stderr, 0.03 / 2)
    with pytest.raises(UserError, match=r"Task 'b' has no line for 1B and 4 visual tokens"):
        read(tmp_path, "\n".join(line for line in lines if not (line[0] == "b" and ",1,4," in line)))


@pytest.mark.parametrize(
    "text, says",
    [
        (wide(";").replace("0.31", "0,31"), "several separators|decimals behind a point"),
        (wide().replace("0.31", '"0,31"'), "Line 2 has '0,31' as 1.*decimals behind a point, not a comma"),
        (wide("\t").replace("0.31", "0,31"), "decimals behind a point"),
        (wide().replace("0.31", "0,31"), "Line 2 has 5"),
        ("\n".join(wide().split("\n")[1:]), "has no header"),
        ("", "no line"),
        ("params_b\n7", "no separator"),
        ("params_b;1,2\n7;1", "several separators"),
        (wide(header=("params_b", 1, 16, 16)), "names '16' twice"),
        (wide(header=("params_b", 1, 16, "mean")), "column 'mean' is not known"),
        (wide(header=("model", 1, 16, 36)), "column 'model' is not known"),
        (wide(header=("N", 1, 16, 36)), "without a unit; write 7B, or name the column params_b"),
        (wide(size="{:g}e9"), "which counts billions"),
        (wide(size="x{:g}"), "write a size such as 7 or 7B"),
        (wide().replace("0.31", "31%"), "Some scores have a percent sign"),
        (wide().replace("0.31", "a"), "'a' as 1"),
        (wide().replace("0.31", "inf"), "write a number"),
        (wide().replace("0.31", "nan"), "Line 2 has 'nan' as 1; write a number, or nothing for a missing"),
        (tidy(lambda k: ",NaN", ",stderr"), "Line 2 has 'NaN' as stderr; write a number, or nothing"),
        (wide().split("\n")[0], "has no rows below its header"),
        (tidy().split("\n")[0] + "\n\n", "has no rows below its header"),
        ("params_b,\n7,\n1,", "has no column of scores"),
        (wide().replace("0.31", "3_1"), "write a number"),
        (tidy() + "\n7,36,0.7", "Lines 10 and 11 give the same cell twice"),
        (wide() + "\n7,1,1,1", "same cell twice"),
        (tidy(lambda k: ",0", ",seed") + "\n7,36,0.7,0", "same cell twice"),
        (tidy(lambda k: ",", ",seed"), "Line 2 has no seed"),
        (tidy(lambda k: ",x", ",who"), "'who' is not known"),
        (tidy(lambda k: ",0.5", ",error"), "and not both"),
        (tidy(name="stderr"), "one column of `score`"),
        (tidy(lambda k: ",7", ",size"), "one column of LLM sizes"),
        (tidy().replace(",36,", ",36.5,"), "whole number"),
        (tidy(name="error", value=lambda x: "60"), "Errors above 1 are percentages"),
        (wide().replace("\n1.8", "\n,").replace("\n7", "\n"), "write a size|cells"),
        (wide().encode("utf-16"), "not a text file in UTF-8"),
        (b"\xff\xfa", "not a text file"),
        (wide().replace("0.38", '"0.38\n"'), "goes on in the next line"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, text, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, text)
    assert "scores.csv" in str(caught.value)


@pytest.mark.parametrize(
    "text, says",
    [
        (
            '{"params_b": [5e8, 7e9], "visual_tokens": [1, 2], "score": [[0.1, 0.2], [0.2, 0.4]]}',
            "counts billions",
        ),
        ('{"params_b": [1, 2], "params_b": [1, 7]}', "an object holds 'params_b' twice"),
    ],
)
def test_json_is_held_to_the_same(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, text, "scores.json")


def test_json_may_have_a_byte_order_mark(tmp_path):
    text = "\ufeff" + json.dumps({"params_b": SIZES, "visual_tokens": COUNTS, "score": SCORE})
    np.testing.assert_array_equal(read(tmp_path, text, "scores.json").params_b, SIZES)
