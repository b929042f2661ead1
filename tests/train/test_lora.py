"""Training adapters: they alone of the decoder move, on every mesh, in microbatches, and across interruptions."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import CheckpointConfig, LoraConfig, RunConfig, TrainConfig
from quecc_jax.errors import UserError
from quecc_jax.load import load_vlm
from quecc_jax.models.lora import joined, merged, without_adapters
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.loop import train as train_run
from quecc_jax.train.state import TrainState, split_params
from quecc_jax.train.step import train_step
from tests import tiny
from tests.train.runs import MOVING, Batches
from tests.train.stepping import (
    assert_same,
    equal,
    last_state,
    on_meshes,
    start,
    state_after_an_interruption,
    trainer_on,
    two_steps,
)

LORA = LoraConfig(rank=4, alpha=8.0)
DROPS = dataclasses.replace(LORA, dropout=0.3)
TEXT: dict[str, Any] = {"stage": 0, "data": {"images_per_row": 0}}
"""The adapters are the decoder's, and text alone compiles faster."""


def run(lora: LoraConfig = LORA, model: dict | None = None, **changes: Any) -> RunConfig:
    return tiny.run(**{"optimizer": MOVING, "model": {"lora": lora, **(model or {})}, **changes})


one_device = functools.cache(two_steps)


@pytest.mark.parametrize(
    "stage, others", [(0, set()), (1, {"compressor", "projector"}), (2, {"compressor", "projector"})]
)
def test_adapters_alone_of_the_decoder_move_and_have_slots(stage, others):
    _, before, after = one_device(run(stage=stage))
    assert set(after.trainable) == others | {"lora"}
    assert set(after.frozen) == {"vision", "compressor", "projector", "decoder"} - others
    equal(after.frozen, before.frozen)
    slots = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert len(slots) == 2 * len(jax.tree.leaves(after.trainable))
    assert len(jax.tree.leaves(after.trainable["lora"])) == 2 * 7
    for one in jax.tree.leaves(
        jax.tree.map(lambda a, b: np.mean(a != b), after.trainable["lora"], before.trainable["lora"])
    ):
        assert one > 0.9


def test_gradients_are_those_of_the_merged_kernels_by_the_chain_rule():
    """Of A: scale G B^T, of B: scale A^T G, where G is the gradient of W + scale A B as a whole."""
    config = run(LoraConfig(rank=4, alpha=6.0, targets=("q", "down")))
    params, batch = tiny.random_params(config), tiny.random_batch(config)._replace(ids=None)
    bare = VLM(without_adapters(config.model))
    whole = jax.tree.map(jnp.asarray, merged(params, config.model.lora))

    def loss(model: VLM, params: Any) -> jax.Array:
        return jnp.sum(jnp.tanh(model.apply({"params": params}, batch)))  # type: ignore[arg-type]

    kernels = jax.jit(jax.grad(functools.partial(loss, bare)))(whole)["decoder"]["layers"]
    given = {"lora": params["lora"]}
    pairs = jax.jit(jax.grad(lambda t: loss(VLM(config.model), joined({**params, **t}))))(given)["lora"][
        "layers"
    ]
    flat = {"q": (32, 32), "down": (48, 32)}
    for name, (ins, outs) in flat.items():
        g = np.asarray(kernels[name]["kernel"]).reshape(2, ins, outs)
        first = params["lora"]["layers"][name]["lora_a"].reshape(2, ins, 4)
        second = params["lora"]["layers"][name]["lora_b"].reshape(2, 4, outs)
        to_first = 1.5 * np.einsum("lio,lro->lir", g, second)
        to_second = 1.5 * np.einsum("lir,lio->lro", first, g)
        assert_same(np.asarray(pairs[name]["lora_a"]).reshape(to_first.shape), to_first, 1e-3)
        assert_same(np.asarray(pairs[name]["lora_b"]).reshape(to_second.shape), to_second, 1e-3)


@on_meshes
def test_meshes_agree_with_one_device_on_what_is_dropped_too(shape):
    losses, _, state = one_device(run(DROPS))
    sharded_losses, _, sharded = two_steps(run(DROPS), shape)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_same(sharded.trainable, state.trainable)
    equal(sharded.frozen, state.frozen)


def test_microbatches_change_nothing_but_what_is_dropped():
    whole, _, state = one_device(run(**TEXT))
    sliced, _, accumulated = two_steps(run(grad_accum_steps=4, **TEXT))
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)
    assert_same(accumulated.trainable, state.trainable)
    dropped, _, _ = one_device(run(DROPS, **TEXT))
    sliced, _, _ = two_steps(run(DROPS, grad_accum_steps=4, **TEXT))
    for one, other in ((dropped, whole), (sliced, whole), (sliced, dropped)):
        assert np.min(np.abs(np.subtract(one, other))) > 1e-4


