"""A grid of experiments as a value: which models are trained, what each is asked, what must come first."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from typing import Any, Literal

from quecc_jax.config import CompressorConfig, RunConfig, SourceConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.weights import Weights
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.settings import Testbed


@dataclasses.dataclass(frozen=True)
class Test:
    """Questions to a trained model; its score is the share of greedy answers that are exact."""

    __test__ = False

    sources: tuple[SourceConfig, ...]
    task: str = ""
    """Task of all the questions; without it each row's `kind` names its own, as "mosaic/cell" does."""
    max_new_tokens: int = 32
    batch_size: int = 64
    """Questions answered at a time."""
    cached_features: bool = False
    """Read the tower's features instead of images."""
    count_flops: bool = False
    """Count the FLOPs of every answer, to a question about one image."""
    turns: Literal["first", "all"] = "first"
    """Questions of a row that are asked, as of `launch.evaluate`; later ones are a kind of their own, as
    "mosaic/cell-later"."""
    query: Literal["own", "latest"] = "own"
    """Whose words condition the compressor in later turns, as of `launch.evaluate`."""
    weights: Weights = "run"
    """How the model is kept and computes, as of `launch.evaluate`."""


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """Published benchmarks to ask a trained model."""

    names: str
    """Names of `launch.evaluate --tasks` between commas."""
    data: str
    """The folder that holds them."""
    batch_size: int = 64
    weights: Weights = "run"
    """As of a `Test`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model: the runs that train it, one after another, and the tests of the last."""

    name: str
    """Unique within a grid, and fit for a file's name."""
    runs: tuple[RunConfig, ...]
    """A decoder whose vocab_size is 0 takes that of the run's tokenizer."""
    tests: tuple[Test, ...] = ()
    benchmarks: Benchmarks | None = None
    llm: str = ""
    """What reports call its language model."""
    params_b: float = 0.0
    """Billions of parameters by which the law counts it; 0 counts the decoder's without embeddings."""
    compressor: str = ""
    """What reports call its compressor; those of one name differ in V and seed only."""
    visual_tokens: tuple[int, ...] = ()
    """Values V at which an elastic compressor is tested; its own without any."""
    seed_spreads: tuple[tuple[str, float], ...] = ()
    """Standard deviation over seeds of its share of right answers, by kind of question, where it was measured
    elsewhere."""
    part: str = "cells"
    """What it belongs to in the report: a kind of comparison, or of preparation."""
    samples: int = 0
    """Answered questions of each task that are kept for the report; their sources are pools."""
    keep: bool = True
    """Keep the trained parameters after the tests."""
    needs: tuple[str, ...] = ()
    """Steps and cells that must be finished first."""
    cost: float = 1.0
    """Expected share of the work, for the order and for the time left."""

    @property
    def seed(self) -> int:
        """Seed of its training."""
        return self.runs[-1].train.seed

    @property
    def query(self) -> Literal["question", "zero"]:
        """What the compressor is given of the question: its feature, or zeros (the ablation)."""
        return self.runs[-1].model.compressor.query

    @property
    def sees_images(self) -> bool:
        """Whether it is a vision-language model that is tested, and no preparation or baseline."""
        return bool(self.tests or self.benchmarks) and self.runs[-1].data.images_per_row > 0

    @property
    def function(self) -> str:
        """What runs it, as `Step.function`."""
        return "quecc_jax.experiments.cell:run_cell"


@dataclasses.dataclass(frozen=True)
class Step:
    """Work of a grid besides its cells: data that they read, a measurement of what they made."""

    name: str
    function: str
    """`module:name` of a function of (grid, step, report) that returns a JSON value. Only workers import
    it: JAX reads the environment that the parent prepares."""
    needs: tuple[str, ...] = ()
    cost: float = 1.0
    part: str = ""


