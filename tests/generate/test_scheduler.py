"""Answers that come and go: each is what the engine answers to its question alone, whatever the company."""

import dataclasses
import math
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quecc_jax.config import MeshConfig, RopeScaling
from quecc_jax.convert.run import import_weights
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question, Usage
from quecc_jax.generate.sampling import Sampling
from quecc_jax.generate.scheduler import Full, Scheduler, Ticket
from quecc_jax.generate.slots import Room
from quecc_jax.load import load_engine, load_vlm
from tests.golden_pack import unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
EXAMPLE = Path(__file__).parents[2] / "examples" / "model"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("golden")
    unpack(GOLDEN / "arrays.xz", folder / "llava_tiny")
    import_weights(folder / "llava_tiny", folder / "run")
    config, params = load_vlm(folder / "run")
    model = dataclasses.replace(config.model, dtype="float32", remat="none")
    return Engine(dataclasses.replace(config, model=model), params, chunk=4)


@pytest.fixture(scope="module")
def asked(engine) -> list[tuple[Question, Limits]]:
    """Questions of many lengths, with an image, another or none, and answers of many."""
    images = [engine.image(Image.new("RGB", (30, 20), colour)) for colour in ("teal", "orange")]
    words = ("What", "is", "the", "man", "on", "the", "left", "doing", "with", "that", "thing", "?") * 10
    texts = [" ".join(words[:n]) for n in (1, 12, 30, 100)]
    (whole,) = engine.answers([Question(texts[1])], Limits(12))
    kinds = [
        Limits(1),
        Limits(3),
        Limits(12),
        Limits(40),
        Limits(12, stop=(whole[3:5],)),
        Limits(9, sampling=Sampling(1.5, top_k=40), seed=3),
        Limits(9, sampling=Sampling(0.7, top_p=0.8, repetition_penalty=1.3), seed=2**31 - 1),
        Limits(20, sampling=Sampling(0.0, repetition_penalty=1.5)),
    ]
    shown: list[tuple[Any, ...]] = [(), (images[0],), (images[1],)]
    return [
        (Question(texts[i // 6], shown[i % 3], ("Hello there.", "Yes?") if i % 5 == 4 else ()), kinds[i % 8])
        for i in range(24)
    ]


@pytest.fixture(scope="module")
def alone(engine, asked) -> list[tuple[str, Usage]]:
    """What the engine says to each, asked for nothing else."""
    runs = [engine.run([question], limits) for question, limits in asked]
    return [(run.finish()[0], run.usage[0]) for run in runs]


class Heard(NamedTuple):
    """What was delivered to one who asked."""

    number: int
    items: list

    @property
    def text(self) -> str:
        return "".join(item for item in self.items if isinstance(item, str))


def submit(scheduler: Scheduler, row: tuple[Question, Limits], heard: Heard) -> Ticket:
    """Has a row's question wait."""
    question, limits = row
    return scheduler.submit(question, limits, heard.items.append)


def same(heard: Heard, alone: list[tuple[str, Usage]]) -> None:
    text, usage = alone[heard.number]
    assert heard.text == text
    *pieces, last = heard.items
    assert all(isinstance(piece, str) and piece for piece in pieces)
    without: Any = {"first_token_seconds": 0.0, "seconds": 0.0}
    assert last._replace(**without) == usage._replace(**without)
    assert 0 < last.first_token_seconds <= last.seconds


SOME = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 23)),
        st.tuples(st.just("ask"), st.integers(0, 23)),
        st.tuples(st.just("step"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    min_size=4,
    max_size=30,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(SOME, st.sampled_from([(1, 4, 0.0), (3, 2, math.inf), (4, 5, 0.0), (4, 5, math.inf)]))
def test_every_answer_is_what_is_said_alone_in_any_order_of_coming_and_going(
    engine, asked, alone, events, sizes
):
    slots, chunk, look = sizes
    scheduler = Scheduler(engine, slots=slots, queue=64, prefill_tokens=64, chunk=chunk, look=look)
    tickets, cancelled = list[tuple[Any, Heard]](), set[int]()
    for what, number in events:
        if what == "ask":
            heard = Heard(number, [])
            tickets.append((submit(scheduler, asked[number], heard), heard))
        elif what == "step":
            for _ in range(number):
                scheduler.step()
        elif tickets:
            which = number % len(tickets)
            scheduler.cancel(tickets[which][0])
            cancelled.add(which)
    while scheduler.step():
        pass
    assert scheduler.running == scheduler.waiting == 0
    for which, (_, heard) in enumerate(tickets):
        if which not in cancelled or any(isinstance(item, Usage) for item in heard.items):
            same(heard, alone)
        else:
            assert alone[heard.number][0].startswith(heard.text)


def test_long_prompts_are_read_between_the_tokens_of_others(engine, asked, alone):
    """While a long prompt is read chunk by chunk, the answers under way go on."""
    scheduler = Scheduler(engine, slots=2, prefill_tokens=32, chunk=1)
    short = next(i for i, (q, limits) in enumerate(asked) if limits.max_new_tokens == 40)
    long = max(range(24), key=lambda i: alone[i][1].prompt_tokens)
    first, second = Heard(short, []), Heard(long, [])
    submit(scheduler, asked[short], first)
    scheduler.step()
    submit(scheduler, asked[long], second)
    before, rounds = len(first.items), 0
    while not second.items:
        scheduler.step()
        rounds += 1
    assert rounds >= alone[long][1].prompt_tokens // 32 and len(first.items) - before >= rounds - 2
    while scheduler.step():
        pass
    same(first, alone)
    same(second, alone)


@pytest.mark.parametrize(("look", "rounds"), [(math.inf, 8), (0.0, 35)])
def test_slow_tokens_are_handed_out_one_at_a_time(engine, asked, alone, look, rounds):
    """Of 40 tokens the first comes with the prompt; how long a token takes is not known before some have come."""
    scheduler = Scheduler(engine, slots=1, chunk=5, look=look)
    number = next(i for i, (q, limits) in enumerate(asked) if limits.max_new_tokens == 40)
    assert alone[number][1].new_tokens == 40
    heard = Heard(number, [])
    submit(scheduler, asked[number], heard)
    taken = 0
    while not (heard.items and isinstance(heard.items[-1], Usage)):
        scheduler.step()
        taken += 1
    same(heard, alone)
    assert taken == rounds


def test_new_images_come_a_few_at_a_time_and_those_that_are_held_with_them(engine):
    """A round has time for two new images, and the third waits; nobody overtakes it."""
    own = Engine(engine.config, engine.params, chunk=4)
    images = [own.image(Image.new("RGB", (8, 8), (40 * number, 0, 0))) for number in range(5)]
    own.answers([Question("Who?", (images[0],))], Limits(1))
    own.reuse.pace["images"] = 0.25
    scheduler, heard = Scheduler(own, slots=8, images=0.5), [list[Any]() for _ in range(6)]
    for items, number in zip(heard, (0, 1, 1, 2, 3, 0), strict=True):
        scheduler.submit(Question("Who?", (images[number],)), Limits(1), items.append)
    scheduler.step()
    assert [bool(items) for items in heard] == [True] * 4 + [False] * 2
    while scheduler.step():
        pass
    assert all(items for items in heard) and own.reuse.counted["images"].misses == 4


def test_devices_that_encode_beside_each_other_are_all_used():
    """Eight images take eight devices as long as one does, and would never be timed together if they came alone."""
    spread = load_engine(EXAMPLE, MeshConfig())
    spread.reuse.pace["images"] = 60.0
    scheduler = Scheduler(spread, slots=16)
    for number in range(10):
        image = Image.new("RGB", (8, 8), (20 * number, 0, 0))
        scheduler.submit(Question("which color is the shape ?", (image,)), Limits(1), print, 1)
    assert len(scheduler._let_in()) == 8 and scheduler.waiting == 2


def test_room_grows_with_those_who_come_and_shrinks_when_they_left(engine, asked, alone):
    scheduler = Scheduler(engine, slots=2, chunk=2)
    by_length = sorted(range(24), key=lambda i: alone[i][1].prompt_tokens + asked[i][1].max_new_tokens)
    rooms = list[Room]()
    for number in (by_length[0], by_length[-1], by_length[0]):
        heard = Heard(number, [])
        submit(scheduler, asked[number], heard)
        while scheduler.step():
            pass
        same(heard, alone)
        assert scheduler.room is not None
        rooms.append(scheduler.room)
    assert sum(rooms[1]) > sum(rooms[0]) == sum(rooms[2])


def test_what_is_too_long_or_too_many_is_refused_before_it_waits(engine, asked):
    scheduler = Scheduler(engine, slots=1, queue=2, longest_answer=128)
    heard = list[Any]()
    with pytest.raises(UserError, match="up to 129 tokens is more than the 128 that are served"):
        scheduler.submit(Question("so"), Limits(129), heard.append)
    with pytest.raises(UserError, match="max_length"):
        scheduler.submit(Question("so " * 4000), Limits(8), heard.append)
    with pytest.raises(UserError, match="visual tokens of an image, not 5"):
        scheduler.submit(asked[1][0], Limits(8), heard.append, visual_tokens=5)
    # One for the slot, and two who wait for it.
    for _ in range(3):
        scheduler.submit(Question("so"), Limits(8), heard.append)
    with pytest.raises(Full):
        scheduler.submit(Question("so"), Limits(8), heard.append)
    assert scheduler.patience() >= 1 and heard == []


def test_a_slot_that_was_given_up_while_its_prompt_was_read_is_anothers(engine, asked, alone):
    scheduler = Scheduler(engine, slots=1, prefill_tokens=32, chunk=1)
    long = max(range(24), key=lambda i: alone[i][1].prompt_tokens)
    given_up, stays, comes = Heard(long, []), Heard(long, []), Heard(2, [])
    ticket = submit(scheduler, asked[long], given_up)
    scheduler.step()
    scheduler.cancel(ticket)
    submit(scheduler, asked[2], comes)
    submit(scheduler, asked[long], stays)
    while scheduler.step():
        pass
    assert given_up.items == []
    same(comes, alone)
    same(stays, alone)


def test_what_goes_wrong_is_told_to_all_under_way_and_the_next_are_answered(
    engine, asked, alone, monkeypatch
):
    scheduler = Scheduler(engine, slots=2, chunk=2)
    first, second = Heard(3, []), Heard(2, [])
    submit(scheduler, asked[3], first)
    scheduler.step()

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("quecc_jax.generate.scheduler.GO_ON", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            scheduler.step()
    assert isinstance(first.items[-1], RuntimeError)
    submit(scheduler, asked[2], second)
    while scheduler.step():
        pass
    same(second, alone)


def test_other_threads_ask_and_the_device_does_their_jobs_between_rounds(engine, asked, alone):
    scheduler = Scheduler(engine, slots=2, chunk=2)
    heard = [Heard(number, []) for number in range(12)]
    stop, done = threading.Event(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            scheduler.wait(0.05)
            scheduler.step()

    threads = [
        threading.Thread(target=lambda one=one: submit(scheduler, asked[one.number], one)) for one in heard
    ]
    worker = threading.Thread(target=work)
    for thread in (worker, *threads):
        thread.start()
    scheduler.call(done.set)
    for thread in threads:
        thread.join()
    until = time.monotonic() + 120
    while not all(one.items and isinstance(one.items[-1], Usage) for one in heard):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert done.wait(10)
    stop.set()
    worker.join()
    for one in heard:
        same(one, alone)


@pytest.mark.slow
def test_an_elastic_model_answers_with_every_v_at_a_time():
    engine = load_engine(EXAMPLE)
    choices = engine.config.model.compressor.elastic
    image = engine.image(Image.new("RGB", (32, 32), "red"))
    questions = [
        Question(text, (image,)) for text in ("which color is the shape ?", "how many shapes are there ?")
    ]
    scheduler = Scheduler(engine, slots=4, chunk=2)
    heard = dict[tuple[int, int], Heard]()
    for v in choices:
        for number, question in enumerate(questions):
            heard[v, number] = Heard(number, [])
            scheduler.submit(question, Limits(4), heard[v, number].items.append, v)
    while scheduler.step():
        pass
    for v in choices:
        alone = load_engine(EXAMPLE, visual_tokens=v).answers(questions, Limits(4))
        assert [heard[v, number].text for number in range(2)] == alone
        assert heard[v, 0].items[-1].visual_tokens == v


@pytest.mark.slow
def test_eight_devices_answer_as_they_do_alone(asked, tmp_path):
    """Beside others, in slots that are split over data and fsdp, with heads over tensor."""
    unpack(GOLDEN / "arrays.xz", tmp_path / "llava_tiny")
    import_weights(tmp_path / "llava_tiny", tmp_path / "run")
    spread = load_engine(tmp_path / "run", MeshConfig(2, 2, 2), weights="float32")
    with pytest.raises(UserError, match="3 slots do not divide over 4 devices"):
        Scheduler(spread, slots=3)
    scheduler = Scheduler(spread, slots=4, prefill_tokens=64, chunk=3)
    heard = [Heard(number, []) for number in range(8)]
    for one in heard:
        submit(scheduler, asked[one.number], one)
        scheduler.step()
    while scheduler.step():
        pass
    for one in heard:
        question, limits = asked[one.number]
        run = spread.run([question], limits)
        assert one.text == run.finish()[0] and one.items[-1].new_tokens == run.usage[0].new_tokens


def test_a_longrope_model_is_served_as_far_as_its_frequencies_stay_the_same(engine, asked):
    scaling = RopeScaling("longrope", original_length=96, short_factors=(1.0,) * 6, long_factors=(2.0,) * 6)
    decoder = dataclasses.replace(engine.config.model.decoder, rope_scaling=scaling)
    config = dataclasses.replace(
        engine.config, model=dataclasses.replace(engine.config.model, decoder=decoder)
    )
    other = Engine(config, engine.params)
    scheduler = Scheduler(other, slots=2, chunk=2)
    heard = [Heard(0, []) for _ in range(3)]
    for one, (text, new) in zip(heard, (("so", 20), ("so " * 20, 8), ("so", 30)), strict=True):
        scheduler.submit(Question(text), Limits(new), one.items.append)
    with pytest.raises(UserError, match="longrope is served up to 96"):
        scheduler.submit(Question("so"), Limits(60), heard[0].items.append)
    while scheduler.step():
        pass
    assert [one.text for one in heard] == [
        other.answers([Question(text)], Limits(new))[0]
        for text, new in (("so", 20), ("so " * 20, 8), ("so", 30))
    ]
