"""What the comparison of compressors trains: one decoder, one recipe, many compressors."""

import dataclasses
from typing import Literal

from quecc_jax.config import CompressorConfig, ModelConfig
from quecc_jax.experiments.plan import Cell, Plan, model_config

Part = Literal["comparison", "elastic", "ladder"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One training run and the values of V that its weights are tested at."""

    label: str
    """What the report calls it; entries of one label differ in seed and V only."""
    part: Part
    seed: int
    tested: tuple[CompressorConfig, ...]
    """Settings of each test; the same weights serve them all."""
    trained: CompressorConfig
    """Settings in training."""

    @property
    def name(self) -> str:
        """Unique within a comparison, and fit for a file's name."""
        tag = self.label.lower().replace(" ", "-").replace("+", "plus")
        kept = "".join(c for c in tag if c.isalnum() or c == "-")
        c = self.trained
        return f"{self.part}-{kept}-k{c.kernel}t{c.tokens}-s{self.seed}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The shared parts and every run."""

    plan: Plan
    entries: tuple[Entry, ...]
    own: str
    """The label whose difference from QueCC is reported."""


def on_grid(
    label: str, part: Part, config: CompressorConfig, plan: Plan, counts: tuple[int, ...]
) -> list[Entry]:
    """One run for each V and seed, with kernel = stride of that V."""
    made = []
    for v in counts:
        stride = plan.vision.grid // round(v**0.5)
        one = dataclasses.replace(config, kernel=stride, stride=stride)
        made += [Entry(label, part, seed, (one,), one) for seed in plan.seeds]
    return made


def at_every_v(
    label: str, part: Part, config: CompressorConfig, plan: Plan, counts: tuple[int, ...]
) -> list[Entry]:
    """One run for each seed whose weights serve every V, in as many steps as a run at one V."""
    trained = dataclasses.replace(config, elastic=counts)
    tested = tuple(dataclasses.replace(trained, tokens=v) for v in counts)
    return [Entry(label, part, seed, tested, trained) for seed in plan.seeds]


def with_compressor(plan: Plan, compressor: CompressorConfig, vocabulary: int) -> ModelConfig:
    """The plan's first decoder behind a compressor."""
    model = model_config(plan, Cell(plan.decoders[0].name, 1, 0), vocabulary)
    return dataclasses.replace(model, compressor=compressor)
