"""Statistics of a grid run's `results.json`: what the report states, computed from the numbers.

An accuracy is a fraction in 0..1. `kind` arguments take either a task ("mosaic"), whose accuracy is
over all its test questions, or a question type ("mosaic/cell").
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.errors import UserError
from scaling.fit import NON_NEGATIVE, Fit, VariableProjection
from scaling.frontier import Cost, measured_cost, published_cost
from scaling.law import PARAMETERS, Law, Params
from scaling.table import ScoreTable, checked

Results = Mapping[str, Any]

CELL_KIND = "mosaic/cell"
"""The question type that only a compressor that knows the question can answer at V = 1."""

_REQUIRED = (
    "command",
    "machine",
    "started",
    "seconds",
    "tasks",
    "visual_tokens",
    "seeds",
    "decoders",
    "cells",
    "baseline",
    "attention",
    "plan",
    "fits",
    "samples",
)


def read_results(path: Path) -> dict[str, Any]:
    """A run's results.json.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"cannot read results from {path}: {problem}") from None


class Score(NamedTuple):
    """Mean accuracy over seeds and its uncertainty."""

    mean: float
    stderr: float
    """Standard error: over seeds if there are several, binomial otherwise."""
    binomial: float
    """Binomial standard error of the test questions, those of one seed."""
    questions: int
    """Test questions that each seed answered."""
    seeds: int

    @property
    def cautious(self) -> float:
        """The larger error: seeds share the test questions, so agreement among them proves little."""
        return max(self.stderr, self.binomial)


class Pair(NamedTuple):
    """One model trained twice, with the question in the compressor and with zeros in its place."""

    decoder: str
    visual_tokens: int
    seed: int
    question: Score
    zero: Score


def check_results(results: Results) -> None:
    """Raises UserError if a field that the report needs is absent or the grid is empty."""
    missing = [key for key in _REQUIRED if key not in results]
    if missing:
        raise UserError(f"the results have no {', '.join(missing)}; were they written by another version?")
    if not grid(results, results["tasks"][0]):
        raise UserError("the results hold no finished cell yet; let the run finish one before reporting")


def pooled(entries: Iterable[tuple[float, int]]) -> Score:
    """Joins (accuracy, number of questions) of one or more seeds.

    Binomial error: sqrt(p (1 - p) / n). Over k seeds: sample standard deviation / sqrt(k).
    """
    accuracies, counts = zip(*entries, strict=True)
    mean, questions, seeds = float(np.mean(accuracies)), round(float(np.mean(counts))), len(accuracies)
    binomial = math.sqrt(max(mean * (1 - mean), 0.0) / questions)
    over_seeds = float(np.std(accuracies, ddof=1)) / math.sqrt(seeds) if seeds > 1 else binomial
    return Score(mean, over_seeds, binomial, questions, seeds)


def grid(results: Results, kind: str, query: str = "question") -> dict[tuple[str, int], Score]:
    """Score of every finished (decoder, V)."""
    found: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for cell in results["cells"]:
        if cell["query"] == query and (entry := _entry(cell, kind)) is not None:
            found.setdefault((cell["decoder"], cell["visual_tokens"]), []).append(entry)
    return {key: pooled(entries) for key, entries in found.items()}


def baseline(results: Results, kind: str) -> dict[str, Score]:
    """Score of each decoder that reads the question and sees no picture."""
    found: dict[str, list[tuple[float, int]]] = {}
    for row in results["baseline"]:
        if (entry := _entry(row, kind)) is not None:
            found.setdefault(row["decoder"], []).append(entry)
    return {decoder: pooled(entries) for decoder, entries in found.items()}


def best(scores: Mapping[Any, Score]) -> tuple[Any, Score]:
    """Key and value of the highest mean."""
    return max(scores.items(), key=lambda item: item[1].mean)


def margin(a: Score, b: Score) -> tuple[float, float]:
    """a - b and its standard error, taken as if the two were independent.

    Both answer the same questions, so the true error of the difference is smaller.
    """
    return a.mean - b.mean, math.hypot(a.cautious, b.cautious)


def ablation(results: Results, kind: str = CELL_KIND) -> list[Pair]:
    """Every (decoder, V, seed) that was trained both with the question and with zeros."""
    sides: dict[tuple[str, int, int], dict[str, Score]] = {}
    for cell in results["cells"]:
        if (entry := _entry(cell, kind)) is not None:
            key = (cell["decoder"], cell["visual_tokens"], cell["seed"])
            sides.setdefault(key, {})[cell["query"]] = pooled([entry])
    order = {decoder["name"]: i for i, decoder in enumerate(results["decoders"])}
    pairs = [Pair(*key, side["question"], side["zero"]) for key, side in sides.items() if len(side) == 2]
    return sorted(pairs, key=lambda pair: (order[pair.decoder], pair.visual_tokens, pair.seed))


def attention(results: Results, decoder: str, query: str, kind: str = CELL_KIND) -> float | None:
    """Mean share of the attention at V = 1 that falls on the cell a question names, over seeds."""
    shares = [
        row["kinds"][kind][0]
        for row in results["attention"]
        if (row["decoder"], row["query"]) == (decoder, query) and kind in row["kinds"]
    ]
    return float(np.mean(shares)) if shares else None


