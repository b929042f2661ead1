"""Proposals of cells against plain loops, and the command."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scaling_next as study
from quecc_jax.errors import UserError
from quecc_jax.records import unsealed
from scaling.__main__ import main
from scaling.design.proposal import noise_of, propose, training_flops
from scaling.design.worth import (
    Decision,
    by_information,
    by_regret,
    expected_regrets,
    information,
    information_gains,
    log_likelihoods,
)
from scaling.diagnostics.bootstrap import bootstrap
from scaling.fit import fit_law
from scaling.law import Law, Params
from scaling.planner import published_options
from scaling.report.next_report import cell_name
from scaling.saved_fit import SavedFit, load_fit
from scaling.scores import published
from scaling.table import parse_scores

BUDGET = ["--flops", "5e11", "2e12"]


def drawn(seed, laws=6, choices=4, cells=3, budgets=2):
    """A decision, cells' errors by each law, and prices, all at random."""
    rng = np.random.default_rng(seed)
    costs = rng.permutation(choices) + 1.0
    affordable = np.stack([costs <= limit for limit in np.linspace(choices / 2, choices, budgets)])
    decision = Decision(rng.uniform(0.3, 0.6, (laws, choices)), costs, affordable)
    return decision, rng.uniform(0.3, 0.6, (laws, cells)), rng.uniform(1, 5, cells)


def loop(decision, scores, sigma, cells):
    """Expected regret by hand; scores [truth][draw] are lists of what the cells in `cells` showed."""
    laws, total = len(decision.errors), []
    for truth in range(laws):
        for seen in scores[truth]:
            weights = []
            for law in range(laws):
                loss = sum((y - cells[law][k]) ** 2 for k, y in seen)
                weights.append(0.0 if law == truth else math.exp(-loss / (2 * sigma**2)))
            for affordable in decision.affordable:
                bought = [j for j in range(len(decision.costs)) if affordable[j]]
                mean = {
                    j: sum(w * decision.errors[law][j] for law, w in enumerate(weights)) / sum(weights)
                    for j in bought
                }
                chosen = min(bought, key=lambda j: (mean[j], decision.costs[j]))
                total.append(decision.errors[truth][chosen] - min(decision.errors[truth][j] for j in bought))
    return sum(total) / len(total)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.3))
def test_expected_regret_is_what_a_plain_loop_finds(seed, sigma):
    decision, cells, prices = drawn(seed)
    now, steps = by_regret(decision, cells, prices, sigma, 2, 3, np.random.default_rng(seed))
    nothing: list[list[list[tuple[int, float]]]] = [[[] for _ in range(3)] for _ in cells]
    assert now == pytest.approx(loop(decision, nothing, sigma, cells), abs=1e-12)
    rng, seen = np.random.default_rng(seed), nothing
    before = now
    for step in steps:
        noise = rng.standard_normal((6, 3))
        found = {}
        for k in range(3):
            if math.isnan(step.gains[k]):
                continue
            also = [
                [[*seen[s][m], (k, cells[s][k] + sigma * noise[s][m])] for m in range(3)] for s in range(6)
            ]
            found[k] = (loop(decision, also, sigma, cells), also)
            assert before - found[k][0] == pytest.approx(step.gains[k], abs=1e-10)
        assert step.cell == max(found, key=lambda k: (before - found[k][0]) / prices[k])
        before, seen = found[step.cell]


def test_a_cell_that_tells_the_laws_apart_takes_all_regret_and_others_none():
    """Ten laws buy the first choice, ten the second; one cell differs between them, one does not."""
    errors = np.repeat([[0.3, 0.4], [0.5, 0.4]], 10, axis=0)
    cells = np.repeat([[0.2, 0.35], [0.6, 0.35]], 10, axis=0)
    decision = Decision(errors, np.array([1.0, 1.0]), np.ones((1, 2), bool))
    rng = np.random.default_rng(0)
    now, steps = by_regret(decision, cells, np.ones(2), 1e-3, 2, 5, rng)
    # 9 like the truth against 10: those whose choice has the larger weight are outvoted half the time.
    assert now == pytest.approx(0.1)
    assert [step.cell for step in steps] == [0]
    assert steps[0].gains.tolist() == pytest.approx([0.1, 0.0])
    # An equal cell at half the price is the better one.
    twice = cells[:, [0, 0]]
    _, steps = by_regret(decision, twice, np.array([2.0, 1.0]), 1e-3, 1, 5, rng)
    assert steps[0].cell == 1
    # Noise beyond all measure tells nothing.
    assert by_regret(decision, cells, np.ones(2), 1e9, 2, 5, rng)[1] == []


