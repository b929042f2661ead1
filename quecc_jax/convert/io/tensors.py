"""Named tensors on disk, read one at a time: safetensors files, and pickles on request."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from quecc_jax.convert.io.weight_files import Chosen, choose
from quecc_jax.errors import UserError
from quecc_jax.json_text import parsed

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


class SafetensorsFile:
    """One .safetensors file, whose header the safetensors package reads and checks.

    Its tensors are read here: the package maps the file, and mapped pages count as memory of this process
    until the mapping ends, beside the copy that it makes of them.

    Raises:
      UserError: the file is not whole, its header contradicts itself or names a tensor twice, or a type is
        not read here.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self._starts: dict[str, int] = {}
        try:
            with path.open("rb") as file, safe_open(path, "numpy") as header:
                length = int.from_bytes(file.read(8), "little")
                # The package takes the last of two entries of one name.
                parsed(file.read(length).decode())
                self._add(8 + length, {name: header.get_slice(name) for name in header.offset_keys()})
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
        except (SafetensorError, ValueError) as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            message = f"{path} is damaged or not a safetensors file ({reason}); download it again"
            raise UserError(message) from None

    def _add(self, start: int, forms: Mapping[str, Any]) -> None:
        """Takes in tensors in the order of their bytes, which the package has seen to leave no gap."""
        for name, form in forms.items():
            if form.get_dtype() not in DTYPES:
                raise UserError(
                    f"{self.path} stores {name} as {form.get_dtype()}, which is not read here; "
                    f"convert it to one of {', '.join(DTYPES)}"
                )
            self.shapes[name], self.dtypes[name] = tuple(form.get_shape()), DTYPES[form.get_dtype()]
            self._starts[name] = start
            start += math.prod(self.shapes[name]) * self.dtypes[name].itemsize

    def read(self, name: str) -> np.ndarray:
        shape, dtype = self.shapes[name], self.dtypes[name]
        with self.path.open("rb") as file:
            file.seek(self._starts[name])
            flat = np.fromfile(file, dtype, math.prod(shape))
        if flat.size != math.prod(shape):
            raise UserError(f"{self.path} ended inside {name}; did it change while being read?")
        return flat.reshape(shape)

    def close(self) -> None:
        """Nothing stays open."""


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
