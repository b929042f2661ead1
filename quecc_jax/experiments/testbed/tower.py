"""Training a small vision tower from scratch, since no package ships CLIP weights.

Objective: for every cell of an image, predict the shape, the colour and the digit in it (and, where
there are emoji, which) from the mean of its patches' last hidden states, and for every patch its own row and column
(softmax cross-entropy, a linear head each), on training images only. CLIP's captions name positions; without
the two heads for them a tower forgets where a patch stands, and no compressor could look up a cell.
No question takes part, so the tower cannot favour a compressor that knows it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from quecc_jax.config import VisionConfig
from quecc_jax.data.images import normalise
from quecc_jax.data.sources.pool import Pool
from quecc_jax.errors import UserError
from quecc_jax.experiments.results import Curve, TowerRecord
from quecc_jax.experiments.testbed.cells import CLASSES, UNKNOWN, label_grid
from quecc_jax.generate.decode import Params
from quecc_jax.models.layers import LayerNorm, linear
from quecc_jax.models.towers.vit import VisionTower, split_features

NAMES = ("shape", "color", "digit", "emoji")
State = tuple[Params, optax.OptState]


class DenseHeads(nn.Module):
    """A tower with one linear classifier per label, row and column, on its last hidden state."""

    config: VisionConfig
    classes: tuple[int, ...] = CLASSES
    """Numbers that each label takes."""

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, ...]:
        """Logits [B, n, classes] for each label, row and column, from pixels [B, H, W, 3]."""
        last = VisionTower(self.config, name="tower")(pixels)[:, :, -1]
        last = LayerNorm(self.config.norm_eps, name="norm")(last)
        names = (*NAMES[: len(self.classes)], "row", "column")
        heads = zip(names, (*self.classes, self.config.grid, self.config.grid), strict=True)
        return tuple(linear(count, ("embed", None), name=name)(last) for name, count in heads)


def train_tower(
    config: VisionConfig,
    train: Sequence[Pool],
    test: Sequence[Pool],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    log_every: int,
    on_log: Callable[[int, float], None],
) -> tuple[Params, TowerRecord]:
    """Trains with AdamW under one cosine cycle; batches mix the pools evenly.

    Args:
      train: pools of training splits.
      test: pools whose cells the returned accuracies are measured on (at most 256 images each).
      on_log: called every `log_every` steps with the step and the mean loss in nats since the last call.

    Returns:
      Parameters of VisionTower, and how it went: the share of test cells whose shape, colour, digit or emoji
      is right, over cells that have one; and the loss as `on_log` was told it.

    Raises:
      UserError: a pool to train on is a test split.
    """
    for pool in train:
        if pool.meta["split"] != "train":
            raise UserError(f"{pool.directory} is a test split; the tower trains on training pools only")
    config = dataclasses.replace(config, keep_attention=False, keep_cls=False)
    model = DenseHeads(config, label_classes(train))
    count = len(model.classes)
    rng = np.random.default_rng(0)
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    example = _pixels(train[0], np.arange(1), config)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), example)["params"])
    state = (params, optimizer.init(params))

    share = batch_size // len(train)
    means = [_cell_means(pool, config) for pool in train]

    @jax.jit
    def step(state: State, pixels: list[jax.Array], labels: list[jax.Array]) -> tuple[State, jax.Array]:
        params, slots = state

        def objective(params: Params) -> jax.Array:
            logits: Any = model.apply({"params": params}, jnp.concatenate(pixels))
            *dense, row, column = logits
            parts = [[x[i * share : (i + 1) * share] for x in dense] for i in range(len(means))]
            return sum(
                (_loss(part, mean, wanted) for part, mean, wanted in zip(parts, means, labels, strict=True)),
                start=_position_loss(row, column, config.grid),
            )

        loss, grads = jax.value_and_grad(objective)(params)
        updates, slots = optimizer.update(grads, slots, params)
        return (optax.apply_updates(params, updates), slots), loss

    history, recent = Curve(), list[jax.Array]()
    for number in range(1, steps + 1):
        picks = [rng.integers(len(pool.images), size=share) for pool in train]
        pixels = [_pixels(pool, pick, config) for pool, pick in zip(train, picks, strict=True)]
        labels = [_labels(pool, pick, count) for pool, pick in zip(train, picks, strict=True)]
        state, loss = step(state, pixels, labels)
        recent.append(loss)
        if number % log_every == 0 or number == steps:
            mean = float(np.mean(jax.device_get(recent)))
            history.append([number, mean])
            on_log(number, mean)
            recent = []
    some = np.concatenate([_pixels(pool, np.arange(min(64, len(pool.images))), config) for pool in train])
    tower = unit_scale(config, state[0]["tower"], some)
    return tower, {"accuracy": _accuracy(model, state[0], test, config), "loss": history}


def label_classes(pools: Sequence[Pool]) -> tuple[int, ...]:
    """Numbers that each label of these pools takes; the emoji of all pools are the same."""
    names = next((pool.meta["names"] for pool in pools if "names" in pool.meta), ())
    return (*CLASSES, len(names) + 1) if names else CLASSES


def unit_scale(config: VisionConfig, params: Params, pixels: np.ndarray) -> Params:
    """The same tower with its residual stream rescaled so that X_s has standard deviation 1.

    Blocks normalise what they read, so scaling all that is written into the stream scales every
    hidden state and changes nothing else (up to the norm's epsilon). Compressors add a
    layer-normed question feature to X_s; a stream that grew in training would drown it.
    """
    states: Any = VisionTower(config).apply({"params": params}, pixels)
    factor = 1.0 / jnp.std(split_features(states, config).single)
    writers = ("pre_norm", "layers/out", "layers/fc2")

    def rescale(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        name = "/".join(str(k.key) for k in path)
        return leaf * factor if name.startswith(writers) else leaf

    return jax.tree_util.tree_map_with_path(rescale, params)


def feature_fn(config: VisionConfig, params: Params) -> Callable[[np.ndarray], jax.Array]:
    """The frozen tower as a compiled function from uint8 [b, H, W, 3] to states [b, n, K, D]."""
    return jax.jit(
        lambda images: VisionTower(config).apply({"params": params}, normalise(images, config.pixels))
    )


def _cell_means(pool: Pool, config: VisionConfig) -> np.ndarray:
    """float32 [m^2, n]: averages patches into the cells that their centres lie in."""
    m = pool.meta["m"]
    index = np.arange(m * m).reshape(m, m, 1)
    cell_of_patch = label_grid(index, config.grid).reshape(-1)
    member = (cell_of_patch[None] == np.arange(m * m)[:, None]).astype(np.float32)
    return member / member.sum(axis=1, keepdims=True)


def _loss(logits: Sequence[jax.Array], mean: np.ndarray, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy per cell, summed over the labels; unknown labels carry none.

    A linear head on averaged features is the average of its patch logits [b, n, classes].
    """
    total = jnp.zeros(())
    for label, one in enumerate(logits):
        wanted = labels[..., label]
        cells = jnp.einsum("cn,bnk->bck", mean, one)
        losses = optax.softmax_cross_entropy_with_integer_labels(cells, jnp.maximum(wanted, 0))
        known = wanted != UNKNOWN
        total += jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)
    return total


