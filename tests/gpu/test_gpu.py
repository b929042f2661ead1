"""What only an NVIDIA GPU can show: `make test-gpu` runs these where there is one."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, TrainConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.generate.decode import decoding_params
from quecc_jax.models.attention import attention, cudnn_attention, xla_attention
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.state import split_params
from quecc_jax.train.step import accumulated_gradients, build_trainer
from tests import tiny
from tests.golden_check import TOLERANCE, check
from tests.models.test_attention import both_ways, errors, inputs

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")

HALF: dict[str, Any] = {"vocab_size": 64, "width": 128, "heads": 2, "kv_heads": 2, "mlp_width": 96}
"""A decoder whose heads are 64 wide, which cuDNN takes."""


@pytest.mark.parametrize("length, groups, window", [(40, 4, None), (128, 1, 5), (300, 2, 130)])
def test_cudnn_is_as_close_to_the_truth_as_xla(length, groups, window):
    """Packed and padded rows, grouped heads, windows; forward and backward."""
    q, k, v, w, mask = inputs(length=length, groups=groups, width=64, dtype=jnp.bfloat16)
    mask = mask._replace(window=window)
    with jax.default_matmul_precision("highest"):
        a, b, c, weight = (x.astype(jnp.float32) for x in (q, k, v, w))
        exact = both_ways(xla_attention, a, b, c, weight, mask)
    xla = errors(both_ways(xla_attention, q, k, v, w, mask), exact)
    cudnn = errors(both_ways(cudnn_attention, q, k, v, w, mask), exact)
    assert (cudnn < np.maximum(2 * xla, 2**-7)).all(), (cudnn, xla)
    assert xla.max() < 0.03


@pytest.mark.parametrize("length, kernel", [(40, "cudnn"), (41, "xla")])
def test_auto_takes_cudnn_for_even_rows(length, kernel):
    q, k, v, _, mask = inputs(length=length, width=64, dtype=jnp.bfloat16)
    program = jax.jit(lambda q, k, v: attention(q, k, v, mask)).lower(q, k, v).as_text()
    assert ("__cudnn$fmha" in program) == (kernel == "cudnn")


@pytest.mark.parametrize("path", sorted(Path("tests/golden").glob("*.npz")), ids=lambda p: p.stem)
def test_golden_files(path):
    assert max(check(path).values()) < TOLERANCE


def gradients(config, params, batch, device):
    """Loss and gradients of stage 2 on a device, in one list."""
    model = VLM(config.model)
    trainable, frozen = split_params(params, TrainConfig(stage=2))
    run = jax.jit(functools.partial(accumulated_gradients, model, microbatches=1, chunk=8))
    loss, _, grads = run(*jax.device_put((trainable, frozen), device), batch=jax.device_put(batch, device))
    return [np.asarray(x, np.float32) for x in (loss, *jax.tree.leaves(grads))]


@pytest.mark.parametrize("name", ["quecc", "quecc_plus", "tokenpacker", "prumerge", "llava_mini"])
def test_loss_and_gradients_are_those_of_a_cpu(name):
    compressor = exchanged(tiny.MODEL.compressor, name=name)
    config = tiny.run({"compressor": compressor})
    params, batch = tiny.random_params(config), tiny.random_batch(config)._replace(ids=None)
    with jax.default_matmul_precision("highest"):
        ours, expected = (gradients(config, params, batch, jax.devices(kind)[0]) for kind in ("gpu", "cpu"))
    largest = max(np.abs(b).max() for b in expected)
    assert max(np.abs(a - b).max() for a, b in zip(ours, expected, strict=True)) < TOLERANCE * largest


def test_a_bfloat16_step_with_cudnn_is_one_with_xla():
    """Both lie as far from float32's gradients."""
    decoder = dataclasses.replace(tiny.MODEL.decoder, **HALF)
    config = tiny.run({"decoder": decoder, "dtype": "bfloat16"})
    params, batch = tiny.random_params(config), tiny.random_batch(config)._replace(ids=None)
    # Values as large as a trained model's, lest bfloat16 decide everything.
    params = jax.tree.map(lambda x: 0.3 * x, params)

    def made(**model):
        one = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
        return gradients(one, params, batch, jax.devices()[0])

    with jax.default_matmul_precision("highest"):
        exact = np.concatenate([x.ravel() for x in made(dtype="float32", attention_kernel="xla")])
    xla, cudnn = (
        np.concatenate([x.ravel() for x in made(attention_kernel=kernel)]) for kernel in ("xla", "cudnn")
    )
    off = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (xla, cudnn)]
    assert off[1] < 1.5 * off[0] + 1e-3 and off[0] < 0.1, off


def test_training_learns_and_its_weights_load(tmp_path):
    """Twenty steps on one batch through the trainer, saved from the GPU and read back."""
    config = dataclasses.replace(tiny.run({"dtype": "bfloat16"}), out=str(tmp_path / "run"))
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    state, batch = trainer.init(jax.random.key(0)), trainer.put(tiny.random_batch(config))
    losses = []
    for _ in range(20):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    params = jax.device_get({**state.trainable, **state.frozen})
    save_params(config, params)
    _, loaded = load_params(config.out)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_answers_are_those_of_a_cpu():
    """Greedy tokens through prefill and cache."""
    from quecc_jax.generate.decode import advance, begin

    config = tiny.run()
    params, batch = tiny.random_params(config), tiny.random_batch(config)._replace(ids=None)
    params = decoding_params(params, config.model)
    model = VLM(config.model, unrolled=True)

    def answers(device):
        ours, rows = jax.device_put((params, batch), device)
        state = jax.jit(begin, static_argnums=(0, 1, 7))(model, (-1,), ours, rows, None, None, None, 8)
        first = state.token
        step = jax.jit(advance, static_argnums=(0, 1, 6))
        tokens, _ = step(model, (-1,), ours, state, None, None, 7)
        return np.concatenate([np.asarray(first)[:, None], np.asarray(tokens)], axis=1)

    with jax.default_matmul_precision("highest"):
        ours, expected = (answers(jax.devices(kind)[0]) for kind in ("gpu", "cpu"))
    np.testing.assert_array_equal(ours, expected)
