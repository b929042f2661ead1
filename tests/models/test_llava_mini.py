"""LLaVA-Mini's resampler and pre-fusion against plain NumPy, and the pre-fusion's way through the house."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from quecc_jax.config.shapes import compressor_sizes
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.flops import compressor_cost
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Encoders, Reuse
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.fusion import Fusion
from quecc_jax.models.compressors.llava_mini import LlavaMini
from quecc_jax.models.compressors.llava_mini_config import LlavaMiniConfig
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.state import TrainState, split_params
from quecc_jax.train.step import build_trainer
from tests.generator import build_generator
from tests.models.reference import affine, attend, decode_layers, gelu, layer_norm
from tests.tiny import random_batch, random_like, random_params, run

MINI = LlavaMiniConfig(kernel=2, stride=2, heads=2, fusion_layers=2)
CONFIG = run(model={"compressor": MINI}, batch_size=4)
V, N, M = CONFIG.model.visual_tokens, CONFIG.model.vision.patches, CONFIG.model.decoder.width


def place(width: int, row: float, column: float) -> np.ndarray:
    """Sines and cosines of the column, then of the row."""
    turns = [10000 ** (-4 * i / width) for i in range(width // 4)]
    return np.array([f(x * w) for x in (column, row) for f in (math.sin, math.cos) for w in turns])


def cubic(distance: float) -> float:
    """Keys' interpolation kernel with a = -3/4."""
    t = abs(distance)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resized(positions: np.ndarray, grid: int) -> np.ndarray:
    """[C, C, D] -> [g^2, D]: each place as a cubic blend of its 4 x 4 neighbours, borders repeated."""
    side, out = len(positions), []
    for at in np.ndindex(grid, grid):
        row, column = ((x + 0.5) * side / grid - 0.5 for x in at)
        total = np.zeros(positions.shape[-1])
        for i in range(math.floor(row) - 1, math.floor(row) + 3):
            for j in range(math.floor(column) - 1, math.floor(column) + 3):
                near = positions[min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                total += cubic(row - i) * cubic(column - j) * near
        out.append(total)
    return np.stack(out)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_the_resampler_is_one_cross_attention_of_learned_queries(tokens):
    d, heads, side = 16, 2, math.isqrt(tokens)
    module = LlavaMini(dataclasses.replace(MINI, tokens=tokens), compressor_sizes(CONFIG.model))
    x = np.random.default_rng(0).normal(size=(3, N, d)).astype(np.float32)
    given = Features(jnp.asarray(x), jnp.zeros((3, N, 1))), jnp.zeros((3, 1, 1))
    params = random_like(
        jax.tree.map(
            lambda leaf: leaf.value,
            jax.eval_shape(lambda: module.init(jax.random.key(0), *given)["params"]),
            is_leaf=lambda leaf: hasattr(leaf, "value"),
        )
    )
    ours: Any = module.apply({"params": params}, *given)

    positions = np.array([[place(d, r, c) for c in range(side)] for r in range(side)])
    q = layer_norm(params["q_norm"], params["queries"].astype(np.float64), 1e-6)
    q = q + positions.reshape(tokens, d)
    p, width = params["attention"], d // heads
    project = {k: {"kernel": p[f"{k}_kernel"], "bias": p[f"{k}_bias"]} for k in "qkv"}
    for image, mine in zip(x.astype(np.float64), ours, strict=True):
        kv = layer_norm(params["kv_norm"], image, 1e-6)
        q_, k, v = (
            affine(project[name], y, d)
            for name, y in (("q", q), ("k", kv + resized(positions, 4)), ("v", kv))
        )
        see = np.ones((tokens, N), bool)
        parts = [slice(h * width, (h + 1) * width) for h in range(heads)]
        out = np.concatenate([attend(q_[:, s], k[:, s], v[:, s], see) for s in parts], axis=-1)
        np.testing.assert_allclose(mine[:tokens], affine(p["out"], out, d), rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(mine[tokens:], image)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(CONFIG, seed=3)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows of no image, of one, and of two; the last packs an image's conversation behind one of text and
    one of another image, whose slots stand in the middle."""
    made = random_batch(CONFIG, seed=4, images=[0, 1, 2, 0])._replace(ids=None)
    tokens, segments = np.random.default_rng(5).integers(1, 64, 24), np.zeros(24, np.int32)
    segments[:6], segments[6:14], segments[14:23] = 1, 2, 3
    slots, labels = np.full(24, -1, np.int32), np.full(24, IGNORE, np.int32)
    slots[8:12], slots[14:18] = np.arange(4), np.arange(4, 8)
    for answer in (slice(3, 6), slice(13, 14), slice(19, 20), slice(22, 23)):
        labels[answer] = tokens[answer]
    arrays = {
        name: np.array(getattr(made, name))
        for name in ("tokens", "slots", "labels", "segments", "positions", "query_segments", "query_ends")
    }
    for name, row in (
        ("tokens", np.where(slots < 0, tokens, 0)),
        ("slots", slots),
        ("labels", labels),
        ("segments", segments),
        ("query_segments", np.repeat([1, 2, 0], [3, 3, 6])),
        ("query_ends", np.array([2, 5])),
        ("positions", np.concatenate([np.arange(n) for n in (6, 8, 10)])),
    ):
        arrays[name][3] = row
    return made._replace(**arrays)


def projected(params: dict[str, Any], states: np.ndarray) -> np.ndarray:
    """[n, D] states of the select layer, after the projector."""
    p = params["projector"]
    return affine(p["fc2"], gelu(affine(p["fc1"], states.astype(np.float64), M)), M)


def test_instructions_are_replaced_by_what_layers_over_image_and_text_make_of_them(params, batch):
    def parts(model: VLM, batch: Batch) -> Any:
        return model.encode_image(batch.pixels), model.visual_tokens(batch), model.splice(batch)

    states, visual, ours = jax.device_get(
        jax.jit(lambda b: VLM(CONFIG.model).apply({"params": params}, b, method=parts))(batch)
    )
    table, layers = params["decoder"]["embedding"], params["compressor"]["fusion"]["layers"]
    # Of the states 1, 2 and 3 of a tower of three layers, the one before the last is selected.
    patches = [[projected(params, image[:, 1]) for image in row] for row in states]
    replaced = 0
    for r in range(4):
        wanted = table[batch.tokens[r]].astype(np.float64)
        for segment in range(1, 4):
            mine = batch.segments[r] == segment
            slots = batch.slots[r][mine]
            images = sorted(set(slots[slots >= 0] // V))
            if not images:
                continue
            text = np.flatnonzero(mine & (batch.slots[r] < 0) & (batch.labels[r] == IGNORE))
            x = [*(patches[r][p] for p in images), *(visual[r, p] for p in images), wanted[text]]
            made = decode_layers(layers, CONFIG.model.fusion_layers, np.concatenate(x))
            wanted[text] = made[len(made) - len(text) :]
            replaced += len(text)
        here = batch.slots[r] >= 0
        wanted[here] = visual[r].reshape(-1, M)[batch.slots[r][here]]
        real = batch.segments[r] > 0
        np.testing.assert_allclose(ours[r][real], wanted[real], rtol=1e-3, atol=1e-3)
        if r:
            assert np.abs(ours[r] - table[batch.tokens[r]])[real & ~here].max() > 0.1
    assert replaced > 20


def test_a_new_pre_fusion_changes_nothing(batch):
    rng = np.random.default_rng(6)
    text, patches, tokens = (
        rng.normal(size=(4, *size, M)).astype(np.float32) for size in ((24,), (2, N), (2, V))
    )
    module = Fusion(CONFIG.model, jnp.float32)
    run_it = jax.jit(lambda *given: module.init_with_output(jax.random.key(0), *given))
    (out, _), variables = run_it(text, patches, tokens, batch._replace(pixels=None))
    np.testing.assert_array_equal(out, text)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 2)
    bare = dataclasses.replace(CONFIG.model, compressor=dataclasses.replace(MINI, fusion_layers=0))
    assert compressor_cost(CONFIG.model).params - compressor_cost(bare).params == weights
    assert all(variables["params"]["layers"][name]["kernel"].value.any() for name in ("q", "k", "v", "up"))


def test_it_trains_and_a_mesh_that_splits_the_sequence_agrees(params, batch):
    found = {}
    for shape in (MeshConfig(1, 1, 1), MeshConfig(1, 2, 2, sequence_parallel=True)):
        count = shape.fsdp * shape.tensor
        given = dataclasses.replace(
            CONFIG,
            mesh=shape,
            optimizer=OptimizerConfig(warmup_ratio=0.0, eps=1e-2),
            train=dataclasses.replace(CONFIG.train, stage=1),
        )
        trainer = build_trainer(given, make_mesh(shape, jax.devices()[:count]))
        parts = split_params(params, TrainConfig(stage=1))
        like = trainer.abstract_state
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        host: TrainState = zeros._replace(trainable=parts[0], frozen=parts[1])
        state = jax.tree.map(lambda array, x: jax.device_put(array, x.sharding), host, like)
        state, metrics = trainer.step(state, trainer.put(batch))
        found[count] = jax.device_get((metrics, state.trainable["compressor"]["fusion"]))
    for one, four in zip(*(jax.tree.leaves(f) for f in found.values()), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-3, atol=1e-4)
    before = params["compressor"]["fusion"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found[1][1], before)
    assert min(jax.tree.leaves(moved)) > 0


def test_answers_are_the_full_passes_choice_and_images_are_encoded_once(params, batch):
    """Tokens generated behind a cache are those of passes over everything so far, in which, as in training,
    labels keep answers out of the pre-fusion."""
    new = 3
    model: Any = VLM(CONFIG.model)
    prompts = jax.tree.map(np.array, batch._replace(labels=np.full_like(batch.labels, IGNORE)))
    prompts = jax.tree.map(lambda x: x[:3], prompts)
    for r in range(3):
        prompts.segments[r, 16:] = prompts.tokens[r, 16:] = 0
    lengths = (prompts.segments > 0).sum(axis=1)
    grown = prompts._replace(tokens=prompts.tokens.copy(), segments=prompts.segments.copy())
    choose = jax.jit(
        lambda b: jnp.argmax(
            model.apply({"params": params}, model.apply({"params": params}, b), method=VLM.logits), axis=-1
        )
    )
    wanted = np.zeros((3, new), np.int64)
    for step in range(new):
        picked = np.asarray(choose(grown))
        for r, end in enumerate(lengths + step):
            wanted[r, step] = picked[r, end - 1]
            grown.tokens[r, end] = grown.labels[r, end] = wanted[r, step]
            grown.segments[r, end] = 1
    params, generate = decoding_params(params, CONFIG.model), build_generator(CONFIG.model, new, eos=-1)
    np.testing.assert_array_equal(generate(params, prompts), wanted)
    encode = Encoders(CONFIG.model, Reuse())
    for _ in range(2):
        visual = encode(params, prompts)
        assert visual.memory is not None and visual.memory.shape == (3, 2, N, M)
        answers = generate(params, prompts._replace(pixels=None), visual)
        np.testing.assert_array_equal(answers, wanted)
    assert encode.reuse.counted["images"].misses == 3
