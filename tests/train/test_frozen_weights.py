"""A frozen decoder in few bits: what is trained around it, on meshes and across interruptions, and what reads it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import CheckpointConfig, LoraConfig, MeshConfig, RunConfig, weights
from quecc_jax.config.validation import validate
from quecc_jax.convert.io.layer_store import SlabReader
from quecc_jax.convert.rules import Slab
from quecc_jax.errors import UserError
from quecc_jax.load import load_vlm
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.models.lora import joined
from quecc_jax.models.quantized import form_of
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.loop import train as train_run
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import train_step
from tests import tiny
from tests.train.runs import MOVING, Batches
from tests.train.stepping import (
    assert_same,
    equal,
    last_state,
    start,
    state_after_an_interruption,
    trainer_on,
    two_steps,
)

LORA = LoraConfig(rank=4, alpha=8.0)
TEXT: dict[str, Any] = {"stage": 0, "data": {"images_per_row": 0}}


def run(form: Any = "nf4", lora: LoraConfig = LORA, model: dict | None = None, **changes: Any) -> RunConfig:
    model = {"lora": lora, **(model or {})}
    return tiny.run(optimizer=MOVING, model=model, frozen_weights=form, **changes)


def forms(decoder: Any) -> set[str | None]:
    return {form_of(layer["kernel"]) for name, layer in decoder["layers"].items() if "norm" not in name}


def plain_step(config: RunConfig, state: TrainState, batch: Any) -> Any:
    return train_step(VLM(config.model), config, state, batch)


@pytest.mark.parametrize(
    "form, lora, changes",
    [
        ("nf4", LORA, {"stage": 2}),
        ("int8", LORA, TEXT),
        ("int4", LoraConfig(), {"stage": 1}),
        ("nf4", LORA, {**TEXT, "model": {"dtype": "bfloat16"}}),
    ],
)
def test_a_step_is_that_around_the_same_numbers_and_moves_all_that_is_trained(form, lora, changes):
    config = run(form, lora, **changes)
    trainer, batch = trainer_on(config), tiny.random_batch(config)
    state = start(trainer, config)
    assert forms(state.frozen["decoder"]) == {form}
    before, copy = jax.device_get(state), jax.tree.map(jnp.array, state)
    # The rate begins at zero.
    state = trainer.step(state, trainer.put(batch))[0]
    after, metrics = trainer.step(state, trainer.put(batch))
    whole = in_form(copy.frozen["decoder"], config.model.decoder, None)
    copy = copy._replace(frozen={**copy.frozen, "decoder": whole})
    step = jax.jit(functools.partial(plain_step, config))
    expected, told = step(step(copy, trainer.put(batch))[0], trainer.put(batch))
    narrow = config.model.dtype == "bfloat16"
    assert metrics["loss"] == pytest.approx(float(told["loss"]), rel=1e-3 if narrow else 1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(told["grad_norm"]), rel=1e-2 if narrow else 1e-5)
    if not narrow:
        assert_same(jax.device_get(after.trainable), jax.device_get(expected.trainable))
    equal(jax.device_get(after.frozen), before.frozen)
    moved = jax.tree.map(lambda a, b: np.mean(a != b), jax.device_get(after.trainable), before.trainable)
    # B is random here, so that A has a gradient, too. Attention has none of its keys' bias.
    assert min(jax.tree.leaves(moved.get("lora", 1.0))) > 0.9
    assert all(np.mean(jax.tree.leaves(moved[name])) > 0.8 for name in moved)
    assert set(moved) == ({"compressor", "projector"} if config.train.stage else set()) | (
        {"lora"} if lora.rank else set()
    )


@pytest.mark.parametrize("block", [64, 4], ids="blocks of {}".format)
def test_meshes_agree_with_one_device(block, monkeypatch):
    """Blocks as large as an axis lie on every device whole, small ones with their numbers."""
    monkeypatch.setattr(weights, "BLOCK", block)
    # Another length, so that no program is shared with another block size.
    config = run("nf4", data={"images_per_row": 0, "max_length": 20 + block // 16}, stage=0)
    losses, before, state = two_steps(config)
    shape = MeshConfig(1, 4, 2)
    kernel = trainer_on(config, shape).abstract_state.frozen["decoder"]["layers"]["q"]["kernel"]
    assert tuple(kernel["nf4"].sharding.spec) == (None, "fsdp", "tensor", None)
    assert kernel["scale"].shape[1] == 32 // min(block, 32)
    assert tuple(kernel["scale"].sharding.spec) == (None, "fsdp" if block == 4 else None, "tensor", None)
    sharded_losses, _, sharded = two_steps(config, shape)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_same(sharded.trainable, state.trainable)
    equal(sharded.frozen, before.frozen)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[str, dict]:
    """A whole model's run, and its parameters."""
    config = dataclasses.replace(run("auto", LoraConfig()), out=str(tmp_path_factory.mktemp("base") / "run"))
    params = tiny.random_params(config)
    save_params(config, params)
    return config.out, params


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory) -> tuple[RunConfig, TrainState]:
    """A run of four steps around the base in nf4, and its last state."""
    config = run(steps=4, log_every=1)
    config = dataclasses.replace(
        config,
        out=str(tmp_path_factory.mktemp("nf4") / "run"),
        init_from=base[0],
        checkpoint=CheckpointConfig(every=2),
    )
    train_run(config, trainer=trainer_on(config), iterator=Batches(config), progress=lambda _: None)
    return config, last_state(config)


