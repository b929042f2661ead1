"""Measures every row in one pass over the text of all rows, and keeps the lengths on disk for the next run."""

import contextlib
import hashlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.bad_rows import DROPPED, LeftOut, Read, Tally
from quecc_jax.data.files import size_and_time
from quecc_jax.data.plans.packing import RowLengths
from quecc_jax.data.sources import parquet
from quecc_jax.data.sources.mixture import files_of
from quecc_jax.data.sources.source import Source
from quecc_jax.errors import BadRow
from quecc_jax.paths import as_path, cache_folder, replacing

FORMAT = 2
"""Raise it when the same rows come to have other lengths."""
BAD = -1
"""Stands for the length of a bad row where lengths are kept."""
LARGE = 64 << 20
"""Bytes from which on a file beside a tokenizer is none of its own."""
CHUNK = 1024
"""Rows that a process measures at a time; then the pass looks whether too many are bad."""


def measure(
    sources: Sequence[Source], data: DataConfig, visual_tokens: int, arranged: tuple[object, ...] = ()
) -> RowLengths:
    """The lengths of every row of some sources, those of rows that are left out being 0.

    Of images no more than the size is read. The lengths of files are kept in `data.cache`, under the files'
    size and time of change and all settings that lengths depend on; those of pools cost nothing.
    `data.workers` processes share the pass.

    Args:
      sources: of a run, in its order.
      data: policies for bad and long rows, the cache folder, and what lengths depend on.
      visual_tokens: slots V of an image.
      arranged: what the arrangement of any-resolution images depends on, see `arrangement_settings`.

    Raises:
      UserError: a row is bad and may not be, or too large a share of them is.
    """
    parts = [
        _one(source, config, data, visual_tokens, arranged)
        for source, config in zip(sources, data.sources, strict=True)
    ]
    return RowLengths(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _one(
    source: Source, config: SourceConfig, data: DataConfig, visual_tokens: int, arranged: tuple[object, ...]
) -> RowLengths:
    files, path = _files(config), None
    if files:
        asking = _tokenizer_stamp(data.query_tokenizer) if data.query_tokenizer else ""
        settings = (
            FORMAT,
            files,
            _tokenizer_stamp(data.tokenizer),
            visual_tokens,
            data.template,
            data.image_place,
            data.labels,
            data.max_length,
            data.images_per_row,
            data.too_long,
            asking,
            data.query_limit,
            *arranged,
            # Lengths from before this setting stay known.
            *((data.image_decoding,) if arranged and data.image_decoding != "upright" else ()),
        )
        name = hashlib.sha256(repr(settings).encode()).hexdigest()[:24]
        path = (Path(data.cache) if data.cache else cache_folder()) / f"lengths-{name}.npz"
        kept = _read(path, len(source), data)
        # Too many bad rows are met again, so that the error can name one.
        limit = data.max_bad_share * len(source) if data.bad_rows == "skip" else 0
        if kept is not None and (kept[0] == BAD).sum() <= limit:
            return RowLengths(np.maximum(kept[0], 0), *kept[1:])
    parts, tally = list[np.ndarray](), Tally(data, len(source))
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(_bar(f"lengths of {config.path or config.kind}", len(source)))
        for part, read in _passed(source, data.workers if files else 0, stack):
            tally.add(read)
            parts.append(part)
            show(read.rows)
    made = np.concatenate(parts, axis=1)
    if path is not None:
        _write(path, made)
    return RowLengths(np.maximum(made[0], 0), *made[1:])


def _passed(source: Source, workers: int, stack: contextlib.ExitStack) -> Iterator[tuple[np.ndarray, Read]]:
    """Lengths of a source chunk by chunk, in order, with the help of as many processes."""
    spans = [(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)]
    if not workers or len(spans) < 2:
        return (_lengths(source, *span) for span in spans)
    # Forked processes would inherit JAX's locks without its threads.
    spawn = multiprocessing.get_context("spawn")
    pool = stack.enter_context(ProcessPoolExecutor(workers, spawn, _Worker.begin, (source,)))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool.map(_Worker.lengths, *zip(*spans, strict=True))


class _Worker:
    """A process's source: sent once, not with every chunk."""

    source: Source

    @classmethod
    def begin(cls, source: Source) -> None:
        cls.source = source

    @classmethod
    def lengths(cls, start: int, stop: int) -> tuple[np.ndarray, Read]:
        return _lengths(cls.source, start, stop)


def _lengths(source: Source, start: int, stop: int) -> tuple[np.ndarray, Read]:
    """int32 [3, stop - start] tokens (or BAD), images and questions' tokens, and what came of the rows."""
    made, left_out = np.zeros((3, stop - start), np.int32), list[LeftOut]()
    for number, row in enumerate(range(start, stop)):
        try:
            encoded = source.encoded(row)
        except BadRow as error:
            made[0, number] = BAD
            left_out.append(LeftOut(row, error.fault, str(error)))
            continue
        if len(encoded.codes):
            made[:, number] = len(encoded.codes), encoded.crops, len(encoded.queries)
        else:
            left_out.append(LeftOut(row, DROPPED, ""))
    return made, Read(stop - start, (), (), tuple(left_out))


@contextlib.contextmanager
def _bar(title: str, rows: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; what it yields moves it on by so many rows."""
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(title, total=rows)
        yield lambda done: bar.advance(task, done)


def _files(config: SourceConfig) -> list[tuple[str, int, float]]:
    """Path, bytes and time of change of what a source's text is read from; empty where that is unknown."""
    if not config.path or config.kind == "pool":
        return []
    path = as_path(config.path)
    try:
        if config.kind == "parquet":
            files = parquet.files_of(config.path, config.split)
        else:
            files = sorted(path.glob("*.json")) if path.is_dir() else [*map(as_path, files_of(config.path))]
        return [(str(file), *size_and_time(file)) for file in files]
    except OSError:
        return []


def _tokenizer_stamp(directory: str) -> str:
    """Hash of a tokenizer's files; of large ones, which are weights beside it, the names alone."""
    stamp = hashlib.sha256()
    for path in sorted(path for path in as_path(directory).iterdir() if path.is_file()):
        size, _ = size_and_time(path)
        stamp.update(path.name.encode() + (path.read_bytes() if size < LARGE else b""))
    return stamp.hexdigest()


def _read(path: Path, rows: int, data: DataConfig) -> np.ndarray | None:
    """The lengths of a file, whose own CRC-32 numpy compares; None if it is absent, damaged or another's."""
    try:
        with np.load(path) as file:
            kept, name = file["lengths"], str(file["name"])
    except Exception:  # numpy, zipfile and zlib each fail in their own ways
        return None
    if name != path.name or kept.shape != (3, rows) or kept.dtype != np.int32:
        return None
    return kept if kept.min() >= BAD and kept[0].max() <= data.max_length else None


def _write(path: Path, made: np.ndarray) -> None:
    """Keeps what was measured; a folder that cannot be written costs the next run the time of a pass."""
    with contextlib.suppress(OSError), replacing(path) as aside, aside.open("wb") as file:
        np.savez(file, lengths=made, name=np.array(path.name))
