"""Making prepared data: images by several processes, shard by shard, then the rows, then the manifest."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

from quecc_jax.data.files import size_and_time
from quecc_jax.data.preparing.image_shards import Find, Job, Progress, image_shards
from quecc_jax.data.references import ImageRef, Row, image_path, image_refs
from quecc_jax.data.sources.array_record import FORMAT, MANIFEST, Manifest, Recipe, fault_record
from quecc_jax.data.sources.folders import Folders
from quecc_jax.data.sources.mixture import Mixture, open_rows
from quecc_jax.data.sources.parquet import ParquetRows
from quecc_jax.data.sources.shards import Shard, delete_notes, find_shard, shard_spans, write_shard
from quecc_jax.data.sources.source import Placed
from quecc_jax.errors import BadRow, UserError
from quecc_jax.paths import AnyPath, as_path, is_remote, write_text
from quecc_jax.records import write_record

SHARD_IMAGES = 4096
"""Images of one shard."""
ROWS = 65_536
"""Rows of one shard."""
LISTED = 20
"""Unreadable rows and images that the manifest names; it counts all of them."""


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
      workers: processes that read images, at least one.
      progress: called now and then.
      The others are those of `Order`.

    Returns:
      The manifest.

    Raises:
      UserError: the file or an image cannot be read or the file has no rows, or `out` was made from something
        else.
    """
    order = Order(data, images, out, recipe, split, skip_bad, shard_images, shard_rows)
    return prepare_order(order, workers, progress)


def prepare_order(
    order: "Order", workers: int = 1, progress: Progress = lambda done, total: None
) -> Manifest:
    """As `prepare`."""
    plan = _planned(order)
    pictures = image_shards(plan.jobs, plan.find, workers, progress)
    return _finished(plan, pictures, [_row_shard(plan, number) for number in range(len(plan.row_spans))])


class Order(NamedTuple):
    """What is to be prepared, and how."""

    data: AnyPath
    """.json or .jsonl file, or a mixture of such files; or a Parquet file or a folder of some."""
    images: tuple[str, ...]
    """Folders of its images; none of Parquet, which holds them."""
    out: AnyPath
    """Directory to write, here or in a bucket."""
    recipe: Recipe
    """How images are stored."""
    split: str = "train"
    """As of `ParquetRows`."""
    skip_bad: bool = False
    """Go on at unreadable rows and images, which are counted and stay unreadable in what is written; otherwise the
    first one ends the call."""
    shard_images: int = SHARD_IMAGES
    shard_rows: int = ROWS


def prepare_part(
    order: Order, part: int, parts: int, workers: int = 1, progress: Progress = lambda done, total: None
) -> list[Shard]:
    """Writes every `parts`-th shard from number `part` on, of images and of rows, and no manifest: that is for
    `merge_parts`, once all parts are there. Parts may be written at once, on several hosts.

    Returns:
      Its shards.

    Raises:
      UserError: as `prepare`.
    """
    plan = _planned(order)
    pictures = image_shards(plan.jobs[part::parts], plan.find, workers, progress)
    rows = [_row_shard(plan, number) for number in range(len(plan.row_spans))[part::parts]]
    return [shard for shard, _ in pictures] + rows


def merge_parts(order: Order) -> Manifest:
    """Writes the manifest of parts that are all there: what `prepare` would have written, bit by bit.

    Raises:
      UserError: a shard is missing, damaged, or was made of something else; or as `prepare`.
    """
    plan = _planned(order)
    wanted = [(job.name, job.key) for job in plan.jobs] + [(name, plan.key) for name, _ in plan.row_spans]
    found = [find_shard(order.out, name, key) for name, key in wanted]
    lost = [name for (name, _), one in zip(wanted, found, strict=True) if one is None]
    if lost:
        there = (as_path(order.out) / lost[0]).exists()
        what = "is damaged, or was made of other data" if there else "is missing"
        more = f" (and {len(lost) - 1:,} more like it)" if len(lost) > 1 else ""
        raise UserError(f"{order.out}/{lost[0]} {what}{more}; run the parts again that did not end")
    shards = [one for one in found if one is not None]
    return _finished(plan, shards[: len(plan.jobs)], [shard for shard, _ in shards[len(plan.jobs) :]])


