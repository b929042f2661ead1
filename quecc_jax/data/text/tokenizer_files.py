"""Reads a tokenizer's directory as transformers 4 did, with which its models were trained.

Version 5 of transformers builds tokenizers anew from their class, and a class that it does not know gets
other rules. Here `tokenizer.model` is encoded by SentencePiece itself and `tokenizer.json` is taken as it
stands; what neither of them settles is refused. The rules are those of transformers 4.37.2, which the
original project pins, with `use_fast=False`, as it loads them.
"""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.data.files import read_json
from quecc_jax.data.text.sentencepiece import Added, Encoder, SentencePieces
from quecc_jax.errors import UserError

HfTokenizer = Any
"""A tokenizer of transformers, whose import takes seconds: PreTrainedTokenizerBase."""
JsonObject = dict[str, Any]

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a role."""
_DOCUMENT = "<|endoftext|>"
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_LISTED = "additional_special_tokens"
_CODE = {_LISTED: ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>"]}
DEFAULTS: dict[str, JsonObject] = {
    "llama": LLAMA,
    "codellama": LLAMA | _CODE,
    "qwen2": {"eos_token": _DOCUMENT, "unk_token": _DOCUMENT, "pad_token": _DOCUMENT},
    "gpt2": {"bos_token": _DOCUMENT, "eos_token": _DOCUMENT, "unk_token": _DOCUMENT},
    "gptneox": {"bos_token": _DOCUMENT, "eos_token": _DOCUMENT, "unk_token": _DOCUMENT},
}
"""Special tokens that a class has where nothing is said."""
CLASSES = {
    **dict.fromkeys(
        ("llama", "mistral", "phi3", "llava", "llava_llama", "llava_mistral", "llava_phi3", "llava_phi"),
        "LlamaTokenizer",
    ),
    **dict.fromkeys(("qwen2", "llava_qwen"), "Qwen2Tokenizer"),
    **dict.fromkeys(("mpt", "llava_mpt"), "GPTNeoXTokenizerFast"),
}
"""The class where no file names one, by config.json's model_type."""
JSON_ONLY = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
"""Classes that are no more than their tokenizer.json."""
ADDS_BOS = ("llama", "codellama", "gemma")
"""Classes that put BOS in front unless add_bos_token is false, whatever tokenizer.json says."""
_PROBES = ("Hello, what is it?", "two  blanks\n\nand   lines\t1234", "na\u00efve \u4f60\u597d \U0001f600 x=1")
MODEL_CONFIG = "model_config.json"
"""A file of this project's, where a tokenizer lies apart from its model: what `of_tokenizer` gives."""
_VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt")
_RULES = ("add_bos_token", "add_prefix_space")
"""Settings that change the ids of tokenizers without tokenizer.json."""
_KEPT = ("chat_template", "clean_up_tokenization_spaces")
"""Settings that change no ids, which transformers' own tokenizer is to have."""


class Read(NamedTuple):
    """What a directory holds."""

    hf: HfTokenizer
    """transformers' tokenizer: decoding, names and ids of special tokens."""
    encode: Callable[[str], tuple[int, ...]]
    """The ids of a whole text, without BOS or EOS; special tokens in it are found."""
    bos: int | None
    """What stands in front of every text; None for nothing."""
    added: Mapping[int, Added]
    """The tokens that are found in a text before any splitting, by number."""
    ends: tuple[int, ...]
    """Ids that end an answer by generation_config.json, which may lie beside; EOS may be among them."""


