"""The tokenizer inside of a GGUF file, written as the files that transformers reads.

Byte-level BPE becomes a tokenizer.json, SentencePiece the tokenizer.model that it came from. What a
key means that a file leaves out is what llama.cpp takes it to mean.
"""

import dataclasses
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quecc_jax.data.files import fresh_directory, write_json
from quecc_jax.data.text.sentencepiece import Added
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Entries of `tokenizer.ggml.token_type`, and of SentencePiece's models; the latter two of the first three
are matched in the text before any splitting."""

_DIGITS = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3, _QWEN_2 = (_WORDS % r"\p{N}{1,3}",), (_WORDS % _DIGITS,)
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "gpt2": (_GPT2,),
    "smollm": (_DIGITS, _GPT2),
    "starcoder": (_DIGITS, _GPT2),
    "refact": (_DIGITS, _GPT2),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _QWEN_2,
}
"""By `tokenizer.ggml.pre`: what splits a text, one after the other; matches stand alone."""


@dataclasses.dataclass(frozen=True)
class TokenizerMetadata:
    """What a GGUF file says of its tokenizer."""

    metadata: JsonObject
    """All of the file's keys and values."""
    where: Path
    """The file, for messages."""

    def get(self, name: str, default: Any = None) -> Any:
        """`tokenizer.ggml.<name>`, or the default."""
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def need(self, name: str) -> Any:
        """The same where there must be one.

        Raises:
          UserError: there is none.
        """
        if (value := self.get(name)) is None:
            raise UserError(
                f"{self.where} does not say its tokenizer.ggml.{name}; convert the model to GGUF "
                "again, or give its Hugging Face directory"
            )
        return value

    @property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens by transformers' names: bos, eos, unk, pad.

        Raises:
          UserError: an id that no token has.
        """
        theirs = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        found = {name: self.get(f"{key}_token_id") for name, key in theirs.items()}
        ids = {name: int(number) for name, number in found.items() if number is not None}
        tokens = self.get("tokens")
        for name, number in ids.items():
            if tokens is not None and not 0 <= number < len(tokens):
                raise UserError(
                    f"{self.where} says that {name} is token {number} of {len(tokens)}; "
                    "convert the model to GGUF again"
                )
        return ids

    @property
    def ends(self) -> list[int]:
        """All tokens that end an answer: of the text, of the turn and of the message."""
        found = (self.get(f"{name}_token_id") for name in ("eos", "eot", "eom"))
        return list(dict.fromkeys(int(number) for number in found if number is not None))

    @property
    def adds_bos(self) -> bool:
        """Whether BOS stands in front of a text."""
        usual = self.get("model") == "llama" or SPLITS.get(str(self.get("pre"))) is _LLAMA_3
        return bool(self.get("add_bos_token", usual))


def write_tokenizer(metadata: JsonObject, where: Path, directory: str | Path) -> None:
    """Saves a GGUF file's tokenizer, with its chat template, as transformers reads it.

    Args:
      metadata: the file's keys and values.
      where: the file, for messages.
      directory: written whole or not at all; replaced when it exists.

    Raises:
      UserError: the file holds no tokenizer, one of another kind, or one that contradicts itself.
    """
    meta = TokenizerMetadata(metadata, where)
    model = meta.get("model")
    tokens, types = list(meta.need("tokens")), list(meta.need("token_type"))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise UserError(
            f"{where} has {len(tokens)} tokens of {len(types)} types, {len(set(tokens))} of them "
            "different; convert the model to GGUF again"
        )
    template = metadata.get("tokenizer.chat_template")
    config = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get("llama.context_length"),
        "chat_template": template,
        **{f"{name}_token": tokens[number] for name, number in meta.special.items()},
    }
    with fresh_directory(directory) as aside:
        if model == "gpt2":
            _byte_level(meta, tokens, types).save(str(aside / "tokenizer.json"))
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        elif model == "llama":
            (aside / "tokenizer.model").write_bytes(_sentencepiece(meta, tokens, types))
            config |= _sentencepiece_config(meta, tokens, types)
        else:
            raise UserError(
                f"the tokenizer in {where} is {model!r}, only gpt2 (byte-level BPE) and "
                "llama (SentencePiece) are read from GGUF; give its Hugging Face directory"
            )
        settings = {key: value for key, value in config.items() if value is not None}
        write_json(aside / "tokenizer_config.json", settings)


def _byte_level(meta: TokenizerMetadata, tokens: list[str], types: list[int]) -> Any:
    """A byte-level BPE tokenizer of package tokenizers.

    Text is split as `tokenizer.ggml.pre` says. transformers' own conversion of GGUF files ignores
    that key and differs where several blanks or line breaks stand before a digit.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pre = meta.need("pre")
    if pre not in SPLITS:
        raise UserError(
            f"the tokenizer in {meta.where} splits text as {pre!r} does (tokenizer.ggml.pre), "
            f"only {', '.join(SPLITS)} are read from GGUF; give its Hugging Face directory"
        )
    if meta.get("add_space_prefix"):
        raise UserError(
            f"{meta.where} has tokenizer.ggml.add_space_prefix beside a gpt2 tokenizer, which is "
            "not read from GGUF; give the model's Hugging Face directory"
        )
    # A merge may begin with a blank's letter, never with a blank.
    merges = [tuple(merge.split(" ")) for merge in meta.need("merges")]
    # LLaMA 3's tokenizer was made without merges: a word that is a token is never built from parts.
    whole = SPLITS[pre] is _LLAMA_3
    vocabulary: Any = {token: number for number, token in enumerate(tokens)}
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=whole)
    except Exception as error:  # package tokenizers raises no narrower kind
        raise UserError(
            f"the merges in {meta.where} do not fit its tokens ({error}); convert the model to GGUF again"
        ) from None
    backend = Tokenizer(model)
    if SPLITS[pre] is _QWEN_2:
        backend.normalizer = normalizers.NFC()
    split: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    first = [int(meta.need("bos_token_id"))] if meta.adds_bos else []
    last = [int(meta.need("eos_token_id"))] if meta.get("add_eos_token") else []
    if first or last:
        backend.post_processor = processors.TemplateProcessing(
            single=[*(tokens[i] for i in first), "$A", *(tokens[i] for i in last)],
            special_tokens=[(tokens[i], i) for i in {*first, *last}],
        )
    return backend


