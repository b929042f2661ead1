"""Log lines: exact on disk, cut back on resume, readable on a screen."""

import json

import pytest

from quecc_jax.train.progress import Records, Terminal, describe, read_records


def record(step, loss=1.5):
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
        "skipped": 0,
        "steps_per_s": 2.0,
        "tokens_per_s": 12345.0,
        "flops_per_s": 3.2e12,
        "seconds": 5.0,
        "seconds_left": 3725.0,
    }


def test_a_line_says_loss_rates_and_time_left():
    line = describe(record(3))
    assert line == "loss 1.5000  2 steps/s  12.3 ktok/s  3.2 TFLOP/s  1:02:05 left"
    assert describe({**record(3), "skipped": 4}).endswith("4 skipped")


def test_without_a_terminal_each_record_is_a_line(capsys):
    with Terminal("name", 10) as show:
        show(record(5))
    out, err = capsys.readouterr()
    assert out == "" and err == f"name 5/10  {describe(record(5))}\n"


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Terminal("name", 10) as show:
        show(record(5))
    err = capsys.readouterr().err
    assert "name" in err and "5/10" in err and "1:02:05 left" in err


def test_resume_drops_later_lines_and_half_written_ones(tmp_path):
    with Records(tmp_path, 0) as records:
        for step in (2, 4, 6):
            records.write(record(step, loss=float(step)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert [r["step"] for r in read_records(tmp_path)] == [2, 4, 6]
    with Records(tmp_path, 5) as records:
        records.write(record(6, loss=9.0))
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path)] == [(2, 2.0), (4, 4.0), (6, 9.0)]
    with Records(tmp_path, 0):
        pass
    assert read_records(tmp_path) == []


def test_values_that_are_not_numbers_stay_valid_json(tmp_path):
    with Records(tmp_path, 0) as records:
        records.write(record(1, loss=float("nan")))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
