"""Statistics of a grid's rows: means over seeds, their errors, comparisons, the scores that a law is fitted to.

An accuracy is a share in 0..1. `what` is a task ("mosaic"), whose accuracy is over all its questions, or one
kind of question ("mosaic/cell").
"""

import dataclasses
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from quecc_jax.experiments.results import Llm, Results, Row
from quecc_jax.pages.numbers import percent_text

CELL_KIND = "mosaic/cell"
"""The kind of question that only a compressor that knows the question can answer at V = 1."""

K = TypeVar("K", bound=Hashable)


def seed_spreads(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Standard deviation over seeds of the accuracy of each language model on each kind of question: the root
    mean square of the sample deviations at every V. Nothing where there is one seed.

    Returns:
      Shares in 0..1 by language model and kind, as "mosaic/cell".
    """
    found, listed = dict[str, dict[str, float]](), list(rows)
    for kind in kinds(listed):
        deviations: dict[str, list[float]] = {}
        for (llm, _), one in scores(listed, kind).items():
            if len(one.seeds) > 1:
                deviations.setdefault(llm, []).append(float(np.var(one.shares, ddof=1)))
        for llm, variances in deviations.items():
            found.setdefault(llm, {})[kind] = math.sqrt(float(np.mean(variances)))
    return found


def one_compressor(rows: Iterable[Row]) -> bool:
    """Whether the grid is about decoders and V, so that a law can be fitted, and not about compressors."""
    return len(compressors(rows)) == 1


def title(task: str) -> str:
    """A task's name as it starts a sentence."""
    return task[:1].upper() + task[1:]


def tasks(rows: Iterable[Row]) -> list[str]:
    """Tasks in the order of the rows."""
    return list(dict.fromkeys(row["task"] for row in rows))


def kinds(rows: Iterable[Row], task: str = "") -> list[str]:
    """Kinds of question, as "mosaic/cell", in alphabetical order."""
    return sorted({f"{r['task']}/{r['kind']}" for r in rows if r["kind"] and task in ("", r["task"])})


def compressors(rows: Iterable[Row], part: str = "") -> list[str]:
    """Compressors of one part of the report, or of all, in the order of the rows."""
    return list(
        dict.fromkeys(r["compressor"] for r in rows if r["visual_tokens"] and part in ("", r["part"]))
    )


def by_size(results: Results) -> list[Llm]:
    """Language models by ascending number of parameters."""
    return sorted(results["llms"], key=lambda llm: llm["params"])


def binomial_error(share: float, questions: int) -> float:
    """Standard error of a share of right answers: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(share * (1 - share), 0.0) / questions)


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracy of one model over its seeds, and its uncertainty."""

    seeds: Mapping[int, tuple[float, int]]
    """Share of right answers, and the number of questions, of each seed."""
    flops: float | None = None
    """Mean FLOPs of one answer, tower included."""
    seed_spread: float = 0.0
    """Standard deviation over seeds as it was measured elsewhere; counts where there is one seed."""

    @property
    def shares(self) -> list[float]:
        """Share of right answers of each seed."""
        return [share for share, _ in self.seeds.values()]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.shares))

    @property
    def questions(self) -> int:
        """Test questions that each seed answered."""
        return round(float(np.mean([asked for _, asked in self.seeds.values()])))

    @property
    def binomial(self) -> float:
        """Binomial standard error of the test questions, those of one seed."""
        return binomial_error(self.mean, self.questions)

    @property
    def stderr(self) -> float:
        """Standard error: over k seeds sample standard deviation / sqrt(k); for one, that of its questions and,
        as far as it is known, of its training."""
        count = len(self.seeds)
        if count > 1:
            return float(np.std(self.shares, ddof=1)) / math.sqrt(count)
        return math.hypot(self.binomial, self.seed_spread)

    @property
    def cautious(self) -> float:
        """The larger error: seeds share the test questions, so agreement among them proves little."""
        return max(self.stderr, self.binomial)

    def __str__(self) -> str:
        return percent_text(self.mean, self.stderr)


def score(groups: Mapping[int, Sequence[Row]]) -> Score:
    """The score of one model from its rows by seed."""
    seeds = {}
    for seed, rows in groups.items():
        asked = sum(row["n"] for row in rows)
        seeds[seed] = (sum(row["correct"] for row in rows) / asked, asked)
    counted = [(row["flops"], row["n"]) for rows in groups.values() for row in rows]
    known = [(flops, n) for flops, n in counted if flops is not None]
    spent = sum(flops * n for flops, n in known) / sum(n for _, n in known) if known else None
    # A seed that is better at one kind of question tends to be so at all.
    spreads = [(row.get("seed_spread") or 0.0, row["n"]) for rows in groups.values() for row in rows]
    return Score(seeds, spent, sum(s * n for s, n in spreads) / sum(n for _, n in spreads))


def scores(
    rows: Iterable[Row],
    what: str,
    axis: Literal["llm", "compressor"] = "llm",
    part: str = "",
    zero_query: bool = False,
    sees_images: bool = True,
) -> dict[tuple[str, int], Score]:
    """Score of every (language model, V), or of every (compressor, V).

    Args:
      part: the part of the report; all without one.
      zero_query: those of the models whose compressor is given zeros, instead of the others.
      sees_images: False for the models that read the question alone, whose V is 0.
    """
    groups: dict[tuple[str, int], dict[int, list[Row]]] = {}
    for row in rows:
        asked = what in (row["task"], f"{row['task']}/{row['kind']}") and part in ("", row["part"])
        kind = (row["query"] == "zero", row["visual_tokens"] > 0)
        if asked and kind == (zero_query, sees_images):
            key = (row["llm"] if axis == "llm" else row["compressor"], row["visual_tokens"])
            groups.setdefault(key, {}).setdefault(row["seed"], []).append(row)
    return {key: score(found) for key, found in groups.items()}


