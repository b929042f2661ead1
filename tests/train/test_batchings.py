"""Runs on grouped and packed rows: they learn, resume within an epoch, and leave nothing behind."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from quecc_jax.flops import train_flops
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.loop import train
from tests.train.runs import trainer_on
from tests.train.test_hosts import hosts_of


def batched(config, batching, tmp_path, **more):
    data = dataclasses.replace(
        config.data,
        batching=batching,
        packed_images=4,
        max_length=48,
        lookahead_rows=40,
        num_length_buckets=2,
        images_per_row=1,
        cache=str(tmp_path / "cache"),
        **more,
    )
    return dataclasses.replace(config, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["grouped", "packed"])
def test_a_run_learns_and_resumes_within_an_epoch(config, tmp_path, batching):
    config = batched(config, batching, tmp_path)
    trainer = trainer_on(config)
    before = set(threading.enumerate())
    whole = train(config, trainer=trainer, progress=lambda _: None)
    losses = [record["loss"] for record in read_records(config.out)]
    assert losses[-1] < losses[0] - 0.5
    halfway = dataclasses.replace(
        config, out=str(tmp_path / "broken"), train=dataclasses.replace(config.train, steps=7)
    )
    train(halfway, trainer=trainer, progress=lambda _: None)
    rest = train(dataclasses.replace(config, out=halfway.out), trainer=trainer, progress=lambda _: None)
    assert [record["loss"] for record in read_records(halfway.out)] == losses
    assert rest["loss"] == whole["loss"]
    assert not [thread for thread in set(threading.enumerate()) - before if "grain" in thread.name]
    if batching == "packed":
        # Rows of nine tokens: three or more of them share a row of 48.
        assert whole["tokens"] > 20 * 8 * 27 and whole["flops_per_s"] == pytest.approx(
            whole["steps_per_s"] * train_flops(config)
        )


@pytest.mark.slow
def test_what_several_processes_leave_out_stands_in_one_report(config, tmp_path):
    config = batched(config, "packed", tmp_path, bad_rows="skip", max_bad_share=0.2)
    (source,) = config.data.sources
    rows = json.loads(Path(source.path).read_text())
    for number in (3, 11, 30):
        rows[number]["image"] = "gone.png"
    rows[40]["conversations"].pop()
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = dataclasses.replace(source, path=str(tmp_path / "rows.json"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=(source,)))
    with hosts_of(config, 2, tmp_path / "two") as hosts:
        assert hosts.statuses(400) == [0, 0], hosts.said()
    report = json.loads(Path(config.out, "data_report.json").read_text())
    assert report["left_out"] == {"picture missing": 3, "turns": 1} and report["rows"] == 50
    assert [one["id"] for one in report["left_out_rows"]] == [3, 11, 30, 40]
    for one in report["left_out_rows"]:
        assert f"rows.json, row {one['id'] + 1} (line 1)" in one["message"]
    assert read_records(config.out)[-1]["left out: picture missing"] == 3
