"""What a run's report of rows left out survives."""

import pytest

from quecc_jax.config import DataConfig
from quecc_jax.data.bad_rows import LeftOut, Tally
from quecc_jax.train.logs.data_report import FILE, DataReport


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"left_out_rows": [{"id": 1}], "truncated_rows": []}', "[" * 9999]
)
def test_a_damaged_report_is_named_and_training_goes_on(tmp_path, capsys, damage):
    (tmp_path / FILE).write_text(damage)
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert report.record()["dropped"] == 0
    assert f"{FILE} is damaged: rows left out before step 3 are counted no more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [('"id": 7', '"id": 8'), ("too long", "too lung"), ('"rows": 10', '"rows": -1'), ("crc32", "crc33")],
)
def test_a_report_that_was_changed_is_named(tmp_path, capsys, change):
    tally = Tally(DataConfig(), 10)
    tally.left_out[7] = LeftOut(7, "dropped", "rows.json, row 7: too long")
    with DataReport(tmp_path, 0, tally):
        pass
    text = (tmp_path / FILE).read_text()
    assert change[0] in text
    (tmp_path / FILE).write_text(text.replace(*change))
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert report.record()["dropped"] == 0
    assert f"{FILE} " in capsys.readouterr().err


def test_a_report_that_is_lost_is_said_and_one_of_an_earlier_version_is_taken(tmp_path, capsys):
    (tmp_path / FILE).write_text(
        '{"rows": 10, "left_out": {"dropped": 1}, "truncated": 1, "left_out_rows": [{"id": 7, "reason": "dropped", '
        '"message": "m"}], "truncated_rows": [4]}'
    )
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert (report.record()["dropped"], report.record()["truncated"]) == (1, 1)
    assert not capsys.readouterr().err
    (tmp_path / FILE).unlink()
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)):
        pass
    assert f"{FILE} is lost: rows left out before step 3 are counted no more" in capsys.readouterr().err


def test_a_report_goes_on_where_it_was(tmp_path, capsys):
    tally = Tally(DataConfig(), 10)
    tally.left_out[7] = LeftOut(7, "dropped", "rows.json, row 7: too long")
    with DataReport(tmp_path, 0, tally):
        pass
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert report.record()["dropped"] == 1
    assert not capsys.readouterr().err
