"""What a frozen encoder makes of each image or row, computed once: arrays in ArrayRecord shards.

    NAME.json              fingerprint of the parameters and of what they read, shape, shards; written last
    NAME-*.array_record    float16 of one image or row a record

Beside the images of a pool or of prepared data NAME is `features`, the tower's states [N, K, D] of each
image; beside prepared data also `queries`, the query feature [query_width] of each row, which runs with a
frozen encoder can read. Their size does not depend on V.
"""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import jax
import numpy as np
from numpy.typing import ArrayLike

from quecc_jax.config import ModelConfig
from quecc_jax.config.shapes import state_shape
from quecc_jax.data.references import ImageRef, image_number
from quecc_jax.data.sources.array_record import fault_record, readable
from quecc_jax.data.sources.shards import Records, Shard, delete_notes, find_shard, shard_spans, write_shard
from quecc_jax.distributed import notice
from quecc_jax.errors import BadRow, UserError
from quecc_jax.groups import Group, gathered
from quecc_jax.paths import AnyPath, as_path
from quecc_jax.records import Count, Damaged, read_record, write_record

Name = Literal["features", "queries"]
Encoder = Callable[[np.ndarray], ArrayLike]
"""A frozen tower or question encoder, on batches."""
MAKER = {"features": "tower", "queries": "query encoder"}
ITEMS = 1024
"""Images of one shard: 4.8 GB of CLIP-L/14-336's states in four layers."""
THREADS = 4
"""That read images ahead of the device."""


class Note(TypedDict):
    """What NAME.json says."""

    fingerprint: str
    items: Count
    """Images or rows."""
    shape: list[Count]
    """Of the array of each."""
    shards: list[Shard]


class Features(Sequence[np.ndarray]):
    """Stored arrays, by the number of their image or row.

    Raises:
      BadRow: when one is asked for whose image or row could not be read.
    """

    def __init__(self, directory: AnyPath, note: Note):
        self.records = Records(directory, note["shards"])
        self.shape: tuple[int, ...] = (len(self.records), *note["shape"])
        self.dtype = np.dtype(np.float16)
        self.fingerprint: str = note["fingerprint"]

    def __len__(self) -> int:
        return len(self.records)

    def of_image(self, ref: ImageRef) -> np.ndarray:
        """The states of an image by its reference in a row. Raises BadRow."""
        return self[image_number(ref, len(self))]

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        """float16 of `shape[1:]`."""
        return np.frombuffer(readable(self.records[number]), "<f2").reshape(self.shape[1:])


def write_features(
    directory: AnyPath,
    items: int,
    read: Callable[[int], np.ndarray],
    fn: Encoder,
    batch: int,
    fingerprint: str,
    progress: Callable[[int], None] = lambda done: None,
    name: Name = "features",
    group: Group | None = None,
) -> Features:
    """Stores what an encoder makes of every image or row, unless it is there; continues shard by shard.

    Several groups of processes share out the shards that are missing.

    Args:
      items: how many images or rows there are.
      read: what `fn` reads by its number, uint8 [height, width, 3] for a tower; raises BadRow where there is
        none.
      fn: maps [batch, ...] to [batch, ...], a tower to states [batch, N, K, D]; it always sees full batches.
      fingerprint: says what `fn` and `read` are, see `quecc_jax.fingerprint`.
      progress: called with the number of items done after every batch, in the first group with that of its share.
      group: that makes its share.

    Raises:
      UserError: a value is not finite in float16, there are no items, or the processes do not see one directory.
    """
    group, first = group or Group(), jax.process_index() == 0
    if not items:
        raise UserError(f"{directory} has no images; {name} need some")
    try:
        found = _note(directory, name)
    except Damaged as error:
        notice(f"{error}; that is done now")
        found = None
    if found and found["fingerprint"] == fingerprint and found["items"] == items:
        return Features(directory, found)
    spans = shard_spans(name, items, ITEMS)
    there = list[str]()
    if first:
        _note_path(directory, name).unlink(missing_ok=True)
        there = [file for file, _ in spans if find_shard(directory, file, fingerprint)]
    there = gathered(there)[0]
    if there:
        progress(sum(len(span) for file, span in spans if file in there))
    for file, span in group.share([one for one in spans if one[0] not in there]):
        # The shape of the shard's arrays, if any item of it can be read.
        remarks = list[list[int]]()
        records = _records(span, read, fn, batch, progress, remarks)
        try:
            if group.writes:
                write_shard(directory, file, fingerprint, records, remarks)
            else:
                collections.deque(records, 0)
        except FloatingPointError:
            raise UserError(
                f"the {MAKER[name]}'s {name} of {directory} leave the range of float16; "
                f"train without them (data.cached_{name} = False)"
            ) from None
    gathered(None)
    if first:
        _list_shards(directory, items, fingerprint, name)
    gathered(None)
    progress(items)
    return read_features(directory, fingerprint, name)