def test_it_starts_from_the_base_s_numbers_rounded_once(base, straight):
    config, state = straight
    expected = in_form(base[1]["decoder"], config.model.decoder, "nf4")
    equal(state.frozen["decoder"], jax.device_get(expected))


def test_an_interrupted_run_goes_on_bit_by_bit(straight, tmp_path):
    equal(state_after_an_interruption(straight[0], tmp_path / "run"), straight[1])
    assert straight[1].step == 4


def test_whoever_reads_the_run_may_have_its_decoder_in_any_form(straight):
    config, state = straight
    batch = tiny.random_batch(config)._replace(ids=None)

    def hidden(model: Any, params: Any) -> np.ndarray:
        return np.asarray(VLM(model).apply({"params": params}, batch))

    expected = hidden(config.model, joined(state.frozen | state.trainable))
    trained = load_vlm(config.out, weights="nf4")
    equal(trained[1]["decoder"]["layers"]["q"]["kernel"], state.frozen["decoder"]["layers"]["q"]["kernel"])
    np.testing.assert_allclose(hidden(trained[0].model, trained[1]), expected, rtol=1e-5, atol=1e-5)
    merged, params = load_vlm(config.out)
    assert forms(params["decoder"]) == {None} and not merged.model.lora.rank
    np.testing.assert_allclose(hidden(merged.model, params), expected, rtol=1e-4, atol=1e-4)
    other, rounded = load_vlm(config.out, weights="int8")
    assert forms(rounded["decoder"]) == {"int8"} and other.model.lora.rank
    assert 1e-4 < np.abs(hidden(other.model, rounded) - expected).mean() < 0.2
    assert forms(load_params(config.out)[1]["decoder"]) == {None}


def test_an_export_reads_the_numbers_that_it_was_trained_around(straight):
    config, state = straight
    whole = in_form(state.frozen["decoder"], config.model.decoder, None)["layers"]["out"]["kernel"]
    reader, path = SlabReader(config.out), ("decoder", "layers", "out", "kernel")
    assert reader.shapes[path] == whole.shape and reader.dtypes[path] == np.float32
    assert not [p for p in reader.shapes if p[:-1] == path]
    np.testing.assert_array_equal(reader.read(Slab(path, 1, whole.shape[1:])), whole[1])


def test_adapters_are_merged_before_a_decoder_without_any_is_rounded(straight):
    config, _ = straight
    other = dataclasses.replace(run("int8", LoraConfig(), stage=1), init_from=config.out)
    begun = initial_state(other, trainer_on(other), tell=lambda said: pytest.fail(said))
    merged = load_vlm(config.out)[1]["decoder"]
    assert forms(begun.frozen["decoder"]) == {"int8"}
    expected = in_form(merged, other.model.decoder, "int8")
    assert_same(
        jax.device_get(in_form(begun.frozen["decoder"], other.model.decoder, None)),
        jax.device_get(in_form(expected, other.model.decoder, None)),
        1e-2,
    )


@pytest.mark.parametrize(
    "config, message",
    [
        (
            run("nf4", LoraConfig()),
            "train.frozen_weights nf4 is for a decoder that is frozen, but train.stage 2",
        ),
        (run("int8", LoraConfig(), stage=0), "train.stage 0 trains all of it where model.lora.rank is 0"),
        (
            run("int8", LoraConfig(), stage=1, data={"cached_queries": True, "cached_features": True}),
            "data.cached_queries are of a decoder as it was stored, but train.frozen_weights is int8",
        ),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        validate(config)