def _position_loss(row: jax.Array, column: jax.Array, grid: int) -> jax.Array:
    """Mean cross-entropy of every patch's row and column, from logits [B, n, g] each."""
    rows, columns = jnp.divmod(jnp.arange(grid * grid), grid)

    def entropy(logits: jax.Array, wanted: jax.Array) -> jax.Array:
        labels = jnp.broadcast_to(wanted, logits.shape[:2])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return entropy(row, rows) + entropy(column, columns)


def _accuracy(
    model: DenseHeads, params: Params, pools: Sequence[Pool], config: VisionConfig
) -> dict[str, float]:
    count = len(model.classes)
    right, seen = np.zeros(count), np.zeros(count)
    run = jax.jit(lambda pixels: model.apply({"params": params}, pixels))
    for pool in pools:
        mean = _cell_means(pool, config)
        num_images = min(256, len(pool.images))
        for start in range(0, num_images, 64):
            pick = np.arange(start, min(start + 64, num_images))
            labels = _labels(pool, pick, count)
            for label, logits in enumerate(run(_pixels(pool, pick, config))[:count]):
                guess = np.argmax(np.einsum("cn,bnk->bck", mean, logits), axis=-1)
                present = labels[..., label] > 0
                right[label] += np.sum((guess == labels[..., label]) & present)
                seen[label] += np.sum(present)
    return {name: float(r / s) for name, r, s in zip(NAMES[:count], right, seen, strict=True) if s}


def _pixels(pool: Pool, pick: np.ndarray, config: VisionConfig) -> np.ndarray:
    return normalise(pool.images[pick], config.pixels)


def _labels(pool: Pool, pick: np.ndarray, count: int) -> np.ndarray:
    """Labels of the cells of some images, [b, m^2, count]; those that the pool does not have are 0, nothing."""
    cells = np.asarray(pool.cells[pick])
    cells = cells.reshape(len(pick), -1, cells.shape[-1])
    return np.pad(cells, ((0, 0), (0, 0), (0, count - cells.shape[-1])))
