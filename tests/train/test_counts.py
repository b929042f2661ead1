"""Runs whose steps and rows are counted from the data: what they keep, and what a run that goes on takes from it."""

import dataclasses
from pathlib import Path

import pytest

from quecc_jax.config import MeshConfig
from quecc_jax.config.io import load_config, save_config
from quecc_jax.data.plans.counts import counted
from quecc_jax.errors import UserError
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.loop import train
from quecc_jax.train.resume import Begun, begun_with
from tests.train.runs import Batches
from tests.train.test_batchings import batched


def with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def left_by(config, tmp_path, **found):
    """The directory of a run of this config that had these counts and saved a checkpoint."""
    run = Path(config.out)
    (run / "checkpoints" / "4").mkdir(parents=True)
    save_config(with_train(config, **found), run / "config.json")
    return config


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, Begun(12, 77)),
        ({"epochs": 3.0}, Begun(12, 0)),
        ({"epochs": 0.0}, Begun(12, 0)),
        ({"conversations": 65}, Begun()),
        ({"conversations": 0}, Begun()),
        ({"batch_size": 8}, Begun(12, 77)),
    ],
)
def test_what_a_run_began_with_is_known_while_it_counts_the_same(config, tmp_path, changes, known):
    left_by(with_train(config, epochs=2.0, conversations=64), tmp_path, batch_size=12, steps=77)
    assert begun_with(with_train(config, **{"epochs": 2.0, "conversations": 64} | changes)) == known


def test_rows_that_are_given_belong_to_the_steps_that_were_counted(config, tmp_path):
    left_by(with_train(config, epochs=2.0), tmp_path, batch_size=8, steps=77)
    assert begun_with(with_train(config, epochs=2.0, batch_size=8)) == Begun(0, 77)
    assert begun_with(with_train(config, epochs=2.0, batch_size=16)) == Begun()


def test_nothing_is_known_of_a_run_without_a_checkpoint_or_that_begins_anew(config, tmp_path):
    config = with_train(config, epochs=2.0)
    assert begun_with(config) == Begun()
    left_by(config, tmp_path, steps=77)
    never = dataclasses.replace(config.checkpoint, resume="never")
    assert begun_with(dataclasses.replace(config, checkpoint=never)) == Begun()
    assert begun_with(config) == Begun(0, 77)
    (Path(config.out) / "config.json").write_text("{")
    assert begun_with(config) == Begun()
    (Path(config.out) / "checkpoints" / "4").rmdir()
    assert begun_with(config) == Begun()


def test_a_trainer_or_batches_of_other_counts_are_refused(config, trainer):
    for given in ({"trainer": trainer}, {"iterator": Batches(config)}):
        with pytest.raises(
            UserError, match=r"train\.steps 20 and train\.batch_size 8, but .* come to 7 and 8"
        ):
            train(with_train(config, epochs=1.0), progress=lambda _: None, **given)


def test_a_run_of_epochs_says_and_keeps_its_steps_and_goes_on(config, trainer, capsys):
    """50 rows in batches of eight."""
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=2))
    half = with_train(config, epochs=0.5)
    assert train(half, progress=None)["step"] == 4
    assert "train.epochs 0.5: 4 steps of 8 rows" in capsys.readouterr().err
    kept = load_config(Path(config.out) / "config.json")
    assert (kept.train.epochs, kept.train.steps) == (0.5, 4)
    again = train(half)
    assert again["step"] == 4 and "continues behind step 4 of 4" in capsys.readouterr().err


@pytest.mark.slow
def test_packed_rows_of_a_step_stay_on_another_mesh(config, tmp_path):
    config = with_train(batched(config, "packed", tmp_path), conversations=54, epochs=6.0)
    config = dataclasses.replace(config, mesh=MeshConfig(8, 1, 1))
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    whole = train(straight, progress=lambda _: None)
    losses = [record["loss"] for record in read_records(straight.out)]
    kept = load_config(Path(straight.out) / "config.json").train
    assert kept.batch_size == 16 and whole["step"] == kept.steps

    short = with_train(config, epochs=3.0)
    first = train(short, progress=lambda _: None)["step"]
    assert 0 < first < kept.steps
    other = dataclasses.replace(config, mesh=MeshConfig(2, 2, 2))
    assert counted(other, 4, lambda _: None).train.batch_size == 20
    rest = train(other, progress=lambda _: None)
    now = load_config(Path(config.out) / "config.json").train
    assert rest["step"] == kept.steps and now.batch_size == kept.batch_size
    # The learning rate's schedule became longer when the first half was done.
    assert [r["loss"] for r in read_records(config.out)][first] == pytest.approx(losses[first], rel=0.2)
