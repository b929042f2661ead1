"""The loop: what it saves, logs, starts from, refuses and closes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from quecc_jax.config import CheckpointConfig, DataConfig, MeshConfig, RopeScaling
from quecc_jax.config.io import load_config
from quecc_jax.data.bad_rows import DROPPED, LeftOut, Read, Tally
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.flops import train_flops
from quecc_jax.train.checkpoint import save_params
from quecc_jax.train.initial import initial_state
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.logs.terminal import describe
from quecc_jax.train.loop import train, unknown_words
from tests.tiny import random_batch
from tests.train.runs import Batches


def replaced(config, part, **changes):
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})


def quiet(config, trainer, batches=None, records=None):
    seen = [] if records is None else records
    return train(config, trainer=trainer, iterator=batches or Batches(config), progress=seen.append)


def saved_steps(config):
    return sorted(int(p.name) for p in (Path(config.out) / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "every, keep, expected", [(0, 2, [20]), (8, 2, [16, 20]), (8, 9, [8, 16, 20]), (20, 1, [20])]
)
def test_saves_when_due_and_at_the_end(config, trainer, every, keep, expected):
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(every=every, keep=keep))
    batches = Batches(config)
    summary = quiet(config, trainer, batches)
    assert saved_steps(config) == expected
    assert summary["step"] == 20 and batches.taken == 20 and batches.closed
    assert load_config(Path(config.out) / "config.json") == config


class Faulty(Batches):
    """Every batch n cuts rows 2n and 2n + 1 and leaves out row n, and again row 0."""

    def __init__(self, config):
        super().__init__(config)
        self.tally = Tally(dataclasses.replace(config.data, bad_rows="skip", max_bad_share=1.0), 100)

    def __next__(self):
        batch, n = super().__next__(), self.taken
        left_out = LeftOut(0, DROPPED, "file, row 1"), LeftOut(n, "turns", f"file, row {n + 1}")
        self.tally.add(Read(8, (2 * n, 2 * n + 1), (2 * n,), left_out))
        return batch


def test_rows_left_out_or_cut_are_counted_once_in_records_and_report(config, trainer):
    records: list[dict] = []
    begun = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=10))
    quiet(begun, trainer, Faulty(begun), records)
    assert [(r["truncated"], r["dropped"]) for r in records] == [(2 * n, n + 1) for n in range(1, 11)]
    assert records[-1]["left out: turns"] == 10 and records[-1]["left out: dropped"] == 1
    assert "11 rows left out (10 turns, 1 dropped)" in describe(records[-1])
    # Two of the rows met before the restart come again after it.
    again = Faulty(config)
    again.set_state = lambda state: setattr(again, "taken", 8)  # type: ignore[method-assign]
    summary = quiet(config, trainer, again)
    assert (summary["truncated"], summary["dropped"]) == (36, 19)
    report = json.loads(Path(config.out, "data_report.json").read_text())
    assert report["left_out"] == {"turns": 18, "dropped": 1} and report["rows"] == 100
    assert [one["id"] for one in report["left_out_rows"]] == list(range(19))
    assert report["truncated"] == 36 and report["truncated_rows"] == list(range(2, 38))


def test_a_run_that_its_rows_end_reports_them(config, trainer):
    batches = Faulty(config)
    batches.tally.data = dataclasses.replace(batches.tally.data, max_bad_share=0.05)
    with pytest.raises(UserError, match=r"^6 of the 48 rows read .* \(6 dropped, 6 turns\).*row 7"):
        quiet(config, trainer, batches)
    report = json.loads(Path(config.out, "data_report.json").read_text())
    assert report["left_out"] == {"turns": 6, "dropped": 1}


def test_logs_the_mean_loss_over_label_tokens_and_the_rates(config, trainer):
    every_step: list[dict] = []
    every_six: list[dict] = []
    quiet(config, trainer, records=every_step)
    sixes = dataclasses.replace(replaced(config, "train", log_every=6), out=config.out + "6")
    summary = quiet(sixes, trainer, records=every_six)
    assert [r["step"] for r in every_six] == [6, 12, 18, 20]
    assert read_records(sixes.out) == every_six
    counts = [float(np.sum(random_batch(config, n).labels[:, 1:] >= 0)) for n in range(1, 21)]
    losses = [r["loss"] for r in every_step]
    mean = np.average(losses[6:12], weights=counts[6:12])
    np.testing.assert_allclose(every_six[1]["loss"], mean, rtol=1e-12)
    assert every_six[1]["grad_norm"] == every_step[11]["grad_norm"]
    assert summary["label_tokens"] == sum(counts)
    assert summary["tokens"] == sum(int(np.sum(random_batch(config, n).segments > 0)) for n in range(1, 21))
    for record in every_six:
        assert np.isclose(record["flops_per_s"], record["steps_per_s"] * train_flops(config))
    assert every_six[-1]["seconds_left"] == 0
    assert list((Path(sixes.out) / "tensorboard").glob("events*"))


def test_device_results_are_fetched_once_per_log_line(config, trainer, monkeypatch):
    fetched, real = [], jax.device_get

    def count(x):
        fetched.append(len(x))
        return real(x)

    monkeypatch.setattr(jax, "device_get", count)
    quiet(replaced(config, "train", log_every=7), trainer)
    assert fetched == [7, 7, 6]


def spoiled(*steps):
    """Batches whose images are not numbers at these steps."""
    return lambda n, batch: batch._replace(pixels=np.float32(batch.pixels * np.nan)) if n in steps else batch


def test_stops_when_too_many_steps_in_a_row_are_not_finite(config, trainer):
    config = replaced(config, "train", max_bad_steps=3, log_every=5)
    batches = Batches(config, spoiled(6, 7, 8, 9, 10))
    with pytest.raises(UserError, match=r"step 9 after 4 steps in a row .* \(loss nan, .*max_bad_steps"):
        quiet(config, trainer, batches)
    assert batches.closed
    assert saved_steps(config) == [4, 8]


def unlabelled(*steps):
    """Batches without any label at these steps."""
    return lambda n, batch: batch._replace(labels=np.full_like(batch.labels, -100)) if n in steps else batch


def test_steps_without_labels_are_skipped_and_counted(config, trainer):
    every = replaced(config, "train", max_bad_steps=3, log_every=5)
    summary = quiet(every, trainer, Batches(every, unlabelled(6, 7, 8)))
    assert summary["skipped"] == 3 and np.isfinite(summary["loss"])
    other = dataclasses.replace(every, out=f"{every.out}-2")
    with pytest.raises(UserError, match=r"step 9, the last of 4 in a row without a loss: .* no label at all"):
        quiet(other, trainer, Batches(other, unlabelled(6, 7, 8, 9, 10)))


def test_skipped_steps_are_counted_and_left_out_of_the_loss(config, trainer):
    config = replaced(config, "train", max_bad_steps=4, log_every=4)
    records: list[dict] = []
    summary = quiet(config, trainer, Batches(config, spoiled(5, 6, 7, 9, 10, 11, 13, 14, 15, 16)), records)
    assert summary["skipped"] == 10
    assert [r["skipped"] for r in records] == [0, 3, 6, 10, 10]
    assert [np.isfinite(r["loss"]) for r in records] == [True, True, True, False, True]
    lines = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
    assert lines[3]["loss"] is None and lines[3]["grad_norm"] is None


def test_a_bad_run_goes_on_counting_across_a_resume(config, trainer):
    config = replaced(config, "train", max_bad_steps=3, log_every=1)

    class Stops(Exception):
        pass

    def stop(record):
        if record["step"] == 13:
            raise Stops

    bad = spoiled(11, 12, 13, 14, 15)
    with pytest.raises(Stops):
        train(config, trainer=trainer, iterator=Batches(config, bad), progress=stop)
    assert saved_steps(config)[-1] == 12
    with pytest.raises(UserError, match="step 14 after 4 steps in a row"):
        quiet(config, trainer, Batches(config, bad))


def test_a_finished_run_does_nothing_and_never_starts_over(config, trainer):
    first = quiet(config, trainer)
    batches = Batches(config)
    again = quiet(config, trainer, batches)
    assert again["step"] == 20 and again["tokens"] == 0 and batches.closed
    assert len(read_records(config.out)) == 20
    never = replaced(config, "checkpoint", resume="never")
    third = quiet(never, trainer)
    assert third["loss"] == first["loss"]
    assert [r["step"] for r in read_records(config.out)] == list(range(1, 21))


def constant(tree, value: float):
    return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), tree)


def test_init_from_takes_what_both_runs_have(config, trainer, tmp_path, capsys):
    """As when stage 1 starts from a decoder trained on text alone."""
    text = dataclasses.replace(config, out=str(tmp_path / "text"))
    decoder = constant(trainer.abstract_state.trainable["decoder"], 0.25)
    save_params(text, {"decoder": decoder, "other": {"x": np.ones(3)}})
    fresh = jax.device_get(initial_state(config, trainer))
    state = initial_state(dataclasses.replace(config, init_from=text.out), trainer)
    assert "started at random: compressor, projector, vision" in capsys.readouterr().err
    expected = fresh._replace(trainable={**fresh.trainable, "decoder": decoder})
    assert jax.tree.structure(state) == jax.tree.structure(expected)  # type: ignore[operator]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(trainer.abstract_state), strict=True):
        assert a.sharding == b.sharding


def test_init_from_is_strict(config, trainer, tmp_path):
    nowhere = dataclasses.replace(config, init_from=str(tmp_path))
    with pytest.raises(UserError, match="is this the directory of a run"):
        initial_state(nowhere, trainer)
    (tmp_path / "cells/M-v1-s0/stage2").mkdir(parents=True)
    (tmp_path / "cells/M-v1-s0/stage2/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"below a grid of runs; name one, such as .*/cells/M-v1-s0/stage2$"):
        initial_state(nowhere, trainer)
    other = dataclasses.replace(config, out=str(tmp_path / "other"))
    from_other = dataclasses.replace(config, init_from=other.out)
    save_params(other, {"other": {"x": np.ones(3)}})
    with pytest.raises(UserError, match="has none of this run's parameters"):
        initial_state(from_other, trainer)
    decoder = dict(constant(trainer.abstract_state.trainable["decoder"], 0.25))
    decoder["norm"] = {"scale": np.ones(7, np.float32)}
    save_params(other, {"decoder": decoder})
    with pytest.raises(UserError, match=r"decoder/norm/scale has shape \(7,\) .*, expected shape \(32,\)"):
        initial_state(from_other, trainer)


@pytest.mark.parametrize(
    "setting, part, change",
    [
        ("init_from", "decoder", {"rope_theta": 1e6}),
        ("init_from", "decoder", {"norm_eps": 1e-6}),
        ("init_from", "decoder", {"rope_scaling": RopeScaling("linear", 4.0)}),
        ("init_from", "decoder", {"window": 9}),
        ("init_from", "vision", {"activation": "gelu"}),
        ("tower_from", "vision", {"activation": "gelu"}),
        ("tower_from", "vision", {"norm_eps": 1e-6}),
    ],
    ids=str,
)
def test_what_shapes_do_not_tell_of_the_run_before_must_agree(
    config, trainer, tmp_path, setting, part, change
):
    state = trainer.abstract_state
    params = {part: constant((state.trainable | state.frozen)[part], 0.25)}
    changed = dataclasses.replace(getattr(config.model, part), **change)
    model = dataclasses.replace(config.model, **{part: changed})
    other = dataclasses.replace(config, out=str(tmp_path / "other"), model=model)
    save_params(other, params)
    message = rf"{setting} .*other has model\.{part}\.{next(iter(change))} .* this run"
    with pytest.raises(UserError, match=message):
        initial_state(dataclasses.replace(config, **{setting: other.out}), trainer)
    same = dataclasses.replace(config, out=str(tmp_path / "same"))
    save_params(same, params)
    initial_state(dataclasses.replace(config, **{setting: same.out}), trainer)


def test_data_that_ends_and_settings_that_do_not_fit_are_sentences(config, trainer):
    class Short(Batches):
        def __next__(self):
            if self.taken == 3:
                raise StopIteration
            return super().__next__()

    short = Short(config)
    with pytest.raises(UserError, match="the data ended before step 4"):
        quiet(config, trainer, short)
    assert short.closed
    batches = Batches(config)
    with pytest.raises(UserError, match="needs 3 devices"):
        quiet(dataclasses.replace(config, mesh=MeshConfig(3, 1, 1)), None, batches)
    assert batches.closed


def test_words_to_learn_that_the_tokenizer_has_not_are_told(config, tmp_path):
    train_word_tokenizer(["red blue"], tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    batch, data = random_batch(config), DataConfig(tokenizer=str(tmp_path))
    ids = [*tokenizer.encode("red giraffe blue"), IGNORE, IGNORE]
    told = unknown_words(data, batch._replace(labels=np.array([ids])))
    assert told.startswith(
        f"WARNING: 1 of the 3 tokens to learn in the first batch are words that data.tokenizer {tmp_path}"
    )
    assert not unknown_words(data, batch._replace(labels=np.array([tokenizer.encode("red blue")])))
