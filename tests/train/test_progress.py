"""Log lines: exact on disk, cut back on resume, readable on a screen."""

import json

import pytest

from quecc_jax.errors import UserError
from quecc_jax.train.logs.records import Records, read_records
from quecc_jax.train.logs.terminal import Terminal, describe


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
    with Records(tmp_path, 0, 2) as records:
        for step in (2, 4, 6):
            records.write(record(step, loss=float(step)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert [r["step"] for r in read_records(tmp_path)] == [2, 4, 6]
    with Records(tmp_path, 5, 2) as records:
        records.write(record(6, loss=9.0))
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path)] == [(2, 2.0), (4, 4.0), (6, 9.0)]
    with Records(tmp_path, 0, 2):
        pass
    assert read_records(tmp_path) == []


def test_values_that_are_not_numbers_stay_valid_json(tmp_path):
    with Records(tmp_path, 0, 2) as records:
        records.write(record(1, loss=float("nan")))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None


def line(step):
    return json.dumps({"step": step, "loss": 1.5, "grad_norm": None}) + "\n"


DAMAGED = [
    '{"step": 2, "loss"\n',
    "[2]\n",
    '{"loss": 1.5}\n',
    '{"step": "2"}\n',
    '{"step": 2, "loss": "x"}\n',
    "[" * 9999 + "\n",
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_named_and_training_goes_on_without_it(tmp_path, capsys, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + damaged + line(3) + line(4))
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is damaged"):
        read_records(tmp_path)
    with Records(tmp_path, 3, 2):
        pass
    assert "metrics.jsonl: lines 2 are damaged and left out" in capsys.readouterr().err
    assert [record["step"] for record in read_records(tmp_path)] == [1, 3]


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line(1).encode() + line(2).encode().replace(b"loss", b"lo\xf3s"))
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_records(tmp_path)


def test_a_lost_log_is_said(tmp_path, capsys):
    with Records(tmp_path, 3, 2):
        pass
    assert "metrics.jsonl is lost: the log begins behind step 3" in capsys.readouterr().err
    with Records(tmp_path / "new", 0, 2):
        pass
    assert not capsys.readouterr().err


def test_a_line_that_was_changed_is_damaged(tmp_path):
    with Records(tmp_path, 0, 1) as records:
        records.write(record(1))
        records.write(record(2, loss=float("nan")))
    path = tmp_path / "metrics.jsonl"
    plain = [{**record(1)}, {**record(2), "loss": None}]
    assert read_records(tmp_path) == plain
    text = path.read_text()
    for changed in (text.replace("12345.0", "12346.0", 1), text.replace("crc32", "crc33", 1)):
        path.write_text(changed)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is damaged"):
            read_records(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "1e999", "-Infinity", "9" * 5000, "9" * 30, "true"])
def test_numbers_that_are_none_are_a_damaged_line(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {value}}}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_records(tmp_path)


def test_a_log_whose_end_is_lost_is_said(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step) for step in (2, 4, 6)))
    with Records(tmp_path, 7, 2):
        pass
    assert not capsys.readouterr().err
    path.write_text(line(2) + line(4) + line(6)[:-5])
    with Records(tmp_path, 7, 2):
        pass
    assert f"WARNING: {path} says nothing of steps 5 to 7" in capsys.readouterr().err


CHANGES = {
    "lost": ((0, 1, 3, 4), [1, 2, 4, 5], "metrics.jsonl says nothing of steps 3 to 3"),
    "lost first": ((1, 2, 3, 4), [2, 3, 4, 5], "metrics.jsonl says nothing of steps 1 to 1"),
    "twice": ((0, 1, 1, 2, 3, 4), [1, 2, 3, 4, 5], "lines 3 stand twice or too late and are left out"),
    "all twice": ((0, 1, 2, 3, 4) * 2, [1, 2, 3, 4, 5], "lines 6, 7, 8, 9, 10 stand twice or too late"),
    "in another order": ((0, 2, 1, 3, 4), [1, 3, 4, 5], "lines 3 stand twice or too late and are left out"),
}


@pytest.mark.parametrize("order, kept, said", CHANGES.values(), ids=CHANGES)
def test_lines_that_are_lost_or_stand_twice_are_said(tmp_path, capsys, order, kept, said):
    with Records(tmp_path, 0, 1) as records:
        for step in range(1, 6):
            records.write(record(step))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[k] for k in order))
    capsys.readouterr()
    if "twice" in said:
        with pytest.raises(UserError, match=r"line \d is of step \d, behind step \d"):
            read_records(tmp_path)
    else:
        assert [r["step"] for r in read_records(tmp_path)] == [k + 1 for k in order]
        assert said in capsys.readouterr().err
    with Records(tmp_path, 5, 1) as records:
        records.write(record(6))
    assert said in capsys.readouterr().err
    assert [r["step"] for r in read_records(tmp_path)] == [*kept, 6]
