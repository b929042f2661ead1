"""FLOP counts of published sizes against XLA's own count of the real model, every layer unrolled.

Nothing is allocated or compiled: parameters are shapes, and XLA counts the program before it
optimises it. A scan that is unrolled whole leaves no loop whose body would count once.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from quecc_jax import flops
from quecc_jax.config import ModelConfig, NoneConfig, QueccConfig
from quecc_jax.config.presets import decoder, tower
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.models.decoder import empty_cache, unstack
from quecc_jax.models.vlm import VLM

QUESTION, TEXT, ANSWER = 32, 64, 16
# V = 1, 16 and 144; the last is LLaVA-1.5's 576 tokens without a compressor.
SIZES = [("qwen1.5-0.5b", 24), ("qwen1.5-1.8b", 6), ("qwen1.5-4b", 2), ("qwen1.5-0.5b", 1)]
SIZES += [("qwen3-0.6b", 24), ("llama3.2-1b", 6), ("gemma3-1b", 24)]


@pytest.fixture
def unrolled(monkeypatch):
    scan = nn.scan
    monkeypatch.setattr(nn, "scan", lambda *given, **rest: scan(*given, **rest | {"unroll": True}))


def model_of(name: str, kernel: int) -> ModelConfig:
    compressor = QueccConfig(kernel=kernel, stride=kernel) if kernel > 1 else NoneConfig()
    return ModelConfig(decoder=decoder(name), compressor=compressor, remat="none")


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def xla_flops(config: ModelConfig, method: Any, *arguments: Any, cache: Any = None) -> float:
    initial: Any = VLM(config)
    params = jax.eval_shape(lambda *a: initial.init(jax.random.key(0), *a, method=method), *arguments)
    # As when serving: a conversion of float32 weights would count as an operation for each.
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    model: Any = VLM(config, unrolled=cache is not None)
    if cache is not None:
        params["params"]["decoder"] = jax.eval_shape(unstack, params["params"]["decoder"])
        arguments = (*arguments, cache)
    lowered = jax.jit(lambda p, *a: model.apply(p, *a, method=method)).lower(params, *arguments)
    assert "while" not in lowered.as_text()
    counts: Any = lowered.cost_analysis()
    return counts["flops"]


def scored(model: VLM, x: jax.Array, cache: Any = None) -> jax.Array:
    """Logits behind embeddings x [1, S, D] of a prefill, or of a step that follows on a cache."""
    ones = jnp.ones(x.shape[:2], jnp.int32)
    hidden, _ = model.decoder(x, ones, ones, cache)
    return model.logits(hidden[:, -1])


@pytest.mark.parametrize("name, kernel", SIZES)
def test_every_part_of_an_answer(unrolled, name, kernel):
    config = model_of(name, kernel)
    vision, d = config.vision, config.decoder.width
    parts = flops.answer_flops(config, QUESTION, TEXT, ANSWER)
    length = TEXT + config.visual_tokens
    bfloat = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)

    # Steps cost the same but for their context, so that the middle one stands for all.
    held = length + ANSWER // 2
    cache = jax.eval_shape(lambda: empty_cache(config.decoder, 1, held, jnp.bfloat16))
    pixels = jax.ShapeDtypeStruct((1, 1, vision.image_size, vision.image_size, 3), jnp.float32)
    states = bfloat((1, 1, vision.patches, len(hidden_indices(vision)), vision.width))
    theirs = {
        "tower": xla_flops(config, VLM.encode_image, pixels),
        "compressor": xla_flops(config, VLM.compress, states, bfloat((1, 1, d))),
        "prefill": xla_flops(config, scored, bfloat((1, length, d))),
        "decode": (ANSWER - 1) * xla_flops(config, scored, bfloat((1, 1, d)), cache=cache),
    }
    if config.compressor.reads_question:
        asked = ints(1, QUESTION), ints(1, QUESTION), ints(1, 1)
        theirs["query"] = xla_flops(config, VLM.encode_query, *asked)
    for part, count in theirs.items():
        assert parts[part] == pytest.approx(count, rel=0.02), part


@pytest.mark.parametrize("name, kernel", SIZES)
def test_weights(name, kernel):
    config = model_of(name, kernel)
    vision = config.vision
    states = jnp.zeros((1, 1, vision.patches, len(hidden_indices(vision)), vision.width), jnp.bfloat16)
    pixels = jnp.zeros((1, 1, vision.image_size, vision.image_size, 3))
    query = jnp.zeros((1, 1, config.decoder.width), jnp.bfloat16)

    def count(method: Any, *arguments: Any) -> dict[str, int]:
        model: Any = VLM(config)
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments, method=method))["params"]
        return {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}

    adapter = count(VLM.compress, states, query)
    assert flops.compressor_cost(config).params == pytest.approx(adapter.get("compressor", 0), rel=0.002)
    assert flops.projector_params(config) == pytest.approx(adapter["projector"], rel=0.002)
    # The last of the tower's layers is never run.
    tower = count(VLM.encode_image, pixels)["vision"]
    layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp_width
    assert flops.tower_params(vision) == pytest.approx(tower - layer, rel=0.005)


@pytest.mark.parametrize("name", ["siglip-so400m-14-384", "siglip2-base-16-512", "dinov2-large-registers"])
def test_other_towers(unrolled, name):
    vision = tower(name)
    config = ModelConfig(vision, NoneConfig(), decoder=decoder("qwen3-0.6b"), remat="none")
    pixels = jax.ShapeDtypeStruct((1, 1, vision.image_size, vision.image_size, 3), jnp.float32)
    theirs = xla_flops(config, VLM.encode_image, pixels)
    assert flops.tower_flops(vision) == pytest.approx(theirs, rel=0.02)
