"""Statistics of a grid's rows: means over seeds, their errors, comparisons, the scores that a law is fitted to.

An accuracy is a share in 0..1. `what` is a task ("mosaic"), whose accuracy is over all its questions, or one
kind of question ("mosaic/cell").
"""

import json
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np

from quecc_jax.errors import UserError

CELL_KIND = "mosaic/cell"
"""The kind of question that only a compressor that knows the question can answer at V = 1."""

K = TypeVar("K", bound=Hashable)


class Row(TypedDict, total=False):
    """What one model scored on one kind of question."""

    cell: str
    llm: str
    params_b: float
    """Billions of parameters by which the law counts it."""
    compressor: str
    query: str
    """`question`, or `zero` where the compressor was given zeros in its place."""
    part: str
    visual_tokens: int
    """V; 0 of a model that sees no image."""
    seed: int
    task: str
    kind: str
    """Kind of question; empty where the task has one."""
    correct: int
    """Right answers of `n`; a benchmark has its `score` alone."""
    n: int
    score: float
    stderr: float
    """Of the test questions, without that over seeds."""
    flops: float | None
    """Of one answer, tower included."""
    loss: float | None
    """Last training loss."""
    cut_questions: int
    train_seconds: float


class Results(TypedDict):
    """What results.json holds."""

    grid: str
    command: str
    machine: str
    started: str
    seconds: dict[str, float]
    """By phase, summed over jobs; `total` is what passed."""
    visual_tokens: list[int]
    seeds: list[int]
    llms: list[dict[str, Any]]
    """name, width, depth, params of each."""
    own: str
    stages: list[list[int]]
    """[stage, steps, batch size] of a model's training."""
    models: int
    """Models that see images."""
    rows: list[Row]
    losses: dict[str, dict[str, list[list[float]]]]
    """Curves [[step, loss], ...] by cell and stage."""
    samples: list[dict[str, Any]]
    steps: dict[str, Any]
    """What each step returned."""
    fits: dict[str, Any]
    """The law of each task, where one was fitted."""


class Key(NamedTuple):
    """A model but for its seed."""

    llm: str
    compressor: str
    visual_tokens: int
    query: str = "question"


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


class Difference(NamedTuple):
    """One model's accuracy less another's, over seeds."""

    gain: float
    error: float
    """Standard error of `gain`: that over seeds, or that of the test questions where it is larger."""
    p: float
    """Welch's t test over seeds, two-sided; it knows nothing of the test questions. NaN for one seed."""

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        if not self.error:
            return math.copysign(math.inf, self.gain) if self.gain else 0.0
        return self.gain / self.error


class Pair(NamedTuple):
    """One model trained twice, with the question in the compressor and with zeros in its place."""

    llm: str
    visual_tokens: int
    seed: int
    question: Score
    zero: Score