def ablation_effect(pairs: list[Pair]) -> tuple[float, float]:
    """Mean gain of the question over zeros, and its standard error.

    Over three or more pairs the error is the spread of their differences; two or one say too little
    about spread, so it is the binomial error then.
    """
    gains = [pair.question.mean - pair.zero.mean for pair in pairs]
    if len(gains) > 2:
        return float(np.mean(gains)), float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    errors = [margin(pair.question, pair.zero)[1] for pair in pairs]
    return float(np.mean(gains)), math.hypot(*errors) / len(errors)


def kinds(results: Results, task: str) -> list[str]:
    """Question types of a task, in alphabetical order."""
    return sorted({kind for cell in results["cells"] for kind in cell["kinds"] if kind.split("/")[0] == task})


def score_table(results: Results, task: str) -> ScoreTable:
    """The grid as the fitter's table: sizes in billions of decoder parameters, ascending.

    Raises UserError if the finished cells cannot determine a law.
    """
    scores = grid(results, task)
    decoders = sorted(results["decoders"], key=lambda decoder: decoder["params"])
    counts = sorted(results["visual_tokens"])

    def table(field: str) -> np.ndarray:
        return np.array(
            [[getattr(scores.get((d["name"], v)), field, np.nan) for v in counts] for d in decoders]
        )

    return checked(
        ScoreTable(
            params_b=np.array([decoder["params"] / 1e9 for decoder in decoders]),
            visual_tokens=np.array(counts, np.float64),
            score=table("mean"),
            stderr=table("stderr"),
            name=task,
        )
    )


def flops(results: Results, task: str) -> dict[tuple[str, int], float]:
    """Counted FLOPs per question of every finished (decoder, V)."""
    found = {}
    for cell in results["cells"]:
        counted = cell["flops_per_question"]
        if cell["query"] == "question":
            value = counted[task] if isinstance(counted, Mapping) else counted
            found[cell["decoder"], cell["visual_tokens"]] = float(value)
    return found


def stored_fit(results: Results, task: str, table: ScoreTable) -> Fit:
    """The run's own fit of a task, ready to draw: residuals are recomputed from law and table."""
    record = results["fits"][task]
    law = Law(
        Params(*(record[name] for name in PARAMETERS)), record["tokens_convention"], record["query_tokens"]
    )
    r2 = record["r2"]
    return Fit(
        law=law,
        residuals=law.error(table.params_b[:, None], table.visual_tokens[None, :]) - table.error,
        sse=record["sse"],
        r2=float("nan") if r2 is None else r2,
        n_points=int(np.isfinite(table.score).sum()),
        n_parameters=len(PARAMETERS) - len(record.get("fixed", ())),
        bounds=NON_NEGATIVE,
        bounds_hit=tuple(record["bounds_hit"]),
        n_starts=record["n_starts"],
        n_agreeing=record["n_agreeing"],
        iterations=0,
        converged=record["converged"],
        cross_check=VariableProjection(law.params, record["cross_check"]["sse"]),
        objective=record["sse"],
    )


def cost(results: Results, task: str, law: Law) -> Cost:
    """Counted FLOPs if every cell of the grid has them, the published 2 N (Q + V) otherwise."""
    counted = flops(results, task)
    names, counts = [decoder["name"] for decoder in results["decoders"]], results["visual_tokens"]
    if any((name, v) not in counted for name in names for v in counts):
        return published_cost(law.query_tokens)
    sizes = [decoder["params"] / 1e9 for decoder in results["decoders"]]
    return measured_cost(sizes, counts, [[counted[name, v] for v in counts] for name in names])


def cheapest_near_best(results: Results, task: str) -> tuple[str, int]:
    """The (decoder, V) of least FLOPs whose accuracy is within one standard error of the best."""
    scores, counted = grid(results, task), flops(results, task)
    _, top = best(scores)
    near = [key for key, score in scores.items() if score.mean >= top.mean - top.cautious]
    return min(near, key=lambda key: (counted[key], -scores[key].mean))


def spread(results: Results, task: str) -> tuple[float | None, float | None]:
    """Mean change of accuracy from fewest to most visual tokens, and from smallest to largest decoder.

    None where the grid has one column or row, or an end of it is unfinished everywhere.
    """
    scores = grid(results, task)
    names = [d["name"] for d in sorted(results["decoders"], key=lambda decoder: decoder["params"])]
    counts = sorted(results["visual_tokens"])

    def change(pairs: Iterable[tuple[tuple[str, int], tuple[str, int]]]) -> float | None:
        moves = [scores[b].mean - scores[a].mean for a, b in pairs if a != b and a in scores and b in scores]
        return float(np.mean(moves)) if moves else None

    return (
        change(((name, counts[0]), (name, counts[-1])) for name in names),
        change(((names[0], v), (names[-1], v)) for v in counts),
    )


def _entry(row: Mapping[str, Any], kind: str) -> tuple[float, int] | None:
    if "/" in kind:
        return tuple(row["kinds"][kind]) if kind in row["kinds"] else None
    return (row["scores"][kind], row["counts"][kind]) if kind in row["scores"] else None
