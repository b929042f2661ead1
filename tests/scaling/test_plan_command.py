"""`python -m scaling plan` from the command line: what it writes, and mistakes as one sentence."""

import json
import re

import pytest

from quecc_jax.records import write_record
from scaling.__main__ import main
from scaling.cost import Lengths, find_llm, model_config, work_of_query
from tests.browser import absent, browser
from tests.scaling.efficiency_files import efficiency_record
from tests.scaling.test_report import _Balance

BUDGET = ["--flops", "3e12"]


@pytest.fixture(scope="module")
def fit_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("fit")
    assert main(["fit", "--scores", "general", "--out", str(out), "--refits", "60", "--starts", "16"]) == 0
    return out


@pytest.fixture(scope="module")
def plan_folder(fit_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "new"
    options = ["--llms", "0.5", "1.8", "4", "7", "14", "--chip", "h100", "--batch", "4", "--ms", "60"]
    assert main(["plan", "--fit", str(fit_folder), "--out", str(out), *options]) == 0
    return out


def test_the_record_holds_the_whole_plan(plan_folder):
    assert {path.name for path in plan_folder.iterdir()} == {
        "plan.json",
        "plan.html",
        "error_vs_cost.png",
        "best_tokens.png",
    }
    plan = json.loads((plan_folder / "plan.json").read_text())
    best = plan["recommendation"]
    assert best["affordable"] and best["cost"] <= 0.06 == plan["budget"]["limit"]
    assert best["error"] == min(c["error"] for c in plan["choices"] if c["affordable"])
    assert best["error_interval"][0] <= best["error"] <= best["error_interval"][1]
    assert set(best["flops"]) == set(best["seconds"]) == {"tower", "query", "compressor", "prefill", "decode"}
    spread = sorted((c["visual_tokens"], c["chosen_share"]) for c in plan["choices"] if c["chosen_share"])
    low, high = best["visual_tokens_interval"]
    assert spread[0][0] <= low <= high <= spread[-1][0]
    assert best["cost"] == pytest.approx(sum(best["seconds"].values()))
    assert sum(c["chosen_share"] for c in plan["choices"]) == pytest.approx(1)
    assert len(plan["choices"]) == 35 and 2 <= len(plan["neighbours"]) <= 4
    costs = [c["cost"] for c in plan["frontier"]]
    assert costs == sorted(costs) and all(c["on_frontier"] for c in plan["frontier"])
    assert plan["machine"]["name"] == "h100" and "data sheet" in plan["machine"]["source"]
    assert plan["law"]["tokens_convention"] == "V"
    assert plan["other_convention"]["tokens_convention"] == "Q+V"
    assert any("14B lies outside" in note for note in plan["notes"])


def test_what_the_law_was_not_fitted_on_is_marked(plan_folder):
    plan = json.loads((plan_folder / "plan.json").read_text())
    for choice in plan["choices"]:
        assert choice.get("extrapolated") == (["params_b"] if choice["params_b"] == 14 else None)
    listed = [*plan["frontier"], *plan["neighbours"]]
    assert any("extrapolated" in choice for choice in listed)
    assert all(("extrapolated" in choice) == (choice["params_b"] == 14) for choice in listed)
    page = (plan_folder / "plan.html").read_text()
    assert "qwen1.5-14b (extrapolated)" in page and "qwen1.5-7b (extrapolated)" not in page
    assert "error is extrapolated" not in plan["advice"]


@pytest.mark.usefixtures("without_figures")
def test_an_extrapolated_recommendation_says_so(fit_folder, tmp_path, capsys):
    options = ["--cost", "published", "--llms", "7", "14", "--visual-tokens", "1", "1024", "--flops", "1e14"]
    assert main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path), *options]) == 0
    plan, said = json.loads((tmp_path / "plan.json").read_text()), capsys.readouterr().out
    assert plan["recommendation"]["extrapolated"] == ["params_b", "visual_tokens"]
    assert [c.get("extrapolated") for c in plan["choices"]][:2] == [None, ["visual_tokens"]]
    sentence = "It lies outside the grid that the law was fitted on: its error is extrapolated."
    assert (
        sentence in plan["advice"] and sentence in said and sentence in (tmp_path / "plan.html").read_text()
    )
    assert "14B (extrapolated) (recommended)" in said and "1024 (extrapolated)" in said
    assert "V = 1024 lies outside the 1 to 576 tokens" in said


