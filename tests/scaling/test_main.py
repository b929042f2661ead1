import json
import re
import subprocess
import sys

import pytest

from scaling.__main__ import main
from scaling.law import PARAMETERS
from scaling.scores import published


@pytest.fixture(scope="module")
def ocr_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "new" / "folder"
    assert main(["fit", "--scores", "ocr", "--out", str(out), "--refits", "50", "--starts", "32"]) == 0
    return out


def test_fit_writes_its_record_figures_and_page(ocr_folder):
    names = {path.name for path in ocr_folder.iterdir()}
    figures = {
        "error_vs_flops.png",
        "error_vs_tokens.png",
        "residuals.png",
        "profiles.png",
        "best_tokens.png",
    }
    assert names == {"fit.json", "fit.html"} | figures
    record = json.loads((ocr_folder / "fit.json").read_text())
    assert record["sse"] == pytest.approx(5.1366e-3, rel=2e-5)
    assert record["tokens_convention"] == "V"
    assert record["bounds_hit"] == ["D"]
    assert record["converged"] is True
    assert record["n_starts"] == 32
    assert set(record["ci"]) == set(record["bootstrap_ci"]) == set(record["profiles"]) == set(PARAMETERS)
    assert record["profiles"]["D"]["interval"] == record["ci"]["D"]
    assert record["loss"] == "least_squares"
    assert record["optimal_visual_tokens"] == 576
    assert record["rivals"]["without doubtful scores"]["n_points"] == 26
    assert len(record["hold_out"]) == 11
    assert len(record["influence"]) == 28
    assert record["predictions"][0]["params_b"] == 14
    assert {rival["name"] for rival in record["rival_laws"]} >= {"product", "additive", "log-linear"}
    assert len(record["samples"]["alpha"]) == 50
    page = (ocr_folder / "fit.html").read_text()
    assert "The doubtful score at 7B, V = 576 ranks 3 of 28" in page
    assert page.count("<figure>") == 4
    assert page.count('id="explorer-data"') == 1
    assert "7B, V = 576: equals the 4B score" in page


@pytest.mark.usefixtures("without_figures")
def test_tasks_convention_and_fixed_floor(tmp_path):
    table = published("general")
    content = {
        "params_b": table.params_b.tolist(),
        "visual_tokens": table.visual_tokens.tolist(),
        "score": table.score.tolist(),
        "tasks": {"one": table.score.tolist(), "two": published("ocr").score.tolist()},
    }
    content["score"][1][2] = None
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(content))
    options = [
        "--tokens",
        "Q+V",
        "--query-tokens",
        "20",
        "--fix-d",
        "0.1",
        "--refits",
        "50",
        "--starts",
        "32",
    ]
    assert main(["fit", "--scores", str(scores), "--out", str(tmp_path / "out"), *options]) == 0
    record = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert record["tokens_convention"] == "Q+V"
    assert record["query_tokens"] == 20
    assert record["D"] == 0.1
    assert record["fixed"] == ["D"]
    assert record["n_points"] == 27
    assert set(record["tasks"]) == {"one", "two"}
    assert record["tasks"]["two"]["beta"] > record["tasks"]["one"]["beta"]