def _sentencepiece_config(meta: TokenizerMetadata, tokens: list[str], types: list[int]) -> JsonObject:
    """Settings of a LlamaTokenizer; `legacy` puts a blank behind special tokens, as llama.cpp does."""
    special = meta.special
    bos, eos = (meta.need(f"{name}_token_id") for name in ("bos", "eos"))
    found = {number for number, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    found |= {int(bos), int(eos), *special.values()}
    added = {n: Added(tokens[n], normalized=False, special=types[n] != USER_DEFINED) for n in sorted(found)}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": meta.adds_bos,
        "add_eos_token": bool(meta.get("add_eos_token")),
        "unk_token": tokens[_unknown(meta, types)],
        "added_tokens_decoder": {str(number): dataclasses.asdict(token) for number, token in added.items()},
    }


def _unknown(meta: TokenizerMetadata, types: list[int]) -> int:
    """The id of the unknown token, of which SentencePiece has exactly one."""
    marked = [number for number, kind in enumerate(types) if kind == UNKNOWN]
    return marked[0] if len(marked) == 1 else meta.special.get("unk", 0)


def _sentencepiece(meta: TokenizerMetadata, tokens: list[str], types: list[int]) -> bytes:
    """The tokenizer.model of these pieces, as SentencePiece's protobuf `ModelProto`."""
    from sentencepiece import SentencePieceProcessor

    if not meta.get("add_space_prefix", True):
        raise UserError(
            f"{meta.where} has tokenizer.ggml.add_space_prefix false, which is not read from "
            "GGUF; give the model's Hugging Face directory"
        )
    scores = meta.get("scores")
    if scores is None:
        notice(f"WARNING: {meta.where} has no tokenizer.ggml.scores: pieces are joined from the left")
        scores = [0.0] * len(tokens)
    held = types.count(BYTE)
    if len(scores) != len(tokens) or held not in (0, 256):
        raise UserError(
            f"{meta.where} has {len(tokens)} pieces, {len(scores)} scores and {held} of 256 "
            "bytes; convert the model to GGUF again"
        )
    unknown = _unknown(meta, types)
    kinds = [CONTROL if kind == UNKNOWN else kind for kind in types]
    kinds[unknown] = UNKNOWN
    pieces = b"".join(
        _field(1, _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    special = {"unk": unknown, "bos": -1, "eos": -1, "pad": -1} | meta.special | {"unk": unknown}
    trainer = _number(3, 2) + _number(4, len(tokens)) + _number(35, int(held > 0))
    trainer += b"".join(_number(40 + i, special[name]) for i, name in enumerate(("unk", "bos", "eos", "pad")))
    trainer += _field(45, tokens[unknown].encode())
    trainer += b"".join(
        _field(46 + i, tokens[special[name]].encode())
        for i, name in enumerate(("bos", "eos", "pad"))
        if special[name] >= 0
    )
    strip = int(bool(meta.get("remove_extra_whitespaces")))
    normalizer = _field(1, b"identity") + _number(3, 1) + _number(4, strip) + _number(5, 1)
    model = pieces + _field(2, trainer) + _field(3, normalizer)
    try:
        SentencePieceProcessor(model_proto=model)
    except Exception as error:
        raise UserError(
            f"the pieces in {meta.where} make no SentencePiece model ({error}); convert the "
            "model to GGUF again"
        ) from None
    return model


def _varint(value: int) -> bytes:
    """A protobuf integer; negative ones as 64 bits of two's complement."""
    value &= (1 << 64) - 1
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: Iterable[int]) -> bytes:
    content = bytes(value)
    return _varint(field << 3 | 2) + _varint(len(content)) + content
