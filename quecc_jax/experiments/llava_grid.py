"""A recipe's stages over a grid, such as LLaVA's two: language models x visual tokens x seeds."""

import dataclasses
from collections.abc import Sequence
from itertools import product

from quecc_jax.config import DecoderConfig, RunConfig
from quecc_jax.config.presets import SIZES_B, decoder
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import Benchmarks, Cell, Grid, Test, tiled
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


def llava_grid(
    out: str,
    stages: Sequence[RunConfig],
    llms: tuple[Llm, ...],
    visual_tokens: tuple[int, ...],
    seeds: tuple[int, ...] = (0,),
    tests: tuple[Test, ...] = (),
    benchmarks: Benchmarks | None = None,
    text_tokens: int = 0,
    query_tokens: float = 50.0,
) -> Grid:
    """One cell for each language model, V and seed; seed by seed, so that a grid that is stopped early has
    whole tables. Of the stages' own settings, the grid replaces out, seed, decoder, tokenizer, kernel and
    stride, and what a run starts from.

    Args:
      stages: of one number each, which names their directories; each starts from the one before.
      out: directory for everything; one that all hosts see, where several share the work.
      visual_tokens: values V; square numbers whose root divides the tower's grid.
      text_tokens: rows hold this much text besides their V visual tokens; 0 keeps the stages' max_length
        for all V.
      query_tokens: text tokens Q of one query, for the law.

    Raises:
      UserError: stages that count epochs or conversations, an empty or repeated axis, models of the same size, an
        unknown model, V that do not fit the tower, or nothing to test with.
    """
    names = [name.strip() for name in benchmarks.names.split(",") if name.strip()] if benchmarks else []
    axes: dict[str, list[object]] = {
        "llms": [model.name for model in llms],
        "visual_tokens": [*visual_tokens],
        "seeds": [*seeds],
        "tests": [*(test.task for test in tests), *names],
    }
    for axis, values in axes.items():
        if not values:
            raise UserError(f"the grid's {axis} are empty; give at least one")
        if len(set(values)) < len(values):
            raise UserError(f"the grid's {axis} repeat one another: {', '.join(map(str, values))}")
    if len({size_b(model) for model in llms}) < len(llms):
        raise UserError("two language models of the grid have the same size; the law needs distinct ones")
    numbers = [stage.train.stage for stage in stages]
    if not numbers or len({*numbers}) < len(numbers):
        raise UserError(f"the grid's stages have the numbers {numbers}; give at least one, each with its own")
    for stage in stages:
        if stage.train.epochs or stage.train.conversations:
            raise UserError(
                "a grid's stages name train.steps and train.batch_size, which its cost is counted with, but this stage "
                f"{stage.train.stage} has train.epochs {stage.train.epochs:g} and train.conversations "
                f"{stage.train.conversations}; set these to 0"
            )
    cells = []
    for seed, llm, v in product(seeds, llms, visual_tokens):
        name = f"{llm.name}-v{v}-s{seed}"
        runs: list[RunConfig] = []
        for stage in stages:
            here, before = (
                f"{out}/cells/{name}/stage{stage.train.stage}",
                runs[-1].out if runs else llm.weights,
            )
            runs.append(_stage(stage, here, llm, v, seed, text_tokens, before))
            validate(runs[-1])
        label = stages[-1].model.compressor.name
        cell = Cell(name, tuple(runs), tests, benchmarks, llm.name, size_b(llm), label)
        cells.append(dataclasses.replace(cell, cost=training_flops(cell)))
    return Grid("sweep", out, tuple(cells), visual_tokens=visual_tokens, query_tokens=query_tokens)


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


def _stage(
    base: RunConfig, out: str, llm: Llm, visual_tokens: int, seed: int, text_tokens: int, init_from: str
) -> RunConfig:
    data, weights = base.data, f"{llm.weights}/tokenizer" if llm.weights else ""
    data = dataclasses.replace(
        data,
        tokenizer=llm.tokenizer or weights or data.tokenizer,
        template=llm.template or data.template,  # type: ignore[arg-type]
        max_length=text_tokens + visual_tokens if text_tokens else data.max_length,
    )
    compressor = tiled(base.model.compressor, base.model.vision.grid, visual_tokens)
    language = llm.decoder or decoder(llm.name)
    return dataclasses.replace(
        base,
        out=out,
        model=dataclasses.replace(base.model, compressor=compressor, decoder=language),
        data=data,
        train=dataclasses.replace(base.train, seed=seed),
        init_from=init_from,
    )


def training_flops(cell: Cell) -> float:
    """Model FLOPs of training a cell, all its runs; tests come on top."""
    return sum(train_flops(run) * run.train.steps for run in cell.runs)
