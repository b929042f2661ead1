"""What the demo and the study run: sizes, steps, and the run config of every job."""

import dataclasses
from typing import Any, Literal

from quecc_jax.config import (
    CheckpointConfig,
    CompressorConfig,
    DataConfig,
    DecoderConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)

TASKS = ("single", "mosaic", "reading")
TEXT_TOKENS = 20
"""Longest question with its answer and template, in word tokens; visual slots come on top."""
DOCUMENT_TOKENS = 96
"""Length of a row of joined documents, in word tokens."""


@dataclasses.dataclass(frozen=True)
class DecoderSize:
    """One decoder of the grid: a LLaMA of this width and depth, heads of 32, tied embeddings."""

    name: str
    width: int
    depth: int

    def config(self, vocab_size: int) -> DecoderConfig:
        """Its configuration for a vocabulary."""
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
class Plan:
    """A grid of decoders x visual tokens x seeds on three tasks, and how long each part trains."""

    decoders: tuple[DecoderSize, ...] = (
        DecoderSize("S", 32, 2),
        DecoderSize("M", 64, 2),
        DecoderSize("L", 96, 2),
    )
    visual_tokens: tuple[int, ...] = (1, 4, 16, 64)
    """Values V; square numbers whose root divides the tower's grid."""
    seeds: tuple[int, ...] = (0,)
    ablation_seeds: tuple[int, ...] = (0,)
    """Seeds of the zeroed-query run at V = 1 with the middle decoder."""
    side: int = 2
    """Cells m along a side of the mosaic and reading pictures."""
    pictures: int = 4000
    """Training pictures per task."""
    test_pictures: int = 150
    """Test pictures per task."""
    questions: int = 6
    """Questions per picture."""
    documents: int = 24000
    """Texts of the language-model corpus."""
    tower_steps: int = 1800
    tower_batch: int = 24
    language_steps: int = 1200
    stage1_steps: int = 200
    stage2_steps: int = 2500
    batch_size: int = 16
    tower_rate: float = 2e-3
    language_rate: float = 6e-4
    stage1_rate: float = 1e-3
    stage2_rate: float = 4e-4

    vision: VisionConfig = VisionConfig(
        image_size=96,
        patch_size=12,
        width=64,
        depth=4,
        heads=2,
        mlp_width=256,
        select_layer=-2,
        levels=(1, 2, 3, 4),
    )
    """The small tower: 8 x 8 patches, four levels."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of the grid."""

    decoder: str
    visual_tokens: int
    seed: int
    query: Literal["question", "zero"] = "question"

    @property
    def name(self) -> str:
        """Directory name, unique within a study."""
        twin = "-zero" if self.query == "zero" else ""
        return f"{self.decoder}-v{self.visual_tokens}-s{self.seed}{twin}"


def cells(plan: Plan) -> list[Cell]:
    """The grid, and the zeroed-query twins of the middle decoder at V = 1."""
    grid = [Cell(d.name, v, s) for s in plan.seeds for d in plan.decoders for v in plan.visual_tokens]
    middle = plan.decoders[len(plan.decoders) // 2].name
    twins = [c for s in plan.ablation_seeds for c in (Cell(middle, 1, s), Cell(middle, 1, s, "zero"))]
    return list(dict.fromkeys(grid + twins))


def decoder_size(plan: Plan, name: str) -> DecoderSize:
    """The decoder of that name."""
    return next(d for d in plan.decoders if d.name == name)


def model_config(plan: Plan, cell: Cell, vocab_size: int) -> ModelConfig:
    """A cell's model; kernel = stride, so that regions tile the grid."""
    stride = plan.vision.grid // round(cell.visual_tokens**0.5)
    return ModelConfig(
        vision=plan.vision,
        compressor=CompressorConfig(kernel=stride, stride=stride, query=cell.query),
        decoder=decoder_size(plan, cell.decoder).config(vocab_size),
        dtype="float32",
        remat="none",
    )


def sources(out: str, split: Literal["train", "test"]) -> tuple[SourceConfig, ...]:
    """The three tasks in equal shares."""
    return tuple(SourceConfig("pool", f"{out}/data/{t}-{split}", split=split, weight=1.0) for t in TASKS)


def picture_data(out: str, split: Literal["train", "test"], visual_tokens: int) -> DataConfig:
    """Questions about pictures, read from cached features."""
    return DataConfig(
        sources=sources(out, split),
        tokenizer=f"{out}/data/tokenizer",
        template="short",
        max_length=TEXT_TOKENS + visual_tokens,
        query_length=13,
        cached_features=True,
    )


def corpus_data(out: str) -> DataConfig:
    """Documents for language-model training."""
    return DataConfig(
        sources=(SourceConfig("pool", f"{out}/data/corpus"),),
        tokenizer=f"{out}/data/tokenizer",
        template="plain",
        labels="all",
        max_length=DOCUMENT_TOKENS,
        query_length=1,
        images_per_row=0,
    )


def blind_data(out: str, split: Literal["train", "test"]) -> DataConfig:
    """The questions without their pictures, for the question-only baseline."""
    return DataConfig(
        sources=tuple(SourceConfig("pool", f"{out}/data/{t}-{split}-blind", weight=1.0) for t in TASKS),
        tokenizer=f"{out}/data/tokenizer",
        template="short",
        max_length=TEXT_TOKENS,
        query_length=1,
        images_per_row=0,
    )


def run_config(
    out: str,
    model: ModelConfig,
    data: DataConfig,
    stage: Literal[0, 1, 2],
    steps: int,
    rate: float,
    plan: Plan,
    seed: int,
    **rest: Any,
) -> RunConfig:
    """One training run that saves at its end."""
    return RunConfig(
        out=out,
        model=model,
        data=data,
        optimizer=OptimizerConfig(learning_rate=rate, b2=0.99),
        train=TrainConfig(stage=stage, steps=steps, batch_size=plan.batch_size, seed=seed, log_every=50),
        checkpoint=CheckpointConfig(every=0, keep=1),
        **rest,
    )