def read_tokenizer(directory: Path) -> Read:
    """Reads the tokenizer in a directory of this machine.

    Raises:
      UserError: its files do not say, or say in two ways, which ids a text has.
    """
    settings, kind, ends = _settings(directory), class_of(directory), _ends(directory)
    name = kind.removesuffix("Fast").removesuffix("Tokenizer").lower()
    model, whole = directory / "tokenizer.model", directory / "tokenizer.json"
    if not holds_tokenizer(directory):
        raise UserError(
            f"{directory} holds no tokenizer; give a directory with tokenizer.json or "
            "tokenizer.model, or save one there with save_pretrained"
        )
    if settings.get("split_special_tokens"):
        raise UserError(
            f"{directory} sets split_special_tokens, with which no text can hold the marks of a "
            "conversation; set it to false in tokenizer_config.json"
        )
    if settings.get("add_eos_token"):
        raise UserError(
            f"{directory} sets add_eos_token, which ends every prompt and question before it is "
            "answered; set it to false in tokenizer_config.json if the model was trained without"
        )
    by_model = name == "llama" and model.is_file() and not (kind.endswith("Fast") and whole.is_file())
    if by_model:
        return _from_model(directory, settings, kind, ends)
    if not whole.is_file() and (kind in JSON_ONLY or name in ADDS_BOS or model.is_file()):
        raise UserError(
            f"{directory} says tokenizer_class {kind}, which is read from a tokenizer.json "
            "that is not there; add the one that was published with the model"
        )
    staged = (
        _roles(settings, name)
        | {key: settings[key] for key in _KEPT if key in settings}
        | {
            "added_tokens_decoder": settings["added_tokens_decoder"],
            _LISTED: settings.get(_LISTED) or DEFAULTS.get(name, {}).get(_LISTED, []),
        }
    )
    if whole.is_file():
        hf = _staged(directory, staged, "PreTrainedTokenizerFast", "tokenizer.json")
    else:
        # Classes of vocab.json with merges.txt, such as Qwen's and GPT-2's.
        told = {"tokenizer_class": kind, **{k: settings[k] for k in _RULES if k in settings}}
        hf = _staged(directory, staged | told, "AutoTokenizer", *_VOCABULARIES)
    where = directory / "tokenizer_config.json"
    numbered = {int(number): _token(token) for number, token in settings["added_tokens_decoder"].items()}
    _check_numbers(hf, numbered, where)
    return Read(hf, _backend(hf), _bos(hf, settings, name, where, whole.is_file()), _table(hf), ends)


def holds_tokenizer(directory: Path) -> bool:
    """Whether a directory has a file with a vocabulary."""
    return any((directory / file).is_file() for file in ("tokenizer.model", "tokenizer.json", *_VOCABULARIES))


def _settings(directory: Path) -> JsonObject:
    """tokenizer_config.json, completed from the files beside it in transformers 4's order.

    `added_tokens_decoder`, by id, is all that is added to the vocabulary by number; where it is given,
    special_tokens_map.json and added_tokens.json do not count.
    """
    told = _object(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in told:
        return told
    named = _object(directory / "special_tokens_map.json")
    extra = [*(told.get(_LISTED) or []), *named.pop(_LISTED, [])]
    told |= named | ({_LISTED: extra} if extra else {})
    special = {content(told.get(key)) for key in NAMED} | {content(token) for token in extra}
    added: JsonObject = {}
    for text, number in _object(directory / "added_tokens.json").items():
        added[str(number)] = {"content": text, "special": text in special, "normalized": text not in special}
    for token in _object(directory / "tokenizer.json").get("added_tokens", []):
        added[str(token["id"])] = {key: value for key, value in token.items() if key != "id"}
    return told | {"added_tokens_decoder": added}


def _object(file: Path) -> JsonObject:
    """A JSON object; empty where there is no such file."""
    value = read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{file} is not an object; download it again")
    return value


def _roles(settings: Mapping[str, object], name: str) -> JsonObject:
    """The special tokens by their role; those that are empty are left out."""
    told = {**DEFAULTS.get(name, {}), **settings}
    return {key: told[key] for key in NAMED if content(told.get(key))}


def content(token: object) -> str:
    """The text of a special token, which files give as such or as an object; "" for none."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def class_of(directory: Path) -> str:
    """The name of the class that reads a directory's tokenizer.

    Published files misspell LLaMA's ("LLaMATokenizer"), which transformers 4 did not know: its users named
    the class themselves. Where no file names one, config.json's model_type does, and a tokenizer.model
    alone is taken for LLaMA's.
    """
    config = _model_config(directory)
    told = _object(directory / "tokenizer_config.json")
    kind = told.get("tokenizer_class") or config.get("tokenizer_class")
    if kind is None:
        model_type = config.get("model_type")
        alone = model_type is None and (directory / "tokenizer.model").is_file()
        return CLASSES.get(str(model_type), "LlamaTokenizer" if alone else JSON_ONLY[0])
    if str(kind).removesuffix("Fast").lower() == "llamatokenizer":
        return "LlamaTokenizerFast" if kind.endswith("Fast") else "LlamaTokenizer"
    return str(kind)


def of_tokenizer(config: Mapping[str, Any]) -> JsonObject:
    """What a model's config.json says of its tokenizer and of what ends an answer."""
    own = config.get("text_config") or {}
    told = {key: own.get(key, config.get(key)) for key in ("model_type", "tokenizer_class", "eos_token_id")}
    return {key: value for key, value in told.items() if value is not None}


def _model_config(directory: Path) -> JsonObject:
    return of_tokenizer(_object(directory / "config.json")) or _object(directory / MODEL_CONFIG)


def _ends(directory: Path) -> tuple[int, ...]:
    file = directory / "generation_config.json"
    told = _object(file).get("eos_token_id", _model_config(directory).get("eos_token_id"))
    ends = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(number) is int for number in ends):
        raise UserError(
            f"eos_token_id in {file} or config.json is {told!r}; write a number or a list of numbers"
        )
    return tuple(ends)