def _list_shards(directory: AnyPath, items: int, fingerprint: str, name: Name) -> None:
    """Writes NAME.json of all shards, in the place of the notes beside them. Raises UserError where one is missing."""
    found = [find_shard(directory, file, fingerprint) for file, _ in shard_spans(name, items, ITEMS)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        raise UserError(
            f"{len(found) - len(known)} shards that were just written are not in {directory}; name a directory "
            "that all hosts see, and that nobody else writes to"
        )
    shards, shape = [shard for shard, _ in known], next((remarks[0] for _, remarks in known if remarks), [0])
    value = {"fingerprint": fingerprint, "items": items, "shape": shape, "shards": shards}
    write_record(_note_path(directory, name), value, indent=None)
    delete_notes(directory, shards)


def _records(
    numbers: range,
    read: Callable[[int], np.ndarray],
    fn: Encoder,
    batch: int,
    progress: Callable[[int], None],
    shape: list[list[int]],
) -> Iterator[bytes]:
    """The records of a shard's items; `shape` gets that of their arrays. Raises FloatingPointError where a
    value is not finite in float16."""

    def attempt(number: int) -> np.ndarray | BadRow:
        try:
            return read(number)
        except BadRow as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = pool.map(attempt, numbers)
        for first in range(0, len(numbers), batch):
            taken = list(itertools.islice(waiting, batch))
            good = [item for item in taken if not isinstance(item, BadRow)]
            if good:
                padded = np.stack(good + [good[-1]] * (batch - len(good)))
                with np.errstate(over="ignore"):
                    arrays = np.asarray(fn(padded))[: len(good)].astype("<f2")
                if not np.isfinite(arrays).all():
                    raise FloatingPointError
                shape[:] = [list(arrays.shape[1:])]
                encoded = iter(arrays)
            for item in taken:
                yield fault_record(item) if isinstance(item, BadRow) else next(encoded).tobytes()
            progress(numbers.start + first + len(taken))


def read_features(directory: AnyPath, fingerprint: str | None = None, name: Name = "features") -> Features:
    """Opens what `write_features` has stored.

    Args:
      fingerprint: what they must be of; None takes any.

    Raises:
      UserError: there are none, or they are of other parameters or other preprocessing.
    """
    note = _note(directory, name)
    if note is None:
        raise UserError(
            f"{directory} has no {name}; write them with python -m launch.prepare_data "
            f"--{name}, or set data.cached_{name} = False"
        )
    found = note["fingerprint"]
    if fingerprint is not None and found != fingerprint:
        raise UserError(
            f"the {name} of {directory} are of another {MAKER[name]} or other preprocessing "
            f"({found}, not {fingerprint}); write them anew, or set data.cached_{name} = False"
        )
    return Features(directory, note)


def read_tower_features(directory: str, model: ModelConfig, fingerprint: str | None) -> Features:
    """Opens stored tower states of the shape that the model reads.

    Raises:
      UserError: there are none, or they are of another tower.
    """
    found = read_features(directory, fingerprint)
    wanted = state_shape(model.tower)
    if found.shape[1:] != wanted:
        raise UserError(
            f"the features of {directory} are {found.shape[1:]} per image but "
            f"model.vision and {model.compressor.name} ask for {wanted} (patches, states, "
            "width); write them anew"
        )
    return found


def _note_path(directory: AnyPath, name: Name) -> Path:
    return as_path(directory) / f"{name}.json"


def _note(directory: AnyPath, name: Name) -> Note | None:
    path, advice = _note_path(directory, name), f"write the {name} anew"
    try:
        note = read_record(path, Note, advice)
    except FileNotFoundError:
        return None
    if any(not shard.name.startswith(f"{name}-") for shard in note["shards"]):
        raise Damaged(f"{path} tells of other arrays than {name}; {advice}")
    return note
