"""Grids on the testbed: decoders x visual tokens x seeds, and compressors side by side."""

import dataclasses
import math
from collections.abc import Iterable
from itertools import product
from typing import Literal

from quecc_jax.config import (
    CheckpointConfig,
    CompressorConfig,
    DataConfig,
    DecoderConfig,
    ModelConfig,
    NoneConfig,
    OptimizerConfig,
    QueccConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.config.compressors import exchanged
from quecc_jax.experiments.grid import Cell, Grid, Step, Test, tiled
from quecc_jax.experiments.testbed.seeds import seed_spreads
from quecc_jax.experiments.testbed.settings import DEFAULT, SPLITS, Split, Testbed
from quecc_jax.models.compressors.random_config import RandomConfig

SAMPLES = 8
"""Test questions per task whose answers are kept for the report."""
QUECC = QueccConfig()
_STEPS = "quecc_jax.experiments.testbed.steps"


@dataclasses.dataclass(frozen=True)
class Decoder:
    """One decoder of a grid: a LLaMA of this width and depth, heads of 32, tied embeddings."""

    name: str
    width: int
    depth: int

    def config(self, vocab_size: int = 0) -> DecoderConfig:
        """Its configuration; a vocabulary of 0 is the tokenizer's, see `grid.Cell`."""
        heads = self.width // 32
        return DecoderConfig(
            vocab_size=vocab_size,
            width=self.width,
            depth=self.depth,
            heads=heads,
            kv_heads=heads,
            mlp_width=3 * self.width,
            tie_embeddings=True,
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How each part of a grid on the testbed is trained."""

    testbed: Testbed = DEFAULT
    decoders: tuple[Decoder, ...] = (Decoder("S", 32, 2), Decoder("M", 64, 2), Decoder("L", 96, 2))
    visual_tokens: tuple[int, ...] = (1, 4, 16, 64)
    """Values V; square numbers whose root divides the tower's grid."""
    seeds: tuple[int, ...] = (0,)
    ablation_seeds: tuple[int, ...] = (0,)
    """Seeds of the zeroed-query run at V = 1 with the middle decoder."""
    language_steps: int = 1200
    stage1_steps: int = 200
    stage2_steps: int = 2500
    batch_size: int = 16
    language_rate: float = 6e-4
    stage1_rate: float = 1e-3
    stage2_rate: float = 4e-4


def seeded(recipe: Recipe, count: int) -> Recipe:
    """The recipe with this many seeds, of the zeroed-query runs too; with its own for 0."""
    if not count:
        return recipe
    return dataclasses.replace(recipe, seeds=tuple(range(count)), ablation_seeds=tuple(range(count)))


def compressor(recipe: Recipe, visual_tokens: int, base: CompressorConfig = QUECC) -> CompressorConfig:
    """A compressor at V tokens of the testbed's tower."""
    return tiled(base, recipe.testbed.vision.grid, visual_tokens)


def shrunk(vision: VisionConfig, visual_tokens: int) -> VisionConfig:
    """The same tower for images that were shrunk to V patches, its learned positions interpolated."""
    return dataclasses.replace(
        vision,
        image_size=math.isqrt(visual_tokens) * vision.patch_size,
        position_grid=vision.grid,
        antialias_positions=True,
    )


def model(recipe: Recipe, decoder: Decoder, compressor: CompressorConfig, vocab_size: int = 0) -> ModelConfig:
    """The tower, a compressor and a decoder."""
    return ModelConfig(
        vision=recipe.testbed.vision,
        compressor=compressor,
        decoder=decoder.config(vocab_size),
        dtype="float32",
        remat="none",
    )


def _sources(out: str, split: Split, testbed: Testbed, ending: str = "") -> tuple[SourceConfig, ...]:
    said = "train" if ending else split
    return tuple(
        SourceConfig("pool", f"{out}/data/{task}-{split}{ending}", split=said, weight=1.0)
        for task in testbed.tasks
    )


def image_data(out: str, split: Split, visual_tokens: int, testbed: Testbed = DEFAULT) -> DataConfig:
    """Questions about images, the tasks in equal shares, read from cached features."""
    return DataConfig(
        sources=_sources(out, split, testbed),
        tokenizer=f"{out}/data/tokenizer",
        template="short",
        max_length=testbed.text_tokens + visual_tokens,
        query_length=testbed.query_tokens,
        cached_features=True,
    )


def blind_data(out: str, split: Split, testbed: Testbed = DEFAULT) -> DataConfig:
    """The questions without their images, for the question-only baseline."""
    seeing = image_data(out, split, 0, testbed)
    return dataclasses.replace(
        seeing,
        sources=_sources(out, split, testbed, "-blind"),
        query_length=1,
        cached_features=False,
        images_per_row=0,
    )


def corpus_data(out: str, testbed: Testbed = DEFAULT) -> DataConfig:
    """Documents for language-model training."""
    source = SourceConfig("pool", f"{out}/data/corpus")
    return dataclasses.replace(
        blind_data(out, "train", testbed),
        sources=(source,),
        template="plain",
        labels="all",
        max_length=testbed.document_tokens,
    )


def training(
    recipe: Recipe,
    out: str,
    model: ModelConfig,
    data: DataConfig,
    stage: Literal[0, 1, 2],
    steps: int,
    rate: float,
    seed: int,
    init_from: str = "",
    tower_from: str = "",
) -> RunConfig:
    """One training run that saves at its end."""
    return RunConfig(
        out=out,
        model=model,
        data=data,
        optimizer=OptimizerConfig(learning_rate=rate, b2=0.99),
        train=TrainConfig(stage=stage, steps=steps, batch_size=recipe.batch_size, seed=seed, log_every=50),
        checkpoint=CheckpointConfig(every=0, keep=1),
        init_from=init_from,
        tower_from=tower_from,
    )


def training_seconds(recipe: Recipe, steps: int, tokens: int, decoder: Decoder) -> float:
    """Measured on one core of a 2.6 GHz EPYC; only the order of jobs and the time left depend on it."""
    weights = 13 * decoder.width**2 * decoder.depth
    return steps * recipe.batch_size / 64 * tokens * (9e-4 + 1.2e-8 * weights)


def preparation(recipe: Recipe, out: str) -> tuple[list[Step], list[Cell]]:
    """What every model needs or is compared with: data, tower, language models, the baseline."""
    testbed = recipe.testbed
    seeing = 15.0 if testbed.start else testbed.tower_steps * testbed.tower_batch / 320
    steps = [
        Step("data", f"{_STEPS}:make_data", cost=15, part="data"),
        Step("tower", f"{_STEPS}:make_tower", ("data",), seeing, "tower"),
    ]
    if testbed.shrunk:
        steps.append(Step("shrunk", f"{_STEPS}:make_shrunk", ("tower",), 5.0 * len(testbed.shrunk), "tower"))
    cells = []
    for d in () if testbed.start else recipe.decoders:
        text, source = model(recipe, d, compressor(recipe, 1)), testbed.language(out, d.name)
        count, rate = recipe.language_steps, recipe.language_rate
        run = training(recipe, source, text, corpus_data(out, testbed), 0, count, rate, 0)
        cost = 15 + training_seconds(recipe, count, testbed.document_tokens, d)
        cells.append(Cell(_language(d), (run,), part="language models", needs=("data",), cost=cost))
    # The largest decoder is the baseline.
    d = recipe.decoders[-1]
    text, source = model(recipe, d, compressor(recipe, 1)), testbed.language(out, d.name)
    folder, count, rate = f"{out}/baseline/{d.name}", recipe.stage2_steps, recipe.stage2_rate
    read, asked = (blind_data(out, split, testbed) for split in SPLITS)
    baseline = Cell(
        "baseline",
        (training(recipe, folder, text, read, 0, count, rate, 0, source),),
        (Test(asked.sources, max_new_tokens=testbed.answer_tokens, batch_size=200, turns=testbed.turns),),
        llm=d.name,
        part="question-only baseline",
        needs=("data",) if testbed.start else (_language(d),),
        cost=20 + training_seconds(recipe, count, testbed.text_tokens, d),
    )
    return steps, [*cells, baseline]


def _language(decoder: Decoder) -> str:
    """Name of the cell that trains a decoder's language model."""
    return f"language-{decoder.name}"


def image_cell(
    recipe: Recipe,
    out: str,
    name: str,
    decoder: Decoder,
    compressor: CompressorConfig,
    seed: int,
    shrunk_to: int = 0,
) -> Cell:
    """Both stages of one model from its language model and the tower, then the test questions.

    Args:
      shrunk_to: V of the shrunk images (`shrunk`) that it sees in place of the whole ones; 0 for these.
    """
    made, ending = model(recipe, decoder, compressor), ""
    if shrunk_to:
        made, ending = dataclasses.replace(made, vision=shrunk(made.vision, shrunk_to)), f"-shrunk{shrunk_to}"
    testbed, runs = recipe.testbed, []
    read, asked = (_sources(out, split, testbed, ending) for split in SPLITS)
    data = dataclasses.replace(image_data(out, "train", made.visual_tokens, testbed), sources=read)
    source = testbed.language(out, decoder.name)
    stages: tuple[tuple[Literal[1, 2], int, float], ...] = (
        (1, recipe.stage1_steps, recipe.stage1_rate),
        (2, recipe.stage2_steps, recipe.stage2_rate),
    )
    for stage, steps, rate in stages:
        run = f"{out}/cells/{name}/stage{stage}"
        runs.append(training(recipe, run, made, data, stage, steps, rate, seed, source, testbed.tower(out)))
        source = run
    steps, longest = recipe.stage1_steps + recipe.stage2_steps, testbed.answer_tokens
    test = Test(
        asked,
        max_new_tokens=longest,
        batch_size=200,
        cached_features=True,
        count_flops=True,
        turns=testbed.turns,
    )
    return Cell(
        name,
        tuple(runs),
        (test,),
        llm=decoder.name,
        compressor="QueCC",
        seed_spreads=seed_spreads(decoder.name),
        needs=("shrunk" if shrunk_to else "tower", *(() if testbed.start else (_language(decoder),))),
        cost=35 + training_seconds(recipe, steps, data.max_length, decoder),
    )


def size_grid(recipe: Recipe, out: str, title: str) -> Grid:
    """Every decoder at every V and seed, and the zeroed-query twins of the middle decoder (the first of
    two) at V = 1."""
    steps, cells = preparation(recipe, out)
    grid = [(d, v, s, "") for s in recipe.seeds for d in recipe.decoders for v in recipe.visual_tokens]
    middle = recipe.decoders[(len(recipe.decoders) - 1) // 2]
    grid += [(middle, 1, s, twin) for s in recipe.ablation_seeds for twin in ("", "-zero")]
    shown = {
        (recipe.decoders[-1], v, recipe.seeds[0], "")
        for v in recipe.visual_tokens[:: len(recipe.visual_tokens) - 1 or 1]
    }
    for decoder, v, seed, twin in dict.fromkeys(grid):
        name = f"{decoder.name}-v{v}-s{seed}{twin}"
        base = QueccConfig(query="zero" if twin else "question")
        cell = image_cell(recipe, out, name, decoder, compressor(recipe, v, base), seed)
        samples = SAMPLES if (decoder, v, seed, twin) in shown else 0
        cells.append(dataclasses.replace(cell, samples=samples))
    single = tuple(c.name for c in cells if c.sees_images and c.runs[-1].model.visual_tokens == 1)
    if single:
        cost = 5.0 * len(single)
        steps.append(Step("attention", f"{_STEPS}:measure_attention", single, cost, "attention"))
    return Grid(title, out, tuple(cells), tuple(steps), recipe.testbed, recipe.visual_tokens)


def compressor_cells(
    recipe: Recipe,
    out: str,
    label: str,
    part: str,
    base: CompressorConfig,
    counts: tuple[int, ...],
    elastic: bool = False,
) -> list[Cell]:
    """Models of the first decoder with one compressor: one for each seed and V with kernel = stride of it, or
    for each seed alone, whose weights serve every V and take as many steps. Without `counts`, `base` as it is."""
    if elastic:
        settings = [exchanged(base, elastic=counts)]
    else:
        settings = [compressor(recipe, v, base) for v in counts] or [base]
    tag = "".join(c for c in label.lower().replace(" ", "-").replace("+", "plus") if c.isalnum() or c == "-")
    made = []
    for config in settings:
        v = config.num_tokens(recipe.testbed.vision.grid)
        for seed in recipe.seeds:
            # A choice of patches is part of what seeds differ in.
            own = exchanged(config, seed=seed) if isinstance(config, RandomConfig) else config
            cell = image_cell(recipe, out, f"{part}-{tag}-v{v}-s{seed}", recipe.decoders[0], own, seed)
            tested = counts if elastic else ()
            cell = dataclasses.replace(cell, compressor=label, part=part, visual_tokens=tested, keep=False)
            made.append(cell)
    return made


def downsample_cells(recipe: Recipe, out: str) -> list[Cell]:
    """Models of the first decoder that see a shrunk image, for each seed and V of the testbed's `shrunk`.

    No compressor: the image is made smaller until it has V patches, and the decoder gets all of them (VTC-Bench,
    arXiv 2510.07143). The frozen tower was trained on whole images alone.
    """
    made = []
    for v, seed in product(recipe.testbed.shrunk, recipe.seeds):
        name = f"comparison-downsample-v{v}-s{seed}"
        cell = image_cell(recipe, out, name, recipe.decoders[0], NoneConfig(), seed, shrunk_to=v)
        made.append(dataclasses.replace(cell, compressor="downsample", part="comparison", keep=False))
    return made


def compressor_grid(recipe: Recipe, out: str, cells: Iterable[Cell], own: str) -> Grid:
    """The comparison of compressors; timing them all runs alone, at the end."""
    steps, shared = preparation(recipe, out)
    # Runs that differ in the seed alone share their programs, and should not compile them side by side.
    every = (*shared, *sorted(cells, key=lambda cell: cell.seed))
    names = (*(step.name for step in steps), *(cell.name for cell in every))
    steps.append(Step("timing", f"{_STEPS}:time_compressors", names, 3.0 * len(every), "timing"))
    return Grid("compressors", out, every, tuple(steps), recipe.testbed, recipe.visual_tokens, own=own)
