"""Adapters: what a matrix with one computes, and the parameters beside it, apart and merged."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import DecoderConfig, LoraConfig, QueryConfig
from quecc_jax.models.decoder import Decoder, unstack
from quecc_jax.models.layers import Linear
from quecc_jax.models.lora import apart, joined, merged
from quecc_jax.models.vlm import VLM
from tests import tiny
from tests.models.decoders import ONES, PLACES, S, everything

LLAMA = DecoderConfig(vocab_size=64, width=32, depth=3, heads=4, kv_heads=2, mlp_width=48)


def random_tree(config: DecoderConfig, lora: LoraConfig) -> dict:
    model = Decoder(config, lora=lora)
    boxed = jax.eval_shape(
        lambda t: model.init(jax.random.key(0), t, method=everything), jnp.zeros((1, S), jnp.int32)
    )
    return tiny.random_like(nn.meta.unbox(boxed)["params"])


def applied(layer: Linear, params: dict, x: np.ndarray, **rngs: jax.Array) -> np.ndarray:
    return np.asarray(layer.apply({"params": params}, x, rngs=rngs))


def hidden(config: DecoderConfig, lora: LoraConfig, params: dict, **rngs: jax.Array) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(2, S, config.width)).astype(np.float32)
    return np.asarray(Decoder(config, lora=lora).apply({"params": params}, x, PLACES, ONES, rngs=rngs)[0])


@pytest.mark.parametrize("stabilised, scale", [(False, 4 / 3), (True, 4 / 3**0.5)])
def test_a_matrix_and_its_adapter_from_their_formula(stabilised, scale):
    """Over two input axes, as of the attention's output."""
    lora = LoraConfig(rank=3, alpha=4.0, targets=("o?t",), rank_stabilised=stabilised)
    layer = Linear((5,), ("heads", "head_dim", "embed"), inputs=2, lora=lora, name="out")
    x = np.random.default_rng(0).normal(size=(7, 2, 4)).astype(np.float32)
    params = tiny.random_like(nn.meta.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"])
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "kernel": (2, 4, 5),
        "bias": (5,),
        "lora_a": (2, 4, 3),
        "lora_b": (3, 5),
    }
    flat, first = x.reshape(7, 8).astype(np.float64), params["lora_a"].reshape(8, 3)
    expected = flat @ params["kernel"].reshape(8, 5) + params["bias"]
    expected += scale * flat @ first @ params["lora_b"]
    np.testing.assert_allclose(applied(layer, params, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, rank", [("out", 0), ("q", 3)])
def test_no_rank_or_another_name_is_no_adapter(name, rank):
    layer = Linear((5,), ("embed", "mlp"), lora=LoraConfig(rank, targets=("out",)), name=name)
    params = layer.init(jax.random.key(0), np.zeros((1, 4), np.float32))["params"]
    assert set(params) == {"kernel", "bias"}


def test_new_adapters_change_no_bit_of_the_output():
    lora = LoraConfig(rank=4, targets=("q", "out", "up"))
    boxed = Decoder(LLAMA, lora=lora).init(jax.random.key(3), jnp.zeros((1, S), int), method=everything)
    params = nn.meta.unbox(boxed)["params"]
    parts = apart({"decoder": params})
    assert set(parts["lora"]["layers"]) == {"q", "out", "up"}
    first, second = (parts["lora"]["layers"]["out"][name] for name in ("lora_a", "lora_b"))
    assert first.shape == (3, 4, 8, 4) and not np.any(second)
    # PEFT's bound for A is 1 / sqrt(inputs), its variance a third of that squared.
    assert np.std(first) == pytest.approx((1 / 3 / 32) ** 0.5, rel=0.15)
    base = hidden(LLAMA, LoraConfig(), parts["decoder"])
    np.testing.assert_array_equal(hidden(LLAMA, lora, params), base)


@pytest.mark.parametrize("targets", [("*",), ("v", "down")])
def test_merged_computes_what_the_adapters_do(targets):
    lora = LoraConfig(rank=4, alpha=6.0, targets=targets)
    params = random_tree(LLAMA, lora)
    parts = apart({"decoder": params, "projector": {"x": np.zeros(1)}})
    jax.tree.map(np.testing.assert_array_equal, joined(parts)["decoder"], params)
    whole = merged(parts, lora)
    assert set(whole) == {"decoder", "projector"} and whole["projector"] is parts["projector"]
    first, second, kernel = (params["layers"]["v"][name] for name in ("lora_a", "lora_b", "kernel"))
    expected = kernel + 1.5 * np.einsum("lir,lrhd->lihd", first, second)
    np.testing.assert_allclose(whole["decoder"]["layers"]["v"]["kernel"], expected, rtol=1e-5, atol=1e-5)
    kept = hidden(LLAMA, lora, params)
    np.testing.assert_allclose(hidden(LLAMA, LoraConfig(), whole["decoder"]), kept, rtol=1e-4, atol=1e-5)
    assert np.abs(kept - hidden(LLAMA, LoraConfig(), parts["decoder"])).max() > 0.1


def test_merged_kernels_keep_their_type():
    lora = LoraConfig(rank=2)
    parts = apart({"decoder": random_tree(LLAMA, lora)})
    half = {**parts, "decoder": jax.tree.map(lambda x: x.astype(jnp.bfloat16), parts["decoder"])}
    kernel = merged(half, lora)["decoder"]["layers"]["gate"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    exact = merged(parts, lora)["decoder"]["layers"]["gate"]["kernel"]
    np.testing.assert_allclose(kernel.astype(jnp.float32), exact, rtol=2**-6, atol=2**-6)


def test_parameters_without_adapters_pass_through():
    params = {"vision": {}, "decoder": {"layers": {"q": {"kernel": np.ones(3)}}}}
    assert apart(params) is params and joined(params) is params and merged(params, LoraConfig()) is params
    assert apart({"vision": {}}) == {"vision": {}}


def test_dropout_zeroes_its_share_of_the_adapter_s_inputs_and_nothing_of_the_matrix_s():
    lora = LoraConfig(rank=64, alpha=64.0, dropout=0.25)
    layer = Linear((64,), ("embed", "mlp"), bias=False, lora=lora, name="up")
    params = {"kernel": np.full((64, 64), 2.0), "lora_a": np.eye(64), "lora_b": np.eye(64)}
    params = {name: leaf.astype(np.float32) for name, leaf in params.items()}
    x = np.random.default_rng(0).uniform(1, 2, (64, 64)).astype(np.float32)
    whole = np.asarray(x @ params["kernel"])
    np.testing.assert_allclose(applied(layer, params, x), whole + x, rtol=1e-5)
    masks = []
    for seed in (0, 0, 1):
        y = applied(layer, params, x, dropout=jax.random.key(seed))
        kept = (y - whole) / x
        masks.append(kept > 0.5)
        np.testing.assert_allclose(kept[masks[-1]], 1 / 0.75, rtol=1e-3)
        np.testing.assert_allclose(kept[~masks[-1]], 0, atol=1e-3)
        assert np.mean(masks[-1]) == pytest.approx(0.75, abs=0.03)
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])


def test_every_layer_drops_something_else():
    """Two layers whose adapters alone do anything, each with the other's weights in turn, drop alike only if
    their keys are one."""
    config = dataclasses.replace(LLAMA, depth=2)
    lora = LoraConfig(rank=4, dropout=0.5, targets=("down",))
    params = jax.tree.map(np.zeros_like, random_tree(config, lora))
    full = random_tree(config, lora)
    outputs = []
    for number in (0, 1):
        layers = jax.tree.map(np.zeros_like, full["layers"])
        for name in ("norm1", "norm2"):
            layers[name]["scale"][:] = 1
        for name, leaf in (("gate", "kernel"), ("up", "kernel"), ("down", "lora_a"), ("down", "lora_b")):
            layers[name][leaf][number] = full["layers"][name][leaf][0]
        one = {**params, "norm": {"scale": np.ones(32, np.float32)}, "layers": layers}
        outputs.append(hidden(config, lora, one, dropout=jax.random.key(0)))
        undropped = hidden(config, lora, one)
        assert np.abs(outputs[-1] - undropped).max() > 0.01
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


def test_layers_with_parameters_of_their_own_have_adapters_too():
    """As decoding reads them."""
    lora = LoraConfig(rank=4, targets=("q", "down"))
    params = random_tree(LLAMA, lora)
    x = np.random.default_rng(1).normal(size=(2, S, LLAMA.width)).astype(np.float32)
    unrolled, _ = Decoder(LLAMA, lora=lora, unrolled=True).apply({"params": unstack(params)}, x, PLACES, ONES)  # type: ignore[misc]
    np.testing.assert_allclose(np.asarray(unrolled), hidden(LLAMA, lora, params), rtol=1e-5, atol=1e-5)


def test_the_question_s_encoders_read_adapters_too():
    model = dataclasses.replace(tiny.MODEL, lora=LoraConfig(rank=4))
    config = dataclasses.replace(tiny.RUN, model=model)
    params = tiny.random_params(config)
    batch = tiny.random_batch(config)
    asked = batch.queries, batch.query_segments, batch.query_ends
    for query in (QueryConfig("early_exit", 1), QueryConfig("decoder")):
        one = dataclasses.replace(model, query=query)
        kept = VLM(one).apply({"params": joined(params)}, *asked, method=VLM.encode_query)
        bare = dataclasses.replace(one, lora=LoraConfig())
        whole = VLM(bare).apply({"params": merged(params, one.lora)}, *asked, method=VLM.encode_query)
        np.testing.assert_allclose(np.asarray(kept), np.asarray(whole), rtol=1e-4, atol=1e-4)
