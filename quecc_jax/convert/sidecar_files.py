"""What belongs to weights and is not weights: config.json, tokenizer, processor settings.

An imported run keeps the files of its sources, so that an export can put them back:

    source/tensors.json           names and shapes of every tensor, by source
    source/origins.json           ORG/NAME@COMMIT of those that came from the Hub, by source
    source/model/                 config.json and the other files beside the model's weights
    source/vision/, projector/    the same of a tower and a projector that were given apart,
    source/text/                  and of a CLIP whose text tower encodes the questions
    source/*/carried.safetensors  tensors that no parameter of ours holds, such as buffers
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from quecc_jax.convert.formats.compressors.registry import holds_projector
from quecc_jax.convert.formats.families import language_model
from quecc_jax.convert.formats.family_keys import unknown_keys
from quecc_jax.convert.formats.gguf import GgufFile, hf_config
from quecc_jax.convert.formats.gguf_tokenizer import TokenizerMetadata, write_tokenizer
from quecc_jax.convert.formats.llava import is_original
from quecc_jax.convert.formats.llava_hf import is_llava_hf, text_config
from quecc_jax.convert.io.adapters import refuse_adapter_files
from quecc_jax.convert.io.tensors import TensorSource, open_chosen, open_tensors
from quecc_jax.convert.io.weight_files import PROJECTOR_ALONE, choose, folders_with_tensors
from quecc_jax.convert.plan import Source
from quecc_jax.data.files import read_json, write_json
from quecc_jax.data.text.tokenizer_files import MODEL_CONFIG, of_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.records import read_record, write_record

ORIGINS = "origins.json"
CARRIED = "carried"
"""Name of the file of tensors that only an export needs."""

_TEXTS = {".json", ".txt", ".md", ".model", ".jinja", ".py", ".tiktoken", ""}
"""Suffixes of the files that are kept."""

_TOKENIZER = re.compile(
    r"tokenizer.*\.(json|model)|(special_tokens_map|added_tokens|vocab)\.json|(merges|vocab)\.txt"
    r"|chat_template\.(jinja|json)|.*\.tiktoken|generation_config\.json"
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint to be imported."""

    source: Source
    tensors: TensorSource
    directory: Path | None
    """Where the files beside it are; None if all is in one file."""
    unread: Mapping[Path, str] = dataclasses.field(default_factory=dict)
    """Files beside it that hold tensors too, and what they are."""


_NAMES_OF_CLASSES = {"image_processor_type", "feature_extractor_type", "processor_class"}
"""Of one processor, which differ between files that say the same."""


def open_checkpoint(
    path: Path,
    allow_pickle: bool = False,
    projector: bool = False,
    read_apart: Path | None = None,
    adapter: Path | None = None,
) -> Opened:
    """Opens a directory of weights, or one file with its config.json beside it, or a GGUF file.

    Args:
      path: the directory or file.
      allow_pickle: whether pickles may be read.
      projector: whether the original's mm_projector is wanted of a directory that also holds a model.
      read_apart: what is read as the projector, which may lie beside these weights.
      adapter: what is read as their adapter, which may be a folder beside them.

    Raises:
      UserError: it cannot be read, see `open_tensors`, or has no config.json; or what lies beside would
        change the weights: an adapter, or a projector that no tensor here stands for.
    """
    if path.suffix == ".gguf":
        gguf = GgufFile(path)
        return Opened(Source(hf_config(gguf), gguf.shapes, str(path)), gguf, None)
    directory = path.parent if path.is_file() else path
    if directory.is_dir():
        # Folders beside a single file may be of anything.
        refuse_adapter_files(directory, levels=3 if path.is_dir() else 0, read=adapter)
    chosen = choose(path, projector) if path.is_dir() else None
    tensors = open_tensors(path, allow_pickle) if chosen is None else open_chosen(chosen, allow_pickle)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory} has no config.json, which says what the weights are of; "
            "put the one that was published with them there"
        )
    image_processor = _image_processor(directory)
    unread = {path / name: kind for name, kind in chosen.unread.items()} if chosen else {}
    inside = holds_projector(tensors.shapes)
    for file in [file for file, kind in unread.items() if kind == PROJECTOR_ALONE]:
        if read_apart in (file, directory):
            del unread[file]
        elif not inside:
            raise UserError(
                f"{file} lies beside a model without a projector; give it with --projector, or move it away"
            )
        else:
            unread[file] = "the model has a projector of its own, which the original reads"
    source = Source(_config(directory), tensors.shapes, str(path), image_processor)
    return Opened(source, tensors, directory, unread)


def _image_processor(directory: Path) -> JsonObject:
    """Settings of the image processor beside weights; transformers 5 keeps them in the processor's own.

    Raises:
      UserError: they are no object, or two files disagree.
    """
    file, whole = directory / "preprocessor_config.json", directory / "processor_config.json"
    settings = read_json(file) if file.is_file() else None
    if whole.is_file():
        held = read_json(whole)
        inside = held.get("image_processor") if isinstance(held, dict) else None
        if settings is None:
            file, settings = whole, inside
        elif isinstance(settings, dict) and isinstance(inside, dict):
            for name in sorted(settings.keys() & inside.keys() - _NAMES_OF_CLASSES):
                if settings[name] != inside[name]:
                    raise UserError(
                        f"{whole} has {name} {inside[name]}, and {file.name} beside it {settings[name]}, of which "
                        "transformers 5 reads the first and 4 the second; remove the one that is not the model's"
                    )
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no object of an image processor's settings; download it again")
    return settings


