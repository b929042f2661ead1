"""A run whose batches draw V: it learns at every V, compiles once a length, and resumes in the same order."""

import dataclasses

import jax
import numpy as np
import pytest

from quecc_jax.config import CheckpointConfig
from quecc_jax.data.elastic import drawn, padded_lengths
from quecc_jax.load import load_engine, load_vlm
from quecc_jax.models.compressors.avgpool_config import AveragePoolConfig
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.loop import train
from tests.train.runs import trainer_on

VALUES = (1, 4, 16)


@pytest.mark.slow
def test_an_elastic_run_learns_at_every_v_and_resumes(config, tmp_path, caplog):
    # The compressor that compiles fastest; what each does with V is tested in models/test_elastic.
    model = dataclasses.replace(config.model, compressor=AveragePoolConfig(elastic=VALUES))
    data = dataclasses.replace(config.data, images_per_row=1, max_length=28)
    config = dataclasses.replace(
        config,
        model=model,
        data=data,
        train=dataclasses.replace(config.train, steps=24),
        checkpoint=CheckpointConfig(every=8),
    )
    trainer = trainer_on(config)
    with jax.log_compiles():
        train(config, trainer=trainer, progress=lambda _: None)
    steps = [r for r in caplog.messages if r.startswith("Compiling") and "jit(step)" in r]
    assert len(steps) == len(set(padded_lengths(data, model))) == 2
    records = read_records(config.out)
    assert [r["visual_tokens"] for r in records] == [drawn(VALUES, config.train.seed, n) for n in range(24)]
    for v in VALUES:
        losses = [r["loss"] for r in records if r["visual_tokens"] == v]
        assert losses == [r[f"loss_v{v}"] for r in records if f"loss_v{v}" in r]
        assert np.mean(losses[-2:]) < losses[0] - 0.5

    # Saved after step 8, in the middle of a turn of three.
    halfway = dataclasses.replace(
        config, out=str(tmp_path / "broken"), train=dataclasses.replace(config.train, steps=8)
    )
    train(halfway, trainer=trainer, progress=lambda _: None)
    train(dataclasses.replace(config, out=halfway.out), trainer=trainer, progress=lambda _: None)
    assert [r["loss"] for r in read_records(halfway.out)] == [r["loss"] for r in records]

    for v in VALUES:
        assert load_vlm(config.out, visual_tokens=v)[0].model.visual_tokens == v
    assert load_engine(config.out).config.model.visual_tokens == 16