GRID = {"params_b": [1, 2], "visual_tokens": [1, 4, 9], "score": [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"params_b": [1], "score": [[0.1, 0.2, 0.3]]}, "one LLM size only"),
        ({"score": [[0.1, 0.2], [0.2, 0.3, 0.4]]}, "ragged"),
        ({"score": [[0.1, float("nan"), 0.3], [0.2, 0.3, 0.4]]}, "write null"),
        ({"score": [[0.1, -0.2, 0.3], [0.2, 0.3, 0.4]]}, "outside 0..1"),
        ({"score": [[0.1, 20, 0.3], [0.2, 0.3, 0.4]]}, "pass --percent"),
        ({"params_b": [2, 2]}, "2 twice"),
        ({"visual_tokens": [1, 4, 4]}, "4 twice"),
        ({"score": [[0.1, 0.2, None], [0.2, None, None]]}, "3 scores, fewer than the 4 parameters"),
    ],
)
def test_bad_input_is_one_sentence_and_status_one(change, sentence, tmp_path, capsys):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(GRID | change))
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["fit", "--scores", str(bad), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert not said.out
    assert not (tmp_path / "out").exists()


def test_a_process_with_bad_input_exits_with_one(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(GRID | {"score": [[0.1, 0.2], [0.3]]}))
    done = subprocess.run(
        [sys.executable, "-m", "scaling", "fit", "--scores", str(bad), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("without_figures")
def test_loss_method_and_box_are_options(tmp_path):
    short = ["--refits", "20", "--starts", "32"]
    for options, expected in (
        (["--loss", "huber", "--huber-delta", "0.002"], {"loss": "huber", "huber_delta": 0.002}),
        (["--method", "grid"], {"method": "grid", "n_starts": 5_000_000}),
    ):
        assert main(["fit", "--scores", "general", "--out", str(tmp_path), *options, *short]) == 0
        record = json.loads((tmp_path / "fit.json").read_text())
        assert record["converged"] is True
        assert {key: record[key] for key in expected} == expected


def test_unwritable_folder_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for command in (["fit", "--scores", "nowhere"], ["plan", "--fit", "nowhere", "--flops", "1e12"]):
        # Before anything is read, not after the fit.
        with pytest.raises(SystemExit, match=r"^1$"):
            main([*command, "--out", str(tmp_path / "file" / "x")])
        assert re.fullmatch(
            r"error: --out .* cannot be written .*; choose another\n", capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            ["fit", "--scores", "general", "--out", "x", "--tokens", "T"],
            "--tokens is 'T'; choose from V, Q+V",
        ),
        (["fit", "--scores", "general", "--out", "x", "--token", "V"], "did you mean --tokens?"),
        (
            ["plan", "--fit", "x", "--ms", "60", "--chip", "h100", "--out", "y", "--weights", "int5"],
            "--weights is 'int5'; choose from ",
        ),
        (["fit", "--scores", "general", "--out", "x", "--starts", "0"], "--starts is 0; give at least 1"),
        (["fit", "--scores", "general", "--out", "x", "--huber-delta", "-1"], "give a number above 0"),
        *(
            (["fit", "--scores", "general", "--out", "x", *options], f"{options[0]} {sentence}")
            for options, sentence in (
                (["--seed", "-1"], "is -1; give at least 0"),
                (["--starts", "-1"], "is -1; give at least 1"),
                (["--refits", "-1"], "is -1; give at least 1"),
                (["--refits", "100000000000"], "is 100000000000; give at most 1000000"),
                (["--query-tokens", "nan"], "is nan; give a number of at least 0"),
                (["--query-tokens", "inf"], "is inf; give a number of at least 0"),
                (["--query-tokens", "-1"], "is -1; give a number of at least 0"),
                (["--fix-d", "nan"], "is nan; give a number of at least 0 and below 1"),
                (["--fix-d", "1"], "is 1; give a number of at least 0 and below 1"),
                (["--predict", "7", "-1"], "has -1; give positive numbers"),
                (["--predict", "inf"], "has inf; give positive numbers"),
                (["--huber-delta", "nan"], "is nan; give a number above 0"),
                (["--huber-delta", "0.1"], "is of --loss huber, not of least_squares; leave it out"),
            )
        ),
        (["fit", "--scores", "--out", "x"], "--scores needs a file"),
        (["fit", "--scores", "general"], "--out must be given"),
        (["fti"], "fti is not a command; did you mean fit?"),
        (["train"], "train is not a command; known: fit, plan, next, joint"),
        ([], "name a command: fit, plan, next, joint"),
    ],
)
def test_mistakes_in_options_are_one_sentence_and_status_one(options, sentence, capsys):
    with pytest.raises(SystemExit, match=r"^1$"):
        main(options)
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
    assert sentence in said.err and "None" not in said.err
