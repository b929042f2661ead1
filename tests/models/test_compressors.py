"""What holds for every compressor of the registry, and what those without golden arrays compute."""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, ModelConfig
from quecc_jax.config.compressors import config_class, exchanged, names
from quecc_jax.config.shapes import hidden_indices, state_shape
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import on_mesh
from quecc_jax.models import compressors
from quecc_jax.models.compressors.base import RegionAttention
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.compressors.random_config import RandomConfig
from quecc_jax.models.projector import Projector
from quecc_jax.models.towers.vit import split_features
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import batch_sharding, make_mesh
from tests.models.reference import affine, attend, gelu, layer_norm
from tests.tiny import MODEL, RUN, random_like, random_params

GRID, WIDTH = MODEL.vision.grid, MODEL.vision.width


def model(name: str, dtype: Any = "float32", **settings: Any) -> ModelConfig:
    compressor = exchanged(MODEL.compressor, name=name, **settings)
    return dataclasses.replace(MODEL, compressor=compressor, dtype=dtype)


def inputs(config: ModelConfig, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The tower's states [rows, 1, n, K, D] and questions' features [rows, 1, H]."""
    rng = np.random.default_rng(0)
    shapes = (rows, 1, *state_shape(config.tower)), (rows, 1, MODEL.decoder.width)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def trained(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    params = random_params(dataclasses.replace(RUN, model=config), seed)
    return {k: v for k, v in params.items() if k in ("compressor", "projector")}


def outcome(config: ModelConfig, mesh: Any = None) -> tuple[Any, Any]:
    """Visual tokens [8, 1, V, M] of eight images, and the gradients of compressor and projector."""

    def loss(params: Any, states: jax.Array, query: jax.Array) -> tuple[jax.Array, jax.Array]:
        made: Any = VLM(config).apply({"params": params}, states, query, method=VLM.compress)
        tokens = made.tokens if made.memory is None else jnp.concatenate(made, axis=2)
        return jnp.sum(jnp.sin(tokens.astype(jnp.float32))), tokens

    arrays = inputs(config, 8)
    if mesh is not None:
        arrays = jax.device_put(arrays, batch_sharding(mesh))
    run = on_mesh(jax.jit(jax.grad(loss, has_aux=True)), mesh)
    grads, tokens = jax.device_get(run(trained(config), *arrays))
    return tokens, grads


def test_one_file_and_one_line_each():
    found = {
        m.name: importlib.import_module(f"{compressors.__name__}.{m.name}")
        for m in pkgutil.iter_modules(compressors.__path__)
    }
    assert {name for name, module in found.items() if hasattr(module, "build")} == set(names())
    assert all(found[name].__doc__ and f"{name}_config" in found for name in names())


@pytest.mark.parametrize("name", names())
def test_every_compressor_under_the_model(name):
    config = model(name)
    tokens, grads = outcome(config)
    made = config.visual_tokens + config.memory_tokens
    assert tokens.shape == (8, 1, made, MODEL.decoder.width) and tokens.dtype == np.float32
    assert config.visual_tokens == (GRID**2 if config.compressor.shape == "all" else 4)
    largest = [np.abs(x).max() for x in jax.tree.leaves(grads)]
    assert np.isfinite(tokens).all() and np.isfinite(largest).all() and min(largest) >= 0 < max(largest)

    split, split_grads = outcome(config, make_mesh(MeshConfig(2, 2, 2)))
    np.testing.assert_allclose(split, tokens, rtol=1e-4, atol=1e-4 * np.abs(tokens).max())
    for ours, wanted in zip(jax.tree.leaves(split_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4 * max(largest))

    rough, rough_grads = outcome(model(name, "bfloat16"))
    assert rough.dtype == jnp.bfloat16 and {x.dtype for x in jax.tree.leaves(rough_grads)} <= {np.dtype("f4")}
    np.testing.assert_allclose(rough.astype(np.float32), tokens, atol=0.1 * np.abs(tokens).max())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(rough_grads))


IMAGES_ALONE = {"quecc": {"k_proj", "v_proj"}, "quecc_plus": {"k_proj", "v_proj"}}
"""Weights of compressors that read the question which read the image alone."""


@pytest.mark.parametrize("name", names())
def test_what_is_of_the_image_alone_is_prepared_without_the_question_and_not_again(name):
    config = model(name)
    (states, query), params = inputs(config, 2), trained(config)
    own, module = params.get("compressor", {}), make_compressor(config)
    alone = IMAGES_ALONE[name] if config.compressor.reads_question else own.keys()
    first = params | {"compressor": {k: v for k, v in own.items() if k in alone}}
    rest = params | {"compressor": {k: v for k, v in own.items() if k not in alone}}

    @jax.jit
    def both(states: Any, query: Any) -> Any:
        # Neither has the weights of the other.
        prepared: Any = VLM(config).apply({"params": first}, states, method=VLM.prepare)
        visual: Any = VLM(config).apply({"params": rest}, prepared, query, method=VLM.finish)
        features = split_features(states[:, 0], config.tower)
        projector: Any = Projector(config.projector, MODEL.decoder.width)

        def project(x: Any) -> Any:
            return projector.apply({"params": params["projector"]}, x)

        if config.compressor.projected:
            features = features._replace(single=project(features.single))
        zeros = query if config.compressor.reads_question else 0 * query
        made: Any = module.apply({"params": own}, features, zeros)
        return prepared, visual, made if config.compressor.projected else project(made)

    prepared, visual, wanted = both(states, query)
    ours = visual.tokens if visual.memory is None else jnp.concatenate(visual, axis=2)
    np.testing.assert_allclose(ours[:, 0], wanted, rtol=1e-4, atol=1e-5)
    assert all(x.shape[:2] == (2, 1) for x in jax.tree.leaves(prepared))
    assert isinstance(prepared, Visual) != config.compressor.reads_question


@pytest.mark.parametrize("name", [name for name in names() if config_class(name).shape == "free"])
def test_tokens_without_a_grid_may_be_any_number(name):
    tokens = 9 if name == "llava_mini" else 5  # Its queries are a square.
    config = model(name, tokens=tokens)
    states, query = inputs(config, 2)
    made = jax.eval_shape(
        lambda p, *a: VLM(config).apply({"params": p}, *a, method=VLM.compress),
        trained(config),
        states,
        query,
    )
    assert made.tokens.shape == (2, 1, tokens, MODEL.decoder.width)
    memory = 0 if made.memory is None else made.memory.shape[2]
    assert memory == config.memory_tokens


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "avgpool", "tokens": 4}, "avgpool takes V from kernel and stride, not from tokens 4"),
        ({"name": "resampler", "tokens": 17}, "tokens 17 is not between 1 and the 16 patches"),
        ({"name": "mqt", "queries": 8}, "queries 8 is not a square number of at least the 4 tokens"),
        ({"name": "llava_mini", "tokens": 5}, "tokens 5 is not a square number"),
        ({"name": "mqt", "tokens": 10, "queries": 9}, "queries 9 is not a square .* the 10 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(RUN, model=model(**settings)))


def parts(config: ModelConfig) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Tokens [V, M] of one image, its select layer's patches [n, D] and the parameters."""
    states, query = inputs(config, 1)
    params = trained(config)
    run: Any = jax.jit(lambda p, *a: VLM(config).apply({"params": p}, *a, method=VLM.compress))
    tokens = run(params, states, query).tokens
    select = hidden_indices(MODEL.vision).index(MODEL.vision.depth - 1)
    return np.asarray(tokens[0, 0]), states[0, 0, :, select].astype(np.float64), params


def project(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    p, width = params["projector"], MODEL.decoder.width
    return affine(p["fc2"], gelu(affine(p["fc1"], x, width)), width)


def squares(x: np.ndarray) -> list[np.ndarray]:
    """The four 2 x 2 squares of a 4 x 4 grid, each [4, C]."""
    return [
        np.stack([x[GRID * (y + b) + z + a] for b in (0, 1) for a in (0, 1)]) for y in (0, 2) for z in (0, 2)
    ]


def test_average_pooling_before_and_after_the_projector():
    before, x, params = parts(model("avgpool"))
    expected = project(params, np.stack([s.mean(0) for s in squares(x)]))
    np.testing.assert_allclose(before, expected, rtol=1e-3, atol=1e-3)
    after, x, params = parts(model("m3"))
    expected = np.stack([s.mean(0) for s in squares(project(params, x))])
    np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(after - before).max() > 0.1


def test_a_random_choice_passes_its_patches_on():
    chosen = RandomConfig(tokens=3, seed=5)
    ours, x, params = parts(dataclasses.replace(MODEL, compressor=chosen))
    kept = chosen.kept(GRID)
    np.testing.assert_allclose(ours, project(params, x[list(kept)]), rtol=1e-3, atol=1e-3)


def test_a_random_choice_is_the_same_everywhere_and_grows():
    def kept(tokens: int, seed: int = 0) -> tuple[int, ...]:
        return RandomConfig(tokens=tokens, seed=seed).kept(8)

    assert kept(4) == (6, 38, 44, 61)
    for tokens in (1, 4, 16, 64):
        assert len(set(kept(tokens))) == tokens and list(kept(tokens)) == sorted(kept(tokens))
        assert set(kept(tokens)) <= set(kept(min(64, 4 * tokens)))
    assert kept(64) == tuple(range(64))
    # Every patch is as likely as any other.
    counts = np.bincount([patch for seed in range(400) for patch in kept(8, seed)], minlength=64)
    assert abs(counts - 50).max() < 4 * 50**0.5


def test_a_convolution_alone():
    ours, x, params = parts(model("conv"))
    p = params["compressor"]["downsample"]
    tokens = [np.einsum("rc,rc->c", s, p["kernel"].reshape(4, WIDTH)) + p["bias"] for s in squares(x)]
    np.testing.assert_allclose(ours, project(params, np.stack(tokens)), rtol=1e-3, atol=1e-3)


def position(side: int, width: int, row: int, column: int) -> np.ndarray:
    halves = []
    for place in (column, row):
        angles = [place / 10000 ** (4 * i / width) for i in range(width // 4)]
        halves += [np.sin(angles), np.cos(angles)]
    return np.concatenate(halves)


def heads_of(p: dict[str, Any], q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Multi-head attention with every projection written out: q [V, D], k and v [n, D] -> [V, D]."""
    width = q.shape[1]
    q, k, v = (
        affine({"kernel": p[f"{n}_kernel"], "bias": p[f"{n}_bias"]}, x, width)
        for n, x in (("q", q), ("k", k), ("v", v))
    )
    d, seen = width // heads, np.ones((len(q), len(k)), bool)
    parts = [slice(h * d, (h + 1) * d) for h in range(heads)]
    found = [attend(q[:, part], k[:, part], v[:, part], seen) for part in parts]
    return affine(p["out"], np.concatenate(found, -1), width)


def test_the_resampler_is_two_blocks_of_attention_and_mlp():
    ours, x, params = parts(model("resampler", tokens=3))
    p = params["compressor"]
    positions = np.stack([position(GRID, WIDTH, *divmod(i, GRID)) for i in range(GRID**2)])
    q = p["queries"].astype(np.float64)
    for block in (p["block1"], p["block2"]):
        y = layer_norm(block["x_norm"], x, 1e-6)
        q = q + heads_of(block["attention"], layer_norm(block["q_norm"], q, 1e-6), y + positions, y, 4)
        hidden = gelu(affine(block["fc1"], layer_norm(block["mlp_norm"], q, 1e-6), 4 * WIDTH))
        q = q + affine(block["fc2"], hidden, WIDTH)
    np.testing.assert_allclose(ours, project(params, layer_norm(p["norm"], q, 1e-6)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tokens, heads", [(1, 2), (2, 4), (12, 4)])
def test_attention_over_the_whole_image_is_multi_head_attention(tokens, heads):
    # The last has so many queries that keys and values are projected; the others have their own few.
    rng, width = np.random.default_rng(0), 16
    q, k, v = (rng.normal(size=(2, n, width)).astype(np.float32) for n in (tokens, 9, 9))
    module: Any = RegionAttention(heads, jnp.float32)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), q, k, v))["params"])
    params = random_like(shapes)

    def run(q: np.ndarray, k: np.ndarray) -> Any:
        apply = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
        return apply({"params": params}, q, k, v)

    ours, sown = run(q, k)
    expected = np.stack([heads_of(params, *one, heads) for one in zip(q, k, v, strict=True)])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    (weights,) = sown["intermediates"]["attention"]
    assert weights.shape == (2, tokens, heads, 9)
    # Keys that all images share are as good as copies of them.
    copied = run(np.stack([q[0]] * 2), np.stack([k[0]] * 2))
    np.testing.assert_allclose(run(q[:1], k[:1])[0], copied[0], rtol=1e-4, atol=1e-5)