@pytest.mark.usefixtures("without_figures")
def test_another_text_is_another_t(fit_folder, tmp_path, capsys):
    """Where T counts the text too, a longer one leaves what was fitted, whatever V; and a size without a score was
    not fitted on."""
    record = json.loads((fit_folder / "fit.json").read_text()) | {"tokens_convention": "Q+V"}
    record["score"][-1] = [None] * 7
    del record["crc32"]
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(record))
    options = ["plan", "--fit", str(path), "--out", str(tmp_path), "--cost", "published", "--flops", "1e14"]
    for text, expected in ((50, None), (1000, ["visual_tokens"])):
        assert main([*options, "--query-tokens", str(text)]) == 0
        for choice in json.loads((tmp_path / "plan.json").read_text())["choices"]:
            own = ["params_b"] if choice["params_b"] == 7 else []
            assert choice.get("extrapolated", []) == own + (expected or [])
    assert "576 and Q = 1000, together T, lie outside the 51 to 626 tokens" in capsys.readouterr().out


def test_the_page_stands_alone(plan_folder):
    page = (plan_folder / "plan.html").read_text()
    parser = _Balance()
    parser.feed(page)
    assert parser.open == [] and parser.links == []
    # The one address is the name of SVG's namespace, which nothing fetches.
    assert set(re.findall(r"https?://[^\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "counted cost of all parts, G = 16 generated, h100 (989 TFLOP/s, 3350 GB/s), batch 4" in page
    assert "T counts visual tokens V" in page


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
def test_a_browser_fills_the_page(plan_folder, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.open((plan_folder / "plan.html").as_uri())
        dom = page.run("return document.documentElement.outerHTML")
        assert page.log() == []
    plan = json.loads((plan_folder / "plan.json").read_text())
    best = plan["recommendation"]
    found = re.search(r'<p class="said"[^>]*>60 ms per batch buys ([^:]+): predicted error ([\d.]+) %', dom)
    assert found is not None
    assert found[1] == f"{best['params_b']:g}B ({best['llm']}), V = {best['visual_tokens']:g}"
    assert float(found[2]) == pytest.approx(100 * best["error"], abs=0.005)
    assert dom.count('class="mark"') == sum(c["fits_memory"] for c in plan["choices"])
    assert dom.count('class="measured"') == 28
    assert dom.count("<rect") > 100


TOUCH = """
const touch = (node, event, change) => { change(node); node.dispatchEvent(new Event(event)); };
const [budget, text, answer] = document.querySelectorAll("#explorer input[type=range]");
touch(answer, "input", (node) => { node.value = 0; });
touch(text, "input", (node) => { node.value = 0; });
touch(budget, "input", (node) => { node.value = 1000; });
document.querySelectorAll("#explorer input[type=checkbox]").forEach((node, k) => {
  if (k !== 1 && k !== 5 && k !== 7) touch(node, "change", () => { node.checked = false; });
});
document.querySelector(".mark").dispatchEvent(new Event("pointerenter"));
return document.documentElement.outerHTML;
"""


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
def test_sliders_and_switches_recompute(plan_folder, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.open((plan_folder / "plan.html").as_uri())
        dom = page.run(TOUCH)
    # Left are 1.8B with V = 1 and 16, no text and one generated token.
    assert re.search(r"buys 1\.8B \(qwen1\.5-1\.8b\), V = 16: predicted error 54\.3\d %", dom)
    assert ">0 tokens</output>" in dom and ">1 tokens</output>" in dom
    assert dom.count('class="mark"') == 2 and dom.count('class="measured"') == 2
    assert re.search(r'class="tip"[^>]*block;[^>]*>1\.8B [^<]*V = 1: error 56\.6\d % by the law', dom)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "options, said",
    [
        (
            ["--llms", "4", "7"],
            "The next larger LLM, qwen1.5-7b, costs at least {} per batch, above the budget",
        ),
        (["--llms", "0.5", "4"], "No LLM of these is larger than qwen1.5-4b"),
        (["--llms", "4", "7", "--visual-tokens", "1"], ""),
        (["--llms", "0.5", "1.8", "--visual-tokens", "1", "4", "16"], "No LLM of these is larger"),
    ],
)
def test_many_visual_tokens_are_explained(fit_folder, tmp_path, capsys, options, said):
    """As the README's plan does: 60 ms on four questions at once buy all patches."""
    machine = ["--ms", "60", "--chip", "h100", "--batch", "4"]
    assert main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path), *machine, *options]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    larger = [c["cost"] for c in plan["choices"] if c["params_b"] > plan["recommendation"]["params_b"]]
    assert all(cost > 0.06 for cost in larger)
    told = [line for line in capsys.readouterr().out.splitlines() if "goes into visual tokens" in line]
    assert len(told) == bool(said)
    if said:
        expected = said.format(f"{1e3 * min(larger, default=0):.3g} ms")
        assert expected in told[0] and expected in (tmp_path / "plan.html").read_text()


@pytest.mark.usefixtures("without_figures")
def test_published_cost_names_the_closed_form(fit_folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--cost", "published", "--query-tokens", "20"]
    options += ["--visual-tokens", "1", "5", "30", "--llms", "1", "3"]
    assert main(["plan", "--fit", str(fit_folder / "fit.json"), "--out", str(out), *BUDGET, *options]) == 0
    plan = json.loads((out / "plan.json").read_text())
    law = plan["law"]
    star = law["beta"] * 20 / (law["alpha"] - law["beta"])
    assert plan["closed_form"]["visual_tokens"] == pytest.approx(star)
    assert plan["closed_form"]["params_b"] == pytest.approx(3e12 / 2e9 / (20 + star))
    assert set(plan["recommendation"]["flops"]) == {"prefill"}
    said = capsys.readouterr().out
    assert "closed form" in said and "published cost 2N(Q + V), Q = 20" in said
    assert "3B" in said and "recommended" in said


@pytest.mark.usefixtures("without_figures")
def test_a_cheaper_encoder_is_counted_and_all_are_shown(fit_folder, tmp_path, capsys):
    options = ["--llms", "0.5", "7", "--visual-tokens", "1", "16", "--chip", "h100", "--ms", "60"]
    options += ["--encoder", "early_exit", "--exit-layer", "6", "--query-tokens", "40"]
    assert main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path), *options]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["query_encoder"] == "early_exit 6"
    for choice in plan["choices"]:
        llm = find_llm(f"{choice['params_b']:g}")
        whole = work_of_query(model_config(llm, choice["visual_tokens"]), Lengths(40, 16, 40))
        assert choice["flops"]["query"] == pytest.approx(6 / llm.decoder.depth * whole["query"].flops)
        assert choice["flops"]["prefill"] == whole["prefill"].flops
    said = capsys.readouterr().out
    assert "early_exit 6 (counted above)" in said and "layers waited for" in said
    page = (tmp_path / "plan.html").read_text()
    assert all(name in page for name in ("early_exit 6 (counted above)", "embeddings", "clip_text"))