def test_the_truth_does_not_vote_for_itself():
    errors = np.array([[0.1, 0.2], [0.2, 0.1], [0.2, 0.1]])
    decision = Decision(errors, np.array([1.0, 2.0]), np.ones((1, 2), bool))
    # Law 0's others both buy the second; the others of 1 and 2 are even, and the cheaper of equals is the first.
    assert expected_regrets(decision, np.zeros((3, 1, 3))).tolist() == pytest.approx([0.1, 0.1, 0.1])
    likely = log_likelihoods(np.array([0.0, 1.0, 2.0]), np.zeros((3, 1)), 0.1)
    # Seen exactly, law 1's nearest are 0 and 2 alike, law 2's is 1.
    assert expected_regrets(decision, likely).tolist() == pytest.approx([0.1, 0.1, 0.0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 3))
def test_information_is_a_difference_of_log_determinants(seed, sigma):
    rng = np.random.default_rng(seed)
    known, new = rng.normal(size=(9, 4)), rng.normal(size=(5, 4))
    prices = rng.uniform(1, 3, 5)
    f = information(known, np.full(9, sigma))
    gains = information_gains(f, new, sigma)
    for g, gain in zip(new, gains, strict=True):
        larger = f + np.outer(g, g) / sigma**2
        assert gain == pytest.approx(np.linalg.slogdet(larger)[1] - np.linalg.slogdet(f)[1], abs=1e-6)
    steps, left = by_information(f, new, prices, sigma, 3), set(range(5))
    for step in steps:
        best = max(left, key=lambda k: information_gains(f, new, sigma)[k] / prices[k])
        assert step.cell == best and step.gains[best] == pytest.approx(information_gains(f, new, sigma)[best])
        f = f + np.outer(new[best], new[best]) / sigma**2
        left.remove(best)


def test_a_constant_of_which_nothing_is_known_is_told_most_by_any_cell():
    f = np.diag([1.0, 0.0])
    gains = information_gains(f, np.array([[1.0, 0.0], [0.0, 1.0]]), 1.0)
    assert gains[0] == pytest.approx(math.log(2)) and np.isfinite(gains[1]) and gains[1] > 20


def small(noise=0.01, stderr=None, seed=0, tokens="V", count=200):
    """A fit of three sizes and three counts."""
    sizes, counts = [0.5, 1.8, 4], [1, 16, 144]
    law = Law(Params(0.5, 0.12, 0.08, 0.1), tokens)
    clean = 1 - law.error(np.array(sizes)[:, None], np.array(counts)[None, :])
    score = clean + noise * np.random.default_rng(seed).normal(size=clean.shape)
    content = {"params_b": sizes, "visual_tokens": counts, "score": score, "name": "small"}
    if stderr is not None:
        content["stderr"] = np.full(clean.shape, stderr)
    table = parse_scores(content)
    fit = fit_law(table, tokens, n_starts=16)
    samples = bootstrap(table, fit, count=count)
    reach = fit.law.reach(*table.observed_axes)
    return SavedFit("small", fit.law, samples, table.params_b, table.visual_tokens, reach, table=table), fit


def test_noise_is_the_standard_error_or_the_scatter():
    fit, made = small()
    assert noise_of(fit).sigma == pytest.approx(math.sqrt(made.sse / 5))
    fit, made = small(stderr=0.5)
    assert (
        noise_of(fit).sigma == pytest.approx(0.5) and noise_of(fit).source == "standard errors of the scores"
    )
    fit, made = small(stderr=1e-4)
    assert noise_of(fit).sigma == pytest.approx(math.sqrt(made.sse / 5)) and "times" in noise_of(fit).source
    held = fit._replace(fixed=("D",), table=dataclasses.replace(fit.table, stderr=None))
    assert noise_of(held).sigma == pytest.approx(math.sqrt(made.sse / 6))


def test_cells_with_a_score_are_left_out_and_those_beyond_marked():
    fit, _ = small()
    found = propose(fit, [0.5, 1.8, 4, 14], [1, 16, 576], [3e12], count=2)
    cells = set(zip(found.params_b, found.visual_tokens, strict=True))
    assert cells == {(0.5, 576), (1.8, 576), (4, 576), (14, 1), (14, 16), (14, 576)}
    assert found.is_outside.all()
    np.testing.assert_allclose(found.prices, 6e9 * found.params_b * (50 + found.visual_tokens))
    assert training_flops([7], [14], 50)[0] == 6 * 7e9 * 64
    again = propose(fit, [0.5, 4], [1, 36], [3e12], count=1, again=True)
    assert len(again.params_b) == 4 and not again.is_outside.any()
    names = [cell_name(found, k) for k in range(6)]
    assert names[0] == "0.5B, V = 576 (extrapolated)" and cell_name(again, 0) == "0.5B, V = 1"


