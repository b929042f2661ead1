"""Statistics of the report against plain computations."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.commands import grid_law
from quecc_jax.errors import UserError
from quecc_jax.experiments import stats
from quecc_jax.experiments.results import check_results, read_results
from quecc_jax.experiments.sizes_report import findings
from quecc_jax.experiments.testbed.seeds import seed_spreads
from tests.commands.synthetic import make_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("three"), seeds=3)


def answer(row, task, share):
    """Gives a row of the task that share of right answers."""
    if row["task"] == task:
        row["correct"] = share * row["n"]


@given(st.integers(0, 500), st.integers(1, 500))
def test_binomial_error_is_that_of_the_answers(right, wrong):
    score = stats.Score({0: (right / (right + wrong), right + wrong)})
    answers = np.repeat([1.0, 0.0], [right, wrong])
    assert (
        score.stderr == score.binomial == pytest.approx(np.std(answers) / math.sqrt(len(answers)), abs=1e-9)
    )
    assert score.questions == right + wrong and len(score.seeds) == 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_seeds_give_their_mean_and_its_standard_error(accuracies):
    score = stats.Score({seed: (a, 100) for seed, a in enumerate(accuracies)})
    variance = sum((a - score.mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
    assert score.mean == pytest.approx(sum(accuracies) / len(accuracies))
    assert score.stderr == pytest.approx(math.sqrt(variance / len(accuracies)), abs=1e-12)
    assert score.cautious >= max(score.stderr, score.binomial)


def test_one_seed_has_the_spread_that_was_measured_elsewhere(results):
    mine: Any = [{**r, "seed_spread": 0.05 if r["kind"] == "cell" else 0.2} for r in results["rows"]]
    before, after = (stats.scores(rows, "mosaic")["M", 1] for rows in (results["rows"], mine))
    asked = {r["kind"]: r["n"] for r in mine if (r["cell"], r["task"]) == ("M-v1-s0-question", "mosaic")}
    spread = (0.05 * asked["cell"] + 0.2 * asked["whole"]) / sum(asked.values())
    assert before.stderr == before.binomial == after.binomial
    assert after.stderr == pytest.approx(math.hypot(after.binomial, spread)) == after.cautious
    record = stats.scores_record(mine, set(), (1,), 6.0, "x", "y")
    assert (
        record["stderr"][1][0]
        > stats.scores_record(results["rows"], set(), (1,), 6.0, "x", "y")["stderr"][1][0]
    )
    (pair,) = stats.ablation(mine)
    assert pair.question.stderr == pytest.approx(math.hypot(pair.question.binomial, 0.05))


def test_the_spread_over_seeds_is_that_of_each_model_and_kind(three_seeds, results):
    found = stats.seed_spreads(three_seeds["rows"])
    shares = stats.scores(three_seeds["rows"], "mosaic/cell")
    deviations = [np.std(shares["L", v].shares, ddof=1) for v in (1, 4, 16, 64)]
    assert found["L"]["mosaic/cell"] == pytest.approx(np.sqrt(np.mean(np.square(deviations))))
    assert stats.seed_spreads(results["rows"]) == {}


def test_the_spread_that_the_testbed_knows_is_that_of_the_demo_with_three_seeds():
    demo = json.loads((Path(__file__).parents[2] / "docs/demo.json").read_text())
    found = stats.seed_spreads(demo["rows"])
    assert found.keys() == {"M", "L"}
    for llm, spreads in found.items():
        assert dict(seed_spreads(llm)) == pytest.approx(spreads, abs=1e-5)
    assert seed_spreads("XL") == ()


def test_grid_leaves_the_zeroed_query_out(results):
    scores = stats.scores(results["rows"], "mosaic")
    assert set(scores) == {(d, v) for d in "SML" for v in (1, 4, 16, 64)}
    mine = [r for r in results["rows"] if (r["cell"], r["task"]) == ("M-v1-s0-question", "mosaic")]
    assert [r["kind"] for r in mine] == ["cell", "whole"]
    assert scores["M", 1].mean == sum(r["correct"] for r in mine) / sum(r["n"] for r in mine)
    assert stats.scores(results["rows"], "mosaic/cell")["M", 1].mean == mine[0]["correct"] / mine[0]["n"]
    assert set(stats.scores(results["rows"], "mosaic", zero_query=True)) == {("M", 1)}


def test_attention_is_the_mean_over_seeds(three_seeds):
    assert stats.attention(three_seeds, "M", "question") == pytest.approx(0.7)
    assert stats.attention(three_seeds, "M", "zero") == pytest.approx(0.35)
    assert stats.attention(three_seeds, "S", "question") is None
    assert stats.attention(three_seeds, "M", "question", "reading/row") is None
    (sentence,) = (s for s in findings(three_seeds) if s.startswith("Attention"))
    assert "70 % of it" in sentence and "35 % with zeros" in sentence and "gives 25 %" in sentence


def test_ablation_pairs_the_same_model(three_seeds):
    pairs = stats.ablation(three_seeds["rows"])
    assert [(p.llm, p.visual_tokens, p.seed) for p in pairs] == [("M", 1, seed) for seed in range(3)]
    gains = [p.question.mean - p.zero.mean for p in pairs]
    gain, error = stats.ablation_effect(pairs)
    assert gain == pytest.approx(np.mean(gains)) and error == pytest.approx(
        np.std(gains, ddof=1) / math.sqrt(3)
    )
    _, single_error = stats.ablation_effect(pairs[:1])
    assert single_error == pytest.approx(math.hypot(pairs[0].question.stderr, pairs[0].zero.stderr))


def test_table_has_sizes_ascending_and_holes(results):
    some = copy.deepcopy(results)
    some["llms"].reverse()
    some["rows"] = [r for r in some["rows"] if (r["llm"], r["visual_tokens"]) != ("L", 16)]
    table = grid_law.score_table(some, "reading")
    np.testing.assert_allclose(table.params_b, [130e-6, 1050e-6, 3500e-6])
    assert np.argwhere(np.isnan(table.score)).tolist() == [[2, 2]]
    assert table.score[0, 3] == stats.scores(results["rows"], "reading")["S", 64].mean


def test_a_law_is_held_against_the_cautious_errors(three_seeds):
    """Seeds that happen to agree would reject every law."""
    table, found = grid_law.score_table(three_seeds, "mosaic"), stats.scores(three_seeds["rows"], "mosaic")
    names = {llm["params"] / 1e9: llm["name"] for llm in three_seeds["llms"]}
    assert table.stderr is not None
    cells = [found[names[n], int(v)] for n in table.params_b for v in table.visual_tokens]
    assert table.stderr.ravel().tolist() == [cell.cautious for cell in cells]
    assert any(cell.cautious > cell.stderr for cell in cells)


def test_stored_fit_has_the_residuals_of_its_law(results):
    table = grid_law.score_table(results, "mosaic")
    fit = grid_law.stored_fit(results, "mosaic", table)
    assert np.nansum(fit.residuals**2) == pytest.approx(results["fits"]["mosaic"]["sse"], rel=1e-9)
    assert fit.rmse == pytest.approx(results["fits"]["mosaic"]["rmse"])


def test_cost_is_counted_where_the_grid_is_complete_and_published_elsewhere(results):
    law = grid_law.stored_fit(results, "single", grid_law.score_table(results, "single")).law
    assert grid_law.counted_cost(results, "single", law)(0.00105, 16) == pytest.approx(2 * 1.05e6 * (30 + 16))
    some = copy.deepcopy(results)
    for row in some["rows"]:
        row["flops"] = {"single": 7.0, "mosaic": 8.0, "reading": 9.0}[row["task"]]
    assert grid_law.counted_cost(some, "mosaic", law)(0.00105, 16) == 8.0
    some["rows"] = [r for r in some["rows"] if (r["llm"], r["visual_tokens"]) != ("L", 16)]
    assert grid_law.counted_cost(some, "mosaic", law)(0.00105, 16) == pytest.approx(2 * 1.05e6 * (30 + 16))


def test_cheapest_near_best_trades_noise_for_compute(results):
    some = copy.deepcopy(results)
    for row in some["rows"]:
        answer(row, "single", {"S": 0.50, "M": 0.895, "L": 0.90}[row["llm"]])
    # With 1,200 questions 0.9 has a standard error of 0.0087, so M at V = 1 is as good and cheapest.
    assert stats.cheapest_near_best(stats.scores(some["rows"], "single")) == ("M", 1)


def test_spread_follows_the_ends_of_the_grid(results):
    some = copy.deepcopy(results)
    for row in some["rows"]:
        size = {"S": 0.0, "M": 0.3, "L": 0.2}[row["llm"]]
        answer(row, "single", 0.4 + size + {0: 0.0, 1: 0.0, 4: 0.2, 16: 0.05, 64: 0.1}[row["visual_tokens"]])
    assert stats.spread(some, "single") == (pytest.approx(0.1), pytest.approx(0.2))
    some["visual_tokens"], some["llms"] = [1], some["llms"][:1]
    assert stats.spread(some, "single") == (None, None)


def test_findings_follow_the_numbers(results):
    said = "\n".join(findings(results))
    top = stats.best(stats.scores(results["rows"], "mosaic"))
    assert f"decoder {top[0][0]}, V = {top[0][1]}) answers {100 * top[1].mean:.1f}" in said
    gain, _ = stats.ablation_effect(stats.ablation(results["rows"]))
    assert f"adds {100 * gain:.1f}" in said

    equal = copy.deepcopy(results)
    for row in equal["rows"]:
        answer(row, "mosaic", 0.33 if row["visual_tokens"] else 0.34)
    said = "\n".join(findings(equal))
    assert "makes no difference" in said
    assert "-1.0 points, within noise" in said


def test_nothing_is_recommended_that_does_no_better_without_its_images(results):
    blind = copy.deepcopy(results)
    for row in blind["rows"]:
        answer(row, "mosaic", 0.35 if row["visual_tokens"] == 4 else 0.34)
    said = findings(blind)
    (sentence,) = (one for one in said if one.startswith("Recommended for mosaic"))
    assert "none" in sentence and "sees no image" in sentence and "MFLOP" not in sentence
    assert sum("at V = " in one or "with V = " in one for one in said if one.startswith("Recommended")) == 2
    blind["rows"] = [row for row in blind["rows"] if row["visual_tokens"]]
    assert "none" not in "".join(one for one in findings(blind) if one.startswith("Recommended"))


@pytest.mark.parametrize("key", ["rows", "fits", "seconds"])
def test_absent_field_is_one_sentence(results, key):
    with pytest.raises(UserError, match=key):
        check_results({k: v for k, v in results.items() if k != key})


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "results.json: No such file or directory; name the results.json of a grid"),
        ("folder", "which is a folder; name the results.json of a grid"),
        (b"", "which is empty; name"),
        (b"\xff\xfe", "which is no text; name"),
        (b"{", "which is not valid JSON: "),
        (b'{"params_b": [1], "visual_tokens": [1], "score": [[0.1]]}', "which is a scores file; name"),
        (b"[]", "which is of something else; name"),
        (b'{"grid": "demo"}', "the results have no command"),
    ],
)
def test_a_file_that_holds_no_results_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "results.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_results(path)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "Errno" not in str(caught.value)


def test_no_finished_cell_is_one_sentence(results):
    with pytest.raises(UserError, match="no finished cell"):
        check_results({**results, "rows": []})


def test_equal_scores_without_an_error_do_not_differ():
    assert stats.Difference(0.0, 0.0).errors == 0.0
    assert stats.Difference(0.1, 0.0).errors == np.inf
    assert stats.Difference(-0.1, 0.0).errors == -np.inf


def test_nothing_is_recommended_by_costs_that_nobody_counted(results):
    some = copy.deepcopy(results)
    for row in some["rows"]:
        row["flops"] = None
    assert not [said for said in findings(some) if said.startswith("Recommended")]
    assert sum(said.startswith("Recommended") for said in findings(results)) == 3
