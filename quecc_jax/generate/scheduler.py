"""Continuous batching: answers of many askers under way together, who come and go between decode steps.

Questions wait in a queue until a slot is free. Those that are let in together have their images, their words and their
prompts read in few programs of fixed shapes, and then decode beside those that are under way; long prompts are read a
chunk at a time, between decode steps. `Scheduler.step` is one round of that, and whoever calls it owns the device;
`submit` and `cancel` are for any thread.
"""

import collections
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from quecc_jax.errors import UserError
from quecc_jax.generate.decode import Reading, State, first_token, on_mesh, open_prompts, read
from quecc_jax.generate.engine import BEGIN, CHUNK, SMALLEST, Engine
from quecc_jax.generate.engines import Engines
from quecc_jax.generate.questions import Limits, Prompt, Question, Usage
from quecc_jax.generate.reply import Reply
from quecc_jax.generate.reuse import round_up
from quecc_jax.generate.sampling import per_row
from quecc_jax.generate.slots import Room, empty_slots, go_on, insert, refit
from quecc_jax.models.attention import NO_LIMIT
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import batch_parts, on_host

EMPTY = jax.jit(empty_slots, static_argnums=(0, 1, 2, 3))
INSERT = jax.jit(insert, donate_argnums=0)
REFIT = jax.jit(refit, static_argnums=(1, 2))
GO_ON = jax.jit(go_on, static_argnums=(0, 1, 6, 7), donate_argnums=3)
OPEN = jax.jit(open_prompts, static_argnums=(0, 4))
READ = jax.jit(read, static_argnums=(0, 4), donate_argnums=2)
FIRST = jax.jit(first_token, static_argnums=(0, 1))
"""Compiled once per model and shapes, for all schedulers."""

LOOK = 0.1
"""Seconds of decoding between two looks of the host, about: so long may a question wait for a free slot, and a slot for
a question."""
IMAGES = 0.5
"""Seconds that new images of one round may take, about: so long are answers under way held up by them."""


class Full(Exception):
    """As many questions wait as may."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A question that waits or is answered."""

    engine: Engine
    prompt: Prompt
    limits: Limits
    deliver: Callable[[str | Usage | Exception], None]
    reply: Reply
    room: Room
    images: frozenset[bytes] = frozenset()
    """By what its images are held, once they have been encoded."""
    cancelled: bool = False


@dataclasses.dataclass(eq=False)
class Long:
    """A prompt that is read a chunk at a time."""

    ticket: Ticket
    row: int
    reading: Reading
    done: int = 0
    """Positions that have been read."""


