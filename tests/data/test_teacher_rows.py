"""The rows that a teacher reads, made of a batch's, against those that the data pipeline makes with all patches."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.config.compressors import named
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.models.teacher import full_rows, uncompressed
from quecc_jax.train.loss import shifted_targets
from tests.data.three_images import three_image_run, write_talks

ROWS = 3
FIELDS = ("tokens", "labels", "positions")
BATCHES = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer, model) -> RunConfig:
    folder = write_talks(tmp_path_factory.mktemp("talks"))
    return three_image_run(folder, tokenizer, model, depth=1, max_length=48)


def conversations(batch: Batch) -> dict[int, dict[str, np.ndarray]]:
    """The fields of each conversation of a batch, by its identity, slots counted from its first image."""
    found: dict[int, dict[str, np.ndarray]] = {}
    assert batch.ids is not None
    for index, ids in enumerate(np.reshape(batch.ids, (len(batch.tokens), -1))):
        for segment, identity in enumerate(ids[ids >= 0], start=1):
            here = np.asarray(batch.segments[index]) == segment
            slots = np.asarray(batch.slots[index])[here]
            first = slots[slots >= 0].min(initial=np.iinfo(np.int32).max)
            found[int(identity)] = {
                name: np.asarray(getattr(batch, name)[index])[here] for name in FIELDS
            } | {"slots": np.where(slots >= 0, slots - first, -1)}
    return found


def read(data: DataConfig, model: ModelConfig) -> list[Batch]:
    with make_iterator(data, model, ROWS, seed=1) as batches:
        return [next(batches) for _ in range(BATCHES)]


@pytest.mark.parametrize(
    "compressor, keep_cls",
    [
        (named("quecc", kernel=2, stride=2, heads=2), False),
        (named("quecc", kernel=4, stride=4, heads=2), True),
        (named("quecc", elastic=(1, 4), heads=2), False),
        (named("mqt", elastic=(2, 3, 5), heads=2), False),
    ],
    ids=["V=4", "V=1 and CLS", "elastic", "nested"],
)
@pytest.mark.parametrize("batching, labels", [("pad", "all"), ("grouped", "answers"), ("packed", "all")])
def test_rows_are_those_of_all_patches_and_labels_stay_one_to_one(
    config, batching, labels, compressor, keep_cls
):
    model = dataclasses.replace(
        config.model,
        compressor=compressor,
        vision=dataclasses.replace(config.model.vision, keep_cls=keep_cls),
    )
    changes: dict[str, Any] = {
        "batching": batching,
        "labels": labels,
        "lookahead_rows": 6,
        "packed_images": 4,
    }
    data = dataclasses.replace(config.data, **changes)
    whole = dataclasses.replace(data, batching="pad", max_length=200)
    wanted: dict[int, dict[str, np.ndarray]] = {}
    for batch in read(whole, uncompressed(model)):
        wanted |= conversations(batch)
    made, images, shared = set(), set(), 0
    expand = jax.jit(lambda batch: full_rows(batch, model, data))
    for batch in read(data, model):
        full, places = jax.device_get(expand(batch._replace(ids=None)))
        for identity, fields in conversations(full._replace(ids=batch.ids)).items():
            for name, value in fields.items():
                np.testing.assert_array_equal(value, wanted[identity][name], err_msg=name)
            made.add(identity)
        # Across the conversations of a row, its images count on.
        patches = uncompressed(model).visual_tokens
        for row, slots in zip(full.query_ends, full.slots, strict=True):
            count = np.count_nonzero(row >= 0)
            assert slots[slots >= 0].tolist() == list(range(count * patches))
            images.add(count)
        real = batch.segments > 0
        rows = np.arange(ROWS)[:, None]
        for field in ("segments", "tokens", "labels"):
            np.testing.assert_array_equal(
                getattr(full, field)[rows, places][real], getattr(batch, field)[real]
            )
        targets, theirs = (np.asarray(shifted_targets(b.labels)) for b in (batch, full))
        np.testing.assert_array_equal(theirs[rows, places][real], targets[real])
        assert np.count_nonzero(full.labels >= 0) == np.count_nonzero(batch.labels >= 0)
        shared += int(np.count_nonzero(np.max(batch.segments, axis=1) > 1))
    assert made == wanted.keys() and len(made) == 6 and len(images) > 2
    assert (shared > 0) == (batching == "packed")
