"""Programs that are compiled before anybody waits."""

import dataclasses
from typing import Any

import pytest

from quecc_jax.errors import UserError
from quecc_jax.generate.engine import BEGIN, Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.scheduler import GO_ON, INSERT, Scheduler
from quecc_jax.generate.warm_up import TEXT, warm_up
from quecc_jax.load import load_vlm

LIMITS = Limits(45)
"""Room for the answer that no other test asks for."""


@pytest.fixture
def engine() -> Engine:
    return Engine(*load_vlm("examples/model"))


@pytest.mark.parametrize("asked", [2, 3])
def test_questions_that_come_after_it_compile_nothing(engine, asked):
    assert list(warm_up(engine, 3, LIMITS)) == [1, 2, 3]
    programs: tuple[Any, ...] = BEGIN, GO_ON, INSERT
    compiled = [one._cache_size() for one in programs]
    scheduler, heard = Scheduler(engine, slots=3), list[object]()
    image = engine.image("examples/mosaic-1.png")
    for _ in range(asked):
        scheduler.submit(Question(TEXT, (image,)), LIMITS, heard.append)
    while scheduler.step():
        pass
    assert heard and [one._cache_size() for one in programs] == compiled
    counted = engine.reuse.counted["images"]
    assert (counted.hits, counted.misses) == (asked - 1, 1)


def test_a_model_that_has_no_room_for_the_question_says_so(engine):
    short = dataclasses.replace(engine.config, data=dataclasses.replace(engine.config.data, max_length=2))
    with pytest.raises(UserError, match="max_length"):
        list(warm_up(Engine(short, engine.params), 1, LIMITS))
