"""Plans against the closed form, a plain loop, and the page's own JavaScript run by node."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scaling
from quecc_jax.errors import UserError
from scaling import cost
from scaling.cost import Lengths, QueryConfig, Setup, find_llm, find_machine
from scaling.efficiency.measured import Chip, Measured, Model
from scaling.law import Law, Params
from scaling.planner import costs_over_text, counted_options, make_plan, published_options
from scaling.report.explorer import Start, explorer_data
from scaling.report.plan_report import chosen_span
from scaling.report.prices import counted_prices, published_prices
from scaling.report.tokens_map import published_costs, tokens_map
from tests.scaling.efficiency_files import H100

LAW = Law(Params(0.59077, 0.070937, 0.0151016, 0.0), "V", 50.0)
OCR = Law(Params(0.91721, 0.028233, 0.039412, 0.0), "V", 50.0)
COUNTS = [1, 4, 16, 36, 64, 144, 576]


@pytest.mark.parametrize("text", [10, 50, 200])
def test_closed_form_for_any_n_at_the_published_cost(text):
    """V* = beta Q / (alpha - beta), and N* spends the budget."""
    law = Law(LAW.params, "V", text)
    star = LAW.params.beta * text / (LAW.params.alpha - LAW.params.beta)
    counts = np.arange(1, 101)
    # Sizes such that every token count can spend the budget to a thousandth.
    sizes = np.geomspace(1, 12, 2500)
    budget = 2e9 * 4 * (text + star)
    plan = make_plan(law, None, published_options(sizes, counts, text), budget, "flops")
    options, k = plan.options, plan.best
    assert options.visual_tokens[k] == pytest.approx(star, abs=max(1.5, 0.1 * star))
    assert options.params_b[k] == pytest.approx(4, rel=0.05)
    assert options.cost[k] <= budget
    exact = law.error(budget / (2e9 * (text + star)), star)
    assert exact <= plan.error[k] <= exact * 1.0002


def test_more_tokens_always_win_where_beta_is_the_larger():
    sizes = np.geomspace(0.1, 20, 400)
    plan = make_plan(OCR, None, published_options(sizes, COUNTS, 50), 1e12, "flops")
    assert plan.options.visual_tokens[plan.best] == 576


def draws(law: Law, count: int = 50) -> Params:
    rng = np.random.default_rng(0)
    return Params(*(np.asarray(p) * rng.lognormal(0, 0.15, count) for p in law.params))


@pytest.mark.parametrize("kind, budget", [("flops", 2e12), ("seconds", 0.03), ("usd", 40.0)])
@pytest.mark.parametrize("tokens", ["V", "Q+V"])
def test_a_plan_is_what_a_plain_loop_finds(kind, budget, tokens):
    law, lengths = Law(LAW.params, tokens, 70), Lengths(70, 8, 20)
    setup = Setup(kind, find_machine("h100"), 2, 3.0)
    llms = [find_llm(name) for name in ("7", "0.5", "vicuna-7b", "14")]
    samples = draws(law)
    plan = make_plan(law, samples, counted_options(llms, COUNTS, lengths, setup), budget, kind)

    def loop(params):
        found = []
        for llm in llms:
            for v in COUNTS:
                work = cost.work_of_query(cost.model_config(llm, v), lengths)
                price = cost.query_cost(work, setup, 70 + v)
                if price <= budget:
                    t = v if tokens == "V" else 70 + v
                    error = params.A * llm.params_b**-params.alpha * t**-params.beta + params.D
                    found.append((error, price, llm.name, v))
        return min(found)

    name = [(plan.options.llms[k], plan.options.visual_tokens[k]) for k in range(len(plan.error))]
    error, price, *choice = loop(law.params)
    assert name[plan.best] == tuple(choice)
    assert plan.error[plan.best] == pytest.approx(error)
    assert plan.options.cost[plan.best] == pytest.approx(price)
    assert plan.share is not None
    votes = [loop(Params(*leaf))[2:] for leaf in zip(*samples, strict=True)]
    for k, share in enumerate(plan.share):
        assert share == pytest.approx(votes.count(name[k]) / len(votes))
    for k in plan.frontier:
        cheaper = plan.options.cost <= plan.options.cost[k]
        assert plan.error[k] == plan.error[cheaper].min()
    assert all(n.over_budget > 0 for n in plan.neighbours if n.regret < 0)


def test_intervals_are_paired():
    """A law that shifts all errors alike spreads the prediction, not the regret."""
    samples = Params(*(np.full(101, p) for p in LAW.params))._replace(D=np.linspace(0, 0.1, 101))
    plan = make_plan(LAW, samples, published_options([0.5, 7], COUNTS, 50), 1e12, "flops")
    assert plan.regret_interval is not None and plan.error_interval is not None and plan.share is not None
    np.testing.assert_allclose(plan.regret_interval[:, 0], plan.regret_interval[:, 1], atol=1e-12)
    low, high = plan.error_interval[plan.best]
    assert high - low == pytest.approx(0.095)
    assert plan.share[plan.best] == 1.0 and plan.worst_regret == 0.0


def test_the_span_of_what_is_chosen():
    """Laws whose best V differs: 3 % choose the first of the counts, 95 % the next, 2 % the last."""
    options = published_options([1], [1, 4, 16], 50)
    plan = make_plan(LAW, draws(LAW, 4), options, 1e14, "flops")
    plan = dataclasses.replace(plan, share=np.array([0.03, 0.95, 0.02]))
    assert chosen_span(plan, options.visual_tokens) == [1, 4]
    plan = dataclasses.replace(plan, share=np.array([0.02, 0.95, 0.03]))
    assert chosen_span(plan, options.visual_tokens) == [4, 16]


def measured(share, parts=cost.PARTS) -> Measured:
    """An engine on an H100; `share` is the efficiency of a part at a batch and a length."""
    batches, lengths = (1, 4, 16), (49, 241)
    shares = {p: tuple(tuple(share(p, b, length) for length in lengths) for b in batches) for p in parts}
    return Measured(
        "f.json", Chip(**H100), Model("smollm2-135m", "quecc", 1, "float32"), batches, lengths, shares
    )


def uneven(part: str, batch: int, length: int) -> float:
    """Another efficiency for each part, batch and length."""
    return 0.1 * (1 + cost.PARTS.index(part)) * batch**0.1 * (length / 241) ** 0.5


@pytest.mark.parametrize("kind", ["seconds", "usd"])
def test_the_same_efficiency_everywhere_is_that_share_of_the_peaks(kind):
    llms, lengths = [find_llm("0.5"), find_llm("7")], Lengths(70, 8, 20)
    for share in (1.0, 0.4):
        plain = Setup(kind, find_machine("h100", efficiency=share), 3, 3.0)
        engine = Setup(kind, find_machine("h100"), 3, 3.0, measured=measured(lambda *_, share=share: share))
        text = np.array([0.0, 30, 900])
        found, expected = (costs_over_text(llms, COUNTS, lengths, each, text) for each in (engine, plain))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        ours, theirs = (counted_options(llms, COUNTS, lengths, each) for each in (engine, plain))
        peaks = counted_options(llms, COUNTS, lengths, Setup(kind, find_machine("h100"), 3, 3.0))
        np.testing.assert_allclose(ours.cost, theirs.cost, rtol=1e-12)
        np.testing.assert_array_equal(ours.cost_at_peaks, peaks.cost)
        for part in cost.PARTS:
            np.testing.assert_allclose(ours.seconds[part], theirs.seconds[part], rtol=1e-12)
            np.testing.assert_array_equal(ours.seconds_at_peaks[part], peaks.seconds[part])
        assert theirs.cost_at_peaks is None and theirs.seconds_at_peaks == {}


def test_each_part_takes_its_own_time_at_its_batch_and_prompt():
    """A plain loop over choices and parts, at measured batches and lengths."""
    engine, llm = measured(uneven), find_llm("1.8")
    for batch, text, v in ((4, 48, 1), (16, 177, 64), (16, 1000, 576)):
        lengths = Lengths(text, 8, 20)
        setup = Setup("seconds", find_machine("v5e"), batch, measured=engine)
        options = counted_options([llm], [v], lengths, setup)
        work = cost.work_of_query(cost.model_config(llm, v), lengths)
        length = min(text + v, 241)
        times = {
            part: cost.seconds_of(one, find_machine("v5e"), batch) / uneven(part, batch, length)
            for part, one in work.items()
        }
        assert {part: float(values[0]) for part, values in options.seconds.items()} == pytest.approx(times)
        assert options.cost[0] == pytest.approx(sum(times.values()))
        (encoder, *_) = cost.encoder_costs(llm.name, 1.8, v, lengths, setup)
        assert encoder.seconds == pytest.approx(times["query"])


def test_a_part_that_was_not_measured_is_refused_where_a_choice_has_it():
    engine = measured(uneven, [part for part in cost.PARTS if part != "query"])
    setup = Setup("seconds", find_machine("h100"), 4, measured=engine)
    llms, lengths = [find_llm("0.5")], Lengths(70, 8, 20)
    assert counted_options(llms, [576], lengths, setup).cost.size == 1
    with pytest.raises(
        UserError, match=r"f\.json has no efficiency of the part 'query', which this plan needs"
    ):
        counted_options(llms, [1, 576], lengths, setup)
    blind = dataclasses.replace(setup, compressor="avgpool")
    assert counted_options(llms, [1, 576], lengths, blind).cost.size == 2
    # The page has a slider of the tokens that are generated, also where the plan generates one.
    engine = measured(uneven, [part for part in cost.PARTS if part != "decode"])
    with pytest.raises(UserError, match="'decode'"):
        counted_prices(llms, [576], dataclasses.replace(setup, measured=engine))


def test_what_does_not_fit_is_never_chosen():
    lengths, l4 = Lengths(50, 16, 50), find_machine("l4")
    options = counted_options([find_llm("7"), find_llm("14")], COUNTS, lengths, Setup("seconds", l4))
    plan = make_plan(LAW, draws(LAW), options, 1e9, "seconds")
    assert plan.share is not None
    assert options.params_b[plan.best] == 7 and plan.share[options.params_b == 14].sum() == 0
    assert set(options.params_b[plan.frontier]) == {7}
    alone = counted_options([find_llm("14")], COUNTS, lengths, Setup("seconds", l4))
    with pytest.raises(UserError, match="GiB"):
        make_plan(LAW, None, alone, 1e9, "seconds")
    # A single query waits for weights, and without a compressor the question needs no pass of its own.
    with pytest.raises(UserError, match=r"buys no choice; the cheapest, qwen1\.5-7b with V = 576"):
        make_plan(LAW, None, options, 1e-9, "seconds")


def test_the_map_agrees_with_single_plans():
    text = np.array([0.0, 20.0, 400.0])
    llms, setup = [find_llm("0.5"), find_llm("4")], Setup("seconds", find_machine("l4"), 8)
    for counted, law in ((True, LAW), (False, Law(OCR.params, "Q+V", 50))):
        costs = (
            costs_over_text(llms, COUNTS, Lengths(50, 4, 50), setup, text)
            if counted
            else published_costs([0.5, 4], COUNTS, text)
        )
        unit = setup.kind if counted else "flops"
        found = tokens_map(law, [0.5, 4], COUNTS, costs, text, points=7)
        for j, q in enumerate(text):
            here = Law(law.params, law.tokens, q)
            options = (
                counted_options(llms, COUNTS, Lengths(q, 4, q), setup)
                if counted
                else published_options([0.5, 4], COUNTS, q)
            )
            for i, budget in enumerate(found.budget):
                if found.tokens[i, j] < 0:
                    with pytest.raises(UserError):
                        make_plan(here, None, options, budget, unit)
                    continue
                plan = make_plan(here, None, options, budget, unit)
                assert found.visual_tokens[found.tokens[i, j]] == plan.options.visual_tokens[plan.best]
                assert found.params_b[found.size[i, j]] == plan.options.params_b[plan.best]


NODE = shutil.which("node")
MODEL_JS = Path(scaling.__file__).parent / "report" / "assets" / "model.js"
ASK = """
const model = require(process.argv[1]);
const asked = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = asked.map(({ data, state }) => {
  const sorted = model.choices(data, state), best = model.best(sorted, state.budget);
  const votes = model.votes(data, state, sorted, best);
  const name = (each) => each && [each.n, each.v];
  return {
    best: name(best), error: best && best.error, frontier: model.frontier(sorted).map(name),
    costs: sorted.map((each) => [each.n, each.v, each.cost]),
    peaks: sorted.map((each) =>
      [each.n, each.v, model.queryCost(data, each.parts, state.text + each.v, true)]),
    shares: votes.shares.map(([each, share]) => [name(each), share]), interval: votes.interval,
  };
});
console.log(JSON.stringify(answers));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_page_recommends_what_python_recommends():
    rng = np.random.default_rng(1)
    asked, expected = [], []
    setups: list[Setup] = [
        Setup("flops"),
        Setup("seconds", find_machine("l4"), 4),
        Setup("usd", find_machine("v5e", 2), 16, 1.2),
        Setup("seconds", find_machine("l4"), 6, measured=measured(uneven)),
        Setup("usd", find_machine("h100", 3), 64, 1.2, measured=measured(uneven)),
    ]
    early = QueryConfig("early_exit", 6)
    encoders = [QueryConfig(), early, QueryConfig("embeddings"), QueryConfig("clip_text")]
    llms = [find_llm(name) for name in ("0.5", "1.8", "4", "14")]
    for trial in range(40):
        law = Law((LAW if trial % 2 else OCR).params, "Q+V" if trial % 3 == 0 else "V", 0)
        text, answer = int(rng.integers(0, 400)), int(rng.integers(1, 100))
        question = int(rng.integers(0, text + 1))
        lengths, samples = Lengths(text, answer, question), draws(law)
        forms: list[cost.Kept] = ["bfloat16", "int8", "nf4"]
        weights = forms[trial // 3 % 3]
        setup = dataclasses.replace(setups[trial % 5], query=encoders[trial // 3 % 4], weights=weights)
        law = Law(law.params, law.tokens, text)
        counted = trial % 4 != 0 or setup.kind != "flops"
        options = (
            counted_options(llms, COUNTS, lengths, setup)
            if counted
            else published_options([0.5, 3.0, 7.0], COUNTS, text)
        )
        budget = float(np.exp(rng.uniform(*np.log([options.cost.min(), options.cost.max()])))) * 1.001
        prices = counted_prices(llms, COUNTS, setup) if counted else published_prices([0.5, 3.0, 7.0])
        data = explorer_data(law, samples, COUNTS, prices, Start(budget, *lengths))
        state = {**data["start"], "sizes": [True] * len(data["llms"]), "counts": [True] * len(COUNTS)}
        asked.append({"data": json.loads(json.dumps(data)), "state": state})
        expected.append(make_plan(law, samples, options, budget, setup.kind))
    done = subprocess.run(
        [str(NODE), "-e", ASK, str(MODEL_JS)], input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for answer, plan in zip(json.loads(done.stdout), expected, strict=True):
        o, k = plan.options, plan.best
        costs = {(n, v): c for n, v, c in answer["costs"]}
        assert len(costs) == o.allowed.sum()
        for j in np.flatnonzero(o.allowed):
            assert costs[o.params_b[j], o.visual_tokens[j]] == pytest.approx(o.cost[j], rel=1e-12)
        peaks = {(n, v): c for n, v, c in answer["peaks"]}
        bounds = o.cost if o.cost_at_peaks is None else o.cost_at_peaks
        for j in np.flatnonzero(o.allowed):
            assert peaks[o.params_b[j], o.visual_tokens[j]] == pytest.approx(bounds[j], rel=1e-12)
        assert plan.error_interval is not None and plan.share is not None
        assert answer["best"] == [o.params_b[k], o.visual_tokens[k]]
        assert answer["error"] == pytest.approx(plan.error[k], rel=1e-12)
        assert answer["frontier"] == [[o.params_b[j], o.visual_tokens[j]] for j in plan.frontier]
        assert answer["interval"] == pytest.approx(plan.error_interval[k], rel=1e-5)
        shares = {tuple(name): share for name, share in answer["shares"]}
        ours = {(o.params_b[j], o.visual_tokens[j]): s for j, s in enumerate(plan.share) if s}
        assert shares == pytest.approx(ours)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("tokens", ["V", "Q+V"])
def test_the_page_knows_what_is_extrapolated(tokens):
    law = Law(LAW.params, tokens, 50)
    reach = law.reach([0.5, 7], [4, 144])
    data = explorer_data(law, None, COUNTS, published_prices([0.4, 0.5, 7, 14]), Start(1e12, 50), reach=reach)
    asked = [[n, v, q] for n in (0.4, 0.5, 7, 14) for v in COUNTS for q in (0, 50, 100)]
    ask = "const model = require(process.argv[1]); const [data, asked] = JSON.parse(process.argv[2]);"
    ask += "console.log(JSON.stringify(asked.map((each) => model.extrapolates(data, ...each))));"
    given = json.dumps([data, asked])
    done = subprocess.run(
        [str(NODE), "-e", ask, str(MODEL_JS), given], capture_output=True, text=True, check=True
    )
    expected = [
        bool(np.any(reach.lacks(n, dataclasses.replace(law, query_tokens=q).total(v)))) for n, v, q in asked
    ]
    assert json.loads(done.stdout) == expected and set(expected) == {True, False}


@settings(max_examples=50, deadline=None)
@given(budget=st.floats(1e11, 1e14), more=st.floats(1, 10), text=st.integers(0, 500))
def test_a_larger_budget_never_predicts_more_error(budget, more, text):
    law = Law(LAW.params, "V", text)
    options = published_options([0.5, 1.8, 4, 7], COUNTS, text)
    if budget < options.cost.min():
        return
    less, rich = (make_plan(law, None, options, b, "flops") for b in (budget, budget * more))
    assert rich.error[rich.best] <= less.error[less.best]
