"""QueCC with registers, rounds and a memory that the instruction reads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from quecc_jax import flops
from quecc_jax.config.shapes import compressor_sizes
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.base import Features, RegionAttention, regions
from quecc_jax.models.compressors.quecc import QueCC
from quecc_jax.models.compressors.quecc_plus import QueCCPlus
from quecc_jax.models.compressors.quecc_plus_config import QueccPlusConfig
from quecc_jax.models.vlm import VLM
from tests.tiny import MODEL, RUN, random_batch, random_like, random_params

D, N, V = MODEL.vision.width, MODEL.vision.patches, 4
BARE: dict[str, Any] = {"kernel": 2, "stride": 2, "heads": 4, "fusion_layers": 0}


def module(**settings: Any) -> QueCCPlus:
    return QueCCPlus(QueccPlusConfig(**{**BARE, **settings}), compressor_sizes(MODEL))


def quecc(stride: int) -> Any:
    return QueCC(stride, stride, MODEL.vision.width, 4)


def inputs() -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(0)
    single, multi, query = (
        rng.normal(size=s).astype(np.float32) for s in ((2, N, D), (2, N, 3 * D), (2, 1, 32))
    )
    return Features(single, multi), query  # type: ignore[arg-type]


def made(plus: QueCCPlus) -> tuple[np.ndarray, dict[str, Any]]:
    """Tokens and the random parameters that they come from."""
    shapes = jax.eval_shape(plus.init, jax.random.key(0), *inputs())["params"]
    params = random_like(nn.meta.unbox(shapes))
    return np.asarray(plus.apply({"params": params}, *inputs())), params


def towers(params: dict[str, Any]) -> tuple[Any, Any, Any]:
    """QueCC's queries before downsampling, keys and values, by QueCC's own modules."""
    captured: Any = quecc(2).apply(
        {"params": params}, *inputs(), capture_intermediates=True, mutable=["intermediates"]
    )[1]["intermediates"]
    return tuple(captured[name]["__call__"][0] for name in ("q_downsample", "k_proj", "v_proj"))


def test_without_its_additions_it_is_quecc():
    ours, params = made(module())
    np.testing.assert_array_equal(ours, quecc(2).apply({"params": params}, *inputs()))


def test_registers_and_rounds_add_attention_of_their_own():
    ours, params = made(module(registers=True, rounds=2))
    own = ("register", "register_attn", "round_norms_0", "round_attn_0")
    plain = {k: v for k, v in params.items() if k not in own}
    asked, k, v = towers(plain)
    asked, k, v = asked.reshape(2, V, D), regions(k, 2), regions(v, 2)
    attend: Any = RegionAttention(4, jnp.float32)
    tokens = quecc(2).apply({"params": plain}, *inputs())
    learned = jnp.broadcast_to(params["register"], asked.shape)
    tokens = tokens + attend.apply({"params": params["register_attn"]}, learned, k, v)
    mean, scale = np.mean(tokens, -1, keepdims=True), np.std(tokens, -1, keepdims=True)
    norm = (tokens - mean) / np.sqrt(scale**2 + 1e-6) * params["round_norms_0"]["scale"]
    norm = norm + params["round_norms_0"]["bias"]
    tokens = tokens + attend.apply({"params": params["round_attn_0"]}, asked + norm, k, v)
    np.testing.assert_allclose(ours, tokens, rtol=1e-4, atol=1e-5)


def test_the_memory_is_quecc_at_another_resolution_of_the_same_towers():
    ours, params = made(module(fusion_layers=1, memory=16))
    assert ours.shape == (2, V + 16, D)
    renamed = {"memory_downsample": "q_downsample", "memory_attn": "clip_attn"}
    fine = {**params, **{theirs: params[mine] for mine, theirs in renamed.items()}}
    fine = {k: v for k, v in fine.items() if k not in (*renamed, "fusion")}
    np.testing.assert_allclose(ours[:, V:], quecc(1).apply({"params": fine}, *inputs()), atol=1e-5)
    coarse = {k: v for k, v in params.items() if k not in (*renamed, "fusion")}
    np.testing.assert_allclose(ours[:, :V], quecc(2).apply({"params": coarse}, *inputs()), atol=1e-5)


def test_the_instruction_reads_the_memory_and_answers_do_not():
    config = dataclasses.replace(
        RUN, model=dataclasses.replace(MODEL, compressor=QueccPlusConfig(**{**BARE, "fusion_layers": 1}))
    )
    batch, params = random_batch(config, images=[1] * 8), random_params(config)
    vlm = VLM(config.model)
    run = jax.jit(lambda params: vlm.apply({"params": params}, batch, method=VLM.splice))
    before = np.asarray(run(params))
    changed = jax.tree.map(lambda x: x, params)
    changed["compressor"]["memory_attn"]["v_bias"] = changed["compressor"]["memory_attn"]["v_bias"] + 1.0
    differs = np.abs(np.asarray(run(changed)) - before).max(axis=-1) > 1e-5
    instruction = (batch.segments > 0) & (batch.slots < 0) & (batch.labels < 0)
    np.testing.assert_array_equal(differs, instruction)


@pytest.mark.parametrize("memory", [3, 9, 0])
def test_a_memory_that_does_not_tile_the_grid_is_refused(memory):
    config = QueccPlusConfig(**{**BARE, "fusion_layers": 1, "memory": memory})
    with pytest.raises(UserError, match=f"memory {memory} is not the square of a divisor of the grid's 4"):
        validate(dataclasses.replace(RUN, model=dataclasses.replace(MODEL, compressor=config)))


def test_the_pre_fusion_costs_a_share_of_the_decoder():
    plain = dataclasses.replace(MODEL, compressor=QueccPlusConfig(**BARE))
    fused = dataclasses.replace(MODEL, compressor=QueccPlusConfig(**{**BARE, "fusion_layers": 1}))
    layer = flops.decoder_flops(dataclasses.replace(MODEL.decoder, depth=1), 4 + V + 10, 4 + V + 10, 0)
    extra = flops.fusion_flops(fused, 1, 10) - layer
    assert extra == 2.0 * 4 * flops.projector_params(MODEL) and flops.fusion_flops(plain, 1, 10) == 0
