"""Programs that are compiled before anybody waits for them."""

import functools
import itertools
from collections.abc import Iterator

from PIL import Image

from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question, Usage
from quecc_jax.generate.scheduler import Scheduler
from quecc_jax.sharding import batch_parts

TEXT = "What is in the image?"


def warm_up(engine: Engine, slots: int, limits: Limits) -> Iterator[int]:
    """Has a plain question about an image asked once, then twice at a time, then four times, ... and as often as there
    are slots, of the engine's model.

    What that takes is compiled then for all who answer with this model and as many slots. For longer prompts and
    answers, and other V, programs are still compiled when these come first.

    Args:
      limits: of the answers that will be asked for most.

    Yields:
      How many are asked next, before each.

    Raises:
      UserError: the question does not fit the model.
    """
    # With its own memory of images, so that nothing of this is left.
    trial = Engine(engine.config, engine.params, mesh=engine.mesh, chunk=engine.chunk)
    trial.ends = engine.ends
    scheduler = Scheduler(trial, slots=slots, longest_answer=limits.max_new_tokens)
    numbers, has_image = itertools.count(), engine.config.data.images_per_row > 0
    parts = 1 if engine.mesh is None else batch_parts(engine.mesh)
    fewer = itertools.takewhile(lambda count: count < slots, (parts << power for power in itertools.count()))
    for count in (*fewer, slots):
        yield count
        silent, tickets = set(range(count)), []
        for one in range(count):
            # No two images are alike, or they would be encoded as one.
            color = next(numbers).to_bytes(3)
            images = (Image.new("RGB", (8, 8), tuple(color)),) if has_image else ()
            heard = functools.partial(_discard, silent, one)
            tickets.append(scheduler.submit(Question(TEXT, images), limits, heard))
        while silent:
            scheduler.step()
        for ticket in tickets:
            scheduler.cancel(ticket)
        while scheduler.step():
            pass


def _discard(numbers: set[int], one: int, heard: str | Usage | Exception) -> None:
    if isinstance(heard, Exception):
        raise heard
    numbers.discard(one)
