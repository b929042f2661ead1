"""SentencePiece models, encoded as transformers 4 did in Python: what LLaMA-type models were trained on."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NO_BLANK = bytes([0x1A, 2, 0x18, 0])
"""Appended to a model, whose protobuf fields it overrides: normalizer_spec (3) add_dummy_prefix (3) = 0."""


class SentencePieces:
    """Text to ids, special tokens included.

    A text is cut at the special tokens that it spells out; each part between them is encoded on its
    own. A blank is put before the first part, and in legacy tokenizers before every part.
    """

    def __init__(self, model: Path, specials: Mapping[int, Any], legacy: bool):
        """Reads a model.

        Args:
          model: `tokenizer.model`.
          specials: transformers' added tokens by id, which know whether they take the white space
            beside them.
          legacy: as in tokenizer_config.json, where its absence means true.
        """
        # Imported late: few runs need it.
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model.read_bytes() + NO_BLANK)
        self._legacy = legacy
        self._ids = {token.content: number for number, token in specials.items()}
        # Longer tokens first: a token may begin with another.
        ordered = sorted(specials.values(), key=lambda token: -len(token.content))
        self._cut = re.compile("|".join(_pattern(token) for token in ordered)) if ordered else None

    def __call__(self, text: str) -> tuple[int, ...]:
        """The ids of a whole text."""
        ids: list[int] = []
        end = 0
        for found in self._cut.finditer(text) if self._cut else ():
            ids += self._part(text[end : found.start()], first=end == 0)
            ids.append(self._ids[found.group(found.lastindex or 0)])
            end = found.end()
        return (*ids, *self._part(text[end:], first=end == 0))

    def _part(self, part: str, first: bool) -> list[int]:
        if not part:
            return []
        return self._processor.encode(" " + part if first or self._legacy else part)


def _pattern(token: Any) -> str:
    left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    return f"{left}({re.escape(token.content)}){right}"
