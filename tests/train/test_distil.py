"""Distilled training: what the teacher is, that it stays, and that the step is one on every mesh and after breaks."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from quecc_jax.config import CheckpointConfig, DistilConfig, LoraConfig, NoneConfig, RunConfig
from quecc_jax.config.compressors import named
from quecc_jax.config.validation import validate
from quecc_jax.convert.io.layer_store import SlabReader
from quecc_jax.data.batch import IGNORE
from quecc_jax.errors import UserError
from quecc_jax.load import load_vlm
from quecc_jax.models.lora import joined
from quecc_jax.models.teacher import full_rows, uncompressed
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.loop import train as train_run
from quecc_jax.train.loss import shifted_targets
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

DISTIL = DistilConfig(weight=0.6, temperature=2.0)
LORA = LoraConfig(rank=4, alpha=8.0)


def run(distil: DistilConfig = DISTIL, model: dict | None = None, **changes: Any) -> RunConfig:
    return tiny.run(**{"optimizer": MOVING, "model": model or {}, "distil": distil, "stage": 1, **changes})


one_device = functools.cache(two_steps)


@pytest.mark.parametrize(
    "stage, lora, own, shared",
    [
        (1, LoraConfig(), {"projector"}, {"vision", "decoder"}),
        (2, LORA, {"projector"}, {"vision", "decoder"}),
        (2, LoraConfig(), {"projector", "decoder"}, {"vision"}),
    ],
)
def test_the_teacher_has_a_copy_of_what_is_trained_and_stays(stage, lora, own, shared):
    _, before, after = one_device(run(stage=stage, model={"lora": lora}))
    assert set(after.frozen["teacher"]) == own and set(after.frozen) == shared | {"teacher"}
    assert "teacher" not in after.trainable
    equal(after.frozen, before.frozen)
    equal(after.frozen["teacher"]["projector"], before.trainable["projector"])
    assert np.any(
        after.trainable["projector"]["fc1"]["kernel"] != before.trainable["projector"]["fc1"]["kernel"]
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"stage": 2, "model": {"lora": LORA}}, {"stage": 2, "distil": DistilConfig(1.0)}],
    ids=["frozen", "adapters", "whole"],
)
def test_the_loss_is_that_of_two_models_over_full_logits(changes):
    config = run(**changes)
    batch, trainer = tiny.random_batch(config)._replace(ids=None), trainer_on(config)
    state = start(trainer, config)
    params = jax.device_get({**state.frozen, **state.trainable})

    def logits(model: VLM, params: Any, batch: Any) -> Any:
        hidden: Any = jax.jit(model.apply)({"params": params}, batch)
        return model.apply({"params": params}, hidden, method=VLM.logits)

    found = logits(VLM(config.model), joined(params), batch)
    own = {"vision": params["vision"], "decoder": params["decoder"], **params["teacher"]}
    full, places = full_rows(jax.tree.map(jnp.asarray, batch), config.model, config.data)
    wanted = logits(VLM(uncompressed(config.model)), own, full)[np.arange(8)[:, None], places]
    heat, targets = config.train.distil.temperature, shifted_targets(batch.labels)
    divergence = heat**2 * optax.kl_divergence(
        jax.nn.log_softmax(found / heat), jax.nn.softmax(wanted / heat)
    )
    entropy = optax.softmax_cross_entropy_with_integer_labels(found, jnp.maximum(targets, 0))
    here, weight = np.asarray(targets) != IGNORE, config.train.distil.weight
    expected = weight * np.asarray(divergence)[here] + (1 - weight) * np.asarray(entropy)[here]
    _, metrics = trainer.step(state, trainer.put(batch))
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-5)
    assert np.asarray(divergence)[here].mean() > 0.01


def test_a_student_that_sees_as_much_has_nothing_to_learn_before_it_moves():
    """Each patch's average is the patch: the whole way, rows, labels and all, leads to the teacher's logits."""
    compressor = named("avgpool", kernel=1, stride=1)
    config = run(DistilConfig(1.0), model={"compressor": compressor}, data={"max_length": 48})
    trainer = trainer_on(config)
    batch = tiny.random_batch(config)
    text = tiny.random_batch(config, images=[0] * 8)
    bare = {
        name: getattr(text, name)[:, :0] for name in ("queries", "query_segments", "query_ends", "pixels")
    }
    # As grouped batching makes them, without a place for an image.
    for one in (batch, text._replace(**bare)):
        _, metrics = trainer.step(start(trainer, config), trainer.put(one))
        assert metrics["label_tokens"] == 32
        assert abs(metrics["loss"]) < 1e-5 and metrics["grad_norm"] < 1e-4


@on_meshes
def test_meshes_agree_with_one_device(shape):
    losses, _, state = one_device(run(stage=2))
    config = dataclasses.replace(run(stage=2), mesh=shape)
    sharded_losses, _, sharded = two_steps(config, shape)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_same(sharded.trainable, state.trainable)
    equal(sharded.frozen, state.frozen)


def test_microbatches_change_nothing():
    whole, _, state = one_device(run())
    sliced, _, accumulated = two_steps(run(grad_accum_steps=4))
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)
    assert_same(accumulated.trainable, state.trainable)


def test_without_weight_the_step_is_the_same_to_the_bit():
    plain, _, state = two_steps(tiny.run(optimizer=MOVING, stage=1))
    losses, _, other = two_steps(run(DistilConfig(0.0, temperature=3.0)))
    assert losses == plain
    equal(other, state)


@pytest.mark.parametrize("name", ["prumerge", "llava_mini"])
def test_compressors_that_ask_more_of_the_tower(name):
    """The attention that the student's compressor reads is kept of the one pass through the tower."""
    config = run(model={"compressor": tiny_compressor(name)}, data={"images_per_row": 1})
    losses, _, _ = two_steps(config)
    assert np.all(np.isfinite(losses))


