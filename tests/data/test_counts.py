"""Steps of epochs, and packed rows of conversations, counted from plans: against batches that are drawn and counted."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.config.validation import validate
from quecc_jax.data.pipeline import plan_batches
from quecc_jax.data.plans.counts import counted, rows_of_step
from quecc_jax.data.plans.packing import Grouped, Packed, Padded
from quecc_jax.data.sampler import Sampler
from quecc_jax.data.sources.open import open_sources
from quecc_jax.errors import UserError
from tests import tiny
from tests.data.test_packing_plans import ONE_BUCKET, lengths_of

MOSAIC, READING = ("mosaic", "train"), ("reading", "train")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 3), st.integers(1, 40))
def test_steps_of_whole_epochs_hold_each_row_that_often(rows, batch_size, epochs, window):
    order, measures = Sampler([rows], None, 3), lengths_of(rows)
    plans = (
        Padded(order, ONE_BUCKET, batch_size, 512, 2),
        Grouped(order, measures, ONE_BUCKET, batch_size, window, [512], 2),
        Packed(order, measures, ONE_BUCKET, batch_size, window, 512, 3),
    )
    for plan in plans:
        steps = plan.steps(Fraction(epochs))

        def least(count, plan=plan):
            """How often the rarest row stands in so many batches."""
            ids = np.concatenate([plan[k].ids.reshape(-1) for k in range(count)] or [np.zeros(0, int)])
            return np.bincount(ids[ids >= 0], minlength=rows).min()

        assert least(steps) >= epochs and least(steps - 1) < epochs


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.fractions(0, 3), st.fractions(0, 3), st.integers(1, 7))
def test_parts_of_epochs_lie_between_whole_ones(rows, one, other, batch_size):
    packed = Packed(Sampler([rows], None, 3), lengths_of(rows), ONE_BUCKET, batch_size, 50, 512, 3)
    few, more = sorted((one, other))
    assert packed.steps(few) <= packed.steps(more)
    assert packed.steps(Fraction(int(few))) <= packed.steps(few) <= packed.steps(Fraction(int(few) + 1))


def test_a_tenth_is_a_tenth(pools, settings, model):
    """0.1 x 30 is above 3 in binary fractions."""
    rows = len(pools[MOSAIC].rows)
    shares = [k / 100 for k in range(1, 100)]
    (epochs, *_) = (e for e in shares if math.ceil(e * rows) != math.ceil(Fraction(str(e)) * rows))
    train = dataclasses.replace(tiny.RUN.train, epochs=epochs, batch_size=1)
    config = dataclasses.replace(tiny.RUN, model=model, data=settings(MOSAIC), train=train)
    assert counted(config, 1, lambda _: None).train.steps == round(epochs * rows)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 400), st.sampled_from([1, 2, 4, 8]), st.integers(1, 4), st.integers(1, 3))
def test_rows_of_a_step_are_the_nearest_multiple_and_never_far_more(conversations, parts, slices, pooled):
    order, measures = Sampler([500], None, 1), lengths_of(500)
    packed = Packed(order, measures, ONE_BUCKET, pooled, 100, 512, 3 * pooled, pooled)
    multiple, microbatches = parts * slices * pooled, slices
    wanted = conversations * packed.epoch() / np.count_nonzero(packed.of_rows.tokens)
    try:
        rows = rows_of_step(packed, conversations, parts, microbatches)
    except UserError as error:
        assert multiple > wanted * 4 / 3
        least = int(str(error).split("at least ")[1].split()[0])
        assert rows_of_step(packed, least, parts, microbatches) == multiple
        with pytest.raises(UserError, match="packed rows"):
            rows_of_step(packed, least - 1, parts, microbatches)
        return
    assert rows % multiple == 0 and rows > 0
    assert abs(rows - wanted) <= multiple / 2 + 1e-9 or rows == multiple


def packed_run(settings, **train):
    data = settings(MOSAIC, READING, batching="packed", images_per_row=1, packed_images=3, lookahead_rows=40)
    return dataclasses.replace(tiny.RUN, data=data, train=dataclasses.replace(tiny.RUN.train, **train))


@pytest.mark.parametrize("pooled", [1, 2])
def test_conversations_of_packed_rows(settings, model, pooled):
    config = dataclasses.replace(packed_run(settings, epochs=2.0, conversations=24), model=model)
    room = dataclasses.replace(config.data, pooled_rows=pooled, packed_images=3 * pooled)
    config = dataclasses.replace(config, data=room)
    said = list[str]()
    found = counted(config, 2, said.append)
    rows = found.train.batch_size
    sources = open_sources(config.data, model)
    plans, _ = plan_batches(sources, config.data, model, rows, 0)
    held = [np.count_nonzero(plans[k].ids >= 0) for k in range(found.train.steps)]
    total = 2 * sum(map(len, sources))
    # The last batch goes on into the third epoch.
    assert total <= sum(held) < total + max(held) and rows % (2 * pooled) == 0
    assert np.mean(held) == pytest.approx(24, abs=2 * pooled * 3)
    assert (
        f"{rows} packed rows a step" in said[0] and f"{found.train.steps} steps of {rows} packed" in said[1]
    )
    mean = float(said[0].partition("a step, ")[2].split()[0])
    assert mean == pytest.approx(np.mean(held), rel=0.1)
    # Counted again, it is the same.
    assert counted(found, 2, said.append) == found


def test_what_is_known_is_not_counted(settings):
    config = packed_run(settings, epochs=2.0, conversations=24)
    gone = dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=(SourceConfig(path="gone"),))
    )
    found = counted(gone, 4, lambda _: None, batch_size=6, steps=11)
    assert (found.train.batch_size, found.train.steps) == (6, 11)
    assert counted(tiny.RUN, 4, lambda _: None) == tiny.RUN
    with pytest.raises(UserError, match=r"tokenizer"):
        counted(gone, 4, lambda _: None, batch_size=6)


@pytest.mark.parametrize("batching", ["pad", "grouped"])
def test_a_row_is_a_conversation_where_nothing_is_packed(settings, model, pools, batching):
    config = dataclasses.replace(
        packed_run(settings, epochs=1.0, conversations=7, batch_size=64), model=model
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batching=batching))
    rows = len(pools[MOSAIC].rows) + len(pools[READING].rows)
    found = counted(config, 1, lambda _: None)
    assert (found.train.batch_size, found.train.steps) == (7, -(-rows // 7))


def test_weights_have_no_epochs():
    sources = (SourceConfig(path="a", weight=1.0), SourceConfig(path="b", weight=2.0))
    config = dataclasses.replace(tiny.RUN, data=DataConfig(sources=sources, max_length=64))
    validate(config)
    with pytest.raises(UserError, match=r"train\.epochs 0\.5 needs sources that are joined"):
        validate(dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=0.5)))