def _config(directory: Path) -> JsonObject:
    hf = read_json(directory / "config.json")
    if not isinstance(hf, dict):
        raise UserError(f"{directory / 'config.json'} is not an object; download it again")
    return hf


def left_unread(opened: Mapping[str, Opened], adapter: Path | None = None) -> str:
    """One sentence that names what holds tensors beside the weights and the adapter that are read; "" if nothing
    does."""
    sources = {one.directory.resolve(): one.directory for one in opened.values() if one.directory is not None}
    read = {*sources, *(() if adapter is None else (adapter.resolve(),))}
    said = [f"{file} ({kind})" for one in opened.values() for file, kind in one.unread.items()]
    said += [
        f"{directory / name}/ (a folder)"
        for directory in sources.values()
        for name in folders_with_tensors(directory)
        if (directory / name).resolve() not in read
    ]
    return f"these files beside the weights are not read: {', '.join(said)}" if said else ""


def keys_unread(hf: JsonObject, family: str | None) -> str:
    """One sentence that names the keys of a language model's config.json of which nothing is known; "" without.

    Args:
      hf: the config.json; those of the original project's models have keys of its training, which are not told.
      family: of its decoder; None without one.
    """
    if family is None or is_original(hf):
        return ""
    names = unknown_keys(text_config(hf) if is_llava_hf(hf) else language_model(hf), family)
    return f"these keys of config.json are not known and not read: {', '.join(names)}" if names else ""


def penalty_unread(model: Opened) -> str:
    """One sentence about the penalty of generation_config.json; "" without."""
    path = None if model.directory is None else model.directory / "generation_config.json"
    told = read_json(path) if path is not None and path.is_file() else {}
    penalty = told.get("repetition_penalty") if isinstance(told, dict) else None
    if penalty in (None, 1):
        return ""
    return (
        f"{path} has repetition_penalty {penalty}, which transformers applies to greedy answers too, and which is not "
        f"read: for its answers give --repetition-penalty {penalty}"
    )


def tower_beside(model: Opened) -> Path | None:
    """The tower's directory that the original's config.json names, if it lies beside it; else None."""
    if model.directory is None or not is_original(model.source.hf):
        return None
    path = model.directory / str(model.source.hf.get("mm_vision_tower"))
    return path if (path / "config.json").is_file() else None


def tower_name(hf: JsonObject) -> str:
    """The folder that an export of the original format keeps its tower in, beside config.json.

    The original's code takes what `mm_vision_tower` says as a path, or else as a published name.
    """
    name = Path(str(hf.get("mm_vision_tower") or "clip"))
    return str(name) if not name.is_absolute() and ".." not in name.parts else name.name


def copy_beside(directory: Path, target: Path) -> None:
    """Copies the settings, tokenizer files and texts beside weights: no folders, nothing hidden."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(directory.iterdir()):
        index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _TEXTS and not index and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)


def copy_tokenizer_files(directory: Path, target: Path) -> None:
    """Copies a tokenizer's files alone; `target` is not made if there are none.

    A config.json stays behind: transformers would take the tokenizer's class from its model_type. What it
    says of the tokenizer goes into a file of another name.
    """
    files = [
        file for file in sorted(directory.iterdir()) if file.is_file() and _TOKENIZER.fullmatch(file.name)
    ]
    if {file.name for file in files} <= {"generation_config.json"}:
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    if (directory / "config.json").is_file():
        write_json(target / MODEL_CONFIG, of_tokenizer(_config(directory)))


def keep_sources(run: Path, opened: dict[str, Opened], origins: Mapping[str, str]) -> None:
    """Writes `source/`, `tokenizer/` and `query_tokenizer/` of an imported run.

    Args:
      run: its directory.
      opened: what it is made of, by source.
      origins: ORG/NAME@COMMIT of those that came from the Hub.
    """
    for name, one in opened.items():
        folder = run / "source" / name
        folder.mkdir(parents=True)
        if one.directory is not None:
            copy_beside(one.directory, folder)
        else:
            assert isinstance(one.tensors, GgufFile)
            metadata, file = one.tensors.metadata, one.tensors.path
            write_json(folder / "config.json", one.source.hf)
            write_tokenizer(metadata, file, run / "tokenizer")
            for beside in (folder, run / "tokenizer"):
                write_json(
                    beside / "generation_config.json",
                    {"eos_token_id": TokenizerMetadata(metadata, file).ends},
                )
    model = opened["model"].directory
    if model is not None:
        copy_tokenizer_files(model, run / "tokenizer")
    if "text" in opened and (text := opened["text"].directory) is not None:
        copy_tokenizer_files(text, run / "query_tokenizer")
    shapes = {name: {k: list(v) for k, v in one.source.found.items()} for name, one in opened.items()}
    write_json(run / "source" / "tensors.json", shapes)
    if origins:
        write_record(run / "source" / ORIGINS, origins)


def kept_origins(run: Path) -> dict[str, str]:
    """ORG/NAME@COMMIT of an imported run's sources that came from the Hub, by source.

    Raises:
      UserError: the file is broken.
    """
    file = run / "source" / ORIGINS
    return read_record(file, dict[str, str], "import the weights again") if file.is_file() else {}


def kept_sources(run: Path) -> dict[str, Source]:
    """What `keep_sources` wrote, by source; empty if the run was not imported.

    Raises:
      UserError: the files are broken.
    """
    folder = run / "source"
    if not (folder / "tensors.json").is_file():
        return {}
    shapes = read_json(folder / "tensors.json")
    return {
        name: Source(
            _config(folder / name),
            {k: tuple(v) for k, v in found.items()},
            str(folder / name),
            _image_processor(folder / name),
        )
        for name, found in shapes.items()
    }
