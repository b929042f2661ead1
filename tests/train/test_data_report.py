"""What a run's report of rows left out survives."""

import pytest

from quecc_jax.config import DataConfig
from quecc_jax.data.bad_rows import LeftOut, Tally
from quecc_jax.train.data_report import FILE, DataReport


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"left_out_rows": [{"id": 1}], "truncated_rows": []}', "[" * 9999]
)
def test_a_damaged_report_is_named_and_training_goes_on(tmp_path, capsys, damage):
    (tmp_path / FILE).write_text(damage)
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert report.record()["dropped"] == 0
    assert f"{FILE} is damaged: rows left out before step 3 are counted no more" in capsys.readouterr().err


def test_a_report_goes_on_where_it_was(tmp_path, capsys):
    tally = Tally(DataConfig(), 10)
    tally.left_out[7] = LeftOut(7, "dropped", "rows.json, row 7: too long")
    with DataReport(tmp_path, 0, tally):
        pass
    with DataReport(tmp_path, 3, Tally(DataConfig(), 10)) as report:
        assert report.record()["dropped"] == 1
    assert not capsys.readouterr().err
