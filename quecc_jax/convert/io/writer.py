"""Safetensors shards written tensor by tensor: the header needs only names, shapes and types."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quecc_jax.convert.io.tensors import DTYPES, Shape
from quecc_jax.data.files import write_json
from quecc_jax.errors import UserError

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: Shape
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes tensors into `model.safetensors`, or into numbered shards with an index; a context.

    Each tensor goes straight to its offset, in any order. The files are whole, and on the disk, once
    the block ends without an error. Write into a directory that only then takes its name.
    """

    def __init__(self, directory: Path, specs: Mapping[str, Spec], shard_bytes: int, name: str = "model"):
        """Lays out the shards and writes their headers.

        Args:
          directory: an existing directory.
          specs: all tensors to come, by name; they fill the shards in this order.
          shard_bytes: bytes of tensors above which a further shard is begun.
          name: what the files' names begin with.
        """
        groups: list[dict[str, Spec]] = [{}]
        for tensor, spec in specs.items():
            if groups[-1] and sum(s.size for s in groups[-1].values()) + spec.size > shard_bytes:
                groups.append({})
            groups[-1][tensor] = spec
        count = len(groups)
        numbers = [f"-{i + 1:05}-of-{count:05}" for i in range(count)] if count > 1 else [""]
        self._directory, self._name = directory, name
        self._specs, self._left = dict(specs), set(specs)
        self._start_of: dict[str, tuple[Path, int]] = {}
        self._headers = {}
        for number, group in zip(numbers, groups, strict=True):
            path = directory / f"{name}{number}.safetensors"
            self._headers[path], starts = _header(group)
            self._start_of |= {tensor: (path, start) for tensor, start in starts.items()}
        self._files: dict[Path, int] = {}

    def __enter__(self) -> "ShardWriter":
        for path, header in self._headers.items():
            self._files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            self._put(path, header, 0)
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes one tensor.

        Raises:
          UserError: the disk is full or cannot be written.
          ValueError: the tensor has another shape or dtype than announced, or was written before.
        """
        spec = self._specs[name]
        if Spec(array.shape, array.dtype) != spec or name not in self._left:
            raise ValueError(f"{name} of {array.shape} {array.dtype} came for {spec} or came twice")
        path, start = self._start_of[name]
        self._put(path, memoryview(_contiguous(array).reshape(-1).view(np.uint8)), start)  # type: ignore[arg-type]
        self._left.remove(name)

    def _put(self, path: Path, data: bytes | memoryview, start: int) -> None:
        left = memoryview(data)
        with _writing(path):
            while len(left):
                count = os.pwrite(self._files[path], left, start)
                left, start = left[count:], start + count

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(os.close, file)
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        if self._left:
            raise ValueError(f"{len(self._left)} tensors were not written, {min(self._left)} among them")
        for path, file in self._files.items():
            with _writing(path):
                os.fsync(file)
        if len(self._files) > 1:
            index = {
                "metadata": {"total_size": sum(spec.size for spec in self._specs.values())},
                "weight_map": {name: self._start_of[name][0].name for name in sorted(self._specs)},
            }
            path = self._directory / f"{self._name}.safetensors.index.json"
            with _writing(path):
                write_json(path, index)


def _contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order. Matrices are transposed tile by tile, three times as fast as NumPy does."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array).reshape(array.shape)
    out, tile = np.empty(array.shape, array.dtype), 64
    for i in range(0, array.shape[0], tile):
        for j in range(0, array.shape[1], tile):
            out[i : i + tile, j : j + tile] = array[i : i + tile, j : j + tile]
    return out


def _header(group: Mapping[str, Spec]) -> tuple[bytes, dict[str, int]]:
    """A shard's bytes up to its first tensor, and where each tensor begins in the file."""
    # Readers of the format ask for this entry, whatever wrote the file.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, spec in group.items():
        offsets[name] = end
        header[name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.size],
        }
        end += spec.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + at for name, at in offsets.items()}


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes a UserError of what goes wrong when `path` is written."""
    try:
        yield
    except OSError as error:
        message = f"{path.name} cannot be written ({error.strerror}); free space, or choose another directory"
        raise UserError(message) from None
