"""A compressor is a settings class, a module and one line: one that the library does not know goes all the way."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from quecc_jax.commands.options import with_chosen_compressor
from quecc_jax.config import MeshConfig, OptimizerConfig, QueccConfig, RunConfig
from quecc_jax.config.compressors import REGISTRY, exchanged, named, names
from quecc_jax.config.io import from_dict, to_dict
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.evaluate.explain import explain
from quecc_jax.flops import train_flops
from quecc_jax.generate.engine import Limits, Question
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.state import split_params
from quecc_jax.train.step import build_trainer, train_step
from tests.commands.talker import QUESTIONS, tiny_engine
from tests.models.throwaway import LookConfig
from tests.test_flops import CONFIG, MODEL, assert_counted, xla_flops
from tests.tiny import random_batch, random_params, run


@pytest.fixture(autouse=True)
def one_line(monkeypatch):
    monkeypatch.setitem(REGISTRY, LookConfig, "tests.models.throwaway")


def test_it_is_a_setting_like_any_other():
    config = with_chosen_compressor(RunConfig(), ["--train.steps", "3", "--model.compressor.name=look"])
    assert config.model.compressor == LookConfig() and config.model.visual_tokens == 1
    validate(config)
    sharp = dataclasses.replace(config.model, compressor=exchanged(config.model.compressor, sharpness=2.0))
    config = dataclasses.replace(config, model=sharp)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert names()[-1] == "look"


def test_its_work_is_what_xla_counts():
    assert_counted(LookConfig())
    model = dataclasses.replace(MODEL, compressor=LookConfig())
    config = dataclasses.replace(CONFIG, model=model)
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    batch = trainer.abstract_batch._replace(ids=None)
    theirs = xla_flops(lambda s, b: train_step(VLM(model), config, s, b), trainer.abstract_state, batch)
    assert train_flops(config) == pytest.approx(theirs, rel=0.05)


def test_a_step_moves_all_its_weights():
    config = run(model={"compressor": LookConfig()}, batch_size=2)
    config = dataclasses.replace(config, optimizer=OptimizerConfig(warmup_ratio=0.0))
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    params = random_params(config)
    trainable, frozen = split_params(params, config.train)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trainer.abstract_state)
    host = zeros._replace(trainable=trainable, frozen=frozen)
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), host, trainer.abstract_state)
    state, metrics = trainer.step(state, trainer.put(random_batch(config, images=[1, 1])))
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - b).max(), state.trainable["compressor"], params["compressor"]
    )
    assert np.isfinite(metrics["loss"]) and min(jax.tree.leaves(moved)) > 0


def test_it_answers_and_its_attention_is_drawn(tmp_path):
    engine = tiny_engine(tmp_path, name="look", sharpness=3.0)
    question = Question(QUESTIONS[0], (engine.image(Image.new("RGB", (24, 24), "red")),))
    assert isinstance(engine.answers([question], Limits(4))[0], str)
    weights = engine.attention(question)
    assert weights is not None and weights.shape == (1, 1, 1, 4, 4)
    np.testing.assert_allclose(weights.sum(axis=(-2, -1)), 1.0, rtol=1e-5)
    explain(engine, question, QUESTIONS[1], Limits(4), tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "given, name, settings, message",
    [
        (QueccConfig(), "queck", {}, "'queck' is not a compressor; did you mean quecc?"),
        (QueccConfig(), "look", {"kernel": 2}, "kernel is not a setting of the compressor look"),
        (
            QueccConfig(elastic=(1, 4)),
            "resampler",
            {},
            r"resampler has no elastic, but quecc was given \(1, 4\)",
        ),
        (named("mqt", tokens=5), "quecc_plus", {}, "quecc_plus has no tokens, but mqt was given 5"),
    ],
)
def test_what_cannot_take_its_place_is_said(given, name, settings, message):
    with pytest.raises(UserError, match=message):
        exchanged(given, name, **settings)


def test_what_two_have_in_common_is_kept():
    changed = exchanged(QueccConfig(kernel=6, stride=6, heads=4, query="zero"), "mqt", queries=64)
    assert changed == named("mqt", kernel=6, stride=6, heads=4, queries=64)