Job = Step | Cell


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells and steps that share a directory, and what their report is about."""

    name: str
    out: str
    """Directory for everything; one that all hosts see, where several share the work. Runs that lie below
    it move with it (`at`)."""
    cells: tuple[Cell, ...]
    steps: tuple[Step, ...] = ()
    testbed: Testbed | None = None
    """What the steps make, where they make a testbed."""
    visual_tokens: tuple[int, ...] = ()
    """Values V that the grid is about, ascending."""
    query_tokens: float = 0.0
    """Text tokens Q of one query, for the law; 0 is what the step `data` counted."""
    own: str = ""
    """The compressor whose difference from QueCC is reported."""


def jobs(grid: Grid) -> list[Job]:
    """All steps and cells, each behind those that it needs.

    Raises:
      UserError: a name appears twice, or a need is no job of the grid or in a circle.
    """
    listed: list[Job] = [*grid.steps, *grid.cells]
    every = {job.name: job for job in listed}
    if len(every) < len(listed):
        counted = Counter(job.name for job in listed)
        raise UserError(f"two jobs of the grid are called {counted.most_common(1)[0][0]!r}; rename one")
    depth: dict[str, int] = {}
    while len(depth) < len(every):
        ready = [j for j in every.values() if j.name not in depth and all(n in depth for n in j.needs)]
        if not ready:
            stuck = next(job for name, job in every.items() if name not in depth)
            raise UserError(f"{stuck.name} needs {', '.join(stuck.needs)}, which is no job or needs it too")
        depth.update({j.name: 1 + max((depth[n] for n in j.needs), default=-1) for j in ready})
    return sorted(every.values(), key=lambda job: depth[job.name])


def at(grid: Grid, out: str) -> Grid:
    """The same grid in another directory, with all paths below it."""

    def moved(value: Any) -> Any:
        if isinstance(value, str) and (value == grid.out or value.startswith(f"{grid.out}/")):
            return out + value[len(grid.out) :]
        if isinstance(value, tuple):
            return tuple(moved(one) for one in value)
        if dataclasses.is_dataclass(value):
            fields = {field.name: moved(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **fields)  # type: ignore[type-var]
        return value

    return moved(grid)


def tiled(compressor: CompressorConfig, grid: int, visual_tokens: int) -> CompressorConfig:
    """The same compressor at V tokens; kernel = stride, so that regions tile the tower's grid x grid patches.

    Raises:
      UserError: V is no square number whose root divides the grid.
    """
    side = math.isqrt(max(visual_tokens, 0))
    if visual_tokens < 1 or side * side != visual_tokens or grid % side:
        fitting = ", ".join(str(k * k) for k in range(1, grid + 1) if grid % k == 0)
        raise UserError(f"{visual_tokens} visual tokens do not tile a grid of {grid}; these do: {fitting}")
    return exchanged(compressor, kernel=grid // side, stride=grid // side)


LATER = {
    *(
        f"Testbed.{name}"
        for name in (
            "tasks",
            "shrunk",
            "text_tokens",
            "query_tokens",
            "answer_tokens",
            "document_tokens",
            "turns",
        )
    ),
    *(f"Test.{name}" for name in ("turns", "query")),
}
"""Settings that were not there when the first grids were started."""


def digests(grid: Grid) -> dict[str, str]:
    """A checksum of each job's settings and of what all share, wherever the grid lies."""
    here = at(grid, "")
    shared = dataclasses.replace(here, cells=(), steps=())
    # What a job is expected to cost changes no result.
    parts = {"": shared, **{job.name: dataclasses.replace(job, cost=1.0) for job in jobs(here)}}
    return {name: hashlib.sha256(json.dumps(_settings(x)).encode()).hexdigest() for name, x in parts.items()}


def _settings(value: Any) -> Any:
    """A value as JSON holds it, without LATER settings that are as they were before them, so that what was started then
    goes on."""
    if isinstance(value, tuple):
        return [_settings(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    plain = {f.name for f in dataclasses.fields(value) if own[f.name] == f.default}
    kind = type(value).__name__
    return {k: _settings(v) for k, v in own.items() if f"{kind}.{k}" not in LATER or k not in plain}
