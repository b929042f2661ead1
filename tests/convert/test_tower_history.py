"""Exports of runs whose tower is no longer the one that was published under its name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from quecc_jax.config import LoraConfig, NoneConfig
from quecc_jax.convert.formats.towers.clip import LEVELS
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.run import export_weights
from quecc_jax.convert.tower_history import tower_was_trained
from quecc_jax.errors import UserError
from quecc_jax.train.checkpoint import save_params
from tests.tiny import random_params, run

NAME = "openai/clip-vit-large-patch14-336"
ALL = ("vision", "compressor", "projector", "decoder")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Writes a run by name, and lets its tower pass for a published one."""

    def write(name: str, **changes) -> Path:
        config = run(data={"template": "v1"})
        vision = dataclasses.replace(config.model.vision, post_norm=True, levels=(1,))
        model = dataclasses.replace(
            config.model, vision=vision, compressor=NoneConfig(), lora=changes.pop("lora", LoraConfig())
        )
        published = dataclasses.replace(vision, levels=LEVELS)
        monkeypatch.setattr("quecc_jax.convert.formats.llava.KNOWN", {NAME: published})
        train = dataclasses.replace(config.train, stage=3, parts=changes.pop("parts", ALL[1:]))
        config = dataclasses.replace(config, model=model, train=train, out=str(tmp_path / name), **changes)
        save_params(config, random_params(config))
        return tmp_path / name

    return write


def test_a_tower_that_was_trained_does_not_go_by_its_published_name(saved, tmp_path):
    plain = saved("plain")
    trained = saved("trained", parts=ALL, init_from=str(plain))
    after = saved("after", init_from=str(trained))
    borrowed = saved("borrowed", init_from=str(plain), tower_from=str(after))
    for at, own in ((plain, False), (trained, True), (after, True), (borrowed, True)):
        assert tower_was_trained(at) is own
        to = tmp_path / f"{at.name}-out"
        export_weights(at, to, layout="llava")
        assert json.loads((to / "config.json").read_text())["mm_vision_tower"] == ("clip" if own else NAME)
        assert (to / "clip").is_dir() is own
        if own:
            name = "vision_model.embeddings.class_embedding"
            beside, inside = open_tensors(to / "clip"), open_tensors(to)
            np.testing.assert_array_equal(
                beside.read(name), inside.read(f"model.vision_tower.vision_tower.{name}")
            )


def test_one_that_the_imported_project_trained_is_its_own_too(saved):
    plain = saved("plain")
    (plain / "source" / "model").mkdir(parents=True)
    (plain / "source" / "tensors.json").write_text('{"model": {}}')
    for setting in (False, True):
        (plain / "source" / "model" / "config.json").write_text(
            json.dumps({"unfreeze_mm_vision_tower": setting})
        )
        assert tower_was_trained(plain) is setting


def test_what_a_run_began_with_may_be_gone(saved, capsys):
    assert not tower_was_trained(saved("left", init_from="nowhere"))
    assert "if it trained the tower, export that with --only vision too" in capsys.readouterr().err


def test_adapters_alone_are_not_all_of_such_a_model(saved, tmp_path, capsys):
    lora = LoraConfig(rank=2, targets=("q",))
    trained = saved("trained", parts=ALL, lora=lora)
    with pytest.raises(
        UserError, match=r"tower of .*trained was trained, and the original's form of adapters"
    ):
        export_weights(trained, tmp_path / "llava", adapter="llava")
    export_weights(trained, tmp_path / "peft", adapter="peft")
    assert "has no place for projector and vision" in capsys.readouterr().err