@pytest.mark.usefixtures("without_figures")
def test_weights_in_fewer_bits_are_named_and_buy_more(fit_folder, tmp_path, capsys):
    options = ["--llms", "1.8", "7", "--visual-tokens", "1", "--chip", "v5e", "--ms", "220"]
    found = {}
    for weights in ("bfloat16", "int8"):
        out = tmp_path / weights
        given = [] if weights == "bfloat16" else ["--weights", weights]
        assert main(["plan", "--fit", str(fit_folder), "--out", str(out), *options, *given]) == 0
        plan, page = json.loads((out / "plan.json").read_text()), (out / "plan.html").read_text()
        assert plan["weights"] == weights and f"batch 1, {weights} weights" in page
        assert f"{weights} weights" in capsys.readouterr().out
        found[weights] = plan["recommendation"]["llm"]
        ways = {way["name"]: way["verdict"] for way in plan["training"]}
        assert len(ways) == 3 and ways["QLoRA, rank 64, nf4"] == "fits" and "does not fit" in page
    assert found == {"bfloat16": "qwen1.5-1.8b", "int8": "qwen1.5-7b"}


def test_a_chip_has_its_list_price_unless_one_is_given(fit_folder, tmp_path, capsys):
    budget = ["plan", "--fit", str(fit_folder), "--usd", "40", "--chip", "h100"]
    for options, price, said in (([], 3.99, "lambda.ai/pricing"), (["--price", "2"], 2, "(as given)")):
        main([*budget, "--out", str(tmp_path / "out"), *options])
        assert json.loads((tmp_path / "out/plan.json").read_text())["usd_per_hour"] == price
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("price: "))
        assert line.startswith(f"price: ${price:g} per chip and hour (") and said in line


LARGE = ["--llms", "0.5", "1.8", "7", "--visual-tokens", "1", "16", "576", "--ms", "60", "--batch", "4"]


def plan_with(fit_folder, out, *options):
    """plan.json and plan.html."""
    assert main(["plan", "--fit", str(fit_folder), "--out", str(out), *LARGE, *options]) == 0
    return json.loads((out / "plan.json").read_text()), (out / "plan.html").read_text()