class Scheduler:
    """Answers many questions at a time with one model.

    Args:
      engine: of the model; one of an elastic model answers with any V that it makes.
      slots: B, answers that are under way at a time; with a mesh, that rows are split over evenly.
      queue: questions that may wait for a slot.
      longest_answer: tokens that an answer may be asked to have; prompts have up to data.max_length.
      prefill_tokens: positions of prompts that are read between two looks at the answers under way, about; longer
        prompts are read in chunks of so many.
      chunk, look: tokens that are decoded between two looks of the host at most, and the seconds that they should take.
      images: seconds that new images should take at most between two looks, where there are several.

    Raises:
      UserError: the slots do not divide over the mesh, or a number is no size.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slots: int = 8,
        queue: int = 64,
        longest_answer: int = 1024,
        prefill_tokens: int = 512,
        chunk: int = CHUNK,
        look: float = LOOK,
        images: float = IMAGES,
    ):
        parts = 1 if engine.mesh is None else batch_parts(engine.mesh)
        if slots < 1 or slots % parts:
            raise UserError(f"{slots} slots do not divide over {parts} devices of the mesh; give a multiple")
        self.slots, self.queue = slots, queue
        scaling = engine.config.model.decoder.rope_scaling
        # A longer cache would have other frequencies, for all that are in it.
        self._most = scaling.original_length if scaling.kind == "longrope" else NO_LIMIT
        self._longest = longest_answer
        self._parts, self._prefill, self._chunk, self._look = parts, prefill_tokens, chunk, look
        self._images = images
        self._pace = 0.0
        """Seconds that the newest tokens took, each."""
        self.engines = Engines(engine)
        self._engine = engine
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._taken: dict[int, Ticket] = {}
        self._long: Long | None = None
        self.room: Room | None = None
        """Of the cache; None before the first answer."""
        self._state: State | None = None
        self._changed = threading.Condition()
        self._seconds = collections.deque[float](maxlen=64)

    # For any thread.

    def submit(
        self,
        question: Question,
        limits: Limits,
        deliver: Callable[[str | Usage | Exception], None],
        visual_tokens: int = 0,
    ) -> Ticket:
        """Has a question wait for its answer.

        Args:
          deliver: is called by the thread that steps, with pieces of the answer's text as they come and then with
            its `Usage`, or with what went wrong.

        Raises:
          UserError: the question does not fit the model, or its images cannot be read.
          Full: too many wait.
        """
        began, engine = time.perf_counter(), self.engines.at(visual_tokens)
        images = tuple(engine.image(image) for image in question.images)
        prompt = engine.prompt(question._replace(images=images))
        room = self._needed(prompt, limits)
        if limits.max_new_tokens > self._longest:
            raise UserError(
                f"an answer of up to {limits.max_new_tokens} tokens is more than the {self._longest} that are "
                "served; ask for a shorter one"
            )
        if sum(room) > self._most:
            raise UserError(
                f"a prompt of {len(prompt.encoded.codes)} tokens and an answer of up to {limits.max_new_tokens} "
                f"need {sum(room)} positions, and this model's longrope is served up to {self._most}; say less"
            )
        reply = Reply(prompt, engine.tokenizer, engine.ends, limits, began=began)
        keys = frozenset(key for image in images for key in engine.encoders.image_keys(image.pixels))
        ticket = Ticket(engine, prompt, limits, deliver, reply, room, keys)
        with self._changed:
            if self.full:
                raise Full
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives a question up; nothing more of it is delivered, but for what is on its way."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def call(self, job: Callable[[], None]) -> None:
        """Has the thread that steps do something with the device, between two rounds."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Returns when there is something to do, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting or self._jobs or self._taken), seconds)

    @property
    def full(self) -> bool:
        """Whether as many wait as may, beside those whom free slots wait for."""
        return self.waiting >= self.queue + self.slots - self.running

    @property
    def waiting(self) -> int:
        """Questions that are not under way."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._taken)

    def patience(self) -> float:
        """Seconds until a question that cannot wait now may find a place, guessed from the newest answers."""
        seconds = [*self._seconds]
        mean = sum(seconds) / len(seconds) if seconds else 1.0
        return max(1.0, mean * (1 + self.waiting) / self.slots)

    # For the thread that steps.

    def step(self) -> bool:
        """One round: jobs, then prompts of those who are let in, then some tokens of all answers under way.

        Returns:
          Whether there was anything to do, or is.
        """
        with self._changed:
            jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
            for row in [row for row, ticket in self._taken.items() if ticket.cancelled]:
                del self._taken[row]
            if self._long and self._long.ticket.cancelled:
                self._long = None
            joining = self._let_in()
        for job in jobs:
            job()
        try:
            self._read(joining)
            self._decode()
        except Exception as error:
            self._fail(error)
            raise
        return bool(jobs or joining or self._taken or self._waiting)

    def _let_in(self) -> list[tuple[int, Ticket]]:
        """The first of those who wait that there are slots, positions and time for, with their slots."""
        free = [row for row in range(self.slots) if row not in self._taken]
        room = self._taken_room()
        joining, left, new = list[tuple[int, Ticket]](), self._prefill, frozenset[bytes]()
        while self._waiting and free and left > 0:
            ticket = self._waiting[0]
            wanted = room.with_room(ticket.room)
            is_long = ticket.room.front > self._prefill
            fresh = new.union(key for key in ticket.images if key not in self._engine.reuse.images)
            if sum(wanted) > self._most or (is_long and self._long):
                break
            if joining and fresh != new and len(fresh) > self._many_images():
                break
            new, room, row = fresh, wanted, free.pop(0)
            joining.append((row, self._waiting.popleft()))
            self._taken[row] = ticket
            left -= ticket.room.front
        return joining

    def _many_images(self) -> float:
        """New images that a round has time for, one on each device at least; any number before one was timed."""
        pace = self._engine.reuse.pace.get("images")
        return max(self._parts, self._images / pace) if pace else math.inf

    def _taken_room(self) -> Room:
        """What those who have slots need together."""
        return functools.reduce(Room.with_room, (one.room for one in self._taken.values()), Room(0, 0))

    def _needed(self, prompt: Prompt, limits: Limits) -> Room:
        length = max(SMALLEST, round_up(len(prompt.encoded.codes)))
        if length > self._prefill:
            length = -(-length // self._prefill) * self._prefill
        return Room(length, max(SMALLEST, round_up(limits.max_new_tokens)))

    def _read(self, joining: Sequence[tuple[int, Ticket]]) -> None:
        """Reads prompts: all of the short ones, and a chunk of a long one."""
        if joining:
            self._make_room()

        def alike(one: tuple[int, Ticket]) -> tuple[int, int]:
            return one[1].engine.config.model.visual_tokens, one[1].room.front

        for _, some in itertools.groupby(sorted(joining, key=alike), alike):
            rows, tickets = map(list, zip(*some, strict=True))
            self._open(rows, tickets)
        if long := self._long:
            engine, start = long.ticket.engine, np.int32(long.done)
            long.reading = self._on(READ)(
                self._model(engine), engine.params, long.reading, start, self._prefill
            )
            long.done += self._prefill
            if long.done >= long.ticket.room.front:
                self._long = None
                settings = self._settings([long.ticket], len(long.reading.text))
                fresh = self._on(FIRST)(
                    self._model(engine), engine.ends.ids, engine.params, long.reading, *settings
                )
                self._place(fresh, [long.row], [long.ticket])

    def _open(self, rows: list[int], tickets: list[Ticket]) -> None:
        """Reads prompts of one length, or begins to."""
        engine, length = tickets[0].engine, tickets[0].room.front
        count = -(-(1 << (len(tickets) - 1).bit_length()) // self._parts) * self._parts
        batch = engine.batch([ticket.prompt for ticket in tickets], length, count)
        batch, visual = engine.encoded(batch)
        if visual is not None and visual.memory is None:
            # What only the encoders read is no matter of the program's shapes.
            batch = batch._replace(queries=batch.queries[:, :0], query_segments=batch.query_segments[:, :0])
        model, ends = self._model(engine), engine.ends.ids
        if length > self._prefill:
            reading = self._on(OPEN)(model, engine.params, batch, visual, 0)
            # It is alone, for it took all the time of its round.
            (row,), (ticket,) = rows, tickets
            self._long = Long(ticket, row, reading)
            return
        settings = self._settings(tickets, len(batch.tokens))
        fresh = self._on(BEGIN)(model, ends, engine.params, batch, visual, *settings, 0)
        self._place(fresh, rows, tickets)

    def _settings(self, tickets: Sequence[Ticket], rows: int) -> tuple[np.ndarray, PyTree, jax.Array]:
        """Budgets, sampling and keys of rows, of which the last may be nobody's."""
        limits = [ticket.limits for ticket in tickets]
        limits += (rows - len(limits)) * [Limits(0)]
        budget = np.array([one.max_new_tokens for one in limits], np.int32)
        seeds = np.array([one.seed % 2**32 for one in limits], np.uint32)
        return budget, per_row([one.sampling for one in limits]), _keys(seeds)

    def _place(self, fresh: State, rows: list[int], tickets: list[Ticket]) -> None:
        """Puts answers that have begun into their slots and hands out their first tokens."""
        tokens = on_host(fresh.token)
        where = np.full(len(tokens), self.slots, np.int32)
        where[: len(rows)] = rows
        self._state = self._on(INSERT)(self._state, fresh, where)
        for row, ticket, token in zip(rows, tickets, tokens.tolist(), strict=False):
            self._hand_out(row, ticket, [token])

    def _decode(self) -> None:
        """Some tokens of all answers under way."""
        reading = self._long.row if self._long else None
        running = {row: one for row, one in self._taken.items() if row != reading}
        if not running or self._state is None or self.room is None:
            return
        ended = np.array([row not in running for row in range(self.slots)])
        engine, began = self._engine, time.perf_counter()
        most = self._chunk if self._look >= self._chunk * self._pace else max(1, int(self._look / self._pace))
        tokens, self._state = self._on(GO_ON)(
            self._model(engine),
            engine.ends.ids,
            engine.params,
            self._state,
            ended,
            np.int32(most),
            self._chunk,
            self.room.front,
        )
        decoded = on_host(tokens)[:, :most].tolist()
        self._pace = (time.perf_counter() - began) / most
        for row, ids in enumerate(decoded):
            if row in running:
                self._hand_out(row, running[row], ids)

    def _hand_out(self, row: int, ticket: Ticket, ids: list[int]) -> None:
        if ticket.cancelled:
            return
        piece = ticket.reply.push(ids)
        if piece:
            ticket.deliver(piece)
        if ticket.reply.ended_by:
            del self._taken[row]
            usage = ticket.reply.usage()
            self._seconds.append(usage.seconds)
            ticket.deliver(usage)

    def _make_room(self) -> None:
        """Fits the cache to those who are there: larger where it must be, smaller where half would do."""
        needed = self._taken_room()
        if self._state is None or self.room is None:
            engine = self._engine
            state = self._on(EMPTY)(self._model(engine), engine.ends.ids, self.slots, needed)
            # As what the other programs make lies; else they would be compiled once more for this.
            self._state = state if engine.mesh else jax.device_put(state, jax.local_devices()[0])
        elif not self.room.holds(needed) or 2 * sum(needed) <= sum(self.room):
            if not 2 * sum(needed) <= sum(self.room):
                needed = needed.with_room(self.room)
            if sum(needed) > self._most:
                needed = self._taken_room()
            self._state = self._on(REFIT)(self._state, self.room, needed)
        else:
            return
        self.room = needed

    def _fail(self, error: Exception) -> None:
        """Tells all that are under way, and begins anew."""
        with self._changed:
            tickets = [*self._taken.values()]
            self._taken.clear()
        self._long = None
        self._state = self.room = None
        for ticket in tickets:
            ticket.deliver(error)

    def _model(self, engine: Engine) -> VLM:
        return VLM(engine.config.model, unrolled=True)

    def _on(self, program: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return on_mesh(program, self._engine.mesh)


@jax.jit
def _keys(seeds: jax.Array) -> jax.Array:
    """Each seed's key, as a question that is asked alone has it: typed [B]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(seeds)