def _from_model(directory: Path, settings: JsonObject, kind: str, ends: tuple[int, ...]) -> Read:
    """LLaMA's tokenizer.model, encoded by SentencePiece."""
    where = directory / "tokenizer_config.json"
    adds_bos, legacy = bool(settings.get("add_bos_token", True)), settings.get("legacy") is not False
    roles = _roles(settings, "llama")
    for role in ("bos_token", "eos_token"):
        if role not in roles and (adds_bos or role == "eos_token"):
            raise UserError(
                f"{where} or the files beside it say that {role} is empty; write LLaMA's "
                f"{LLAMA[role]!r}, or the token that the model was trained with"
            )
    disputed = "add_prefix_space false" if settings.get("add_prefix_space") is False else ""
    disputed = "class LlamaTokenizerFast" if kind.endswith("Fast") else disputed
    if disputed and not legacy:
        raise UserError(
            f"{where} says legacy false and {disputed}, which versions of transformers read in "
            "different ways; leave out the one that the model was not trained with"
        )
    if any((settings.get("sp_model_kwargs") or {}).values()):
        raise UserError(
            f"{where} asks SentencePiece for {settings['sp_model_kwargs']}, but a text must have "
            "the same ids every time; remove sp_model_kwargs"
        )
    pieces = SentencePieces(directory / "tokenizer.model")
    listed = settings.get(_LISTED) or []
    added = _added(pieces, settings["added_tokens_decoder"], [*roles.values(), *listed], where)
    named = [content(token) for token in (*roles.values(), *listed)]
    staged = {key: content(roles.get(key)) or None for key in (*roles, "bos_token")} | {
        "added_tokens_decoder": {str(number): dataclasses.asdict(token) for number, token in added.items()},
        **{key: settings[key] for key in _KEPT if key in settings},
        "add_bos_token": adds_bos,
        "legacy": legacy,
    }
    hf = _staged(directory, staged, "LlamaTokenizer", "tokenizer.model")
    _check_numbers(hf, added, where)
    _check_counterpart(directory / "tokenizer.json", pieces, added)
    bos = hf.bos_token_id if adds_bos else None
    return Read(hf, Encoder(pieces, added, named, legacy), bos, added, ends)


def _added(
    pieces: SentencePieces, numbered: Mapping[str, object], named: list[object], where: Path
) -> dict[int, Added]:
    """All tokens that are looked for in a text: those with a number, then those with a name, which have a
    piece's number or the next one behind the vocabulary."""
    added = {int(number): _token(told) for number, told in numbered.items()}
    contents = {token.content for token in added.values()}
    size = len(pieces.ids.keys() | contents)
    for told in named:
        token = _token(told)
        if token.content in contents:
            continue
        contents.add(token.content)
        number = pieces.ids.get(token.content)
        if number is None:
            number, size = size, size + 1
        added[number] = token
    for number, token in added.items():
        if token.single_word or pieces.ids.get(token.content, number) != number or not token.content:
            raise UserError(
                f"{where} or the files beside it add the token {token.content!r} with number "
                f"{number} in a way that is not read (empty, single_word, or a piece of another "
                "number); remove it if the model was not trained with it"
            )
    return added


