"""The joint fit over compressors against scipy, and the command."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import f as fisher
from scipy.stats import t as student

from quecc_jax.errors import UserError
from quecc_jax.records import unsealed
from scaling.__main__ import main
from scaling.diagnostics.joint import MODELS, fit_joint, formula, half_width
from scaling.diagnostics.rivals import aicc
from scaling.fit import fit_law
from scaling.scores import published
from scaling.table import parse_scores

SIZES, COUNTS = np.array([0.5, 1.8, 4, 7]), np.array([1, 4, 16, 64, 576])


def table_of(law, seed=0, noise=0.003, text=50):
    a, alpha, beta, d = law
    error = a / SIZES[:, None] ** alpha / COUNTS**beta + d
    score = 1 - error + noise * np.random.default_rng(seed).normal(size=error.shape)
    content = {"params_b": SIZES, "visual_tokens": COUNTS, "score": score, "query_tokens": text}
    return parse_scores(content)


def three(**changes):
    """Three compressors whose tokens are worth differently, on one language model."""
    laws = {"a": (0.5, 0.15, 0.05, 0.1), "b": (0.6, 0.15, 0.1, 0.1), "c": (0.55, 0.15, 0.02, 0.1)}
    return {name: table_of(law, k) for k, (name, law) in enumerate((laws | changes).items())}


def cells(tables):
    n, v = np.meshgrid(SIZES, COUNTS, indexing="ij")
    return n.ravel(), v.ravel(), np.stack([t.error.ravel() for t in tables.values()])


def scipy_sse(tables, name):
    """The least squares of a law by another layout and numerical derivatives, from several starts."""
    n, v, y = cells(tables)
    count = len(tables)

    def constants(x):
        rows, at = [], 0
        for one in ("A", "alpha", "beta", "D"):
            width = count if one in MODELS[name] else 1
            rows.append(np.broadcast_to(x[at : at + width], count))
            at += width
        return np.array(rows)[..., None]

    def residuals(x):
        a, alpha, beta, d = constants(x)
        return (a * n**-alpha * v**-beta + d - y).ravel()

    width = sum(count if one in MODELS[name] else 1 for one in ("A", "alpha", "beta", "D"))
    rng, best = np.random.default_rng(0), math.inf
    for _ in range(6):
        start = rng.uniform(0.02, 0.5, width)
        found = least_squares(
            residuals, start, bounds=(0, 5), xtol=1e-13, ftol=1e-13, gtol=1e-13, max_nfev=4000
        )
        best = min(best, 2 * found.cost)
    return best, width


@pytest.mark.parametrize("name", MODELS)
def test_every_law_is_the_least_squares_of_scipy(name):
    tables = three()
    fit = fit_joint(tables).fits[name]
    sse, width = scipy_sse(tables, name)
    assert fit.n_parameters == width
    assert fit.sse == pytest.approx(sse, rel=1e-5)
    assert fit.aicc == pytest.approx(aicc(fit.sse, 60, width))
    n, v, y = cells(tables)
    a, alpha, beta, d = (leaf[:, None] for leaf in fit.constants)
    assert np.sum((a * n**-alpha * v**-beta + d - y) ** 2) == pytest.approx(fit.sse)
    for one, leaf in fit.constants._asdict().items():
        assert len(set(leaf)) == (3 if one in MODELS[name] else 1)


def test_tests_are_those_of_fisher_and_weights_sum_to_one():
    found = fit_joint(three())
    for test in found.tests:
        small, large = found.fits[test.smaller], found.fits[test.larger]
        more, rest = large.n_parameters - small.n_parameters, 60 - large.n_parameters
        statistic = (small.sse - large.sse) / more / (large.sse / rest)
        assert test.dof == (more, rest) and test.statistic == pytest.approx(statistic)
        assert test.p == pytest.approx(fisher.sf(statistic, more, rest), rel=1e-6)
    assert sum(fit.weight for fit in found.fits.values()) == pytest.approx(1)


def test_one_table_twice_is_the_law_of_that_table():
    table = published("general")
    found = fit_joint({"x": table, "y": table})
    alone = fit_law(table)
    for fit in found.fits.values():
        assert fit.sse == pytest.approx(2 * alone.sse, rel=1e-6)
    one = [leaf[0] for leaf in found.fits["one"].constants]
    np.testing.assert_allclose(one, alone.law.params, rtol=1e-3, atol=1e-6)
    assert not any(test.rejects for test in found.tests)
    # On its bound, and not a little above, where the search stays.
    assert set(found.fits["tokens"].constants.D) == {0.0} and np.isnan(found.fits["tokens"].stderr.D).all()


def test_what_made_the_scores_is_found():
    found = fit_joint(three())
    assert found.depends.rejects and not found.size_too.rejects
    assert min(found.fits.values(), key=lambda fit: fit.aicc).name == "tokens"
    np.testing.assert_allclose(found.fits["tokens"].constants.beta, [0.05, 0.1, 0.02], atol=0.02)
    same = {name: (0.5, 0.15, 0.05, 0.1) for name in "abc"}
    alike = fit_joint(three(**same))
    assert not alike.depends.rejects and not alike.size_too.rejects
    other = fit_joint(three(b=(0.6, 0.4, 0.1, 0.1)))
    assert other.size_too.rejects


def test_equal_at_one_token_is_rates():
    laws = {"a": (0.55, 0.15, 0.05, 0.1), "b": (0.55, 0.15, 0.1, 0.1), "c": (0.55, 0.15, 0.02, 0.1)}
    found = fit_joint(three(**laws))
    tests = {(test.smaller, test.larger): test for test in found.tests}
    assert tests["one", "rates"].rejects and not tests["rates", "tokens"].rejects


def test_half_widths_are_those_of_a_numerical_jacobian():
    tables = three()
    found = fit_joint(tables)
    fit, half = found.fits["tokens"], half_width(found, "tokens")
    n, v, _ = cells(tables)
    c = fit.constants
    x = np.array([*np.log(c.A), c.alpha[0], *c.beta, c.D[0]])

    def predicted(x):
        return np.concatenate([np.exp(x[g]) * n ** -x[3] * v ** -x[4 + g] + x[7] for g in range(3)])

    steps = 1e-6 * np.eye(8)
    jacobian = np.stack([(predicted(x + s) - predicted(x - s)) / 2e-6 for s in steps], axis=1)
    covariance = np.linalg.inv(jacobian.T @ jacobian) * fit.sse / (60 - 8)
    expected = student.ppf(0.975, 52) * np.sqrt(np.diag(covariance))
    got = [*half.A, half.alpha[0], *half.beta, half.D[0]]
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_text_of_each_file_counts_under_its_own_convention():
    tables = {"a": table_of((0.5, 0.15, 0.1, 0.1), text=10), "b": table_of((0.5, 0.15, 0.1, 0.1), text=90)}
    found = fit_joint(tables, "Q+V")
    assert found.query_tokens == (10, 90)
    assert fit_joint(tables, "Q+V", 30).query_tokens == (30, 30)
    alone = [fit_law(table, "Q+V").sse for table in tables.values()]
    assert found.fits["separate"].sse == pytest.approx(sum(alone))


def test_formulas_mark_what_is_own():
    assert formula("tokens") == "A_c / N^alpha / T^beta_c + D"
    assert formula("one") == "A / N^alpha / T^beta + D"


def test_too_few_are_refused():
    with pytest.raises(UserError, match="at least two compressors"):
        fit_joint({"a": published("ocr")})
    few = parse_scores({"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.2, 0.3], [0.4, 0.6]]})
    with pytest.raises(UserError, match=r"There are 8 scores of 2 compressors, .* needs at least 11"):
        fit_joint({"a": few, "b": few})
    with pytest.raises(UserError, match="at most 1,200 of 24"):
        fit_joint({str(k): published("ocr") for k in range(25)})


def scores_of(folder, name, table):
    path = folder / f"{name}.json"
    content = {"params_b": SIZES.tolist(), "visual_tokens": COUNTS.tolist(), "score": table.score.tolist()}
    path.write_text(json.dumps(content))
    return f"{name}={path}"


def test_the_command_answers_and_writes(tmp_path, capsys):
    given = [scores_of(tmp_path, name, table) for name, table in three().items()]
    assert main(["joint", "--scores", *given, "--out", str(tmp_path / "out")]) == 0
    record = unsealed(json.loads((tmp_path / "out/joint.json").read_text()), "joint.json", "")
    assert [law["name"] for law in record["laws"]] == list(MODELS)
    assert record["advice"].startswith("The law depends on the compressor")
    assert "One alpha and one D serve all" in record["advice"]
    joint = record["laws"][2]["constants"]
    assert joint["a"]["alpha"] == joint["b"]["alpha"] and joint["a"]["beta"] != joint["b"]["beta"]
    said, page = capsys.readouterr().out, (tmp_path / "out/joint.html").read_text()
    for text in (record["advice"], *record["notes"]):
        assert text in said and text.replace("'", "&#39;") in page
    assert "A_c / N^alpha / T^beta_c + D" in said


@pytest.mark.parametrize(
    "scores, says",
    [
        (["general", "ocr"], "name each file's compressor, as in quecc=runs/quecc/scores.json"),
        (["a=general"], "at least two compressors"),
        (["a=general", "a=ocr"], "names a twice"),
        (["a=general", "b=nowhere.json"], "nowhere.json"),
        ([], "--scores"),
    ],
)
def test_mistakes_are_one_sentence_and_status_one(tmp_path, capsys, scores, says):
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["joint", "--scores", *scores, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not (tmp_path / "out").exists()