def baseline(rows: Iterable[Row], what: str) -> dict[str, Score]:
    """Score of each language model that reads the question and sees no image."""
    return {llm: found for (llm, _), found in scores(rows, what, sees_images=False).items()}


def best(found: Mapping[K, Score]) -> tuple[K, Score]:
    """Key and value of the highest mean."""
    return max(found.items(), key=lambda item: item[1].mean)


class Difference(NamedTuple):
    """One accuracy less another."""

    gain: float
    error: float
    """Standard error of `gain`."""

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        if not self.error:
            return math.copysign(math.inf, self.gain) if self.gain else 0.0
        return self.gain / self.error

    def __str__(self) -> str:
        return f"{100 * self.gain:+.1f} ± {100 * self.error:.1f}"


def difference(a: Score, b: Score) -> Difference:
    """a - b, with the larger error of each, taken as if the two were independent.

    Both answer the same questions, so the true error of the difference is smaller.
    """
    return Difference(a.mean - b.mean, math.hypot(a.cautious, b.cautious))


def welch_p(a: Score, b: Score) -> float:
    """Welch's t test over seeds, two-sided; it knows nothing of the test questions. NaN for one seed."""
    from scipy.stats import ttest_ind

    if min(len(a.seeds), len(b.seeds)) < 2:
        return math.nan
    return float(ttest_ind(a.shares, b.shares, equal_var=False).pvalue)


class Pair(NamedTuple):
    """One model trained twice, with the question in the compressor and with zeros in its place."""

    llm: str
    visual_tokens: int
    seed: int
    question: Score
    zero: Score


def ablation(rows: Sequence[Row], what: str = CELL_KIND) -> list[Pair]:
    """Every (llm, V, seed) that was trained both with the question and with zeros, in the rows' order."""
    asked, zeros = scores(rows, what), scores(rows, what, zero_query=True)
    order = list(dict.fromkeys(row["llm"] for row in rows))
    pairs = [
        Pair(*key, seed, *(_of_seed(found[key], seed) for found in (asked, zeros)))
        for key in asked.keys() & zeros.keys()
        for seed in asked[key].seeds.keys() & zeros[key].seeds.keys()
    ]
    return sorted(pairs, key=lambda pair: (order.index(pair.llm), pair.visual_tokens, pair.seed))


def _of_seed(found: Score, seed: int) -> Score:
    return Score({seed: found.seeds[seed]}, seed_spread=found.seed_spread)


def ablation_effect(pairs: Sequence[Pair]) -> Difference:
    """Mean gain of the question over zeros.

    Over three or more pairs the error is the spread of their differences; two or one say too little
    about spread, so it is that of the single scores then.
    """
    found = [difference(pair.question, pair.zero) for pair in pairs]
    gains = [one.gain for one in found]
    error = math.hypot(*(one.error for one in found)) / len(found)
    if len(gains) > 2:
        error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    return Difference(float(np.mean(gains)), error)


def attention(results: Results, llm: str, query: str, kind: str = CELL_KIND) -> float | None:
    """Mean share of the attention at V = 1 that falls on the cell a question names, over seeds."""
    shares = [
        row["kinds"][kind][0]
        for row in results["steps"].get("attention", ())
        if (row["llm"], row["query"]) == (llm, query) and kind in row["kinds"]
    ]
    return float(np.mean(shares)) if shares else None


def cheapest_near_best(found: Mapping[tuple[str, int], Score]) -> tuple[str, int]:
    """The (llm, V) of least FLOPs whose accuracy is within one standard error of the best."""
    _, top = best(found)
    near = {key: score for key, score in found.items() if score.mean >= top.mean - top.cautious}
    costs = {key: math.inf if score.flops is None else score.flops for key, score in near.items()}
    return min(near, key=lambda key: (costs[key], -near[key].mean))


def spread(results: Results, task: str) -> tuple[float | None, float | None]:
    """Mean change of accuracy from fewest to most visual tokens, and from smallest to largest model.

    None where the grid has one column or row, or an end of it is unfinished everywhere.
    """
    found = scores(results["rows"], task)
    names = [llm["name"] for llm in by_size(results)]
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
    no cell is finished. `stderr` is the larger of the questions' error and that over seeds (`Score.cautious`).

    Args:
      sizes: billions of parameters that have a row even without a finished cell.
    """
    groups: dict[tuple[float, int, str], dict[int, list[Row]]] = {}
    for row in rows:
        if row["visual_tokens"] and row["query"] == "question":
            key = (row["params_b"], row["visual_tokens"], row["task"])
            groups.setdefault(key, {}).setdefault(row["seed"], []).append(row)
    names, counts = list(dict.fromkeys(task for _, _, task in groups)), sorted(visual_tokens)
    params = sorted({*sizes, *(size for size, _, _ in groups)})
    parts = {key: _score_and_error(list(seeds.values())) for key, seeds in groups.items()}

    def cell(n: float, v: int, wanted: list[str]) -> tuple[float | None, float | None]:
        found = [parts[n, v, task] for task in wanted if (n, v, task) in parts]
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


def _score_and_error(seeds: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """Mean score of one model on one task, its kinds of question taken together, and the cautious error of it.

    Args:
      seeds: the rows of each seed; benchmarks have one row with its own error.
    """
    if "n" in seeds[0][0]:
        found = score(dict(enumerate(seeds)))
        return found.mean, found.cautious
    shares = [rows[0]["score"] for rows in seeds]
    between = float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    own = math.sqrt(float(np.mean([rows[0]["stderr"] ** 2 for rows in seeds])))
    return float(np.mean(shares)), max(between, own)