def _token(told: object) -> Added:
    if not isinstance(told, dict):
        return Added(content(told), normalized=False, special=True)
    fields = {field.name: told[field.name] for field in dataclasses.fields(Added) if field.name in told}
    return Added(**fields)


def _check_numbers(hf: HfTokenizer, added: Mapping[int, Added], where: Path) -> None:
    for number, token in added.items():
        if hf.convert_tokens_to_ids(token.content) != number:
            raise UserError(
                f"{where} or the files beside it give {token.content!r} the number {number}, but "
                f"the vocabulary has {len(hf)} tokens and other numbers; add those that are "
                "missing before it, or correct the number"
            )


def _check_counterpart(file: Path, pieces: SentencePieces, added: Mapping[int, Added]) -> None:
    """Raises UserError where a tokenizer.json beside tokenizer.model gives plain text other ids."""
    if not file.is_file():
        return
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_file(str(file))
    vocabulary = backend.get_vocab()
    same = all(vocabulary.get(piece) == number for piece, number in pieces.ids.items())
    same = (
        same
        and {n: t.content for n, t in backend.get_added_tokens_decoder().items()}.items()
        <= {
            **{number: piece for piece, number in pieces.ids.items()},
            **{n: t.content for n, t in added.items()},
        }.items()
    )
    if not same or any(
        backend.encode(text, add_special_tokens=False).ids != pieces(" " + text) for text in _PROBES
    ):
        raise UserError(
            f"{file} and the tokenizer.model beside it give the same text different ids; delete "
            "the one that the model was not trained with"
        )


def _bos(hf: HfTokenizer, settings: Mapping[str, object], name: str, where: Path, whole: bool) -> int | None:
    """The id that a tokenizer.json (`whole`), or its class, puts in front of a text."""
    # Word-level tokenizers are this project's own: they say nothing of BOS, but always have it.
    if type(hf.backend_tokenizer.model).__name__ == "WordLevel":
        return hf.bos_token_id
    number = hf.bos_token_id
    adds = number is not None and hf.backend_tokenizer.encode("a").ids[:1] == [number]
    told = settings.get("add_bos_token")
    if name in ADDS_BOS:
        disputed = told is None and not adds
    else:
        disputed = told is not None and whole and bool(told) != adds
    if disputed:
        raise UserError(
            f"{where} and tokenizer.json disagree on whether a text begins with BOS; set "
            "add_bos_token and the post_processor to what the model was trained with"
        )
    return number if (adds if told is None else told) else None


def _backend(hf: HfTokenizer) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(hf.encode(text, add_special_tokens=False, verbose=False))


def _table(hf: HfTokenizer) -> dict[int, Added]:
    names = [field.name for field in dataclasses.fields(Added)]
    return {
        number: Added(**{name: getattr(token, name) for name in names})
        for number, token in hf.added_tokens_decoder.items()
    }


def _staged(directory: Path, settings: Mapping[str, object], class_name: str, *files: str) -> HfTokenizer:
    """transformers' tokenizer of some files and these settings, whatever lies beside the files."""
    transformers = import_transformers()
    with tempfile.TemporaryDirectory() as made:
        for name in (*files, "chat_template.jinja"):
            if (directory / name).is_file():
                shutil.copyfile(directory / name, Path(made, name))
        Path(made, "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        # A config.json may be of a model that transformers does not know, and none is needed.
        more = {"config": transformers.PreTrainedConfig()} if class_name == "AutoTokenizer" else {}
        return getattr(transformers, class_name).from_pretrained(made, local_files_only=True, **more)


def import_transformers() -> Any:
    """The package, imported without its notice that PyTorch is absent: nothing here needs it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
