"""What the training of one choice holds per chip: the whole decoder, adapters, adapters of a decoder in 4 bits."""

import dataclasses
from typing import NamedTuple

from quecc_jax.aot.memory import TrainMemory, Verdict, train_memory, verdict
from quecc_jax.config import DataConfig, LoraConfig, RunConfig, TrainConfig
from quecc_jax.config.presets import SIZES_B
from quecc_jax.config.weights import FrozenWeights
from scaling.cost import Setup, find_llm, model_config

LENGTH = 2048
"""Positions of a row, as in LLaVA's recipe."""


class TrainingCost(NamedTuple):
    """One way to train the second stage, with one row of `LENGTH` positions per chip and microbatch."""

    name: str
    """As people say it."""
    memory: TrainMemory
    verdict: Verdict


def training_costs(name: str, params_b: float, visual_tokens: float, setup: Setup) -> list[TrainingCost]:
    """Every way to train one choice on the machine's chips, over which fsdp goes.

    Args:
      name: of the language model, or anything else where `params_b` says which.
    """
    assert setup.machine is not None
    count = setup.machine.count
    llm = find_llm(name if name in SIZES_B else f"{params_b:.12g}")
    whole = model_config(llm, visual_tokens, setup.query, setup.compressor)
    ways: dict[str, tuple[int, FrozenWeights]] = {
        "whole decoder": (0, "auto"),
        "LoRA, rank 128": (128, "auto"),
        "QLoRA, rank 64, nf4": (64, "nf4"),
    }
    found = []
    for way, (rank, form) in ways.items():
        model = dataclasses.replace(whole, lora=LoraConfig(rank=rank), remat="full")
        train = TrainConfig(stage=2, batch_size=count, frozen_weights=form)
        memory = train_memory(RunConfig(model=model, data=DataConfig(max_length=LENGTH), train=train), count)
        found.append(TrainingCost(way, memory, verdict(memory, setup.machine.memory / count)))
    return found