MEASURED = {"cost_at_peaks": "cost", "seconds_at_peaks": "seconds"}


def numbers(value):
    """All numbers of a record, with their places."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {(k, *place): number for k, one in inner for place, number in numbers(one).items()}
    return {(): value} if isinstance(value, int | float) else {}


@pytest.mark.usefixtures("without_figures")
def test_a_file_of_one_efficiency_plans_as_that_number(fit_folder, tmp_path):
    write_record(tmp_path / "stages.json", efficiency_record(lambda *_: 0.4))
    number, _ = plan_with(fit_folder, tmp_path / "number", "--chip", "h100", "--efficiency", "0.4")
    # The file's own chip has an H100's peaks.
    for chip in ([], ["--chip", "h100"]):
        options = [*chip, "--efficiency", str(tmp_path / "stages.json")]
        file, _ = plan_with(fit_folder, tmp_path / "file", *options)
        assert file["machine"]["flops"] == 989e12 and file["machine"]["efficiency"] is None
        told = numbers({k: v for k, v in file.items() if k not in ("machine", "efficiency")})
        peaks = [place for place in told if MEASURED.keys() & set(place)]
        assert len(peaks) == 6 * (len(file["choices"]) + len(file["neighbours"]) + len(file["frontier"]) + 2)
        for place in peaks:
            measured = tuple(MEASURED.get(step, step) for step in place)
            assert told.pop(place) == pytest.approx(0.4 * told[measured])
        expected = numbers({k: v for k, v in number.items() if k != "machine"})
        assert told == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("without_figures")
def test_a_measured_plan_shows_both_bounds_and_says_what_it_carries_over(fit_folder, tmp_path, capsys):
    file = tmp_path / "stages.json"
    record = efficiency_record(lambda part, batch, length: 1.2 if part == "tower" else 0.5)
    record["chip"]["name"] = "a desk"
    write_record(file, record)
    plan, page = plan_with(fit_folder, tmp_path / "out", "--efficiency", str(file), "--weights", "int8")
    said, best = capsys.readouterr().out, plan["recommendation"]
    assert best["cost"] == pytest.approx(sum(best["seconds"].values()))
    assert best["cost_at_peaks"] == pytest.approx(sum(best["seconds_at_peaks"].values()))
    assert best["cost_at_peaks"] < best["cost"] <= 0.06
    assert plan["efficiency"]["of_recommendation"]["decode"] == pytest.approx(0.5)
    long = plan["query_tokens"] + 576
    nearest = {"what": "length", "values": [long], "least": 49, "most": 241, "nearest": 241}
    assert plan["efficiency"]["outside"] == [nearest]
    here = (
        "for the recommended choice too" if best["visual_tokens"] == 576 else "not for the recommended choice"
    )
    took, least = (f"{1e3 * best[name]:.3g} ms" for name in ("cost", "cost_at_peaks"))
    for text in (
        f"for {took} as measured ({least} at the chip&#39;s peaks)",
        "a desk (989 TFLOP/s, 3350 GB/s at its peaks; as measured on a desk), batch 4, int8 weights",
        "Efficiencies were measured on a desk (989 TFLOP/s, 3350 GB/s; a data sheet) with smollm2-135m behind",
        "computed in float32; this plan counts two bytes a number, and int8 for the decoder&#39;s matrices",
        f"Prompts of {long:g} positions lie above the measured 49 to 241: the efficiencies at 241 are taken, {here}.",
        "Above the peaks: tower up to 1.2 of them",
        "time per batch at peaks",
        "time per batch as measured",
        "cost per batch, as measured",
    ):
        assert text in page and text.replace("&#39;", "'") in said, text


@pytest.mark.parametrize(
    "options, says",
    [
        (
            ["--ms", "60", "--efficiency", "nowhere.json"],
            "--efficiency nowhere.json is no file and no number",
        ),
        (["--ms", "60", "--chip", "h100", "--efficiency", "1.5"], "an efficiency above 0 and up to 1"),
        (
            ["--ms", "60", "--chip", "h100", "--efficiency", "nan"],
            "--efficiency is nan; give a positive number",
        ),
        (
            ["--ms", "60", "--chip", "h100", "--efficiency", "-1"],
            "--efficiency is -1; give a positive number",
        ),
        (["--ms", "60", "--efficiency", "0.5"], "needs a --chip"),
        (["--usd", "40", "--efficiency", "FILE"], "no price of the chip 'a desk' is known; give --price"),
        (["--ms", "60", "--efficiency", "FILE"], "has no efficiency of the part 'query'"),
        ([*BUDGET, "--cost", "published", "--efficiency", "FILE"], "--efficiency needs --cost counted"),
    ],
)
def test_an_efficiency_that_cannot_be_used_is_one_sentence(fit_folder, tmp_path, capsys, options, says):
    record = efficiency_record(lambda *_: 0.5, ["tower", "compressor", "prefill", "decode"])
    record["chip"]["name"] = "a desk"
    write_record(tmp_path / "stages.json", record)
    options = [str(tmp_path / "stages.json") if one == "FILE" else one for one in options]
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path / "out"), *options])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
@pytest.mark.usefixtures("without_figures")
def test_a_measured_page_says_when_a_prompt_was_not_measured(fit_folder, tmp_path):
    write_record(tmp_path / "stages.json", efficiency_record(lambda *_: 0.5))
    plan, _ = plan_with(fit_folder, tmp_path / "out", "--efficiency", str(tmp_path / "stages.json"))
    best = plan["recommendation"]
    with browser(tmp_path / "profile") as page:
        page.open((tmp_path / "out/plan.html").as_uri())
        first = page.run("return document.querySelector('.said').textContent")
        page.run(
            "const text = document.querySelectorAll('#explorer input[type=range]')[1];"
            "text.value = 1000; text.dispatchEvent(new Event('input'));"
        )
        moved = page.run("return document.querySelector('.said').textContent")
        assert page.log() == []
    assert f"for {1e3 * best['cost']:.3g} ms as measured" in first.replace(".0 ms", " ms")
    assert "lies outside the measured 49 to 241" in moved


@pytest.mark.parametrize(
    "options, said",
    [
        ([*BUDGET, "--weights", "int8"], "--weights needs a --chip"),
        (["--ms", "5", "--chip", "h100", "--weights", "float32"], "--weights"),
        ([*BUDGET, "--encoder", "early_exit"], "go together"),
        ([*BUDGET, "--encoder", "early_exit", "--exit-layer", "99"], "too few for an exit after 99"),
        ([*BUDGET, "--encoder", "embeddings", "--cost", "published"], "--encoder needs --cost counted"),
        (["--flops", "1e9"], "buys no choice; the cheapest"),
        (
            ["--ms", "0.001", "--chip", "h100", "--llms", "0.5"],
            "A budget of 0.001 ms per batch buys no choice; the cheapest, qwen1.5-0.5b with V = 1, costs 5.03 ms.",
        ),
        (["--flops", "1e9", "--llms", "0.5"], "A budget of 1 GFLOP per query buys no choice"),
        (["--ms", "5"], "needs a --chip"),
        ([*BUDGET, "--batch", "4"], "needs a --chip"),
        (["--usd", "5", "--chip", "l4"], "no price of the chip 'l4' is known; give --price"),
        (
            ["--usd", "5", "--chip", "989,3350,80"],
            "no price of the chip '989,3350,80' is known; give --price",
        ),
        (["--ms", "5", "--chip", "h100", "--price", "2"], "--price is of a budget in dollars: add --usd"),
        (["--ms", "5", "--chip", "tpu9"], "'tpu9' is not known"),
        (["--ms", "5", "--chip", "l4", "--llms", "14"], "memory"),
        ([*BUDGET, "--visual-tokens", "50"], "V = 50"),
        ([*BUDGET, "--llms", "x"], "'x' is not known"),
        ([*BUDGET, "--llms", "7", "7"], "twice"),
        ([*BUDGET, "--question-tokens", "500"], "at most"),
        ([*BUDGET, "--cost", "published", "--answer-tokens", "4"], "--answer-tokens needs --cost counted"),
        ([*BUDGET, "--fit", "nowhere.json"], "published table"),
        ([], "one of --flops, --ms, --usd must be given"),
        ([*BUDGET, "--ms", "5"], "--flops and --ms exclude each other"),
        (["--flops", "0"], "--flops is 0; give a positive number"),
        ([*BUDGET, "--query-tokens", "-1"], "--query-tokens is -1; give at least 0"),
        ([*BUDGET, "--visual-tokens", "4", "0"], "--visual-tokens has 0"),
        ([*BUDGET, "--llm", "7"], "did you mean --llms?"),
    ],
)
def test_mistakes_are_one_sentence_and_status_one(fit_folder, tmp_path, capsys, options, said):
    out = tmp_path / "out"
    fit = [] if "--fit" in options else ["--fit", str(fit_folder)]
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--out", str(out), *fit, *options])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not out.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"A": 1}', '{"A": "x", "alpha": 1, "beta": 1, "D": 0}'])
def test_a_file_that_is_no_fit(tmp_path, capsys, content):
    path = tmp_path / "fit.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--fit", str(path), "--out", str(tmp_path / "out"), *BUDGET])
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, says",
    [
        ({"A": -0.2}, "constant A must be at least 0, not -0.2"),
        (
            {"rivals": {"T = Q+V": {"A": -0.2, "alpha": 1, "beta": 1, "D": 0, "tokens_convention": "Q+V"}}},
            "-0.2",
        ),
        (
            {"samples": {"A": [-1, 1], "alpha": [1, 1], "beta": [1, 1], "D": [0, 0]}},
            "samples hold a negative A",
        ),
        ({"samples": None}, "is not a fit.json"),
        ({"rivals": []}, "is not a fit.json"),
    ],
)
def test_a_saved_fit_that_is_no_law_is_refused(fit_folder, tmp_path, capsys, change, says):
    path = tmp_path / "fit.json"
    record = json.loads((fit_folder / "fit.json").read_text()) | change
    del record["crc32"]
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--fit", str(path), "--out", str(tmp_path / "out"), *BUDGET])
    said = capsys.readouterr().err
    assert str(path) in said and says in said and said.count("\n") == 1


def test_a_scores_file_is_no_fit(tmp_path, capsys):
    path = tmp_path / "s.json"
    path.write_text('{"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.1, 0.2], [0.2, 0.4]]}')
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--fit", str(path), "--out", str(tmp_path / "out"), *BUDGET])
    assert "s.json: it is a scores file; run `scaling fit` on it first" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_a_fit_without_samples_has_no_intervals(fit_folder, tmp_path):
    record = json.loads((fit_folder / "fit.json").read_text())
    for key in ("samples", "rivals", "score", "crc32"):
        del record[key]
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(record))
    assert main(["plan", "--fit", str(path), "--out", str(tmp_path / "out"), *BUDGET]) == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["recommendation"]["error_interval"] is None and plan["other_convention"] is None
    assert "no bootstrap samples" in plan["advice"]


@pytest.mark.usefixtures("without_figures")
def test_a_plan_for_a_compressor_that_asks_nobody(fit_folder, tmp_path):
    """MQT-LLaVA serves 2 to 256 tokens of one set of weights; its question has no encoder."""
    options = ["--compressor", "mqt", "--visual-tokens", "2", "8", "256", "--llms", "7"]
    assert main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path), *BUDGET, *options]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["compressor"] == "mqt" and plan["query_encoder"] is None
    assert [c["visual_tokens"] for c in plan["choices"]] == [2, 8, 256]
    assert all(c["flops"]["query"] == 0 for c in plan["choices"])
    page = (tmp_path / "plan.html").read_text()
    assert "compressor mqt" in page and "question's encoder (" not in page


@pytest.mark.parametrize(
    "options, says",
    [
        (["--visual-tokens", "2", "8"], "by quecc; possible are 1, 4, 9"),
        (["--visual-tokens", "2", "--compressor", "m3"], "by m3"),
        (
            ["--visual-tokens", "2", "--compressor", "m3", "--cost", "published"],
            "--compressor needs --cost counted",
        ),
        (["--compressor", "mqt", "--cost", "published"], "--compressor needs --cost counted"),
        (["--compressor", "mqt", "--visual-tokens", "300"], "1 to 256, and 576 (--compressor prumerge can;"),
        (["--compressor", "prumerge", "--visual-tokens", "600"], "1 to 576 (--cost published, without"),
        (["--visual-tokens", "300"], "(--compressor prumerge can;"),
        (["--visual-tokens", "50"], "(--compressor mqt can;"),
        (
            ["--compressor", "mqt", "--visual-tokens", "4", "--encoder", "decoder"],
            "mqt does not; leave it out",
        ),
        (
            ["--compressor", "mqt", "--visual-tokens", "4", "--question-tokens", "4"],
            "mqt does not; leave it out",
        ),
        (["--compressor", "mtq"], "'mtq' is not known"),
    ],
)
def test_a_compressor_that_cannot_is_one_sentence(fit_folder, tmp_path, capsys, options, says):
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["plan", "--fit", str(fit_folder), "--out", str(tmp_path), *BUDGET, *options])
    assert says in capsys.readouterr().err