class _Plan(NamedTuple):
    """Every shard of an order."""

    order: Order
    rows: Placed
    key: str
    find: Find
    refs: dict[ImageRef, int]
    """The number of every image."""
    bad: dict[int, BadRow]
    """What is wrong with rows, by their number."""
    jobs: list[Job]
    row_spans: list[tuple[str, range]]


def _planned(order: Order) -> _Plan:
    rows = open_filled(order.data, order.images, order.split)
    key = _begin(rows, order)
    refs, bad = _images_of(rows, order.skip_bad)
    files, find = list(refs), finder(rows, order.images)
    jobs = [
        Job(str(order.out), name, _key_of(key, find, held), held, order.recipe, order.skip_bad)
        for name, span in shard_spans("pictures", len(files), order.shard_images)
        for held in [files[span.start : span.stop]]
    ]
    return _Plan(order, rows, key, find, refs, bad, jobs, shard_spans("rows", len(rows), order.shard_rows))


def _finished(plan: _Plan, pictures: list[tuple[Shard, list[str]]], row_shards: list[Shard]) -> Manifest:
    """Writes the manifest, which takes over what the notes of shards say."""
    order, lost = plan.order, [line for _, remarks in pictures for line in remarks]
    shards = {"pictures": [shard for shard, _ in pictures], "rows": row_shards}
    messages = [*(str(error.at(plan.rows.where(number))) for number, error in plan.bad.items()), *lost]
    manifest: Manifest = {
        "format": FORMAT,
        "recipe": vars(order.recipe),
        "source": str(order.data),
        "images": list(order.images),
        "rows": len(plan.rows),
        "pictures": len(plan.refs),
        "unreadable": {"rows": len(plan.bad), "pictures": len(lost), "first": messages[:LISTED]},
        "bytes": sum(shard.bytes for group in shards.values() for shard in group),
        "shards": shards,
    }
    write_record(f"{order.out}/{MANIFEST}", manifest)
    for group in shards.values():
        delete_notes(order.out, group)
    return manifest


def open_filled(data: AnyPath, images: tuple[str, ...], split: str) -> Placed:
    """The rows of an order.

    Raises:
      UserError: the file cannot be read or has no rows, or Parquet has folders of images beside it.
    """
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


def finder(rows: Placed, images: tuple[str, ...]) -> Find:
    """Where the images of some rows are."""
    return rows.image if isinstance(rows, ParquetRows) else Folders(images).find


def _begin(rows: Placed, order: Order) -> str:
    """The key of this work, after checking that `out` holds none of another.

    It covers every byte of the rows: where they were changed or put into another order since an interrupted call,
    its shards, whose images the rows name by number, are made anew.
    """
    out = order.out
    work: dict[str, object] = {
        "source": rows.path,
        "bytes": rows.size,
        "rows": len(rows),
        "images": list(order.images),
        "recipe": vars(order.recipe),
        "shards": (order.shard_images, order.shard_rows),
    }
    if isinstance(rows, Mixture):
        work["parts"] = rows.parts
    if isinstance(rows, ParquetRows):
        work["files"] = rows.names
    text, strict = (
        json.dumps(work | {"skip_bad": skips}, sort_keys=True) for skips in (order.skip_bad, False)
    )
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


def _row_shard(plan: _Plan, shard: int) -> Shard:
    """Writes a shard of rows, unless it is there."""
    rows, (name, span) = plan.rows, plan.row_spans[shard]

    def records() -> Iterator[bytes]:
        for number in span:
            row = fault_record(plan.bad[number]) if number in plan.bad else rows[number]
            if isinstance(row, dict) and (found := _named(rows, row)):
                named = {} if isinstance(rows, ParquetRows) else {"image_files": found}
                row = {**row, "image": [plan.refs[ref] for ref in found], **named}
            yield row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()

    known = find_shard(plan.order.out, name, plan.key)
    return known[0] if known else write_shard(plan.order.out, name, plan.key, records())
