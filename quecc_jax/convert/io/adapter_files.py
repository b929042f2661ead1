"""A directory of an adapter, as PEFT or LLaVA's training with LoRA leaves it, and weights with it merged in."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from quecc_jax.config import LoraConfig
from quecc_jax.convert.formats.peft import copied_modules, lora_config, split_names
from quecc_jax.convert.io.tensors import Joined, Shape, TensorSource, open_tensors
from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model"
"""Name of the file of an adapter's tensors, but for its suffix."""
OTHERS = "non_lora_trainables"
"""The same of what LLaVA trains beside the adapter: the projector."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a directory of an adapter holds."""

    directory: Path
    lora: LoraConfig
    tensors: TensorSource
    pairs: Mapping[str, tuple[str, str]]
    """Names of A [rank, in] and B [out, rank] by that of the weight [out, in] that they change."""
    replaced: Mapping[str, str]
    """Names of tensors that stand in for others, by the others' names."""
    hf: JsonObject | None
    """The config.json of LLaVA's model, if there is one."""
    base: str
    """What the adapter's settings say of its base, in brackets for messages; or empty."""
    copied: tuple[str, ...] = ()
    """See `copied_modules`."""

    def check(self, found: Mapping[str, Shape], where: str) -> None:
        """Compares the weights that are changed with those that are there.

        Raises:
          UserError: they are of another model.
        """
        for name, given in self.replaced.items():
            if name in found and tuple(found[name]) != self.tensors.shapes[given]:
                raise UserError(
                    f"{self.directory} has {given} of {' x '.join(map(str, self.tensors.shapes[given]))} numbers, "
                    f"and that of {where} has {' x '.join(map(str, found[name]))}; give the base that the adapter "
                    f"was trained on{self.base}"
                )
        for weight, (first, second) in self.pairs.items():
            if weight not in found:
                raise self.lacks(first, weight, where)
            (rank, ins), (outs, again) = self.tensors.shapes[first], self.tensors.shapes[second]
            if not rank == again == self.lora.rank:
                raise UserError(
                    f"{self.directory} has {first} of rank {rank}, {second} of {again} and r {self.lora.rank} in "
                    f"{CONFIG}; download it again"
                )
            if tuple(found[weight]) != (outs, ins):
                raise UserError(
                    f"{self.directory} changes a {weight} of {outs} x {ins} numbers, and that of {where} has "
                    f"{' x '.join(map(str, found[weight]))}; give the base that the adapter was trained on{self.base}"
                )

    def lacks(self, given: str, weight: str, where: str) -> UserError:
        """That a tensor of the adapter is of a weight that a base has not."""
        tied = " (its embedding is its output matrix, if config.json says tie_word_embeddings)"
        return UserError(
            f"{self.directory} holds {given}, and {where} has no {weight}{tied if 'lm_head' in weight else ''}; give "
            f"the base that the adapter was trained on{self.base}, or merge it by PEFT"
        )


def open_adapter(directory: Path, allow_pickle: bool = False) -> Adapter:
    """Opens an adapter.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors or .bin, and of LLaVA's training also
        with non_lora_trainables and config.json.
      allow_pickle: whether pickles may be read.

    Raises:
      UserError: it cannot be read, or is of a kind that is not implemented.
    """
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} has no {CONFIG}; give the directory of a LoRA, as PEFT writes it")
    settings = read_json(directory / CONFIG)
    if not isinstance(settings, dict):
        raise UserError(f"{directory / CONFIG} is not an object; download it again")
    lora = lora_config(settings, str(directory / CONFIG))
    files = [file for name in (WEIGHTS, OTHERS) if (file := _one_of(directory, name)) is not None]
    if not files or files[0].stem != WEIGHTS:
        raise UserError(f"{directory} holds neither {WEIGHTS}.safetensors nor .bin; download it again")
    tensors = Joined([(file, open_tensors(file, allow_pickle)) for file in files])
    pairs, replaced = split_names(tensors.shapes, str(directory))
    if not pairs:
        raise UserError(f"{directory} holds no lora_A and lora_B; download it again")
    odd = [name for pair in pairs.values() for name in pair if len(tensors.shapes[name]) != 2]
    if odd:
        raise UserError(
            f"{directory} holds {odd[0]}, which is no matrix; only adapters of linear layers are read"
        )
    whole = [name for name, dtype in tensors.dtypes.items() if not jnp.issubdtype(dtype, jnp.floating)]
    if whole:
        raise UserError(
            f"{directory} stores {whole[0]} as {tensors.dtypes[whole[0]]}; only adapters of floating-point numbers are "
            "read"
        )
    hf = read_json(directory / "config.json") if (directory / "config.json").is_file() else None
    base = settings.get("base_model_name_or_path")
    return Adapter(
        directory,
        lora,
        tensors,
        pairs,
        replaced,
        hf if isinstance(hf, dict) else None,
        f" ({base})" if base else "",
        copied_modules(settings),
    )


def _one_of(directory: Path, stem: str) -> Path | None:
    """The file of this name, safetensors before pickles; None if there is none."""
    files = (directory / f"{stem}{suffix}" for suffix in (".safetensors", ".bin"))
    return next((file for file in files if file.is_file()), None)


def with_product(weight: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """weight [*a, *b] + scale left [*a, rank] right [rank, *b], summed in float32."""
    product = np.tensordot(left.astype(np.float32), right.astype(np.float32), 1)
    return weight.astype(np.float32) + np.float32(scale) * product


class Overlaid:
    """Weights of a base as an adapter leaves them.

    What is merged is read as float32, of which whoever stores it rounds once; its type is said to be the base's.
    """

    def __init__(self, base: TensorSource, adapter: Adapter, merge: bool):
        """
        Args:
          base: the weights.
          adapter: what changes them.
          merge: whether A and B are merged in, and not only what replaces others.
        """
        self._base, self._adapter, self._merge = base, adapter, merge
        self._given = {ours: theirs for ours, theirs in adapter.replaced.items() if ours in base.shapes}
        self.shapes = dict(base.shapes)
        self.dtypes = base.dtypes | {ours: adapter.tensors.dtypes[name] for ours, name in self._given.items()}

    def read(self, name: str) -> np.ndarray:
        given = self._given.get(name)
        weight = self._base.read(name) if given is None else self._adapter.tensors.read(given)
        if not self._merge or name not in self._adapter.pairs:
            return weight
        first, second = map(self._adapter.tensors.read, self._adapter.pairs[name])
        return with_product(weight, second, first, self._adapter.lora.scale)

    def close(self) -> None:
        """The base is closed by who opened it."""


class Renamed:
    """Some tensors of a source under other names."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]):
        """
        Args:
          source: the tensors.
          names: theirs by those that they get.
        """
        self._source, self._names = source, names
        self.shapes = {ours: source.shapes[name] for ours, name in names.items()}
        self.dtypes = {ours: source.dtypes[name] for ours, name in names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._source.read(self._names[name])

    def close(self) -> None:
        """The source is closed by who opened it."""
