"""Evaluations as tables.

The lmms-eval files are stand-ins of what its 0.7.3 writes: `evaluate` in evaluator.py and
`save_results_aggregated` in loggers/evaluation_tracker.py say which keys there are.
"""

import json

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling.__main__ import main
from scaling.scores import read_scores


def lmms(score, v=None, **more):
    arguments = "pretrained=runs/a,batch=1" + ("" if v is None else f",visual_tokens={v}")
    return {
        "results": {
            "gqa": {
                "alias": "gqa",
                "exact_match,none": score,
                "samples": 12,
                "exact_match_stderr,none": 0.01,
                "exact_match_stderr_clt,none": 0.01,
                "exact_match_stderr_clustered,none": "N/A",
            },
            "mme": {
                "alias": "mme",
                "mme_perception_score,none": 2000 * score,
                "samples": 4,
                "mme_perception_score_stderr,none": "N/A",
                "mme_cognition_score,none": 300.0,
                "mme_cognition_score_stderr,none": "N/A",
            },
            "group": {"alias": "group", " ": ""},
            **more,
        },
        "higher_is_better": {"gqa": {"exact_match": True}},
        "configs": {},
        "n-shot": {},
        "config": {"model": "quecc_jax", "model_args": arguments},
        "lmms_eval_version": "0.7.3",
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


GRID = {(n, v): 0.3 + n / 100 + v / 1000 for n in (0.5, 7) for v in (4, 36)}
METRICS = {"mme": "mme_perception_score/2000"}


@pytest.mark.usefixtures("without_figures")
def test_lmms_eval_s_files_of_several_models(tmp_path):
    sources = []
    for (n, v), score in GRID.items():
        file = tmp_path / f"{n}-{v}" / "a__b" / "20260101_010101_results.json"
        write(file, lmms(score, v if n == 7 else None))
        sources.append(f"{tmp_path}/{n}-{v}@" + (f"{n}B" if n == 7 else f"500M,{v}"))
    table = read_scores(*sources, metrics=METRICS)
    np.testing.assert_allclose(table.params_b, [0.5, 7])
    np.testing.assert_allclose(table.score, np.reshape(list(GRID.values()), (2, 2)))
    assert set(table.tasks) == {"gqa", "mme"}
    out = tmp_path / "fit"
    more = ["--metrics", "mme=mme_perception_score/2000", "--refits", "20", "--starts", "8"]
    assert main(["fit", "--scores", *sources, "--out", str(out), *more]) == 0


@pytest.mark.parametrize(
    "source, metrics, says",
    [
        ("@7B,4", {}, "has 2 metrics  of mme; name one with --metrics, as mme=mme_cognition_score"),
        ("@7B,4", {"mme": "mme_perception_score"}, "is 640, above 1; say its best value"),
        ("@7B,4", {"mme": "bleu"}, "has 0 metrics bleu of mme"),
        ("@7B", METRICS, "does not say its visual tokens"),
        ("", METRICS, "does not say its model's size"),
        ("@x,4", METRICS, "names 'x' as its model's size"),
        ("@7B,4", {"mme": "mme_perception_score/x"}, "gives 'x' as the best value"),
    ],
)
def test_what_an_lmms_eval_file_does_not_say_is_asked_for(tmp_path, source, metrics, says):
    path = write(tmp_path / "20260101_results.json", lmms(0.32))
    with pytest.raises(UserError, match=says):
        read_scores(f"{path}{source}", f"{path}@1B,4", metrics=metrics)


def test_a_file_s_own_tokens_and_direction_are_not_overruled(tmp_path):
    path = write(tmp_path / "a_results.json", lmms(0.3, 16))
    with pytest.raises(UserError, match=r"has 16.* visual tokens, not 36"):
        read_scores(f"{path}@7B,36", metrics=METRICS)
    worse = lmms(0.3, 16)
    worse["higher_is_better"]["gqa"]["exact_match"] = False
    with pytest.raises(UserError, match="less is better"):
        read_scores(f"{write(path, worse)}@7B", metrics=METRICS)
    with pytest.raises(UserError, match="Evaluations 1 and 2 give the same cell twice"):
        read_scores(*[f"{write(path, lmms(0.3, 16))}@7B"] * 2, metrics=METRICS)
    with pytest.raises(UserError, match="is no results file"):
        read_scores(f"{write(tmp_path / 'x.json', {'a': 1})}@7B,4")
    with pytest.raises(UserError, match="--percent is of a scores file"):
        read_scores(f"{path}@7B", metrics=METRICS, percent=True)


def test_results_of_this_project(tmp_path):
    """`launch.evaluate` on a data set and on benchmarks, `launch.demo`, `launch.sweep`."""
    sources = []
    for (n, v), score in GRID.items():
        told = {
            "checkpoint": "runs/a",
            "data": "pools/mosaic",
            "visual_tokens": v,
            "accuracy": score,
            "standard_error": 0.01,
        }
        write(tmp_path / f"e{n}-{v}/results.json", told)
        sources.append(f"{tmp_path}/e{n}-{v}@{n}")
    expected = np.reshape(list(GRID.values()), (2, 2))
    table = read_scores(*sources)
    np.testing.assert_allclose(table.score, expected)
    np.testing.assert_allclose(np.asarray(table.stderr), 0.01)
    sources = []
    for (n, v), score in GRID.items():
        metrics = {"accuracy": {"value": 100 * score, "standard_error": None}}
        perception = {"perception": {"value": 2000 * score, "standard_error": 3.0}}
        tasks = {
            "gqa": {"headline": "accuracy", "metrics": metrics},
            "mme": {"headline": "perception", "metrics": perception},
        }
        write(tmp_path / f"b{n}-{v}/results.json", {"checkpoint": "a", "visual_tokens": v, "tasks": tasks})
        sources.append(f"{tmp_path}/b{n}-{v}@{n}B")
    table = read_scores(*sources)
    np.testing.assert_allclose(table.score, expected)
    np.testing.assert_allclose(table.tasks["mme"], expected)
    cells = [
        {
            "decoder": f"d{n}",
            "visual_tokens": v,
            "seed": seed,
            "query": query,
            "scores": {"single": score + more if query == "question" else 0.0},
        }
        for (n, v), score in GRID.items()
        for seed, more in ((0, 0.01), (1, -0.01))
        for query in ("question", "zero")
    ]
    decoders = [{"name": f"d{n}", "params": n * 1e9} for n in (0.5, 7)]
    write(tmp_path / "demo/results.json", {"decoders": decoders, "cells": cells, "tasks": ["single"]})
    np.testing.assert_allclose(read_scores(str(tmp_path / "demo")).score, expected)
    scores = {"params_b": [0.5, 7], "visual_tokens": [4, 36], "score": expected.tolist()}
    write(tmp_path / "sweep/scores.json", scores)
    np.testing.assert_allclose(read_scores(str(tmp_path / "sweep")).score, expected)
