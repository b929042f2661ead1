"""Which files of a directory are its weights, and what becomes of the others that hold tensors."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from quecc_jax.convert.io.adapters import TENSORS
from quecc_jax.convert.rules import some
from quecc_jax.data.files import read_json
from quecc_jax.errors import UserError

PROJECTOR = tuple(
    f"{name}.{suffix}" for name in ("mm_projector", "query_abstractor") for suffix in ("safetensors", "bin")
)
"""The original's stage 1 output, and MQT's."""

_MODEL = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Beginnings and ends of the names of a model's own files, in the order in which transformers looks."""

_MAY_HOLD = re.compile(rf".*\.({TENSORS})", re.IGNORECASE)
_TRAINING = re.compile(
    r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states)([._-]?\d+)?\.(pt|pth|bin|pkl)"
)
_OTHER_FORMS = re.compile(
    r"pytorch_model.*\.bin|consolidated.*\.(pth|pt|safetensors)|(tf_)?model.*\.h5|flax_model.*\.msgpack"
    r"|.*\.(onnx|onnx_data|gguf|tflite|mlmodel)|rust_model\.ot|openvino_.*\.bin"
)

_ARRAYS = re.compile(r".*\.(npz|npy|pkl|pickle)", re.IGNORECASE)

TRAINING = "of its training"
OTHER_FORM = "the weights in another form"
ARRAYS = "arrays that no model is stored as"
PROJECTOR_ALONE = "a projector apart"
REST = "of the whole model"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The weights of a directory."""

    files: tuple[Path, ...]
    index: Mapping[str, str] | None = None
    """Tensor names and file names, where an index lists them."""
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other files that hold, or may hold, tensors, and what they are."""


def choose(root: Path, projector: bool = False) -> Chosen:
    """Chooses a directory's weights: `model.safetensors` or its shards, else `pytorch_model.bin` or its
    shards, else `mm_projector`, else all its .safetensors files, else all its .bin files.

    Args:
      root: the directory.
      projector: whether the original's `mm_projector` is wanted first, a model only without it.

    Raises:
      UserError: there are none; an index names files that are not there; or another file holds tensors
        that may belong to the weights, or be other ones.
    """
    held = [f.name for f in sorted(root.iterdir()) if f.is_file() and _MAY_HOLD.fullmatch(f.name)]
    models = [_model(root, *form, held) for form in _MODEL]
    apart = [Chosen((root / name,)) for name in PROJECTOR if name in held]
    known = (_TRAINING, _OTHER_FORMS)
    others = [n for n in held if n not in PROJECTOR and not any(kind.fullmatch(n) for kind in known)]
    loose = [tuple(root / name for name in others if name.endswith(end)) for end in (".safetensors", ".bin")]
    wanted = [*apart, *models] if projector else [*models, *apart]
    chosen = next((c for c in [*wanted, *map(Chosen, loose)] if c.files), None)
    if chosen is None:
        raise UserError(_nothing(root, held))
    names = {file.name for file in chosen.files}
    unread = {name: _kind(name, names) for name in held if name not in names}
    if strange := [name for name, kind in unread.items() if not kind]:
        raise UserError(
            f"{root} holds {', '.join(strange)} beside {some(names, 3)}, and nothing says which of them "
            "count; move away what is left over, or give one weights file itself"
        )
    return dataclasses.replace(chosen, unread=unread)


def _model(root: Path, stem: str, suffix: str, held: list[str]) -> Chosen:
    """A model's own files as its index lists them, or else all shards; none if there are none."""
    path = root / f"{stem}{suffix}.index.json"
    if not path.is_file():
        shards = re.compile(rf"{stem}(-\d+(-of-\d+)?)?\{suffix}")
        return Chosen(tuple(root / name for name in held if shards.fullmatch(name)))
    where = read_json(path)
    where = where.get("weight_map") if isinstance(where, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
        raise UserError(f"{path} has no weight_map of tensor names to file names; download it again")
    for name in dict.fromkeys(where.values()):
        if not (root / name).is_file():
            raise UserError(f"{path} names {name}, which is not there; download that file")
    return Chosen(tuple(root / name for name in dict.fromkeys(where.values())), where)


def _kind(name: str, read: set[str]) -> str:
    """What an unread file is; "" where it may be part of the weights, or others."""
    if _TRAINING.fullmatch(name):
        return TRAINING
    if _ARRAYS.fullmatch(name):
        return ARRAYS
    if name in PROJECTOR:
        return OTHER_FORM if read & set(PROJECTOR) else PROJECTOR_ALONE
    if read & set(PROJECTOR) and (_OTHER_FORMS.fullmatch(name) or re.match(r"model[-.]", name)):
        return REST
    stale = name.startswith("pytorch_model") and any(n.startswith("pytorch_model") for n in read)
    return OTHER_FORM if _OTHER_FORMS.fullmatch(name) and not stale else ""


def _nothing(root: Path, held: list[str]) -> str:
    """Why a directory has no weights, and where they may be."""
    message = f"{root} holds no .safetensors or .bin file of a model"
    if gguf := [name for name in held if name.endswith(".gguf")]:
        return f"{message}; give the GGUF file itself, {root / gguf[0]}"
    if held:
        return f"{message}, only {', '.join(held)}; give the weights as .safetensors or pytorch_model.bin"
    if folders := folders_with_tensors(root):
        return f"{message}, but its folders {', '.join(folders)} hold weights; give one of them"
    return f"{message}; give the directory of a checkpoint"


def folders_with_tensors(root: Path) -> list[str]:
    """Names of the folders right inside of a directory that hold files that may hold tensors."""
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    return [f.name for f in folders if any(_MAY_HOLD.fullmatch(file.name) for file in f.iterdir())]
