"""Measured efficiencies: what lies between and outside of the measured points, and files that are none."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from quecc_jax.records import write_record
from scaling.cost import PARTS
from scaling.efficiency.measured import Chip, Measured, Model
from scaling.efficiency.record import read_efficiency
from tests.scaling.efficiency_files import H100, efficiency_record

MODEL = Model("smollm2-135m", "quecc", 1, "float32")


@st.composite
def measured(draw) -> Measured:
    """One part at random batches and lengths."""
    axis = st.lists(st.integers(1, 5000), min_size=1, max_size=4, unique=True).map(sorted)
    batches, lengths = draw(axis), draw(axis)
    share = st.floats(0.001, 1.5)
    shares = tuple(tuple(draw(share) for _ in lengths) for _ in batches)
    return Measured("file.json", Chip(**H100), MODEL, tuple(batches), tuple(lengths), {"decode": shares})


@given(measured())
def test_measured_points_are_met(found):
    for i, batch in enumerate(found.batches):
        np.testing.assert_allclose(
            found.at("decode", batch, np.array(found.lengths)), found.shares["decode"][i]
        )
        np.testing.assert_allclose(found.curve("decode", batch), found.shares["decode"][i])
        assert found.beyond(batch, found.lengths) == []


@given(measured(), st.integers(1, 6000), st.floats(1, 6000))
def test_other_points_lie_between_the_measured_around_them(found, batch, length):
    """Between the corners of their cell; outside, between those of the nearest cell."""

    def around(axis, value):
        inside = np.clip(value, axis[0], axis[-1])
        return np.searchsorted(axis, inside, "right") - 1, np.searchsorted(axis, inside)

    shares = np.array(found.shares["decode"])
    corners = shares[np.ix_(around(found.batches, batch), around(found.lengths, length))]
    share = found.at("decode", batch, length)
    assert corners.min() * (1 - 1e-9) <= share <= corners.max() * (1 + 1e-9)
    outside = {one.what: one.nearest for one in found.beyond(batch, [length])}
    assert ("batch" in outside) == (not found.batches[0] <= batch <= found.batches[-1])
    assert ("length" in outside) == (not found.lengths[0] <= length <= found.lengths[-1])
    nearest = outside.get("batch", batch), outside.get("length", length)
    assert share == pytest.approx(found.at("decode", *nearest))


@given(measured(), st.lists(st.floats(1, 6000), min_size=2, max_size=9))
def test_between_two_measured_lengths_it_only_rises_or_only_falls(found, lengths):
    batch = found.batches[-1]
    for low, high in zip(found.lengths, found.lengths[1:], strict=False):
        inside = np.sort([low, *(x for x in lengths if low < x < high), high])
        steps = np.diff(np.log(found.at("decode", batch, inside)))
        assert (steps >= -1e-9).all() or (steps <= 1e-9).all()


def test_a_power_of_batch_and_length_is_met_everywhere():
    shares = tuple(tuple(0.3 * b**0.2 * length**-0.1 for length in (10, 400)) for b in (1, 16))
    found = Measured("f", Chip(**H100), MODEL, (1, 16), (10, 400), {"prefill": shares})
    lengths = np.array([10, 55.5, 399])
    np.testing.assert_allclose(found.at("prefill", 5, lengths), 0.3 * 5**0.2 * lengths**-0.1)


def test_what_lies_outside_is_told_side_by_side():
    share = ((0.5, 0.5), (0.5, 0.5))
    found = Measured("f", Chip(**H100), MODEL, (2, 16), (49, 241), {"prefill": share})
    below, above, batch = found.beyond(32, [630, 9, 100, 9, 626])[1:] + found.beyond(32, [])
    assert (below.values, below.nearest, above.values, above.nearest) == ((9,), 49, (626, 630), 241)
    assert (batch.what, batch.values, batch.nearest, batch.least, batch.most) == ("batch", (32,), 16, 2, 16)


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "stages.json"
    written = efficiency_record(
        lambda part, batch, length: 0.1 * (1 + PARTS.index(part)) + batch / length / 10
    )
    write_record(path, written)
    found = read_efficiency(path)
    assert (found.batches, found.lengths, set(found.shares)) == ((1, 4, 16), (49, 241), set(PARTS))
    assert found.chip == Chip(**H100) and found.model == MODEL
    for row in written["rows"]:
        share = found.at(row["part"], row["batch"], row["length"])
        assert share == pytest.approx(row["efficiency"], rel=1e-12)


def _rows(change):
    def changed(record):
        change(record["rows"])

    return changed


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda record: record.update(format="quecc_jax serving efficiency 2"), "format"),
        (lambda record: record.pop("chip"), "chip"),
        (lambda record: record.update(more=1), "more"),
        (lambda record: record["chip"].update(flops=0), "flops"),
        (lambda record: record["chip"].update(flops=10**400), "damaged"),
        (lambda record: record["chip"].update(name="two\nlines"), "name"),
        (lambda record: record["chip"].update(name=r"$\frac$"), "name"),
        (lambda record: record.update(rows=[]), "rows"),
        (_rows(lambda rows: rows.append(rows[0])), "has tower at batch 1 and length 49 2 times"),
        (
            _rows(lambda rows: rows.pop()),
            "lacks decode at batch 16 and length 241: each part needs every batch",
        ),
        (_rows(lambda rows: rows[0].update(efficiency=0)), "efficiency"),
        (_rows(lambda rows: rows[0].update(efficiency=2.5)), "efficiency"),
        (_rows(lambda rows: rows[0].update(efficiency="0.5")), "efficiency"),
        (_rows(lambda rows: rows[0].update(efficiency=0.6)), "not its ideal_seconds over its seconds"),
        (_rows(lambda rows: rows[0].update(seconds=1e400)), "seconds"),
        (_rows(lambda rows: rows[0].update(batch=0)), "batch"),
        (_rows(lambda rows: rows[0].update(batch=1.5)), "batch"),
        (_rows(lambda rows: rows[0].update(part="encode")), "part"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path, change, said):
    path, record = tmp_path / "stages.json", efficiency_record(lambda *_: 0.5)
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=said) as refused:
        read_efficiency(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_changed_number_does_not_have_its_checksum(tmp_path):
    path = tmp_path / "stages.json"
    write_record(path, efficiency_record(lambda *_: 0.5))
    path.write_text(path.read_text().replace("3350000000000.0", "3360000000000.0"))
    with pytest.raises(UserError, match="checksum"):
        read_efficiency(path)


def test_the_file_that_was_measured_is_read_and_within_its_peaks():
    """docs/serving_stages.json is of a real engine; a share above 1 would be of a peak that was measured too low."""
    found = read_efficiency(Path(__file__).parents[2] / "docs" / "serving_stages.json")
    assert set(found.shares) == set(PARTS) and found.batches == (1, 4, 16) and found.lengths == (49, 241, 625)
    assert all(0 < share < 1 for table in found.shares.values() for row in table for share in row)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is no file and no number"):
        read_efficiency(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_efficiency(tmp_path)
