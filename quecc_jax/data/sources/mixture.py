"""Several conversation files as one list of rows: LLaVA-NeXT's mixtures.

Its training reads `datasets:`, a list of `json_path` and `sampling_strategy`, from a .yaml file, and a name
such as `data/{a,b}.json` as several files. Paths are relative to the working directory, as there. A random
sample is drawn anew in every run there; here it is the same in every run and on every host, drawn with a seed
that the file's path in the mixture gives.
"""

import bisect
import math
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quecc_jax.data.references import Row
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.errors import UserError
from quecc_jax.json_text import decoded
from quecc_jax.paths import AnyPath, as_path

_BRACES = re.compile(r"(.*)\{(.*)\}(\.jsonl?)", re.S)
_STRATEGY = re.compile(r"(all)|(first|end|random)\s*:\s*(\d+)\s*(%?)\s*", re.A)


class Part(NamedTuple):
    """A file of a mixture, and which of its rows belong to it: all where `order` is empty."""

    path: str
    order: str = ""
    """first, end or random."""
    amount: int = 0
    percent: bool = False

    def chosen(self, rows: int) -> np.ndarray:
        """int64, the rows that are taken of so many, ascending."""
        taken = self.amount
        if self.percent:
            taken = math.ceil(self.amount * rows / 100)
        taken = min(taken, rows) if self.order else rows
        if self.order == "end":
            return np.arange(rows - taken, rows)
        if self.order == "random":
            drawn = np.random.default_rng(zlib.crc32(self.path.encode())).permutation(rows)
            return np.sort(drawn[:taken])
        return np.arange(taken)


class Mixture(Sequence[Row]):
    """The rows of several files, one file behind the other; each is parsed when asked for.

    Raises:
      UserError: the mixture or one of its files cannot be read.
      BadRow: as `RowFile`, when a row is asked for.
    """

    def __init__(self, path: AnyPath, parts: Sequence[Part]):
        self.path, self.parts = str(path), tuple(parts)
        self.files = [RowFile(part.path) for part in parts]
        self._chosen = [part.chosen(len(file)) for part, file in zip(parts, self.files, strict=True)]
        self._ends = np.cumsum([len(rows) for rows in self._chosen]).tolist()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def stamp(self) -> tuple[int, ...]:
        """Of each file."""
        return tuple(file.stamp for file in self.files)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Row:  # type: ignore[override]
        file, number = self._find(row)
        return file[number]

    def where(self, row: int) -> str:
        """As `RowFile.where`, of the file that the row comes from."""
        file, number = self._find(row)
        return file.where(number)

    def _find(self, row: int) -> tuple[RowFile, int]:
        row = range(len(self))[row]
        part = bisect.bisect_right(self._ends, row)
        start = self._ends[part - 1] if part else 0
        return self.files[part], int(self._chosen[part][row - start])


def open_rows(path: AnyPath) -> RowFile | Mixture:
    """The rows of a conversations file, or of a mixture of such files.

    Raises:
      UserError: as `RowFile` and `parts_of`.
    """
    parts = parts_of(path)
    return RowFile(path) if parts is None else Mixture(path, parts)


def parts_of(path: AnyPath) -> list[Part] | None:
    """The files that a mixture names; None of a single file of rows.

    Raises:
      UserError: the mixture cannot be read, or says something that LLaVA-NeXT does not know.
    """
    name = str(path)
    if found := _BRACES.fullmatch(name):
        return [Part(f"{found[1]}{one}{found[3]}") for one in found[2].split(",")]
    return _of_yaml(name) if name.lower().endswith((".yaml", ".yml")) else None


def files_of(path: AnyPath) -> list[str]:
    """The files that tell what the rows are: a mixture's list, if it is one, and its files; else the path.

    Raises:
      UserError: as `parts_of`.
    """
    parts, name = parts_of(path), str(path)
    own = [] if parts is not None and _BRACES.fullmatch(name) else [name]
    return own + [part.path for part in parts or ()]


def _of_yaml(name: str) -> list[Part]:
    # Imported late: few runs read such files.
    import yaml

    try:
        raw = as_path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}); check the path") from None
    try:
        told = yaml.safe_load(decoded(name, raw))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} is not YAML ({reason}); repair it") from None
    listed = told.get("datasets") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(
            f"{name} has no list of datasets; write one of json_path and sampling_strategy, as "
            "LLaVA-NeXT does"
        )
    return [_part(f"{name}, data set {number}", one) for number, one in enumerate(listed, start=1)]


def _part(where: str, told: object) -> Part:
    told = told if isinstance(told, dict) else {}
    path = told.get("json_path")
    if not isinstance(path, str) or not path.lower().endswith((".json", ".jsonl")):
        raise UserError(f"{where} names no .json or .jsonl file as its json_path; write one")
    if more := sorted(map(str, told.keys() - {"json_path", "sampling_strategy"})):
        raise UserError(f"{where} has {more[0]!r}, which LLaVA-NeXT does not read; remove it")
    strategy = told.get("sampling_strategy", "all")
    found = _STRATEGY.fullmatch(strategy) if isinstance(strategy, str) else None
    if found is None:
        raise UserError(
            f"{where} has sampling_strategy {strategy!r}; write all, or first, end or random "
            "with a number or a whole percentage, such as first:1000 or random:10%"
        )
    if found[1]:
        return Part(path)
    if found[2] == "end" and not int(found[3]):
        raise UserError(
            f"{where} has sampling_strategy {strategy!r}, which LLaVA-NeXT takes for all rows; "
            "write all, or remove the data set"
        )
    return Part(path, found[2], int(found[3]), bool(found[4]))
