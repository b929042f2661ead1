"""AdamW under cosine decay with linear warmup, with an optional rate of its own for the projector."""

import math
from typing import Any

import jax
import optax

from quecc_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate per step: linear from 0 over warmup_ratio of the steps, then cosine to 0."""
    warmup = math.ceil(config.warmup_ratio * steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm of all gradients, then AdamW.

    With `projector_learning_rate` the top-level entries compressor and projector of the
    parameter tree follow a schedule of that peak; AdamW's update is proportional to its rate, so
    theirs is rescaled.
    """
    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay
        ),
    ]
    if config.projector_learning_rate is not None:
        ratio = config.projector_learning_rate / config.learning_rate

        def rescale(updates: dict, params: Any = None) -> dict:
            names = ("compressor", "projector")
            return {k: jax.tree.map(lambda u: u * ratio, v) if k in names else v for k, v in updates.items()}

        parts.append(optax.stateless(rescale))
    return optax.chain(*parts)
