"""Named tensors on disk, read one at a time: safetensors files, and pickles on request."""

import collections
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from quecc_jax.convert.io.weight_files import Chosen, choose
from quecc_jax.errors import UserError

Shape = tuple[int, ...]


class TensorSource(Protocol):
    """Tensors of another project's checkpoint; only what `read` returns is in memory."""

    shapes: dict[str, Shape]
    """By name, in the order of the file."""
    dtypes: dict[str, np.dtype]
    """By the same names."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, bit for bit, as an array of its own."""
        ...

    def close(self) -> None: ...


DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Element types of safetensors files that NumPy (with ml_dtypes) can hold."""


def open_tensors(path: str | Path, allow_pickle: bool = False) -> TensorSource:
    """The tensors of a checkpoint directory, see `weight_files.choose`, or of one file of it.

    Args:
      path: a directory, a .safetensors file, or a .bin, .pt or .pth file.
      allow_pickle: also read pickles, by torch's weights-only loader.

    Raises:
      UserError: nothing there to read, a pickle without `allow_pickle` or without torch, or a
        truncated or inconsistent file, by name.
    """
    root = Path(path)
    if root.is_file():
        return _open_file(root, allow_pickle)
    if not root.is_dir():
        raise UserError(f"{root} does not exist; give a directory of weights or one weights file")
    return open_chosen(choose(root), allow_pickle)


def open_chosen(chosen: Chosen, allow_pickle: bool = False) -> TensorSource:
    """The tensors of a directory's weights.

    Raises:
      UserError: see `open_tensors`.
    """
    joined = Joined([(file, _open_file(file, allow_pickle)) for file in chosen.files])
    if chosen.index is None:
        return joined
    for name, file in chosen.index.items():
        found = joined.file_of.get(name)
        if found is None or found.name != file:
            raise UserError(
                f"the index in {chosen.files[0].parent} expects {name} in {file}, which lacks "
                "it; download both again"
            )
    if extra := [name for name in joined.shapes if name not in chosen.index]:
        raise UserError(
            f"{joined.file_of[extra[0]]} holds {extra[0]}, which the index beside it does not "
            "list; the files are of different checkpoints"
        )
    return joined


def _open_file(path: Path, allow_pickle: bool) -> TensorSource:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix not in (".bin", ".pt", ".pth"):
        raise UserError(f"{path} is not a weights file; its name must end in .safetensors, .bin, .pt or .pth")
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can carry code; give a .safetensors file instead, or add "
            "--allow-pickle to read it by torch's weights-only loader"
        )
    return PickleFile(path)


class Joined:
    """The tensors of several files as one source, which closes them."""

    def __init__(self, parts: Iterable[tuple[Path, TensorSource]]):
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.file_of: dict[str, Path] = {}
        self._parts = dict(parts)
        for path, part in self._parts.items():
            for name in part.shapes:
                if name in self.file_of:
                    raise UserError(f"{name} is in {self.file_of[name].name} and again in {path}; keep one")
                self.file_of[name] = path
            self.shapes |= part.shapes
            self.dtypes |= part.dtypes

    def read(self, name: str) -> np.ndarray:
        return self._parts[self.file_of[name]].read(name)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


class _Entry(NamedTuple):
    start: int
    """Byte offset in the file."""
    shape: Shape
    dtype: np.dtype


class SafetensorsFile:
    """One .safetensors file. Tensors are read, not mapped: mapped pages would count as ours.

    Raises:
      UserError: the file is not whole, or its header contradicts itself.
    """

    def __init__(self, path: Path):
        self.path, self._entries = path, _parse_header(path)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.start)
            flat = np.fromfile(file, entry.dtype, math.prod(entry.shape))
        if flat.size != math.prod(entry.shape):
            raise UserError(f"{self.path} ended inside {name}; did it change while being read?")
        return flat.reshape(entry.shape)

    def close(self) -> None:
        """Nothing stays open."""


def _parse_header(path: Path) -> dict[str, _Entry]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise UserError(f"{path} is truncated or not a safetensors file; download it again")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in collections.Counter(name for name, _ in pairs).items():
            if count > 1:
                raise UserError(f"{path} lists {name} {count} times; write it again")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
        header.pop("__metadata__", None)
        entries, end = {}, 0
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if info["dtype"] not in DTYPES:
                raise UserError(
                    f"{path} stores {name} as {info['dtype']}, which is not read here; "
                    f"convert it to one of {', '.join(DTYPES)}"
                )
            dtype, shape = DTYPES[info["dtype"]], tuple(int(d) for d in info["shape"])
            start, stop = info["data_offsets"]
            if start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise UserError(
                    f"{path} is inconsistent at {name}: bytes {start} to {stop} do not hold "
                    f"{shape} of {dtype} after byte {end}; download it again"
                )
            entries[name], end = _Entry(8 + length + start, shape, dtype), stop
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has a broken header ({error}); download it again") from None
    if 8 + length + end != size:
        raise UserError(f"{path} has {size} bytes, its header says {8 + length + end}; download it again")
    return entries


MAPPED = 512 << 20
"""Bytes of a pickle that are read before the file is mapped anew: pages of a mapping that were touched
count as ours until it ends."""


class PickleFile:
    """One file of torch.save, mapped by torch's weights-only loader.

    Raises:
      UserError: torch is not installed, or the file is not a dict of dense tensors.
    """

    def __init__(self, path: Path):
        self.path, self._touched = path, 0
        self._state = state = self._load()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self.dtypes = {name: self._dtype(name, tensor) for name, tensor in state.items()}

    def _load(self) -> dict[str, Any]:
        try:
            import torch
        except ImportError:
            raise UserError(
                f"{self.path} is a pickle and torch is not installed; pip install torch, or give "
                "a .safetensors file"
            ) from None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises half a dozen kinds for a broken or unsafe file
            reason = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"{self.path} cannot be read by torch's weights-only loader ({reason}); "
                "download it again or save it as safetensors"
            ) from None
        if not isinstance(state, dict) or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout == torch.strided
            for k, v in state.items()
        ):
            raise UserError(f"{self.path} is not a dict of named tensors; give the file of the weights")
        return state

    def _dtype(self, name: str, tensor: Any) -> np.dtype:
        kind = str(tensor.dtype).removeprefix("torch.")
        for dtype in DTYPES.values():
            if str(dtype) == kind:
                return dtype
        raise UserError(f"{self.path} stores {name} as {kind}, which is not read here; convert it first")

    def read(self, name: str) -> np.ndarray:
        import torch

        if self._touched > MAPPED:
            self._state, self._touched = {}, 0
        self._state = self._state or self._load()
        # NumPy knows no bfloat16 of torch's: bytes pass between them.
        flat = self._state[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        self._touched += flat.nbytes
        return flat.copy().view(self.dtypes[name]).reshape(self.shapes[name])

    def close(self) -> None:
        self._state = {}
