"""Shapes of a batch: `batch_of` as jaxtyping's import hook checks it, and what a spec says of it."""

import jax
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from quecc_jax.data.batch import MAP, Batch, batch_of, batch_spec
from tests.tiny import RUN, random_batch

CHECKED = jaxtyped(typechecker=beartype)(batch_of)


def arrays(**changed) -> dict:
    ints = dict.fromkeys(("codes", "positions", "segments"), np.zeros((2, 5), np.int32))
    asked = dict.fromkeys(("queries", "query_segments"), np.zeros((2, 3), np.int32))
    loss, ends = np.zeros((2, 5), bool), np.zeros((2, 1), np.int32)
    pixels = np.zeros((2, 1, 4, 4, 3), np.uint8)
    rest = {"pixels": pixels, "features": None, "query_features": None, "ids": np.zeros(2, np.int64)}
    return {**ints, **asked, "loss": loss, "query_ends": ends, **rest, "maps": None, **changed}


def test_a_batch_of_one_b_s_q_and_i_passes():
    assert isinstance(CHECKED(**arrays()), Batch)
    CHECKED(**arrays(pixels=None, features=np.zeros((2, 1, 9, 2, 8), np.float16)))
    CHECKED(**arrays(ids=np.zeros((2, 7), np.int64)))
    CHECKED(**arrays(maps=np.zeros((2, 1, MAP), np.int32)))


@pytest.mark.parametrize(
    "name, array",
    [
        ("codes", np.zeros((2, 5), np.int64)),
        ("positions", np.zeros((2, 6), np.int32)),
        ("loss", np.zeros((2, 5), np.int32)),
        ("queries", np.zeros((2, 4), np.int32)),
        ("query_ends", np.zeros((2, 2), np.int32)),
        ("pixels", np.zeros((2, 1, 4, 4, 3), np.float32)),
        ("maps", np.zeros((2, 2, MAP), np.int32)),
        ("maps", np.zeros((2, 1, MAP), np.int64)),
        ("ids", np.zeros(3, np.int64)),
    ],
)
def test_another_shape_or_dtype_is_refused(name, array):
    with pytest.raises(TypeError):
        CHECKED(**arrays(**{name: array}))


def test_fields_are_what_their_annotations_say():
    spec = batch_spec(RUN.model, RUN.data, 8, cached=True)
    for batch in (
        random_batch(RUN),
        jax.tree.map(jax.numpy.asarray, random_batch(RUN)._replace(ids=None)),
        spec,
    ):
        with jaxtyped("context"):
            for name, kind in Batch.__annotations__.items():
                value = getattr(batch, name)
                assert value is None or name == "ids" or isinstance(value, kind), (name, value)
