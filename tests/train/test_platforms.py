"""The training step as the compilers of GPUs and TPUs get it, on a machine that has neither."""

import dataclasses
import os
import re
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from quecc_jax.aot import hlo
from quecc_jax.aot.topology import parse_topology, prepare_environment, topology_devices
from quecc_jax.config import MeshConfig
from quecc_jax.data.batch import batch_spec
from quecc_jax.flops import train_flops
from quecc_jax.models.decoder import empty_cache, unstack
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import AXES, RULES, make_mesh
from quecc_jax.train.step import build_trainer
from tests import tiny
from tests.commands.test_compile_pod import needs_libtpu
from tests.jax_shim import pretend_cudnn


def custom_calls(text: str) -> set[str]:
    """Names of what a lowered program leaves to others than XLA."""
    return set(re.findall(r"custom_call @([\w.$]+)", text))


@pytest.mark.parametrize("stage", [1, 2])
def test_a_gpu_gets_cudnn_attention_in_both_passes(monkeypatch, stage):
    pretend_cudnn(monkeypatch, 91000)
    config = tiny.run(model={"dtype": "bfloat16", "remat": "full"}, stage=stage)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    passes = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    assert custom_calls(trainer.lower("cuda").as_text()) == set(passes)


@pytest.mark.parametrize("model, detected", [({"dtype": "float32"}, True), ({"dtype": "bfloat16"}, False)])
def test_a_gpu_gets_xla_alone_where_cudnn_does_not_fit(monkeypatch, model, detected):
    """Float32, or no cuDNN; also on a mesh. Nothing is made for TPUs."""
    if detected:
        pretend_cudnn(monkeypatch, 91000)
    lowered = build_trainer(tiny.run(model=model), make_mesh(MeshConfig(2, 2, 2))).lower("cuda")
    assert custom_calls(lowered.as_text()) == set()


@needs_libtpu
@mock.patch.dict(os.environ)
def test_a_tpu_gets_splash_attention_in_both_passes():
    """Compiled by the real TPU compiler, on a mesh that splits rows and heads."""
    prepare_environment()
    devices = topology_devices(parse_topology("v5e:2x2"))
    config = tiny.run({"dtype": "bfloat16"}, {"max_length": 256, "images_per_row": 0}, stage=0, batch_size=4)
    decoder = dataclasses.replace(config.model.decoder, depth=2, head_width=128)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    compiled = build_trainer(config, make_mesh(MeshConfig(1, 2, 2), devices)).lower().compile()
    text = compiled.as_text() or ""
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert {m[0] for c in calls if (m := re.search(r"splash_mha_(fwd|dkv|dq)", c))} == {
        "splash_mha_fwd",
        "splash_mha_dkv",
        "splash_mha_dq",
    }
    # Two of four rows and two of four heads; keys and values of one of two groups.
    assert all("bf16[2,2,256,128]" in call and "bf16[2,1,256,128]" in call for call in calls)
    # One block of 256, so nothing is skipped: 2 + 3 + 4 products per layer, against 2 + 2 * 2 in the model.
    products = 2 * 2 * 256 * 256 * 128 * 2
    program = hlo.parse(text)
    kernels = {
        i.name: hlo.instruction_flops(i, c)
        for c in program.computations.values()
        for i in c.values()
        if i.name.startswith("splash")
    }
    assert sorted(kernels.values()) == [2 * products, 3 * products, 4 * products]
    assert 1.0 < 4 * hlo.flops(program) / train_flops(config) < 1.5


@needs_libtpu
@mock.patch.dict(os.environ)
@pytest.mark.parametrize("remat", ["none", "attention"])
def test_layers_with_two_windows_get_two_kernels_in_one_scan_on_a_tpu(remat):
    """Compiled by the real TPU compiler, on a mesh, with soft caps; what attention saves is not computed again."""
    prepare_environment()
    devices = topology_devices(parse_topology("v5e:2x2"))
    config = tiny.run(
        {"dtype": "bfloat16", "remat": remat}, {"max_length": 256, "images_per_row": 0}, stage=0, batch_size=4
    )
    decoder = dataclasses.replace(
        config.model.decoder,
        depth=4,
        head_width=128,
        window=64,
        full_every=2,
        local_rope_theta=100.0,
        attention_softcap=50.0,
        logit_softcap=30.0,
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    text = build_trainer(config, make_mesh(MeshConfig(1, 2, 2), devices)).lower().compile().as_text() or ""
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    kinds = [m[0] for call in calls if (m := re.search(r"splash_mha_(fwd|dkv|dq)", call))]
    assert sorted(kinds) == ["splash_mha_dkv"] * 2 + ["splash_mha_dq"] * 2 + ["splash_mha_fwd"] * 2
    assert "conditional(" in text


def test_on_a_tpu_prompts_go_through_splash_attention_and_single_tokens_do_not():
    config = tiny.run({"dtype": "bfloat16"}, {"images_per_row": 0}, batch_size=4)
    model: Any = VLM(config.model, unrolled=True)
    params = {"decoder": unstack(tiny.random_params(config)["decoder"])}
    batch = batch_spec(config.model, config.data, 4)
    token = jax.ShapeDtypeStruct((4, 1), jnp.int32)

    def prefill(batch):
        cache = empty_cache(config.model.decoder, 4, 32, jnp.bfloat16)
        return model.apply({"params": params}, batch, cache, method=VLM.prefill)

    def extend(token, cache):
        return model.apply({"params": params}, token, token, token, cache, method=VLM.extend)

    types, device = (AxisType.Auto,) * 3, AbstractDevice("TPU v5 lite", None, "tpu")
    with use_abstract_mesh(AbstractMesh((2, 1, 2), AXES, types, abstract_device=device)):
        with nn.logical_axis_rules(RULES):
            first = jax.jit(prefill).trace(batch)
            later = jax.jit(extend).trace(token, jax.eval_shape(prefill, batch)[1])
        texts = [one.lower(lowering_platforms=("tpu",)).as_text() for one in (first, later)]
    assert ["@tpu_custom_call" in text for text in texts] == [True, False]
