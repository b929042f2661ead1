"""A tokenizer.json that gives the ids of a tokenizer.model, for programs that do not call SentencePiece."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quecc_jax.data.text.tokenizer import BLANK, Tokenizer
from quecc_jax.errors import UserError

_SAMPLES = (
    "Hello  there,\n\nyou",
    " a   b    c      d",
    "\n x",
    "12 345.6 -- don't",
    "\ufb01 A\u030a \u2460 \u65e5\u672c \U0001f642\t\tx",
)
"""Texts that tokenizers of the two kinds have been seen to differ in."""


def write_tokenizer_json(folder: Path, tokenizer: Tokenizer, added: Mapping[int, Any], legacy: bool) -> None:
    """Writes folder/tokenizer.json beside folder/tokenizer.model.

    transformers reads such a file as it stands. From the model alone, version 5 would join repeated blanks
    in another order, and for LLaVA leave out the blank in front of a text. Our layout, like the
    original's, has one in front of the text behind an image too. Legacy tokenizers put it behind every
    special token, others here where a line begins, as it does behind an image.

    Args:
      folder: holds tokenizer.model.
      tokenizer: reads that model.
      added: tokens that are found in a text before all else, by id, as package tokenizers has them.
      legacy: as in tokenizer_config.json.

    Raises:
      UserError: the file would give other ids; SentencePiece's model is of another kind.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary: Any = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    backend = Backend(
        models.BPE(
            vocabulary,
            _merges(pieces),
            unk_token=pieces.id_to_piece(pieces.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    blanks = normalizers.Replace(" ", BLANK)
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), blanks])
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\A\n"), " \n"), blanks])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for _, token in sorted(added.items()):
        add = backend.add_special_tokens if token.special else backend.add_tokens
        add([token])
    if (bos := tokenizer.bos_token_id) is not None:
        name = tokenizer.hf.convert_ids_to_tokens(bos)
        backend.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], special_tokens=[(name, bos)]
        )
    # Metaspace puts no blank in front of a text that begins with one; no prompt does.
    for text in _SAMPLES if legacy else [text for text in _SAMPLES if text[0] != " "]:
        if tuple(backend.encode(text, add_special_tokens=False).ids) != tokenizer.encode(text):
            raise UserError(
                "the tokenizer.model of this run cannot be written as a tokenizer.json, in which "
                f"{text!r} would get other ids; export in the original format"
            )
    backend.save(str(folder / "tokenizer.json"))


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: by the score of what they make, from the left.

    Runs of blanks all have one score, so that the leftmost run grows first: longer left parts go before.
    """
    normal = {}
    for number in range(len(pieces)):
        odd = pieces.is_control(number) or pieces.is_unknown(number) or pieces.is_byte(number)
        if not odd and not pieces.is_unused(number):
            normal[pieces.id_to_piece(number)] = pieces.get_score(number)
    found = [
        (-score, -end, piece[:end], piece[end:])
        for piece, score in normal.items()
        for end in range(1, len(piece))
        if piece[:end] in normal and piece[end:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda pair: pair[:2])]