def read_results(path: Path) -> Results:
    """A grid's results.json.

    Raises:
      UserError: it cannot be read, or lacks what a report needs.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"cannot read results from {path}: {problem}") from None
    check_results(results)
    return results


def check_results(results: Mapping[str, Any]) -> None:
    """Raises UserError if a field that the report needs is absent or no cell is finished."""
    missing = [key for key in Results.__annotations__ if key not in results]
    if missing:
        raise UserError(f"the results have no {', '.join(missing)}; were they written by another version?")
    if not any(row["visual_tokens"] for row in results["rows"]):
        raise UserError("the results hold no finished cell yet; let the run finish one before reporting")


def tasks(rows: Iterable[Row]) -> list[str]:
    """Tasks in the order of the rows."""
    return list(dict.fromkeys(row["task"] for row in rows))


def cells(rows: Iterable[Row], llm: str, visual_tokens: int, query: str = "question") -> list[str]:
    """Names of the models of one (llm, V), one for each seed."""
    wanted = (llm, visual_tokens, query)
    return list(
        dict.fromkeys(r["cell"] for r in rows if (r["llm"], r["visual_tokens"], r["query"]) == wanted)
    )


def kinds(rows: Iterable[Row], task: str = "") -> list[str]:
    """Kinds of question, as "mosaic/cell", in alphabetical order."""
    return sorted({f"{r['task']}/{r['kind']}" for r in rows if r["kind"] and task in ("", r["task"])})


def compressors(rows: Iterable[Row], part: str = "") -> list[str]:
    """Compressors of one part of the report, or of all, in the order of the rows."""
    return list(
        dict.fromkeys(r["compressor"] for r in rows if r["visual_tokens"] and part in ("", r["part"]))
    )


def _matches(row: Row, what: str) -> bool:
    return what in (row["task"], f"{row['task']}/{row['kind']}")


def by_seed(rows: Iterable[Row], what: str, part: str = "") -> dict[Key, dict[int, tuple[float, int]]]:
    """(accuracy, questions) of each model and seed."""
    sums: dict[tuple[Key, int], list[int]] = {}
    for row in rows:
        if _matches(row, what) and part in ("", row["part"]):
            key = Key(row["llm"], row["compressor"], row["visual_tokens"], row["query"])
            total = sums.setdefault((key, row["seed"]), [0, 0])
            total[0] += row["correct"]
            total[1] += row["n"]
    found: dict[Key, dict[int, tuple[float, int]]] = {}
    for (key, seed), (right, asked) in sums.items():
        found.setdefault(key, {})[seed] = (right / asked, asked)
    return found


def pooled(entries: Iterable[tuple[float, int]]) -> Score:
    """Joins (accuracy, number of questions) of one or more seeds.

    Binomial error: sqrt(p (1 - p) / n). Over k seeds: sample standard deviation / sqrt(k).
    """
    accuracies, counts = zip(*entries, strict=True)
    mean, questions, seeds = float(np.mean(accuracies)), round(float(np.mean(counts))), len(accuracies)
    binomial = math.sqrt(max(mean * (1 - mean), 0.0) / questions)
    over_seeds = float(np.std(accuracies, ddof=1)) / math.sqrt(seeds) if seeds > 1 else binomial
    return Score(mean, over_seeds, binomial, questions, seeds)


def scores(rows: Iterable[Row], what: str, part: str = "") -> dict[Key, Score]:
    """Score of every model, over its seeds."""
    return {key: pooled(found.values()) for key, found in by_seed(rows, what, part).items()}


def grid(rows: Sequence[Row], what: str, query: str = "question") -> dict[tuple[str, int], Score]:
    """Score of every (llm, V) that sees images."""
    return {
        (key.llm, key.visual_tokens): score
        for key, score in scores(rows, what).items()
        if key.visual_tokens and key.query == query
    }


def baseline(rows: Sequence[Row], what: str) -> dict[str, Score]:
    """Score of each language model that reads the question and sees no image."""
    return {key.llm: score for key, score in scores(rows, what).items() if not key.visual_tokens}


def best(found: Mapping[K, Score]) -> tuple[K, Score]:
    """Key and value of the highest mean."""
    return max(found.items(), key=lambda item: item[1].mean)


def margin(a: Score, b: Score) -> tuple[float, float]:
    """a - b and its standard error, taken as if the two were independent.

    Both answer the same questions, so the true error of the difference is smaller.
    """
    return a.mean - b.mean, math.hypot(a.cautious, b.cautious)


def difference(rows: Iterable[Row], what: str, a: Key, b: Key) -> Difference | None:
    """Accuracy of `a` less that of `b`; None where one of them was not trained."""
    found = by_seed(rows, what)
    if a not in found or b not in found:
        return None
    from scipy.stats import ttest_ind

    gain, error = margin(*(pooled(found[key].values()) for key in (a, b)))
    seeds = [[share for share, _ in found[key].values()] for key in (a, b)]
    p = float(ttest_ind(*seeds, equal_var=False).pvalue) if min(map(len, seeds)) > 1 else math.nan
    return Difference(gain, error, p)


def ablation(rows: Sequence[Row], what: str = CELL_KIND) -> list[Pair]:
    """Every (llm, V, seed) that was trained both with the question and with zeros, in the rows' order."""
    found = by_seed(rows, what)
    order = list(dict.fromkeys(row["llm"] for row in rows))
    pairs = [
        Pair(key.llm, key.visual_tokens, seed, pooled([entry]), pooled([found[twin][seed]]))
        for key, seeds in found.items()
        for seed, entry in seeds.items()
        if key.query == "question" and seed in found.get(twin := key._replace(query="zero"), {})
    ]
    return sorted(pairs, key=lambda pair: (order.index(pair.llm), pair.visual_tokens, pair.seed))


