"""Stages that name what they train: the tower too, at a rate of its own, and either of compressor and projector."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from quecc_jax.aot.memory import train_memory
from quecc_jax.config import CheckpointConfig, DistilConfig, LoraConfig, MeshConfig, NoneConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.load import load_vlm
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.loop import train as train_run
from tests import tiny
from tests.models.test_towers import FAMILIES
from tests.train.runs import MOVING, Batches
from tests.train.stepping import (
    assert_same,
    equal,
    last_state,
    on_meshes,
    state_after_an_interruption,
    trainer_on,
    two_steps,
)

ALL = ("vision", "compressor", "projector", "decoder")
SEEN = ALL[:3]


def run(parts: tuple = ALL, model: dict | None = None, **changes) -> RunConfig:
    return tiny.run(**{"optimizer": MOVING, "model": model or {}, "parts": parts, "stage": 3, **changes})


one_device = functools.cache(two_steps)


def moved(before, after) -> dict[str, list[str]]:
    """Names of leaves that training changed and of those that it left, by top level."""
    found: dict[str, list[str]] = {"moved": [], "stayed": []}
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before.trainable | before.frozen),
        jax.tree.leaves(after.trainable | after.frozen),
        strict=True,
    ):
        found["stayed" if np.array_equal(x, y) else "moved"].append(jax.tree_util.keystr(path))
    return found


@pytest.mark.parametrize(
    "parts", [ALL, SEEN, ("compressor",), ("projector",), ("decoder",), ("compressor", "projector")]
)
def test_what_is_named_moves_and_nothing_else(parts):
    _, before, after = one_device(run(parts))
    assert set(after.trainable) == set(parts) and set(after.frozen) == set(ALL) - set(parts)
    found = moved(before, after)
    assert {name.split("'")[1] for name in found["moved"]} == set(parts)
    # No softmax sees a shift of all keys.
    keys = ("['k_bias']", "['k']['bias']")
    assert not [n for n in found["stayed"] if n.split("'")[1] in parts and not n.endswith(keys)]


def test_layers_that_no_state_is_read_of_stay_whatever_decays():
    """PyTorch's optimizers pass over what has no gradient; of three layers two are run."""
    vision = dataclasses.replace(tiny.MODEL.vision, levels=(1, 2), post_norm=True)
    config = run(model={"vision": vision}, optimizer={**MOVING, "weight_decay": 0.5})
    _, before, after = two_steps(config)
    before, after = before.trainable["vision"], after.trainable["vision"]
    equal(before["post_norm"], after["post_norm"])
    layers = jax.tree.map(lambda a, b: (a != b).reshape(3, -1).any(1), before["layers"], after["layers"])
    assert not np.any([leaf[2] for leaf in jax.tree.leaves(layers)])
    for name in ("q", "v", "out", "fc1", "fc2"):
        assert layers[name]["kernel"][:2].all() and layers[name]["bias"][:2].all()


def test_the_tower_has_a_rate_of_its_own():
    plain = one_device(run())
    _, before, still = two_steps(run(optimizer={**MOVING, "vision_learning_rate": 0.0}))
    equal(before.trainable["vision"], still.trainable["vision"])
    slow = two_steps(run(optimizer={**MOVING, "vision_learning_rate": tiny.RUN.optimizer.learning_rate / 10}))
    first = jax.tree.map(lambda a, b: np.abs(a - b).sum(), plain[1].trainable, plain[2].trainable)
    other = jax.tree.map(lambda a, b: np.abs(a - b).sum(), slow[1].trainable, slow[2].trainable)
    for name, ratio in {"vision": 0.1, "compressor": 1.0, "decoder": 1.0}.items():
        moved = [sum(jax.tree.leaves(tree[name])) for tree in (first, other)]
        assert moved[1] / moved[0] == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_the_tower_changes_nothing(remat):
    kept, again = one_device(run()), two_steps(run(model={"remat": remat}))
    assert_same(kept[2].trainable, again[2].trainable, 1e-5)


@on_meshes
def test_a_step_is_one_on_every_mesh_and_in_microbatches(shape):
    losses, _, after = two_steps(run(grad_accum_steps=1 if shape.data == 8 else 2), shape)
    expected, _, alone = one_device(run())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same(after.trainable, alone.trainable)


