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


def decays(name: str) -> bool:
    """Whether weight decay acts on a parameter of this name, the last of its path: on all but biases and
    the scales of norms.

    So it is in LLaVA's trainer (llava_trainer.py, create_optimizer), which leaves out names with "bias" and
    the weights of nn.LayerNorm and LlamaRMSNorm. The RMS norms of Mistral and Qwen are classes of their own
    that its transformers 4.37 did not count among them; they are left alone here, as in transformers since.
    """
    return name != "scale" and "bias" not in name


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm of all gradients, then AdamW, with weight decay where `decays` says so.

    With `projector_learning_rate` the top-level entries compressor and projector of the
    parameter tree follow a schedule of that peak; AdamW's update is proportional to its rate, so
    theirs is rescaled.
    """

    def decay(updates: dict, params: Any = None) -> dict:
        def add(path: Any, update: jax.Array, value: jax.Array) -> jax.Array:
            return update + config.weight_decay * value if decays(path[-1].key) else update

        return jax.tree_util.tree_map_with_path(add, updates, params) if config.weight_decay else updates

    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        # What optax.adamw does with a mask, but with the state that it has without one, as checkpoints of
        # runs that decayed everything hold it.
        optax.chain(
            optax.scale_by_adam(config.b1, config.b2, config.eps),
            optax.stateless(decay),
            optax.scale_by_learning_rate(schedule(config, steps)),
        ),
    ]
    if config.projector_learning_rate is not None:
        ratio = config.projector_learning_rate / config.learning_rate

        def rescale(updates: dict, params: Any = None) -> dict:
            names = ("compressor", "projector")
            return {k: jax.tree.map(lambda u: u * ratio, v) if k in names else v for k, v in updates.items()}

        parts.append(optax.stateless(rescale))
    return optax.chain(*parts)
