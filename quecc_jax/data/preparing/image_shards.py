"""Shards of images, made by several processes: each reads images, brings them into the form that is stored, and writes
one shard at a time."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.config import PixelConfig
from quecc_jax.data.images import fit, open_image
from quecc_jax.data.references import ImageRef
from quecc_jax.data.sources.array_record import Recipe, fault_record
from quecc_jax.data.sources.shards import Shard, find_shard, write_shard
from quecc_jax.errors import BadRow, UserError, disk_faults
from quecc_jax.paths import as_path

TOLD = 32
"""Images between two words of a process about its progress."""
Find = Callable[[ImageRef], str | BytesIO]
"""Where an image is, or the bytes of its file; raises BadRow."""
Progress = Callable[[int, int], None]
"""Called with the images done and their number."""


class Job(NamedTuple):
    """One shard of images."""

    directory: str
    name: str
    key: str
    images: list[ImageRef]
    recipe: Recipe
    skip_bad: bool


def image_shards(
    jobs: list[Job], find: Find, workers: int, progress: Progress
) -> list[tuple[Shard, list[str]]]:
    """Writes what is not there yet; returns each shard with what is wrong with its images, in order."""
    total = sum(len(job.images) for job in jobs)
    known = [find_shard(job.directory, job.name, job.key) for job in jobs]
    missing = [number for number, found in enumerate(known) if found is None]
    before = sum(found[0].records for found in known if found)
    left = [jobs[number] for number in missing]
    for number, written in _parallel(left, find, workers, lambda done: progress(before + done, total)):
        known[missing[number]] = written
    progress(total, total)
    return [item for item in known if item is not None]


def _parallel(
    jobs: list[Job], find: Find, workers: int, progress: Callable[[int], None]
) -> Iterator[tuple[int, tuple[Shard, list[str]]]]:
    """(number, result) of every job as it ends; the processes end with this one, even if it is killed."""
    context = multiprocessing.get_context("spawn")
    waiting, told = context.Queue(), context.Queue()
    count = min(max(workers, 1), len(jobs))
    for item in [*enumerate(jobs), *[None] * count]:
        waiting.put(item)
    processes = [context.Process(target=_work, args=(find, waiting, told), daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        left, done = len(jobs), 0
        while left:
            try:
                number, result = told.get(timeout=0.5)
            except queue.Empty:
                if any(process.exitcode not in (None, 0) for process in processes):
                    raise UserError(
                        "a process that read images was killed (is the memory full?); start "
                        "the same command again, with fewer --workers"
                    ) from None
                continue
            if isinstance(result, BaseException):
                raise result
            if number is None:
                done += result
                progress(done)
            else:
                left -= 1
                yield number, result
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(find: Find, waiting: Any, told: Any) -> None:
    """One process: makes shards, and tells of images and shards."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the first process, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (item := waiting.get()) is not None:
        number, job = item
        try:
            with disk_faults(str(job.directory)):
                told.put((number, _make(job, find, lambda count: told.put((None, count)))))
        except UserError as error:
            told.put((number, error))
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(job: Job, find: Find, tell: Callable[[int], None]) -> tuple[Shard, list[str]]:
    lost = list[str]()

    def records() -> Iterator[bytes]:
        for number, image in enumerate(job.images, start=1):
            try:
                yield stored(find(image), job.recipe)
            except BadRow as error:
                if not job.skip_bad:
                    raise UserError(f"{error}; or count such images with --bad skip") from None
                lost.append(str(error))
                yield fault_record(error)
            if number % TOLD == 0 or number == len(job.images):
                tell((number - 1) % TOLD + 1)

    return write_shard(job.directory, job.name, job.key, records(), lost), lost


def stored(found: str | BytesIO, recipe: Recipe) -> bytes:
    """The bytes to store of an image, which is decoded in any case, to know that it can be.

    Raises:
      BadRow: as `open_image`.
    """
    if not recipe.size:
        open_image(found, recipe.decoding)
        return found.getvalue() if isinstance(found, BytesIO) else as_path(found).read_bytes()
    image = fit(open_image(found, recipe.decoding), recipe.size, recipe.aspect, PixelConfig())
    if recipe.encoding == "raw":
        return np.asarray(image).tobytes()
    file = BytesIO()
    options = {"quality": recipe.quality, "subsampling": 0} if recipe.encoding == "jpeg" else {}
    image.save(file, recipe.encoding.upper(), **options)
    return file.getvalue()
