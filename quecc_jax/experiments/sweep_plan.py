"""What a sweep runs: language models x visual tokens x seeds, each cell LLaVA's two stages and tests."""

import dataclasses
import math
from typing import Any, Literal

from quecc_jax.config import CompressorConfig, DecoderConfig, RunConfig, SourceConfig
from quecc_jax.config.presets import SIZES_B, decoder
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.flops import train_flops


@dataclasses.dataclass(frozen=True)
class Llm:
    """One language model of the grid."""

    name: str
    """A preset of `quecc_jax.config.presets`, unless `decoder` is given."""
    weights: str = ""
    """Run directory that stage 1 starts from, as `launch.convert import` writes it; random without one."""
    tokenizer: str = ""
    """Directory of its tokenizer; that of the weights by default."""
    template: str = ""
    """Its conversation template; that of the stages by default."""
    size_b: float = 0.0
    """Billions of parameters by which the law counts it; 0 for what the preset's name says."""
    decoder: DecoderConfig | None = None


@dataclasses.dataclass(frozen=True)
class Test:
    """Questions whose share of exact greedy answers is a score."""

    name: str
    source: SourceConfig
    max_new_tokens: int = 32


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs. Of the stages' own settings, the sweep replaces out, seed, decoder, tokenizer,
    kernel and stride, and what a run starts from."""

    out: str
    """Directory for everything; one that all hosts see, where several share the work."""
    stage1: RunConfig
    stage2: RunConfig
    llms: tuple[Llm, ...]
    visual_tokens: tuple[int, ...]
    """Values V; square numbers whose root divides the tower's grid."""
    seeds: tuple[int, ...] = (0,)
    tests: tuple[Test, ...] = ()
    benchmarks: str = ""
    """Benchmarks of `launch.evaluate --tasks` between commas."""
    benchmark_data: str = ""
    """The folder that holds the benchmarks."""
    text_tokens: int = 0
    """Rows hold this much text besides their V visual tokens; 0 keeps the stages' max_length for all V."""
    query_tokens: float = 50.0
    """Text tokens Q of one query, for the law."""
    batch_size: int = 64
    """Questions answered at a time."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of the grid."""

    llm: str
    visual_tokens: int
    seed: int

    @property
    def name(self) -> str:
        """Directory name, unique within a sweep."""
        return f"{self.llm}-v{self.visual_tokens}-s{self.seed}"


def cells(sweep: Sweep) -> list[Cell]:
    """The grid, seed by seed, so that a sweep that is stopped early has whole tables.

    Raises:
      UserError: an empty or repeated axis, models of the same size, an unknown model, V that do not fit
        the tower, or nothing to test with.
    """
    axes: dict[str, list[Any]] = {
        "llms": [model.name for model in sweep.llms],
        "visual_tokens": [*sweep.visual_tokens],
        "seeds": [*sweep.seeds],
        "tests": score_names(sweep),
    }
    for name, values in axes.items():
        if not values:
            raise UserError(f"the sweep's {name} are empty; give at least one")
        if len(set(values)) < len(values):
            raise UserError(f"the sweep's {name} repeat one another: {', '.join(map(str, values))}")
    sizes = [size_b(model) for model in sweep.llms]
    if len(set(sizes)) < len(sizes):
        raise UserError("two language models of the sweep have the same size; the law needs distinct ones")
    found = [Cell(m.name, v, s) for s in sweep.seeds for m in sweep.llms for v in sweep.visual_tokens]
    for cell in found:
        for run in stage_configs(sweep, cell):
            validate(run)
    return found


def score_names(sweep: Sweep) -> list[str]:
    """Tests and benchmarks, in order."""
    return [t.name for t in sweep.tests] + [n.strip() for n in sweep.benchmarks.split(",") if n.strip()]


def llm_of(sweep: Sweep, cell: Cell) -> Llm:
    """The language model of a cell."""
    return next(model for model in sweep.llms if model.name == cell.llm)


def size_b(model: Llm) -> float:
    """Billions of parameters by which the law counts a model.

    Raises:
      UserError: it is neither given nor a preset's.
    """
    if model.size_b > 0:
        return model.size_b
    if model.name not in SIZES_B:
        raise UserError(f"the language model {model.name!r} is no preset; give its size_b")
    return SIZES_B[model.name]


def stage_config(sweep: Sweep, cell: Cell, stage: Literal[1, 2]) -> RunConfig:
    """One of a cell's two runs.

    Raises:
      UserError: an unknown language model, or V that does not fit the tower's grid.
    """
    base, model = (sweep.stage1 if stage == 1 else sweep.stage2), llm_of(sweep, cell)
    run = f"{sweep.out}/cells/{cell.name}"
    data = base.data
    if tokenizer := model.tokenizer or (f"{model.weights}/tokenizer" if model.weights else ""):
        data = dataclasses.replace(data, tokenizer=tokenizer)
    if model.template:
        data = dataclasses.replace(data, template=model.template)  # type: ignore[arg-type]
    if sweep.text_tokens:
        data = dataclasses.replace(data, max_length=sweep.text_tokens + cell.visual_tokens)
    return dataclasses.replace(
        base,
        out=f"{run}/stage{stage}",
        model=dataclasses.replace(
            base.model,
            compressor=compressor(base, cell.visual_tokens),
            decoder=model.decoder or decoder(model.name),
        ),
        data=data,
        train=dataclasses.replace(base.train, seed=cell.seed, stage=stage),
        init_from=model.weights if stage == 1 else f"{run}/stage1",
    )


def stage_configs(sweep: Sweep, cell: Cell) -> tuple[RunConfig, RunConfig]:
    """Both runs of a cell."""
    return stage_config(sweep, cell, 1), stage_config(sweep, cell, 2)


def compressor(base: RunConfig, visual_tokens: int) -> CompressorConfig:
    """The base's compressor at V tokens; kernel = stride, so that regions tile the grid."""
    grid, side = base.model.vision.grid, math.isqrt(visual_tokens)
    if visual_tokens < 1 or side * side != visual_tokens or grid % side:
        fitting = ", ".join(str(k * k) for k in range(1, grid + 1) if grid % k == 0)
        raise UserError(f"{visual_tokens} visual tokens do not tile a grid of {grid}; these do: {fitting}")
    return dataclasses.replace(base.model.compressor, kernel=grid // side, stride=grid // side)


def cell_flops(sweep: Sweep, cell: Cell) -> float:
    """Model FLOPs of training a cell, both stages; tests come on top."""
    return sum(train_flops(run) * run.train.steps for run in stage_configs(sweep, cell))
