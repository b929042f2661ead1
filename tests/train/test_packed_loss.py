"""Packing changes neither what is learned from a conversation nor how much it weighs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config.shapes import row_limit
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.vlm import VLM
from quecc_jax.train.loss import shifted_targets
from quecc_jax.train.step import accumulated_gradients
from tests.tiny import random_params, run

SHORT, LONG, PLACES = 20, 48, 4


def conversations(config, seed=0) -> list[dict[str, Any]]:
    """Ten of them with no, one or two images, a query per image, and labels anywhere but at the front."""
    rng, v = np.random.default_rng(seed), config.model.visual_tokens
    side = config.model.vision.image_size
    made = []
    for images in (1, 0, 2, 1, 0, 0, 2, 1, 1, 2):
        length = int(rng.integers(images * v + 6, SHORT + 1))
        tokens = rng.integers(1, config.model.decoder.vocab_size, length)
        slots = np.full(length, -1)
        begins = 1 + np.arange(images) * (v + 1)
        for number, begin in enumerate(begins):
            slots[begin : begin + v] = number * v + np.arange(v)
        labels = np.where((rng.random(length) < 0.6) & (slots < 0), tokens, IGNORE)
        labels[0], labels[-1] = IGNORE, tokens[-1]
        made.append(
            {
                "tokens": np.where(slots < 0, tokens, 0),
                "slots": slots,
                "labels": labels,
                "queries": [
                    rng.integers(1, config.model.decoder.vocab_size, rng.integers(2, 7))
                    for _ in range(images)
                ],
                "pixels": rng.normal(size=(images, side, side, 3)).astype(np.float32),
            }
        )
    return made


def lay(config, rows: list[list[dict[str, Any]]], length: int, images: int) -> Batch:
    """Rows of conversations one after another, written independently of the data pipeline."""
    b, side = len(rows), config.model.vision.image_size
    q = row_limit(config.data, images)
    batch = Batch(
        tokens=np.zeros((b, length), np.int32),
        slots=np.full((b, length), -1, np.int32),
        labels=np.full((b, length), IGNORE, np.int32),
        positions=np.zeros((b, length), np.int32),
        segments=np.zeros((b, length), np.int32),
        queries=np.zeros((b, q), np.int32),
        query_segments=np.zeros((b, q), np.int32),
        query_ends=np.full((b, images), -1, np.int32),
        pixels=np.zeros((b, images, side, side, 3), np.float32),
    )
    for r, row in enumerate(rows):
        start = image = asking = 0
        for number, one in enumerate(row, start=1):
            n, p = len(one["tokens"]), len(one["queries"])
            here, there = slice(start, start + n), slice(image, image + p)
            batch.tokens[r, here], batch.labels[r, here] = one["tokens"], one["labels"]
            moved = one["slots"] + image * config.model.visual_tokens
            batch.slots[r, here] = np.where(one["slots"] < 0, -1, moved)
            batch.positions[r, here], batch.segments[r, here] = np.arange(n), number
            batch.pixels[r, there] = one["pixels"]
            for place, ids in enumerate(one["queries"], start=image):
                asked = slice(asking, asking + len(ids))
                batch.queries[r, asked], batch.query_segments[r, asked] = ids, place + 1
                asking += len(ids)
                batch.query_ends[r, place] = asking - 1
            start, image = start + n, image + p
    return batch


def losses(model: VLM, params: Any, batch: Batch) -> Any:
    """float32 [B, S], the loss of each position's target from full logits, 0 where there is none."""
    hidden: Any = model.apply({"params": params}, batch)
    logits: Any = model.apply({"params": params}, hidden, method=VLM.logits)
    targets = shifted_targets(batch.labels)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.where(targets == IGNORE, 0.0, -picked)


def test_losses_and_gradients_are_those_of_conversations_on_their_own():
    config = run(data={"query_length": 6})
    model, params = VLM(config.model), random_params(config)
    made = conversations(config)
    # Full rows, images around text-only conversations, and a row that begins with text.
    packing = [[0, 1, 2], [4, 3, 5, 7], [6, 8], [9]]
    packed = lay(config, [[made[k] for k in row] for row in packing], LONG + 12, PLACES)
    alone = lay(config, [[one] for one in made], SHORT, 2)

    per_position = jax.jit(lambda p, b: losses(model, p, b))
    together, apart = (np.asarray(per_position(params, batch)) for batch in (packed, alone))
    for r, row in enumerate(packing):
        for number, k in enumerate(row, start=1):
            own = packed.segments[r] == number
            np.testing.assert_allclose(together[r][own], apart[k][: own.sum()], rtol=2e-5, atol=2e-5)
            assert apart[k].sum() > 1
    assert not together[packed.segments == 0].any()

    trainable = {name: params[name] for name in ("compressor", "projector", "decoder")}
    frozen = {"vision": params["vision"]}
    gradients = jax.jit(lambda t, b: accumulated_gradients(model, t, frozen, b, 1, 16))
    results = (gradients(trainable, batch) for batch in (packed, alone))
    (loss, count, grads), (loss_1, count_1, grads_1) = results
    assert count == count_1 == sum((one["labels"] != IGNORE).sum() for one in made)
    np.testing.assert_allclose(loss, loss_1, rtol=1e-6)
    np.testing.assert_allclose(loss, apart.sum() / count, rtol=1e-6)
    moved = 0
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, a), b in zip(leaves, jax.tree.leaves(grads_1), strict=True):
        scale = np.abs(b).max()
        # The keys' bias has no effect, and its gradient is nothing but rounding.
        assert np.abs(a - b).max() <= 2e-5 * max(scale, 1e-3), jax.tree_util.keystr(path)
        moved += scale > 1e-6
    assert moved > 10


def test_a_batch_without_image_places_gives_what_empty_ones_give():
    config = run(data={"query_length": 6})
    model, params = VLM(config.model), random_params(config)
    made = [one for one in conversations(config) if not one["queries"]]
    batches = [lay(config, [[one] for one in made], SHORT, images) for images in (0, 2)]
    batches[0] = batches[0]._replace(pixels=None)
    trainable = {name: params[name] for name in ("compressor", "projector", "decoder")}
    gradients = jax.jit(lambda t, b: accumulated_gradients(model, t, {"vision": params["vision"]}, b, 1, 16))
    (loss, _, grads), (loss_1, _, grads_1) = (gradients(trainable, batch) for batch in batches)
    np.testing.assert_allclose(loss, loss_1, rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (grads, grads_1)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert not np.any(jax.tree.leaves(grads["compressor"])[0])
