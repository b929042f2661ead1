"""Bytes that a SentencePiece vocabulary spells as tokens of their own, `<0x0A>` for a line break.

Vocabularies with byte fallback write characters that they lack as UTF-8 bytes, and a model may say bytes
that are no character. SentencePiece keeps the characters and writes U+FFFD for each byte that belongs to
none; LLaVA's tokenizers decode with it. transformers 5 decodes with the `tokenizers` package, which gives up
a whole run of bytes for one that is broken, so that characters disappear after they have been said.
"""

import itertools
import re
from collections.abc import Sequence

from quecc_jax.data.text.tokenizer_files import HfTokenizer

REPLACEMENT = "\ufffd"
_SURROGATES = re.compile("[\udc80-\udcff]")


class BytePieces:
    """Tokens for all 256 bytes, given in the order of the bytes."""

    def __init__(self, ids: Sequence[int]):
        self._ids, self._bytes = tuple(ids), {token: byte for byte, token in enumerate(ids)}

    def mended(self, ids: Sequence[int]) -> list[int]:
        """The ids with every run of bytes made valid UTF-8, so that any decoder gives characters."""
        made: list[int] = []
        for are_bytes, run in itertools.groupby(ids, self._bytes.__contains__):
            tokens = list(run)
            made += self._valid(bytes(self._bytes[token] for token in tokens)) if are_bytes else tokens
        return made

    def _valid(self, run: bytes) -> list[int]:
        # Bytes that cannot be decoded come out as one surrogate each.
        text = _SURROGATES.sub(REPLACEMENT, run.decode("utf-8", "surrogateescape"))
        return [self._ids[byte] for byte in text.encode()]


def byte_pieces(hf: HfTokenizer) -> BytePieces | None:
    """The byte tokens of a transformers tokenizer; None where its decoder knows of none."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = hf.convert_tokens_to_ids(tokens)
    if None in ids or len(set(ids)) < len(ids) or hf.convert_tokens_to_string(["<0x41>"]) != "A":
        return None
    return BytePieces(ids)
