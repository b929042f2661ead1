"""The line before the encoder: batches of a kind, nobody waits for one who has left, and one fault is one's own."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from quecc_jax.generate.questions import Prompt
from quecc_jax.serve.backend import Busy
from quecc_jax.serve.vllm.line import EmbeddingLine


class Encoder:
    """Stands in for the engine: prompts are numbers, and so are embeddings; negative ones are faults."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[int]]] = []
        self.gate = threading.Event()

    def make(self, kind: Any, prompts: Sequence[Any]) -> list[np.ndarray]:
        assert self.gate.wait(20)
        self.batches.append((kind, list(prompts)))
        if bad := [number for number in prompts if number < 0]:
            raise UserError(f"number {bad[0]}")
        return [np.array([number], np.float32) for number in prompts]


def prompt(number: int) -> Prompt:
    return cast(Prompt, number)


@settings(deadline=None, max_examples=50)
@given(
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(-2, 50), st.booleans()), max_size=30),
    most=st.integers(1, 8),
)
def test_everyone_gets_their_own_or_their_own_fault(asked, most):
    """`asked` are kinds, numbers, and whether one leaves the line before it is served."""
    encoder = Encoder()
    line = EmbeddingLine(encoder.make, most, 100)

    async def ask() -> list[Any]:
        tasks = [asyncio.ensure_future(line.embeddings(kind, prompt(number))) for kind, number, _ in asked]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, asked, strict=True):
            if leaves:
                task.cancel()
        await asyncio.sleep(0)
        encoder.gate.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    for (_, number, leaves), got in zip(asked, asyncio.run(ask()), strict=True):
        if leaves:
            assert isinstance(got, asyncio.CancelledError)
        elif number < 0:
            assert isinstance(got, UserError) and str(got) == f"number {number}"
        else:
            assert got == np.array([number], np.float32)
    assert len(line) == 0
    assert all(len(prompts) <= most for _, prompts in encoder.batches)
    for kind, prompts in encoder.batches:
        assert {(kind, number) for number in prompts} <= {(kind, number) for kind, number, _ in asked}
    # Who left before a batch began is in none; the first one had begun.
    served = [number for kind, prompts in encoder.batches[1:] for number in prompts]
    assert len(served) <= 2 * sum(not leaves for *_, leaves in asked) + most


def test_who_waits_shares_the_next_batch_and_a_full_line_refuses():
    encoder = Encoder()
    line = EmbeddingLine(encoder.make, 4, 6)

    async def ask() -> None:
        tasks = [asyncio.ensure_future(line.embeddings("a", prompt(0)))]
        await asyncio.sleep(0)
        while len(line):  # until the thread has it
            await asyncio.sleep(0.001)
        tasks += [asyncio.ensure_future(line.embeddings("a", prompt(number))) for number in range(1, 7)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await line.embeddings("a", prompt(9))
        encoder.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(ask())
    assert encoder.batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6])]