def ablation_effect(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Mean gain of the question over zeros, and its standard error.

    Over three or more pairs the error is the spread of their differences; two or one say too little
    about spread, so it is the binomial error then.
    """
    gains = [pair.question.mean - pair.zero.mean for pair in pairs]
    if len(gains) > 2:
        return float(np.mean(gains)), float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    errors = [margin(pair.question, pair.zero)[1] for pair in pairs]
    return float(np.mean(gains)), math.hypot(*errors) / len(errors)


def attention(results: Results, llm: str, query: str, kind: str = CELL_KIND) -> float | None:
    """Mean share of the attention at V = 1 that falls on the cell a question names, over seeds."""
    shares = [
        row["kinds"][kind][0]
        for row in results["steps"].get("attention", ())
        if (row["llm"], row["query"]) == (llm, query) and kind in row["kinds"]
    ]
    return float(np.mean(shares)) if shares else None


def flops(rows: Iterable[Row], task: str) -> dict[Key, float]:
    """Mean FLOPs of answering one of a task's questions, tower included."""
    sums: dict[Key, list[float]] = {}
    for row in rows:
        if row["task"] == task and row["flops"] is not None:
            key = Key(row["llm"], row["compressor"], row["visual_tokens"], row["query"])
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += row["flops"] * row["n"]
            total[1] += row["n"]
    return {key: spent / asked for key, (spent, asked) in sums.items()}


def grid_flops(rows: Iterable[Row], task: str) -> dict[tuple[str, int], float]:
    """The same by (llm, V), of the models that are given the question."""
    return {(k.llm, k.visual_tokens): f for k, f in flops(rows, task).items() if k.query == "question"}


def cheapest_near_best(rows: Sequence[Row], task: str) -> tuple[str, int]:
    """The (llm, V) of least FLOPs whose accuracy is within one standard error of the best."""
    found, counted = grid(rows, task), grid_flops(rows, task)
    _, top = best(found)
    near = [key for key, score in found.items() if score.mean >= top.mean - top.cautious]
    return min(near, key=lambda key: (counted[key], -found[key].mean))


def spread(results: Results, task: str) -> tuple[float | None, float | None]:
    """Mean change of accuracy from fewest to most visual tokens, and from smallest to largest model.

    None where the grid has one column or row, or an end of it is unfinished everywhere.
    """
    found = grid(results["rows"], task)
    names = [llm["name"] for llm in sorted(results["llms"], key=lambda llm: llm["params"])]
    counts = sorted(results["visual_tokens"])

    def change(pairs: Iterable[tuple[tuple[str, int], tuple[str, int]]]) -> float | None:
        moves = [found[b].mean - found[a].mean for a, b in pairs if a != b and a in found and b in found]
        return float(np.mean(moves)) if moves else None

    return (
        change(((name, counts[0]), (name, counts[-1])) for name in names),
        change(((names[0], v), (names[-1], v)) for v in counts),
    )


def scores_record(
    rows: Iterable[Row],
    sizes: Collection[float],
    visual_tokens: Collection[int],
    query_tokens: float,
    name: str,
    source: str,
) -> dict[str, Any]:
    """The scores file that `scaling fit` reads: means over seeds, and over tasks for `score`; null where
    no cell is finished.

    Args:
      sizes: billions of parameters that have a row even without a finished cell.
    """
    mine = [row for row in rows if row["visual_tokens"] and row["query"] == "question"]
    names, counts = tasks(mine), sorted(visual_tokens)
    params = sorted({*sizes, *(row["params_b"] for row in mine)})
    parts = _per_seed(mine)

    def cell(n: float, v: int, wanted: list[str]) -> tuple[float | None, float | None]:
        found = [part for task in wanted for part in parts.get((n, v, task), ())]
        if not found:
            return None, None
        error = math.sqrt(math.fsum(stderr**2 for _, stderr in found)) / len(found)
        return math.fsum(score for score, _ in found) / len(found), error

    def table(wanted: list[str], field: int) -> list[list[float | None]]:
        return [[cell(n, v, wanted)[field] for v in counts] for n in params]

    return {
        "name": name,
        "params_b": params,
        "visual_tokens": counts,
        "query_tokens": query_tokens,
        "score": table(names, 0),
        "stderr": table(names, 1),
        "tasks": {task: table([task], 0) for task in names},
        "source": source,
    }


def _per_seed(rows: Iterable[Row]) -> dict[tuple[float, int, str], list[tuple[float, float]]]:
    """Score and standard error of every seed by (size, V, task), kinds of question taken together."""
    groups: dict[tuple[float, int, str, int], list[Row]] = {}
    for row in rows:
        key = (row["params_b"], row["visual_tokens"], row["task"], row["seed"])
        groups.setdefault(key, []).append(row)
    found: dict[tuple[float, int, str], list[tuple[float, float]]] = {}
    for (n, v, task, _), group in groups.items():
        score, error = group[0]["score"], group[0]["stderr"]
        if len(group) > 1:
            asked = sum(row["n"] for row in group)
            one = pooled([(sum(row["correct"] for row in group) / asked, asked)])
            score, error = one.mean, one.binomial
        found.setdefault((n, v, task), []).append((score, error))
    return found
