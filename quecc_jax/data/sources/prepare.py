"""Making prepared data: images by several processes, shard by shard, then the rows, then the manifest."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, NamedTuple, cast

import numpy as np

from quecc_jax.data.files import size_and_time
from quecc_jax.data.images import fit, open_image
from quecc_jax.data.references import ImageRef, Row, image_path, image_refs
from quecc_jax.data.sources.array_record import FORMAT, MANIFEST, Manifest, Recipe, fault_record
from quecc_jax.data.sources.folders import Folders
from quecc_jax.data.sources.mixture import Mixture, open_rows
from quecc_jax.data.sources.parquet import ParquetRows
from quecc_jax.data.sources.shards import Shard, delete_notes, find_shard, shard_spans, write_shard
from quecc_jax.data.sources.source import Placed
from quecc_jax.errors import BadRow, UserError, disk_faults
from quecc_jax.paths import AnyPath, as_path, is_remote, write_text
from quecc_jax.records import write_record

SHARD_IMAGES = 4096
"""Images of one shard."""
ROWS = 65_536
"""Rows of one shard."""
TOLD = 32
"""Images between two words of a process about its progress."""
LISTED = 20
"""Unreadable rows and images that the manifest names; it counts all of them."""

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


def prepare(
    data: AnyPath,
    images: tuple[str, ...],
    out: AnyPath,
    recipe: Recipe,
    *,
    split: str = "train",
    skip_bad: bool = False,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
    shard_images: int = SHARD_IMAGES,
    shard_rows: int = ROWS,
) -> Manifest:
    """Writes the rows of a LLaVA file and their images as a prepared directory.

    What an interrupted call of the same arguments has left is kept, shard by shard.

    Args:
      data: .json or .jsonl file, or a mixture of such files; or a Parquet file or a folder of some.
      images: folders of its images; none of Parquet, which holds them.
      out: directory to write, here or in a bucket.
      recipe: how images are stored.
      split: as of `ParquetRows`.
      skip_bad: go on at unreadable rows and images, which are counted and stay unreadable in what is
        written; otherwise the first one ends the call.
      workers: processes that read images, at least one.
      progress: called now and then.

    Returns:
      The manifest.

    Raises:
      UserError: the file or an image cannot be read or the file has no rows, or `out` was made from something
        else.
    """
    rows = _open_filled(data, images, split)
    key = _begin(rows, images, out, recipe, skip_bad, (shard_images, shard_rows))
    refs, bad = _images_of(rows, skip_bad)
    files = list(refs)
    find = _finder(rows, images)
    jobs = [
        Job(str(out), name, _key_of(key, find, held), held, recipe, skip_bad)
        for name, span in shard_spans("pictures", len(files), shard_images)
        for held in [files[span.start : span.stop]]
    ]
    image_shards, lost = _image_shards(jobs, find, workers, progress)
    shards = {"pictures": image_shards, "rows": _row_shards(rows, refs, bad, out, key, shard_rows)}
    messages = [*(str(error.at(rows.where(number))) for number, error in bad.items()), *lost]
    manifest: Manifest = {
        "format": FORMAT,
        "recipe": vars(recipe),
        "source": str(data),
        "images": list(images),
        "rows": len(rows),
        "pictures": len(files),
        "unreadable": {"rows": len(bad), "pictures": len(lost), "first": messages[:LISTED]},
        "bytes": sum(shard.bytes for group in shards.values() for shard in group),
        "shards": shards,
    }
    write_record(f"{out}/{MANIFEST}", manifest)
    for group in shards.values():
        delete_notes(out, group)
    return manifest


def _open_filled(data: AnyPath, images: tuple[str, ...], split: str) -> Placed:
    rows: Placed
    if as_path(data).is_dir() or as_path(data).suffix == ".parquet":
        if images:
            raise UserError(f"{os.fspath(data)} is Parquet and holds its images; leave --images out")
        rows = ParquetRows(data, split)
    else:
        rows = open_rows(data)
    if not len(rows):
        raise UserError(f"{os.fspath(data)} has no rows; give a file of conversations")
    return rows


def _finder(rows: Placed, images: tuple[str, ...]) -> Find:
    return rows.image if isinstance(rows, ParquetRows) else Folders(images).find


def _begin(
    rows: Placed,
    images: tuple[str, ...],
    out: AnyPath,
    recipe: Recipe,
    skip_bad: bool,
    sizes: tuple[int, int],
) -> str:
    """The key of this work, after checking that `out` holds none of another.

    It covers every byte of the rows: where they were changed or put into another order since an interrupted call,
    its shards, whose images the rows name by number, are made anew.
    """
    work: dict[str, object] = {
        "source": rows.path,
        "bytes": rows.size,
        "rows": len(rows),
        "images": list(images),
        "recipe": vars(recipe),
        "shards": sizes,
    }
    if isinstance(rows, Mixture):
        work["parts"] = rows.parts
    if isinstance(rows, ParquetRows):
        work["files"] = rows.names
    text, strict = (json.dumps(work | {"skip_bad": skips}, sort_keys=True) for skips in (skip_bad, False))
    folder = as_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        raise UserError(f"{out} is prepared already (it has a {MANIFEST}); delete it or choose another place")
    made_of = ("features", "queries", ".features-", ".queries-")
    if old := sorted(path.name for path in folder.iterdir() if path.name.startswith(made_of)):
        raise UserError(f"{out} holds {old[0]}, which is of data that were here before; delete it first")
    note = folder / "work.json"
    # Shards that were written where every image had to be readable are the same where some may not be.
    if note.exists() and note.read_bytes() not in (text.encode(), strict.encode()):
        raise UserError(
            f"{out} holds a part of other data or of other settings ({note.name} says which); "
            "delete it or choose another place"
        )
    write_text(f"{out}/work.json", text)
    return hashlib.sha256(f"{strict} {rows.stamp}".encode()).hexdigest()[:16]


def _key_of(key: str, find: Find, images: list[ImageRef]) -> str:
    """The key of a shard of images: of the work, their paths, and of those on this machine bytes and time of change."""
    stamps = list[tuple[ImageRef, int, float]]()
    for image in images:
        stamp = (0, 0.0)
        # What is missing is said when it is read; what a table holds changes with the table's own stamp.
        with contextlib.suppress(BadRow, OSError, ValueError):
            path = find(image) if isinstance(image, str) else None
            stamp = size_and_time(path) if isinstance(path, str) and not is_remote(path) else stamp
        stamps.append((image, *stamp))
    return hashlib.sha256(f"{key} {stamps}".encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _named(rows: Placed, row: Row) -> list[ImageRef]:
    """The images of a row. Raises BadRow where a file of rows names one by something else than a path."""
    refs = image_refs(row)
    return refs if isinstance(rows, ParquetRows) else [image_path(ref) for ref in refs]


def _images_of(rows: Placed, skip_bad: bool) -> tuple[dict[ImageRef, int], dict[int, BadRow]]:
    """The number of every image by its reference, in the order of the rows, and what is wrong with rows."""
    refs: dict[ImageRef, int] = {}
    bad: dict[int, BadRow] = {}
    for number in range(len(rows)):
        try:
            found = _named(rows, rows[number])
        except BadRow as error:
            if not skip_bad:
                raise UserError(
                    f"{error.at(rows.where(number))}; or count such rows with --bad skip"
                ) from None
            bad[number] = error
            continue
        for ref in found:
            refs.setdefault(ref, len(refs))
    return refs, bad


def _row_shards(
    rows: Placed, refs: dict[ImageRef, int], bad: dict[int, BadRow], out: AnyPath, key: str, per_shard: int
) -> list[Shard]:
    def records(span: range) -> Iterator[bytes]:
        for number in span:
            row = fault_record(bad[number]) if number in bad else rows[number]
            if isinstance(row, dict) and (found := _named(rows, row)):
                named = {} if isinstance(rows, ParquetRows) else {"image_files": found}
                row = {**row, "image": [refs[ref] for ref in found], **named}
            yield row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()

    shards = []
    for name, span in shard_spans("rows", len(rows), per_shard):
        known = find_shard(out, name, key)
        shards.append(known[0] if known else write_shard(out, name, key, records(span)))
    return shards


def _image_shards(
    jobs: list[Job], find: Find, workers: int, progress: Progress
) -> tuple[list[Shard], list[str]]:
    """Writes what is not there yet; returns the shards and what is wrong with images, in order."""
    total = sum(len(job.images) for job in jobs)
    known = [find_shard(job.directory, job.name, job.key) for job in jobs]
    missing = [number for number, found in enumerate(known) if found is None]
    before = sum(found[0].records for found in known if found)
    left = [jobs[number] for number in missing]
    for number, written in _parallel(left, find, workers, lambda done: progress(before + done, total)):
        known[missing[number]] = written
    progress(total, total)
    found = [item for item in known if item is not None]
    return [shard for shard, _ in found], [line for _, remarks in found for line in remarks]


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
    image = fit(open_image(found, recipe.decoding), recipe.size, recipe.aspect)
    if recipe.encoding == "raw":
        return np.asarray(image).tobytes()
    file = BytesIO()
    options = {"quality": recipe.quality, "subsampling": 0} if recipe.encoding == "jpeg" else {}
    image.save(file, recipe.encoding.upper(), **options)
    return file.getvalue()


def inline_rows(
    data: AnyPath, images: tuple[str, ...], recipe: Recipe, *, split: str = "train", skip_bad: bool = False
) -> Iterator[dict[str, object]]:
    """The rows of a LLaVA file, or of Parquet, with their images' records in them, as `tfds.LlavaRows` takes them.

    Raises:
      UserError: the file cannot be read or has no rows; and from the iterator, a row or an image cannot be
        read; with `skip_bad` such rows are left out.
    """
    return _inline(_open_filled(data, images, split), images, recipe, skip_bad)


def _inline(
    rows: Placed, images: tuple[str, ...], recipe: Recipe, skip_bad: bool
) -> Iterator[dict[str, object]]:
    find = _finder(rows, images)
    for number in range(len(rows)):
        try:
            row = rows[number]
            try:
                found = [stored(find(ref), recipe) for ref in image_refs(row)]
                said = cast(list[dict[str, str]], row["conversations"])
                turns = [{"from": turn["from"], "value": turn["value"]} for turn in said]
            except (AttributeError, KeyError, TypeError):
                raise BadRow(
                    "turns", "it has no list of conversations with 'from' and 'value'; write one"
                ) from None
        except BadRow as error:
            if not skip_bad:
                raise UserError(
                    f"{error.at(rows.where(number))}; or leave such rows out with --bad skip"
                ) from None
            continue
        yield {"id": str(row.get("id", number)), "images": found, "conversations": turns}
