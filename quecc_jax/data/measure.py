"""How long every row is: one pass over the text of all rows, kept on disk for the next run."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.batching import Measures
from quecc_jax.data.faults import DROPPED, LeftOut, Read, Tally
from quecc_jax.data.sources import Source
from quecc_jax.errors import BadRow
from quecc_jax.paths import is_remote, place

FORMAT = 1
"""Raise it when the same rows come to have other lengths."""
CHUNK = 1024
"""Rows after which the pass shows how far it is and looks whether too many are bad."""


def measure(sources: Sequence[Source], data: DataConfig, visual_tokens: int) -> Measures:
    """Tokens and pictures of every row, without reading pictures; rows that are left out have none.

    The lengths of files are kept in `data.cache`, under the files' size and time of change and all settings
    that lengths depend on. Pools have theirs at hand.

    Args:
      sources: of a run, in its order.
      data: policies for bad and long rows, the cache folder, and what lengths depend on.
      visual_tokens: slots V of a picture.

    Raises:
      UserError: a row is bad and may not be, or too large a share of them is.
    """
    parts = [_one(source, config, data, visual_tokens)
             for source, config in zip(sources, data.sources, strict=True)]  # fmt: skip
    return Measures(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _one(source: Source, config: SourceConfig, data: DataConfig, visual_tokens: int) -> Measures:
    files, path = _files(config), None
    if files:
        settings = (FORMAT, files, _tokenizer_stamp(data.tokenizer), visual_tokens, data.template,
                    data.image_place, data.labels, data.max_length, data.images_per_row, data.too_long)
        name = hashlib.sha256(repr(settings).encode()).hexdigest()[:24]
        path = cache_folder(data) / f"lengths-{name}.npy"
        if (kept := _read(path, len(source))) is not None and (data.bad_rows == "skip" or kept.tokens.all()):
            return kept
    made = np.zeros((2, len(source)), np.int32)
    tally = Tally(data, len(source))
    for start, stop in _chunks(len(source), f"lengths of {config.path or config.kind}"):
        bad = list[LeftOut]()
        for row in range(start, stop):
            try:
                encoded = source.encoded(row)
            except BadRow as error:
                bad.append(LeftOut(row, error.fault, str(error)))
                continue
            made[:, row] = len(encoded.codes), source.pictures(row) if len(encoded.codes) else 0
            if not len(encoded.codes):
                bad.append(LeftOut(row, DROPPED, ""))
        tally.add(Read(stop - start, (), tuple(bad)))
    if path is not None:
        _write(path, made)
    return Measures(*made)


def _chunks(rows: int, title: str) -> Iterator[tuple[int, int]]:
    """Stretches of all rows, with a bar on a terminal."""
    bar = Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=Console(stderr=True),
                   disable=not sys.stderr.isatty(), transient=True)  # fmt: skip
    with bar:
        task = bar.add_task(title, total=rows)
        for start in range(0, rows, CHUNK):
            stop = min(start + CHUNK, rows)
            yield start, stop
            bar.update(task, completed=stop)


def _files(config: SourceConfig) -> list[tuple[str, int, float]]:
    """Path, bytes and time of change of what a source's text is read from; empty where that is unknown."""
    if not config.path or config.kind == "pool":
        return []
    path = place(config.path)
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in files]
    except OSError:
        return []
    if is_remote(config.path):
        return [(name, stat.length, stat.mtime) for name, stat in stats]  # type: ignore[attr-defined]
    return [(name, stat.st_size, stat.st_mtime) for name, stat in stats]


def cache_folder(data: DataConfig) -> Path:
    """Where lengths are kept."""
    if data.cache:
        return Path(data.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quecc_jax"


def _tokenizer_stamp(directory: str) -> str:
    files = sorted(path for path in Path(directory).glob("*") if path.is_file())
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def _read(path: Path, rows: int) -> Measures | None:
    try:
        kept = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return Measures(*kept) if kept.shape == (2, rows) and kept.dtype == np.int32 else None


def _write(path: Path, made: np.ndarray) -> None:
    """Keeps what was measured; a folder that cannot be written costs the next run the time of a pass."""
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.save(file, made)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