def test_every_step_drops_something_else():
    config = run(DROPS, **TEXT)
    trainer, batch, losses = trainer_on(config), tiny.random_batch(config), []
    for number in (0, 0, 1):
        state = start(trainer, config)
        step = jax.device_put(np.int32(number), state.step.sharding)
        losses.append(float(trainer.step(state._replace(step=step), trainer.put(batch))[1]["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_remat_drops_again_what_it_dropped():
    losses, _, state = one_device(run(DROPS, **TEXT))
    again, _, other = two_steps(run(DROPS, model={"remat": "full", "scan_unroll": 2}, **TEXT))
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    assert_same(other.trainable, state.trainable)


def test_in_bfloat16_the_frozen_decoder_takes_half_and_every_bit_is_as_with_all_of_it():
    config = run(DROPS, model={"dtype": "bfloat16"}, **TEXT)
    trainer, batch = trainer_on(config), tiny.random_batch(config)
    state = start(trainer, config)
    types = {
        jax.tree_util.keystr(path[-1:]): x.dtype
        for path, x in jax.tree.leaves_with_path(state.frozen["decoder"])
    }
    assert types == {
        "['kernel']": jnp.bfloat16,
        "['embedding']": jnp.bfloat16,
        "['head']": jnp.bfloat16,
        "['scale']": jnp.float32,
    }
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {np.dtype("float32")}
    wide = state._replace(frozen=split_params(tiny.random_params(config), TrainConfig(stage=0))[1])
    found = []
    for one in (state, wide):
        copy = jax.tree.map(jnp.array, one)
        # Another type of the frozen parameters is another program.
        step = trainer.step if one is state else jax.jit(functools.partial(plain_step, config))
        after, metrics = step(copy, trainer.put(batch))
        found.append(jax.device_get((after.trainable, after.opt_state, metrics["loss"])))
    equal(*found)


def plain_step(config: RunConfig, state: TrainState, batch: Any) -> Any:
    return train_step(VLM(config.model), config, state, batch)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[RunConfig, Any]:
    """A run of four steps that nobody interrupted, and its last state."""
    config = run(DROPS, steps=4, log_every=1)
    config = dataclasses.replace(
        config, out=str(tmp_path_factory.mktemp("lora") / "run"), checkpoint=CheckpointConfig(every=2)
    )
    train_run(config, trainer=trainer_on(config), iterator=Batches(config), progress=lambda _: None)
    return config, last_state(config)


def test_an_interrupted_run_drops_what_it_would_have_dropped(straight, tmp_path):
    equal(state_after_an_interruption(straight[0], tmp_path / "run"), straight[1])
    assert straight[1].step == 4


def test_checkpoints_hold_the_adapters_and_the_decoder_once(straight):
    config, state = straight
    metadata = load_params(config.out)[1]
    assert set(metadata) == {"vision", "compressor", "projector", "decoder", "lora"}
    equal(metadata["lora"], state.trainable["lora"])


def test_a_run_answers_with_its_adapters_merged_or_apart(straight):
    config, _ = straight
    batch = tiny.random_batch(config)._replace(ids=None)
    found, params = load_vlm(config.out)
    assert found.model == without_adapters(config.model) and "lora" not in params
    kept, pairs = load_vlm(config.out, merge=False)
    assert kept.model == config.model and "lora_a" in pairs["decoder"]["layers"]["q"]
    whole, apart = (
        np.asarray(VLM(one.model).apply({"params": p}, batch)) for one, p in ((found, params), (kept, pairs))
    )
    np.testing.assert_allclose(whole, apart, rtol=1e-4, atol=1e-5)


def test_a_run_that_begins_with_another_s_adapters(straight, tmp_path):
    """It goes on with them, or has none and begins with the sum; with another factor it is refused."""
    config, state = straight
    batch = tiny.random_batch(config)._replace(ids=None)
    params = joined(state.frozen | state.trainable)
    expected = np.asarray(VLM(config.model).apply({"params": params}, batch))
    for lora in (LORA, LoraConfig()):
        other = dataclasses.replace(run(lora), out=str(tmp_path / "other"), init_from=config.out)
        begun = initial_state(other, trainer_on(other), tell=lambda said: pytest.fail(said))
        given = joined(jax.device_get(begun.frozen | begun.trainable))
        obtained = np.asarray(VLM(other.model).apply({"params": given}, batch))
        np.testing.assert_allclose(obtained, expected, rtol=1e-4, atol=1e-4)
    louder = dataclasses.replace(run(dataclasses.replace(LORA, alpha=9.0)), init_from=config.out)
    with pytest.raises(UserError, match=r"model.lora.alpha 8.0, and this run 9.0"):
        initial_state(louder, trainer_on(louder))
    narrow = dataclasses.replace(run(dataclasses.replace(LORA, rank=2)), init_from=config.out)
    with pytest.raises(UserError, match=r"lora/layers/down/lora_a has shape"):
        initial_state(narrow, trainer_on(narrow))


def test_a_frozen_decoder_of_random_numbers_is_told():
    said: list[str] = []
    initial_state(run(), trainer_on(run()), tell=said.append)
    assert said == [
        "WARNING: no init_from is given: decoder, vision are random, and stay so, for this run trains none of them"
    ]
    initial_state(run(LoraConfig()), trainer_on(run(LoraConfig())), tell=lambda said: pytest.fail(said))


def test_new_adapters_on_a_run_without_any_begin_as_that_run(tmp_path):
    bare = dataclasses.replace(run(LoraConfig()), out=str(tmp_path / "base"))
    params = tiny.random_params(bare)
    save_params(bare, params)
    config = dataclasses.replace(run(), init_from=bare.out)
    said: list[str] = []
    begun = jax.device_get(initial_state(config, trainer_on(config), tell=said.append))
    assert said == [f"not in {bare.out} and started at random: lora"]
    equal({k: v for k, v in (begun.frozen | begun.trainable).items() if k != "lora"}, params)
    second = [x for path, x in jax.tree.leaves_with_path(begun.trainable["lora"]) if path[-1].key == "lora_b"]
    assert len(second) == 7 and not any(np.any(x) for x in second)
