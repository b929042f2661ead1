"""The measuring side of benchmarks/loss_spikes.py: what counts as a spike, and the twin language model."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.loss_spike_runs import (
    SMALL_TEXT,
    Case,
    adapter_cases,
    adapters,
    cases,
    first_stage,
    optimizer,
    rms,
    settings,
    shrink,
)
from benchmarks.loss_spikes import WINDOW, heights, relapse, spikes
from quecc_jax.config import DecoderConfig, LoraConfig, OptimizerConfig
from quecc_jax.models.decoder import Decoder
from tests.tiny import random_like


def falling(seed: int) -> np.ndarray:
    """A loss that falls from 2 to 0.7 with noise of a tenth of it."""
    noise = 1 + 0.1 * np.random.default_rng(seed).normal(size=300)
    return (0.7 + 1.3 * np.exp(-np.arange(300) / 60)) * np.clip(noise, 0.75, 1.25)


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_spike_and_jumps_are_counted_once(seed):
    loss = falling(seed)
    assert spikes(loss) == [] and relapse(loss) < 0.15
    loss[[120, 124, 200]] = 3.0, 4.0, 2.5
    loss[10] = 9.0  # before there is a window to compare with
    (first, high), (second, low) = spikes(loss)
    assert (first, second) == (120, 200) and 2.9 < high < 3.4 and 1.6 < low < 1.9


def test_a_batch_that_is_hard_for_all_is_no_height():
    """Three runs share the batches' ups and downs; one of them has a spike of its own."""
    batches = np.random.default_rng(1).normal(size=120)
    losses = [batches, batches + 0.01, batches - 0.01]
    losses[2] = losses[2] + 2.0 * (np.arange(120) == 90)
    runs = [{"case": {"seed": 0, "stage": 1}, "loss": loss.tolist()} for loss in losses]
    other = {"case": {"seed": 1, "stage": 1}, "loss": (5 * batches).tolist()}
    np.testing.assert_allclose(heights([*runs, other]), [0.0, 0.01, 1.98, 0.0], atol=0.011)


def test_a_loss_that_is_no_number_is_a_spike():
    loss = falling(0)
    loss[100] = math.nan
    assert [step for step, _ in spikes(loss)] == [100]


def test_a_relapse_lasts():
    loss = falling(0)
    loss[250:] += 1.0
    assert relapse(loss) == pytest.approx(1.0, abs=0.15)
    assert spikes(loss)[0][0] - 250 < WINDOW


def test_small_text_embeddings_are_the_same_function():
    config = DecoderConfig(
        vocab_size=40, width=32, depth=2, heads=2, kv_heads=1, mlp_width=48, tie_embeddings=True
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(40, size=(2, 9)))
    places = jnp.tile(jnp.arange(9), (2, 1)), jnp.ones((2, 9), jnp.int32)

    def logits(config, params):
        model, variables = Decoder(config), {"params": params}
        embedded = model.apply(variables, tokens, method="embed")
        hidden, _ = model.apply(variables, embedded, *places)
        return model.apply(variables, hidden, method="logits")

    start = functools.partial(Decoder(config).init, jax.random.key(0))
    params = random_like(nn.meta.unbox(jax.eval_shape(start, jnp.zeros((2, 9, 32)), *places)["params"]))
    small = shrink(params)
    assert rms(small["embedding"]) == pytest.approx(SMALL_TEXT)
    eps = config.norm_eps * (SMALL_TEXT / rms(params["embedding"])) ** 2
    twin = dataclasses.replace(config, tie_embeddings=False, norm_eps=eps)
    np.testing.assert_allclose(logits(twin, small), logits(config, params), rtol=1e-4, atol=1e-4)


def test_runs_without_adapters_keep_their_names():
    """By which they are found in the folder of an earlier version."""
    found = cases(2)
    assert len(found) == 66 and not any(adapters(case).rank for case in found)
    later = {"rank", "scale", "projector_rate", "warmup"}
    assert not any(later & {part.partition("=")[0] for part in case.name.split("_")} for case in found)
    high = Case(144, rate=4e-3, stage=2, seed=1)
    assert high in found and high.name == "visual_tokens=144_rate=0.004_stage=2_seed=1"


def test_runs_with_adapters_differ_in_one_thing_from_those_with_rates_like_llavas():
    found = adapter_cases(3)
    assert len({case.name for case in found}) == len(found)
    whole, lora, *rest = [
        case._replace(seed=0) for case in found if case.visual_tokens == 144 and case.seed == 2
    ]
    assert adapters(lora) == LoraConfig(rank=2, alpha=4.0, dropout=0.05) and adapters(whole) == LoraConfig()
    trained, recipe = (dataclasses.replace(optimizer(case), **settings(case)) for case in (whole, lora))
    assert recipe == OptimizerConfig(learning_rate=4e-3, projector_learning_rate=4e-4)
    assert trained == OptimizerConfig(learning_rate=4e-4, projector_learning_rate=4e-4)
    changed = [{k for k, v in case._asdict().items() if v != getattr(lora, k)} for case in rest]
    assert [one for one in changed if len(one) > 1] == [{"rate", "projector_rate"}]


def test_a_second_stage_continues_the_first_of_its_model_and_seed():
    second = Case(
        36, "original", 1.0, "small", 4e-3, stage=2, seed=3, rank=2, projector_rate=4e-4, warmup=0.0
    )
    assert (
        first_stage(second) == Case(36, "original", 1.0, "small", seed=3) == first_stage(first_stage(second))
    )
