"""SYNTHETIC results of a grid run: drawn from a made-up law, for tests of the report only.

No number here was measured.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quecc_jax.commands.grid_law import score_table
from quecc_jax.experiments.results import Curve, Llm, Results, Row
from scaling.diagnostics.assess import assess
from scaling.fit import fit_law
from scaling.report.fit_report import fit_record

_LAWS = {
    "single": (0.004, 0.2, 0.1, 0.02),
    "mosaic": (0.02, 0.25, 0.18, 0.05),
    "reading": (0.06, 0.1, 0.35, 0.0),
}
_KINDS = {"single": ("color", "shape", "yes-no"), "mosaic": ("cell", "whole"), "reading": ("cell", "row")}
_BLIND = {"single": 0.67, "mosaic": 0.31, "reading": 0.1}


def make_results(folder: Path, seeds: int = 1, questions: int = 1200, query_gain: float = 0.3) -> Results:
    """A complete results object whose sample images lie in `folder`; fits are real fits of it."""
    rng = np.random.default_rng(0)
    decoders: list[Llm] = [
        {"name": name, "width": width, "depth": depth, "params": params}
        for name, width, depth, params in (
            ("S", 64, 2, 130_000),
            ("M", 128, 4, 1_050_000),
            ("L", 192, 6, 3_500_000),
        )
    ]

    def curve(low: float, points: int) -> Curve:
        steps = np.arange(points) * 10
        return [[int(s), float(low + 3 * np.exp(-s / 400) + rng.normal(0, 0.05))] for s in steps]

    def entry(cell: str, accuracies: dict[str, float], **about: Any) -> None:
        for task, accuracy in accuracies.items():
            n = questions // len(_KINDS[task])
            for kind in _KINDS[task]:
                right = int(rng.binomial(n, np.clip(accuracy, 0, 1)))
                if kind == "cell" and task == "mosaic" and about["query"] == "zero":
                    right = max(right - round(query_gain * n), 0)
                row = {"cell": cell, "task": task, "kind": kind, "correct": right, "n": n, "score": right / n}
                rows.append({**row, "part": "", "loss": 0.4, "cut_questions": 0, **about})  # type: ignore[typeddict-item]

    rows, losses = list[Row](), dict[str, Any]()
    for seed in range(seeds):
        for decoder in decoders:
            about = {"llm": decoder["name"], "params_b": decoder["params"] / 1e9, "seed": seed}
            for v in (1, 4, 16, 64):
                accuracy = {
                    task: 1 - (a * (decoder["params"] / 1e9) ** -alpha * v**-beta + d)
                    for task, (a, alpha, beta, d) in _LAWS.items()
                }
                for query in ("question", "zero") if v == 1 and decoder["name"] == "M" else ("question",):
                    name = f"{decoder['name']}-v{v}-s{seed}-{query}"
                    flops = 2.0 * decoder["params"] * (30 + v)
                    seen = {"compressor": "QueCC", "query": query, "visual_tokens": v, "train_seconds": 20.0}
                    entry(name, accuracy, **about, **seen, flops=flops)
                    losses[name] = {"stage1": curve(1.0, 40), "stage2": curve(0.4 / v**0.2, 90)}
            blind = {"compressor": "", "query": "question", "visual_tokens": 0, "train_seconds": 9.0}
            entry(f"baseline-{decoder['name']}-{seed}", _BLIND, **about, **blind, flops=None)
    folder.joinpath("samples").mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / "samples" / "noise.png")
    results: Results = {
        "command": "make demo",
        "machine": "SYNTHETIC, 2 cores",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": {"total": 700.0, "tower": 150.0, "language models": 90.0, "cells": 430.0, "tests": 30.0},
        "grid": "synthetic",
        "visual_tokens": [1, 4, 16, 64],
        "seeds": list(range(seeds)),
        "llms": decoders,
        "own": "",
        "stages": [[1, 200, 16], [2, 2500, 16]],
        "models": len(losses),
        "rows": rows,
        "losses": losses,
        "steps": {
            "data": {"side": 2, "prompt_tokens": 30.0, "vocabulary": 100},
            "attention": [
                {
                    "llm": "M",
                    "seed": seed,
                    "query": query,
                    "kinds": {"mosaic/cell": [share + 0.1 * seed, 100]},
                }
                for seed in range(seeds)
                for query, share in (("question", 0.6), ("zero", 0.25))
            ],
            "tower": {"accuracy": {"shape": 0.981, "colour": 0.994, "digit": 0.952}, "loss": curve(0.2, 150)},
        },
        "samples": [
            {
                "task": task,
                "kind": f"{task}/{_KINDS[task][0]}",
                "image": "samples/noise.png",
                "question": f"what is <{task}>?",
                "prediction": prediction,
                "truth": "red",
                "llm": "M",
                "visual_tokens": 16,
            }
            for task in _LAWS
            for prediction in ("red", "blue")
        ],
        "fits": {},
    }
    for task in _LAWS:
        table = score_table(results, task)
        fit = fit_law(table, query_tokens=30.0)
        results["fits"][task] = fit_record(table, fit, assess(table, fit, count=100))
    return results