@pytest.mark.parametrize(
    "family",
    [
        "dinov2 with registers",
        pytest.param("siglip", marks=pytest.mark.slow),
        pytest.param("dinov2 giant", marks=pytest.mark.slow),
    ],
)
def test_towers_of_other_families_are_trained_on_a_mesh_as_on_one_device(family):
    tower = dataclasses.replace(tiny.MODEL.vision, **FAMILIES[family])
    config = run(model={"vision": tower})
    losses, before, after = two_steps(config, MeshConfig(2, 2, 2))
    expected, _, alone = two_steps(config)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same(after.trainable, alone.trainable)
    vision = [name for name in moved(before, after)["moved"] if name.startswith("['vision']")]
    assert len(vision) > 15 and all(any(part in name for name in vision) for part in ("position", "patch"))
    assert ("registers" in " ".join(vision)) == bool(tower.registers)
    assert ("scale1" in " ".join(vision)) == tower.layer_scale


def test_a_run_goes_on_and_answers_with_the_tower_that_it_trained(tmp_path):
    config = dataclasses.replace(
        run(steps=4), out=str(tmp_path / "whole"), checkpoint=CheckpointConfig(every=2)
    )
    config = dataclasses.replace(config, tower_from=str(tmp_path / "tower"))
    from_start = dataclasses.replace(run(steps=1), out=str(tmp_path / "tower"))
    train_run(
        from_start, trainer=trainer_on(from_start), iterator=Batches(from_start), progress=lambda _: None
    )
    train_run(config, trainer=trainer_on(config), iterator=Batches(config), progress=lambda _: None)
    whole = last_state(config)
    equal(whole, state_after_an_interruption(config, tmp_path / "broken"))
    answering = load_vlm(config.out)[1]
    equal(answering["vision"], whole.trainable["vision"])
    borrowed = load_params(config.tower_from, ["vision"])[1]["vision"]
    assert np.any(borrowed["position_embedding"] != whole.trainable["vision"]["position_embedding"])


@pytest.mark.parametrize("parts, more", [(ALL, {}), (SEEN, {}), (("compressor", "projector"), {})])
def test_memory_counts_what_is_trained(parts, more):
    config = run(parts, **more)
    counted, state = train_memory(config, 1), jax.eval_shape(lambda: trainer_on(config).abstract_state)
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(state.trainable) if leaf.ndim > 1)
    assert counted.gradients == pytest.approx(size, rel=0.25)


REFUSED = [
    ({"parts": ()}, {}, "train.stage 3 is past 2 and has to say what it trains"),
    ({"parts": ("decoder", "decoder")}, {}, "train.parts decoder, decoder repeats itself"),
    ({"parts": ("vision", "decoder")}, {}, "trains the tower below a frozen part"),
    ({"data": {"cached_features": True}}, {}, "data.cached_features are of one that stays as it was"),
    ({"data": {"images_per_row": 0}}, {}, "trains what images pass through, but data.images_per_row is 0"),
    (
        {"parts": SEEN, "model": {"lora": LoraConfig(rank=4)}},
        {},
        "leaves out the decoder, but model.lora.rank 4",
    ),
    (
        {"distil": DistilConfig(0.5)},
        {"init_from": "runs/x"},
        "the teacher of train.distil.weight 0.5 sees through",
    ),
    ({"frozen_weights": "int8"}, {}, "is for a decoder that is frozen"),
    (
        {"parts": ("decoder",), "optimizer": {"vision_learning_rate": 1e-6}},
        {},
        "optimizer.vision_learning_rate 1e-06 is of a tower that is trained",
    ),
    (
        {"parts": ("compressor",), "model": {"compressor": NoneConfig()}},
        {},
        "train.stage 3 has nothing to train: compressor have no parameters",
    ),
]


@pytest.mark.parametrize("settings, more, said", REFUSED, ids=[said for *_, said in REFUSED])
def test_what_cannot_be_trained_is_refused(settings, more, said):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        validate(dataclasses.replace(run(**settings), **more))
