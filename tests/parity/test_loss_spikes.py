"""The original's initial values in benchmarks/loss_spikes.py against those of torch's own modules."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.loss_spike_runs import original_values
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.quecc import QueCC
from quecc_jax.models.projector import Projector

WIDTH, TEXT, LEVELS, KERNEL = 64, 96, 4, 6


def spread(x: Any) -> tuple[float, float]:
    """(Standard deviation, largest magnitude)."""
    array = x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return float(array.std()), float(np.abs(array).max())


@pytest.fixture(scope="module")
def drawn():
    """Compressor and projector with the original's values."""
    features = Features(jnp.zeros((1, 144, WIDTH)), jnp.zeros((1, 144, LEVELS * WIDTH)))
    key, query = jax.random.key(0), jnp.zeros((1, 1, TEXT))
    shapes = {
        "compressor": jax.eval_shape(QueCC(KERNEL, KERNEL, WIDTH).init, key, features, query)["params"],
        "projector": jax.eval_shape(Projector("mlp2x_gelu", TEXT).init, key, jnp.zeros((1, WIDTH)))["params"],
    }
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), nn.meta.unbox(shapes))
    return original_values(zeros, key)


def test_uniform_within_the_bounds_of_torch(drawn):
    compressor, projector = drawn["compressor"], drawn["projector"]
    attention = compressor["clip_attn"]
    theirs = torch.nn.MultiheadAttention(WIDTH, 8, batch_first=True)
    conv = torch.nn.Conv2d(WIDTH, WIDTH, KERNEL, KERNEL, groups=WIDTH)
    linears = [
        (compressor["text_projection"], torch.nn.Linear(TEXT, WIDTH)),
        (compressor["q_proj"]["fc1"], torch.nn.Linear(WIDTH, WIDTH)),
        (compressor["k_proj"]["fc1"], torch.nn.Linear(LEVELS * WIDTH, WIDTH)),
        (compressor["v_proj"]["fc2"], torch.nn.Linear(WIDTH, WIDTH)),
        (projector["fc1"], torch.nn.Linear(WIDTH, TEXT)),
        (projector["fc2"], torch.nn.Linear(TEXT, TEXT)),
        (compressor["q_downsample"], conv),
    ]
    pairs = [(ours["kernel"], module.weight) for ours, module in linears]
    pairs += [(ours["bias"], module.bias) for ours, module in linears]
    pairs += [(attention[f"{k}_kernel"], theirs.in_proj_weight) for k in "qkv"]
    pairs += [(attention["out"]["kernel"], theirs.out_proj.weight)]
    for ours, torchs in pairs:
        few = ours.size < 1000
        assert spread(ours) == pytest.approx(spread(torchs), rel=0.3 if few else 0.06)
    for bias in (theirs.in_proj_bias, theirs.out_proj.bias):
        assert not bias.detach().numpy().any()
    assert not any(attention[f"{k}_bias"].any() for k in "qkv") and not attention["out"]["bias"].any()
