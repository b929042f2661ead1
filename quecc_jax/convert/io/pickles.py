"""Tensors as torch.save writes them, one or a dict of them, made without torch.

The file is an archive of stored members: a pickle whose tensors point to the others, one for each
tensor's bytes. torch.load of version 1.6 and later reads it, its weights-only loader too.
"""

import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quecc_jax.convert.io.tensors import TensorSource

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}
"""torch's classes of flat memory, by NumPy's names of the types."""


def save_pickle(tensors: TensorSource, path: Path) -> None:
    """Writes all tensors of a source, which are few and fit into memory one by one.

    Args:
      tensors: floating-point tensors.
      path: the file to write.
    """
    forms = {name: (shape, tensors.dtypes[name]) for name, shape in tensors.shapes.items()}
    named = (_text(name) + _tensor(key, *form) for key, (name, form) in enumerate(forms.items()))
    contents = (tensors.read(name).tobytes() for name in forms)
    _archive(path, path.stem, b"".join([b"}(", *named, b"u"]), contents)


def pickled(array: np.ndarray) -> bytes:
    """One floating-point tensor by itself."""
    file = BytesIO()
    _archive(file, "archive", _tensor(0, array.shape, array.dtype), [np.ascontiguousarray(array).tobytes()])
    return file.getvalue()


def _archive(file: Path | BinaryIO, root: str, pickle: bytes, contents: Iterable[bytes]) -> None:
    """Writes a pickle, but for its frame, and the bytes of the tensors that it numbers."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr(f"{root}/byteorder", "little")
        for key, content in enumerate(contents):
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", "3\n")


def _tensor(key: int, shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), in pickle's opcodes of
    protocol 2."""
    strides = [int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape))]
    storage = [
        _text("storage"),
        b"ctorch\n" + _STORAGES[str(dtype)].encode() + b"\n",
        _text(str(key)),
        _text("cpu"),
        _integer(int(np.prod(shape, dtype=int))),
    ]
    arguments = [
        _tuple(storage) + b"Q",
        _integer(0),
        _tuple(map(_integer, shape)),
        _tuple(map(_integer, strides)),
        b"\x89",
        b"ccollections\nOrderedDict\n)R",
    ]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _tuple(arguments) + b"R"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def _tuple(items: Iterable[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"