def tiny_compressor(name: str) -> Any:
    return (
        named(name, tokens=4)
        if name == "prumerge"
        else named(name, kernel=2, stride=2, heads=4, fusion_layers=1)
    )


@pytest.mark.slow
def test_a_decoder_of_few_bits_is_the_teacher_s_too():
    losses, before, after = two_steps(run(frozen_weights="int8"))
    assert np.all(np.isfinite(losses)) and set(after.frozen["teacher"]) == {"projector"}
    assert "int8" in before.frozen["decoder"]["layers"]["q"]["kernel"]


def test_in_bfloat16_a_teacher_s_own_decoder_takes_half():
    config = run(stage=2, model={"dtype": "bfloat16"})
    losses, _, state = two_steps(config)
    exact, _, _ = one_device(run(stage=2))
    kernel = state.frozen["teacher"]["decoder"]["layers"]["q"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(losses, exact, rtol=0.05)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> RunConfig:
    """A model with all patches."""
    config = tiny.run(model={"compressor": NoneConfig()}, data={"max_length": 48})
    config = dataclasses.replace(config, out=str(tmp_path_factory.mktemp("teacher") / "run"))
    save_params(config, tiny.random_params(config, 7))
    return config


def after(teacher: RunConfig, out: Path, **changes: Any) -> RunConfig:
    config = dataclasses.replace(run(steps=4, log_every=1, **changes), init_from=teacher.out, out=str(out))
    return dataclasses.replace(config, checkpoint=CheckpointConfig(every=2))


@pytest.fixture(scope="module")
def straight(teacher, tmp_path_factory) -> tuple[RunConfig, Any]:
    """A run of four steps that nobody interrupted, and its last state."""
    config = after(teacher, tmp_path_factory.mktemp("distil") / "run")
    train_run(config, trainer=trainer_on(config), iterator=Batches(config), progress=lambda _: None)
    return config, last_state(config)


def test_an_interrupted_run_goes_on_bit_by_bit(straight, tmp_path):
    equal(state_after_an_interruption(straight[0], tmp_path / "run"), straight[1])
    assert straight[1].step == 4


def test_the_teacher_is_what_the_run_starts_from(teacher, straight):
    params = tiny.random_params(teacher, 7)
    equal(straight[1].frozen["teacher"]["projector"], params["projector"])
    equal(straight[1].frozen["decoder"], params["decoder"])
    found, loaded = load_vlm(straight[0].out)
    assert set(loaded) == {"vision", "compressor", "projector", "decoder"}
    assert found.model == straight[0].model
    exported = SlabReader(Path(straight[0].out)).shapes
    assert {path[0] for path in exported} == set(loaded)


def test_a_distilled_run_hands_its_teacher_on(teacher, straight, tmp_path):
    """Into the next stage, with adapters or the whole decoder, and not the projector that it trained."""
    params = tiny.random_params(teacher, 7)
    for changes, own in (({"model": {"lora": LORA}}, {"projector"}), ({}, {"projector", "decoder"})):
        config = after(straight[0], tmp_path / "next", stage=2, **changes)
        state = jax.device_get(initial_state(config, trainer_on(config), tell=lambda _: None))
        assert set(state.frozen["teacher"]) == own
        for name in own:
            equal(state.frozen["teacher"][name], params[name])
        equal(state.trainable["projector"], straight[1].trainable["projector"])


def other(teacher: RunConfig, out: Path, **changes: Any) -> RunConfig:
    """A start for distilled runs that is not what it should be."""
    model = dataclasses.replace(teacher.model, **changes.pop("model", {}))
    config = dataclasses.replace(teacher, out=str(out), model=model, **changes)
    save_params(config, tiny.random_params(config, 7))
    return config


@pytest.mark.parametrize(
    "there, here, said",
    [
        (
            {"model": {"compressor": tiny.MODEL.compressor}},
            {},
            "compresses images (model.compressor.name quecc)",
        ),
        ({"model": {"lora": LORA}}, {"model": {"lora": LORA}, "stage": 2}, "has adapters, which would go on"),
        (
            {"model": {"vision": dataclasses.replace(tiny.MODEL.vision, select_layer=-1)}},
            {},
            "read images with vision.select_layer 3, and this run with 2",
        ),
        (
            {"train": dataclasses.replace(tiny.RUN.train, distil=DISTIL), "model": {"lora": LORA}},
            {},
            "has adapters, which its teacher has not",
        ),
        (
            {"train": dataclasses.replace(tiny.RUN.train, distil=DISTIL, stage=2)},
            {},
            "has a teacher with a decoder of its own",
        ),
    ],
)
def test_who_cannot_teach_is_told_in_a_sentence(teacher, tmp_path, there, here, said):
    begin = other(teacher, tmp_path / "start", **there)
    config = after(begin, tmp_path / "run", **here)
    with pytest.raises(UserError) as error:
        initial_state(config, trainer_on(config))
    assert said in str(error.value) and begin.out in str(error.value) and "\n" not in str(error.value)


def test_a_start_without_a_projector_is_no_teacher(teacher, tmp_path):
    begin = dataclasses.replace(teacher, out=str(tmp_path / "start"))
    params = tiny.random_params(teacher, 7)
    save_params(begin, {name: params[name] for name in ("vision", "decoder")})
    config = after(begin, tmp_path / "run")
    with pytest.raises(UserError, match="has no parameters projector, and its teacher would guess"):
        initial_state(config, trainer_on(config))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"distil": DistilConfig(1.5)}, "train.distil.weight is 1.5 but must be at least 0 and at most 1"),
        ({"distil": DistilConfig(-0.1)}, "train.distil.weight is -0.1"),
        ({"distil": DistilConfig(0.5, 0.0)}, "train.distil.temperature is 0 but must be above 0"),
        (
            {"model": {"compressor": NoneConfig()}, "data": {"max_length": 48}},
            "compressor none makes the student",
        ),
        ({"stage": 0}, "train.stage 0 trains neither"),
        ({"data": {"images_per_row": 0}}, "data.images_per_row is 0"),
        (
            {"model": {"vision": dataclasses.replace(tiny.MODEL.vision, tiles=((1, 2),))}},
            "model.vision.tiles cut images into crops",
        ),
    ],
)
def test_settings_that_ask_for_no_teacher_are_refused(teacher, tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        validate(after(teacher, tmp_path / "run", **changes))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_needs_a_run_to_start_from():
    with pytest.raises(UserError, match="init_from names no run with all visual tokens"):
        validate(run())
