"""Parameters on disk, one layer at a time: what training loads and saves, without a whole stack in memory.

Orbax writes a checkpoint's own files and metadata. Its arrays are zarr3 arrays in an OCDBT store, each
under the leaf's path joined by dots; here they are opened one by one through tensorstore.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorstore as ts
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from quecc_jax.checksums import list_files
from quecc_jax.config import RunConfig
from quecc_jax.config.weights import FORMS
from quecc_jax.convert.io.writer import Spec
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import PyTree, Rule, Shape, Slab, leaf_shapes
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.quantized import SCALE, dequantize
from quecc_jax.models.teacher import TEACHER
from quecc_jax.paths import as_path
from quecc_jax.train.checkpoint import check_files_of, check_frozen
from quecc_jax.train.initial import refuse_other_model
from quecc_jax.train.orbax_shim import quiet_libraries
from quecc_jax.train.run_dir import load_run_config

BATCH = 64 << 20
"""Bytes of slabs that are brought to the disk together: one by one, small ones would wait for it."""

CHUNK = 16 << 20
"""Bytes above which a slab is stored in several pieces, so that a mesh's hosts read little but their own."""


class SlabWriter:
    """A checkpoint that `load_params` reads, written slab by slab in any order; a context.

    Write into a directory that takes its name only afterwards: until the block ends, the checkpoint
    looks whole and is not.
    """

    def __init__(self, checkpoint: Path, rules: Iterable[Rule], dtypes: Mapping[LeafPath, np.dtype]):
        """
        Args:
          checkpoint: the checkpoint's directory, which must not exist.
          rules: whose slabs are to come; together they fill every leaf.
          dtypes: how each leaf is stored.
        """
        rules = list(rules)
        self._checkpoint, self._folder = checkpoint.absolute(), checkpoint.absolute() / "params"
        self._specs = {path: Spec(shape, dtypes[path]) for path, shape in leaf_shapes(rules).items()}
        self._left = {(slab.path, slab.layer) for rule in rules for slab in rule.ours}
        self._stacked = {path for path, layer in self._left if layer is not None}
        self._context = _context()
        self._arrays: dict[LeafPath, ts.TensorStore] = {}
        self._transaction, self._waiting = ts.Transaction(), 0

    def __enter__(self) -> "SlabWriter":
        # Orbax lays down everything that says which leaves there are; the one-byte arrays it stores for
        # them are replaced.
        tree = unflatten_dict({path: np.zeros((), np.uint8) for path in self._specs})
        with _writing():
            with quiet_libraries():
                ocp.save_checkpointables(self._checkpoint, {"params": tree})
            store = ts.KvStore.open(_store(self._folder), context=self._context).result()
            store.delete_range(ts.KvStore.KeyRange()).result()
            for path, spec in self._specs.items():
                self._arrays[path] = self._create(path, spec)
            self._commit()
        return self

    def _create(self, path: LeafPath, spec: Spec) -> ts.TensorStore:
        stacked = path in self._stacked
        chunk = (1, *_pieces(spec.shape[1:], spec.dtype)) if stacked else _pieces(spec.shape, spec.dtype)
        metadata = {
            "shape": spec.shape,
            "data_type": str(spec.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
                {"name": "crc32c"},
            ],
        }
        # Zeros are data too: a chunk that is absent counts as lost when the leaf is loaded.
        array = _array(self._folder, path) | {"metadata": metadata, "store_data_equal_to_fill_value": True}
        return ts.open(array, create=True, context=self._context, transaction=self._transaction).result()

    def _commit(self) -> None:
        self._transaction.commit_sync()
        self._transaction, self._waiting = ts.Transaction(), 0

    def write(self, slab: Slab, array: np.ndarray) -> None:
        """Stores one slab, on the disk at the latest when the block ends.

        Raises:
          UserError: the disk is full or cannot be written.
          ValueError: the slab is of another shape or dtype than announced, or came before.
        """
        key, dtype = (slab.path, slab.layer), self._specs[slab.path].dtype
        if (array.shape, array.dtype) != (slab.shape, dtype) or key not in self._left:
            raise ValueError(f"{slab} came as {array.shape} {array.dtype}, not {dtype}, or came twice")
        store = self._arrays[slab.path].with_transaction(self._transaction)
        with _writing():
            (store if slab.layer is None else store[slab.layer]).write(array).result()
            self._waiting += array.nbytes
            if self._waiting >= BATCH:
                self._commit()
        self._left.remove(key)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._transaction.abort()
            return
        if self._left:
            first = min(map(str, self._left))
            raise ValueError(f"{len(self._left)} slabs were not written, {first} among them")
        with _writing():
            self._commit()
            list_files(self._checkpoint, name=self._checkpoint.name)


