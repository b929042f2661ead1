"""Tables and plans that would take minutes, or no page could show, are refused in a sentence, before any work."""

import json
from typing import Any

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling import limits
from scaling.__main__ import main
from scaling.scores import read_scores
from scaling.table import Cell, is_number, parse_cells, parse_scores

SCORE = [[0.30, 0.35], [0.40, 0.45]]
SMALL: dict[str, Any] = {"params_b": [1, 7], "visual_tokens": [1, 36], "score": SCORE}


def axis(count: int) -> list[float]:
    return np.geomspace(1, 1000, count).tolist()


def square(sizes: int, counts: int) -> dict[str, Any]:
    score = 0.5 + 0.1 * np.random.default_rng(0).random((sizes, counts))
    return {"params_b": axis(sizes), "visual_tokens": axis(counts), "score": score.tolist()}


@pytest.mark.parametrize(
    "content, message",
    [
        (square(316, 316), "'params_b' lists 316 numbers, and a fit takes at most 50"),
        ({**SMALL, "visual_tokens": axis(100_000)}, "'visual_tokens' lists 100,000 numbers"),
        (
            square(26, 20),
            "26 sizes by 20 numbers of visual tokens are 520 cells, and a fit takes at most 500",
        ),
        (
            {**SMALL, "tasks": {f"t{k}": SCORE for k in range(25)}},
            "of 25 tasks in 4 cells, and a fit takes at most 24",
        ),
        (
            {**square(11, 10), "tasks": {f"t{k}": square(11, 10)["score"] for k in range(11)}},
            "11 tasks in 110 cells, .* 1,200 cells of all tasks together",
        ),
        ({**SMALL, "name": "n" * 1_000_000}, "The name 'n{40}'... has 1,000,000 letters, .* room for 200"),
        ({**SMALL, "tasks": {"t" * 201: SCORE}}, "name of the task 't{40}'... has 201 letters"),
        ({**SMALL, "params_b": [1, 1e308]}, "holds 1e.308, but it counts billions"),
        ({**SMALL, "params_b": [1, 10**400]}, "must hold positive numbers, of at least 1e-09; it holds 1000"),
        ({**SMALL, "params_b": [1e-308, 1]}, "of at least 1e-09; it holds 1e-308"),
        (
            {**SMALL, "visual_tokens": [1, 1e308]},
            "'visual_tokens' holds 1e.308, more than the 1e.07 that any",
        ),
        ({**SMALL, "query_tokens": 1e308}, "at least 0 and at most 1e.07, not 1e.308"),
        (
            {**SMALL, "flagged": [{"params_b": 1, "visual_tokens": 1, "reason": "?"}] * 5},
            "'flagged' has 5 entries, more than the table has cells",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_no_fit_takes_is_a_sentence(content, message):
    with pytest.raises(UserError, match=message):
        parse_scores(content)


def test_the_largest_table_is_read():
    tasks = {f"t{k}": square(10, 5)["score"] for k in range(24)}
    table = parse_scores({**square(10, 5), "name": "n" * 200, "tasks": tasks})
    assert len(table.tasks) == 24
    assert parse_scores(square(25, 20)).score.shape == (25, 20)
    assert parse_scores(square(50, 10)).score.shape == (50, 10)


def test_single_scores_are_counted_before_they_are_averaged():
    cells = [Cell(k, n, v, "", "", 0.5, None) for k, (n, v) in enumerate(np.ndindex(316, 316), start=1)]
    with pytest.raises(UserError, match="'params_b' lists 316 numbers"):
        parse_cells([cell._replace(params_b=1 + cell.params_b) for cell in cells])


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "tidy.csv",
            "params_b,visual_tokens,seed,score\n" + "".join(f"1,1,{k},.5\n" for k in range(100_001)),
            "It has 100,001 scores, and a fit takes at most 100,000",
        ),
        (
            "wide.csv",
            f"params_b,{','.join(map(str, range(1, 60_001)))}\n" + f"1{',.5' * 60_000}\n" * 2,
            "It has 120,000 scores",
        ),
        ("cell.csv", f"params_b,visual_tokens,task,score\n1,1,{'t' * 200_000},.5\n", "cannot be read .field"),
        ("large.csv", "params_b,1\n" + "1,.5\n" * 1_700_000, "larger than 8 MiB"),
        (
            "value.json",
            json.dumps({**SMALL, "params_b": ["x" * 100_000, 1]}),
            r"it holds 'x{3,30}\.{3}x{3,30}'",
        ),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_files_that_are_too_long_are_refused_in_short(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as found:
        read_scores(tmp_path / name)
    assert len(str(found.value)) < 1000


def test_numbers_are_those_that_a_float_holds():
    assert all(map(is_number, (0, -1, 2.5, 10**300)))
    assert not any(map(is_number, (True, "1", None, np.nan, np.inf, -np.inf, 10**400, -(10**400))))


def test_plans_are_refused_by_their_number_of_predictions():
    limits.refuse_choices(1000, 20_000)
    with pytest.raises(UserError, match=r"1,001 pairs of LLM and visual tokens .* at most 1,000"):
        limits.refuse_choices(1001, 1)
    with pytest.raises(
        UserError, match="28 choices by 1,000,000 refits of the fit are 28,000,000 predictions"
    ):
        limits.refuse_choices(28, 1_000_000)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["fit", "--scores", "ocr", "--predict", *map(str, range(1, 12))],
            "--predict has 11 sizes; give at most 10",
        ),
        (["fit", "--scores", "ocr", "--query-tokens", "1e308"], "--query-tokens is 1e+308; .* at most 1e+07"),
        (
            ["plan", "--fit", "ocr", "--flops", "1e12", "--visual-tokens", *map(str, range(1, 400))],
            "pairs of LLM and visual tokens to choose from",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_command_line_has_the_same_limits(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert all(part in said for part in message.split(" .* "))