def test_a_decision_may_be_among_other_choices():
    """Of one choice alone there is nothing to decide; the cells stay the same."""
    fit, _ = small()
    found = propose(fit, [0.5, 4], [36], [3e12], count=1, among=published_options([7], [1], 50))
    assert found.plans[0].options.llms == ("7B",) and found.regret_now == 0 and found.by_regret == ()
    assert found.params_b.tolist() == [0.5, 4]


def test_the_text_of_the_decision_is_not_that_of_the_cells():
    """Under T = Q + V the measured cells keep their own Q; the decision has another."""
    fit, _ = small(tokens="Q+V")
    found = propose(fit, [0.5, 4, 7], [1, 36], [1e14], text=2000, count=1)
    assert found.fit.law.query_tokens == 2000 and found.plans[0].options.cost.max() == 2e9 * 7 * 2036
    np.testing.assert_allclose(found.prices, 6e9 * found.params_b * (50 + found.visual_tokens))
    assert found.is_outside.tolist() == [n == 7 for n in found.params_b]
    expected = propose(fit, [0.5, 4, 7], [1, 36], [1e14], count=1)
    assert found.noise == expected.noise
    np.testing.assert_array_equal(found.by_information[0].gains, expected.by_information[0].gains)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"table": None}, "does not hold its scores"),
        ({"samples": None}, "holds 0 bootstrap laws"),
        (
            {"samples": Params(*(np.ones(19),) * 4)},
            "holds 19 bootstrap laws, and a proposal needs at least 20",
        ),
    ],
)
def test_a_fit_that_cannot_propose_is_refused(change, says):
    fit, _ = small()
    with pytest.raises(UserError, match=says):
        propose(fit._replace(**change), [7], [1], [3e12])


def test_a_grid_that_is_too_small_is_refused():
    fit, _ = small()
    score = fit.table.score.copy()
    score[0], score[1, :2] = np.nan, np.nan
    with pytest.raises(UserError, match="has 4 scores, and a proposal needs at least 5"):
        propose(fit._replace(table=dataclasses.replace(fit.table, score=score)), [7], [1], [3e12])


def test_senseless_candidates_and_budgets_are_refused():
    fit, _ = small()
    for sizes, counts, budgets, says in (
        ([0.5, 1.8], [1, 16], [3e12], "has a score already"),
        ([7e9], [1], [3e12], "no size in billions"),
        ([7], [1e9], [3e12], "visual tokens is none"),
        ([7], [1], [3e12, 1e3], "A budget of 1 kFLOP per query buys no choice"),
        (np.linspace(5, 7, 30).tolist(), list(range(1, 31)), [3e12], "at most 500"),
        (
            np.linspace(5, 7, 20).tolist(),
            list(range(1, 21)),
            [3e12, 4e12],
            "a proposal weighs at most 16,000",
        ),
    ):
        with pytest.raises(UserError, match=says):
            propose(fit, sizes, counts, budgets)


@pytest.fixture(scope="module")
def fit_folder(tmp_path_factory):
    table = published("ocr")
    score = [
        [None if n == 7 or v in (4, 64) else s for v, s in zip(table.visual_tokens, row, strict=True)]
        for n, row in zip(table.params_b, table.score.tolist(), strict=True)
    ]
    folder = tmp_path_factory.mktemp("next")
    content = {
        "params_b": table.params_b.tolist(),
        "visual_tokens": table.visual_tokens.tolist(),
        "score": score,
    }
    content["stderr"] = [[None if s is None else 0.015 for s in row] for row in score]
    (folder / "scores.json").write_text(json.dumps(content))
    command = ["fit", "--scores", str(folder / "scores.json"), "--out", str(folder / "fit")]
    assert main([*command, "--refits", "100", "--starts", "32"]) == 0
    return folder / "fit"