class SlabReader:
    """Parameters of a run's newest checkpoint and its frozen ones, read slab by slab.

    A run on cached features has no tower; it comes from the run that its `tower_from` names. A distilled run's
    teacher is left out. A damaged newest checkpoint is an error: an older one would not be what was meant to be
    exported.

    Attributes:
      config: the run's settings, with its own tokenizer.
      shapes: of whole leaves, by path.
      dtypes: of the leaves as stored; matrices of few bits (`models.quantized`) are read as float32.

    Raises:
      UserError: not a run's directory, or no readable checkpoint.
    """

    def __init__(self, run_dir: Path):
        self.run = as_path(run_dir)
        self.config: RunConfig = load_run_config(self.run)
        steps = [int(p.name) for p in (self.run / "checkpoints").glob("*") if p.name.isdigit()]
        if not steps:
            raise UserError(f"{self.run} holds no checkpoint; train it first, or give another run")
        self._newest, self._context = self.run / "checkpoints" / str(max(steps)), _context()
        self._folder_of: dict[LeafPath, Path] = {}
        frozen = self.run / "frozen"
        # Orbax, tensorstore and json each fail in their own ways.
        with _reading(self._newest, (Exception,)), quiet_libraries():
            check_files_of(self.run, max(steps))
            saved = ocp.checkpointables_metadata(self._newest)
        if frozen.is_dir():
            self._add(frozen, lambda: dict(ocp.metadata(frozen).metadata))
        self._add(self._newest, lambda: dict(saved.metadata["params"]))
        check_frozen(self.run, max(steps), saved.custom_metadata)
        towers = {"vision"} if self.config.model.query.reads_decoder else {"vision", "text"}
        absent = towers - {path[0] for path in self._folder_of}
        if self.config.tower_from and absent:
            self._folder_of |= self._borrowed(absent)
        self._arrays = {path: self._open(path) for path in self._folder_of}
        self._forms = {path[:-1]: path[-1] for path in self._arrays if path[-1] in FORMS}
        whole = {p: a for p, a in self._arrays.items() if p[:-1] not in self._forms}
        self.shapes: dict[LeafPath, Shape] = {p: tuple(a.shape) for p, a in whole.items()}
        self.dtypes = {p: np.dtype(a.dtype.numpy_dtype) for p, a in whole.items()}
        for path, form in self._forms.items():
            self.shapes[path] = tuple(self._arrays[*path, form].shape)
            self.dtypes[path] = np.dtype(np.float32)

    def _borrowed(self, names: set[str]) -> dict[LeafPath, Path]:
        """Where the leaves of absent towers lie, if they are those of this run's model."""
        other, model = SlabReader(Path(self.config.tower_from)), self.config.model
        found = {path: folder for path, folder in other._folder_of.items() if path[0] in names}
        parts = {path[0] for path in found}
        refuse_other_model("tower_from", self.config.tower_from, other.config.model, model, parts)
        spare = () if model.vision.post_norm else ("vision", "post_norm")
        return {path: folder for path, folder in found.items() if path[:2] != spare}

    def _add(self, directory: Path, metadata: Callable[[], PyTree]) -> None:
        """Notes where the leaves that a checkpoint's metadata names lie."""
        # Orbax, tensorstore and json each fail in their own ways.
        with _reading(directory, (Exception,)):
            with quiet_libraries():
                leaves = flatten_dict(metadata())
            if not leaves:  # what orbax makes of a damaged store
                raise ValueError("it is damaged")
            # Orbax has changed how it names the folder of a tree that is saved by itself.
            (folder,) = (p.parent for p in directory.glob("*/_METADATA") if p.parent.name != "optimizer")
        self._folder_of |= {path: folder for path in leaves if path[0] != TEACHER}

    def _open(self, path: LeafPath) -> ts.TensorStore:
        with _reading(self._folder_of[path]):
            return ts.open(_array(self._folder_of[path], path), open=True, context=self._context).result()

    def read(self, slab: Slab) -> np.ndarray:
        """One slab as it is stored, or dequantized.

        Raises:
          UserError: the checkpoint cannot be read.
        """
        form = self._forms.get(slab.path)
        if form is None:
            return self._read(slab)
        parts = {
            part: self._read(dataclasses.replace(slab, path=(*slab.path, part))) for part in (form, SCALE)
        }
        return np.asarray(dequantize(parts))

    def _read(self, slab: Slab) -> np.ndarray:
        store = self._arrays[slab.path]
        with _reading(self._folder_of[slab.path]):
            return np.asarray((store if slab.layer is None else store[slab.layer]).read().result())


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Makes a UserError of what goes wrong when a checkpoint is written."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:300]
        message = f"the checkpoint cannot be written ({reason}); free space, or choose another directory"
        raise UserError(message) from None


@contextlib.contextmanager
def _reading(where: Path, kinds: tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[None]:
    """Makes a UserError of what goes wrong when `where` is read."""
    try:
        yield
    except kinds as error:
        reason = str(error).partition("\n")[0][:300]
        raise UserError(f"{where} cannot be read ({reason}); restore it, or export another run") from None


def _context() -> ts.Context:
    """A context that caches where arrays lie, but not the arrays themselves."""
    return ts.Context({"cache_pool": {}, "cache_pool#index": {"total_bytes_limit": 50 << 20}})


def _array(folder: Path, path: LeafPath) -> JsonObject:
    """Where tensorstore finds a leaf."""
    return {"driver": "zarr3", "kvstore": {**_store(folder), "path": f"{'.'.join(path)}/"}}


def _store(folder: Path) -> JsonObject:
    """Where tensorstore finds all leaves of a tree."""
    base = {"driver": "file", "path": f"{folder}/"}
    return {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#index"}


def _pieces(shape: Shape, dtype: np.dtype) -> Shape:
    """The shape of equal pieces of at most CHUNK bytes, or of the smallest that halving gives."""
    sizes = list(shape)
    while Spec(tuple(sizes), dtype).size > CHUNK and any(s % 2 == 0 for s in sizes):
        largest = max(s for s in sizes if s % 2 == 0)
        sizes[sizes.index(largest)] //= 2
    return tuple(max(1, s) for s in sizes)
