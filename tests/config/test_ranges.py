"""Every number among the settings has a range, which holds its default and which `validate` asks for."""

import dataclasses
import math
import typing

import pytest

from quecc_jax.config import RunConfig, SourceConfig, TrainConfig
from quecc_jax.config.compressors import config_class, names
from quecc_jax.config.ranges import RANGES, check_ranges, numbers
from quecc_jax.errors import UserError


def number_fields(kind: type, where: str = "") -> set[str]:
    """Names of the settings that are numbers, lists of them, or numbers or None, by their types alone."""
    hints, found = typing.get_type_hints(kind), set[str]()
    for field in dataclasses.fields(kind):
        name, hint = f"{where}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found |= number_fields(typing.cast(type, hint), f"{name}.")
        elif any(f"{kind}" in str(hint).replace("Literal", "") for kind in ("int", "float")):
            found.add(name)
    # Words such as "float32".
    return found - {"model.dtype", "model.grad_reduce_dtype", "train.frozen_weights"}


def test_every_number_has_a_range_and_no_range_is_of_none():
    wanted = number_fields(RunConfig) | number_fields(SourceConfig, "data.sources.")
    for name in names():
        wanted |= number_fields(config_class(name), "model.compressor.")
    assert wanted | {"train.stage"} == RANGES.keys()


@pytest.mark.parametrize("name", names())
def test_defaults_are_in_range(name):
    config = RunConfig()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compressor=config_class(name)())
    )
    for setting, value in numbers(config):
        assert value in RANGES[setting], setting


@pytest.mark.parametrize("range_", sorted(set(RANGES.values())))
def test_what_a_range_says_is_what_it_takes(range_):
    low, high = range_.lowest, range_.highest
    assert (low in range_) == (range_.closed[0] and math.isfinite(low))
    assert (high in range_) == (range_.closed[1] and math.isfinite(high))
    for outside in (low - 1, high + 1, math.nan, math.inf, -math.inf, 10**400, -(10**400), "1"):
        assert outside not in range_


def test_a_number_beyond_floats_is_refused_in_a_sentence():
    config = RunConfig(train=TrainConfig(steps=10**400))
    with pytest.raises(
        UserError, match=r"train\.steps is a number of 401 digits but must be finite and at least 0"
    ):
        check_ranges(config)
