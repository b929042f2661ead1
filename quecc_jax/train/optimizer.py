"""AdamW under cosine decay with linear warmup, with optional rates of their own for the projector and the tower."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from quecc_jax.config import OptimizerConfig, RunConfig
from quecc_jax.config.shapes import hidden_indices


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
    Fixed positions are no weights.
    """
    return name not in ("scale", "positions") and "bias" not in name


def run_optimizer(config: RunConfig) -> optax.GradientTransformation:
    """`make_optimizer` of a run."""
    return make_optimizer(config.optimizer, config.train.steps, hidden_indices(config.model.tower)[-1])


def make_optimizer(
    config: OptimizerConfig, steps: int, tower_layers: int = 0
) -> optax.GradientTransformation:
    """Clipping by the global norm of all gradients, then AdamW, with weight decay where `decays` says so.

    With `projector_learning_rate` the top-level entries compressor and projector of the
    parameter tree follow a schedule of that peak, with `vision_learning_rate` the tower; AdamW's update is
    proportional to its rate, so theirs is rescaled.

    Args:
      config: rates and what AdamW takes.
      steps: of the run.
      tower_layers: those of a trained tower that are run. The ones above have no gradient, and as in PyTorch,
        whose optimizers pass over such, nothing decays.
    """

    def decay(updates: dict, params: Any = None) -> dict:
        def add(path: Any, update: jax.Array, value: jax.Array) -> jax.Array:
            if not decays(path[-1].key):
                return update
            less = config.weight_decay * value
            if [part.key for part in path[:2]] == ["vision", "layers"]:
                run = jnp.arange(len(value)).reshape(-1, *(value.ndim - 1) * (1,)) < tower_layers
                less = jnp.where(run, less, 0.0)
            return update + less

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
    rates = {
        "compressor": config.projector_learning_rate,
        "projector": config.projector_learning_rate,
        "vision": config.vision_learning_rate,
    }
    ratios = {name: rate / config.learning_rate for name, rate in rates.items() if rate is not None}
    if ratios:

        def rescale(updates: dict, params: Any = None) -> dict:
            return {
                k: jax.tree.map(lambda u, k=k: u * ratios[k], v) if k in ratios else v
                for k, v in updates.items()
            }

        parts.append(optax.stateless(rescale))
    return optax.chain(*parts)