def test_the_command_writes_record_page_and_figure(fit_folder, tmp_path, capsys):
    options = ["--count", "2", "--llms", "0.5", "1.8", "4", "qwen1.5-7b", "14"]
    assert main(["next", "--fit", str(fit_folder), "--out", str(tmp_path), *BUDGET, *options]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"next.json", "next.html", "cells.png"}
    told = unsealed(json.loads((tmp_path / "next.json").read_text()), "next.json", "")
    assert len(told["candidates"]) == 5 * 7 - 3 * 5 and told["laws"] == 100
    assert 1 <= len(told["by_regret"]) <= 2 and len(told["by_information"]) == 2
    # A size whose cells are all missing was not fitted on.
    assert {c["params_b"] for c in told["candidates"] if c["extrapolated"]} == {7, 14}
    first, worth = told["by_regret"][0], {}
    for c in told["candidates"]:
        worth[c["params_b"], c["visual_tokens"]] = c["gain"] / c["training_flops_per_row"]
    assert (first["params_b"], first["visual_tokens"]) == max(worth, key=lambda cell: worth[cell])
    assert told["decisions"][1]["flops"] == 2e12 and told["stderr_source"].startswith("standard errors")
    said, page = capsys.readouterr().out, (tmp_path / "next.html").read_text()
    for text in (told["advice"], *told["notes"]):
        assert text in said and text.replace("'", "&#39;") in page
    assert "Train next, by the regret of the decision" in said
    named = [*told["by_regret"], *told["by_information"]]
    assert ("extrapolated" in said) == any(cell["extrapolated"] for cell in named)
    again = tmp_path / "again"
    assert main(["next", "--fit", str(fit_folder), "--out", str(again), *BUDGET, *options]) == 0
    assert (again / "next.json").read_text() == (tmp_path / "next.json").read_text()


@pytest.mark.usefixtures("without_figures")
def test_a_decision_that_is_certain_needs_no_cell(fit_folder, tmp_path, capsys):
    """The budget buys the smallest choice alone."""
    cheap = ["--flops", "5.2e10"]
    assert main(["next", "--fit", str(fit_folder), "--out", str(tmp_path), *cheap]) == 0
    assert "train nothing: all bootstrap laws buy the same" in capsys.readouterr().out
    told = json.loads((tmp_path / "next.json").read_text())
    assert told["by_regret"] == [] and told["regret_now"] == 0 and len(told["by_information"]) == 3
    assert {c["gain"] for c in told["candidates"]} == {None}


def test_standard_errors_come_back_from_a_fit(fit_folder):
    fit = load_fit(str(fit_folder))
    assert fit.table is not None and fit.table.stderr is not None
    observed = np.isfinite(fit.table.score)
    assert (fit.table.stderr[observed] == 0.015).all() and np.isnan(fit.table.stderr[~observed]).all()
    assert fit.reach.params_b == (0.5, 4) and fit.reach.tokens == (1, 576)


@pytest.mark.parametrize(
    "options, says",
    [
        ([], "--flops must be given"),
        (["--flops"], "--flops has 0 budgets; give one to 20"),
        (["--flops", "0"], "--flops has 0; give positive numbers"),
        (["--flops", "3e12", "3e12"], "name one twice"),
        (["--flops", "1e3"], "buys no choice"),
        ([*BUDGET, "--count", "0"], "--count is 0; give at least 1"),
        ([*BUDGET, "--count", "51"], "--count is 51; give at most 50"),
        ([*BUDGET, "--draws", "65"], "--draws is 65; give at most 64"),
        ([*BUDGET, "--seed", "-1"], "--seed is -1; give at least 0"),
        ([*BUDGET, "--visual-tokens", "0"], "--visual-tokens has 0; give positive numbers"),
        ([*BUDGET, "--llms", "x"], "'x' is not known"),
        ([*BUDGET, "--llms", "20000"], "no size in billions"),
        ([*BUDGET, "--llms", "0.5", "4", "--visual-tokens", "16"], "has a score already"),
        ([*BUDGET, "--fit", "nowhere"], "published table"),
    ],
)
def test_mistakes_are_one_sentence_and_status_one(fit_folder, tmp_path, capsys, options, says):
    fit = [] if "--fit" in options else ["--fit", str(fit_folder)]
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["next", "--out", str(tmp_path / "out"), *fit, *options])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not (tmp_path / "out").exists()


def test_the_simulation_ends_with_the_whole_grid():
    """Whatever chooses the cells, all of them give the same fit."""
    (world,) = study.worlds("general", 1, 0)
    assert study.regret_of(world, world.law) == 0
    assert world.sigma == pytest.approx(math.sqrt(3.7938e-4 / 24), rel=1e-4)
    whole = study.full_grid(world, 5)
    for way in ("cheapest", "random"):
        path = study.simulate(world, way, 5, until=1)
        assert len(path) == 28 - 6 + 1 and path[-1] == pytest.approx((1, whole), abs=1e-6)
        assert [share for share, _ in path] == sorted(share for share, _ in path)
    path = study.simulate(world, "regret", 5, until=0.06)
    assert path[-2][0] < 0.06 <= path[-1][0] and all(regret >= 0 for _, regret in path)
    assert study.at_shares([(0.05, 3.0), (0.2, 2.0), (0.5, 1.0)]) == [3, 3, 3, 3, 2, 2]
