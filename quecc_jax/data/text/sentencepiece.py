"""SentencePiece models, encoded as transformers 4 did in Python: what LLaMA-type models were trained on."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from quecc_jax.errors import UserError

BLANK = "\u2581"
"""How SentencePiece writes a blank."""
NO_BLANK = bytes([0x1A, 2, 0x18, 0])
"""Appended to a model, whose protobuf fields it overrides: normalizer_spec (3) add_dummy_prefix (3) = 0."""
_SPACED = "  \ufb01 \uff21  b "
"""A text that every normalisation but LLaMA's changes."""


@dataclasses.dataclass(frozen=True)
class Added:
    """A token that is found in a text before any splitting, as transformers describes it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    """It takes the white space in front of it; with `rstrip`, that behind it."""
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class SentencePieces:
    """A model's pieces, and text without special tokens to ids.

    Args:
      model: `tokenizer.model`.

    Raises:
      UserError: it is not a SentencePiece model, or one that changes the text in other ways than
        LLaMA's, which puts a blank in front and keeps everything else.
    """

    def __init__(self, model: Path):
        # Imported late: few runs need it.
        from sentencepiece import SentencePieceProcessor

        data = model.read_bytes()
        try:
            own = SentencePieceProcessor(model_proto=data)
            self._processor = SentencePieceProcessor(model_proto=data + NO_BLANK)
        except RuntimeError:
            raise UserError(
                f"{model} is not a SentencePiece model (Llama 3 and Qwen publish other files "
                "under this name); give the tokenizer.json of this model instead"
            ) from None
        if own.normalize(_SPACED) != (BLANK + _SPACED).replace(" ", BLANK):
            raise UserError(
                f"{model} changes text in other ways than LLaMA's, which puts a blank before "
                "it and keeps the rest; give the tokenizer.json of this model instead"
            )
        self.ids = {own.id_to_piece(number): number for number in range(own.get_piece_size())}
        """Every piece's number."""

    def __call__(self, text: str) -> list[int]:
        """The ids of a text in which no special token is looked for, with no blank put before it."""
        return self._processor.encode(text)


class Encoder:
    """Text to ids, special tokens included.

    A text is cut at the special tokens that it spells out; each part between them is encoded on its
    own. A blank is put before the whole text, and in legacy tokenizers before every part.

    Args:
      pieces: the model.
      added: the tokens that are looked for, by number.
      named: contents of those that have a role, or are listed as special by name.
      legacy: as in tokenizer_config.json, where its absence means true.
    """

    def __init__(
        self, pieces: SentencePieces, added: Mapping[int, Added], named: Collection[str], legacy: bool
    ):
        self._pieces, self._legacy = pieces, legacy
        self._ids = {token.content: number for number, token in added.items()}
        self._named = frozenset(self._ids[name] for name in named if name in self._ids)
        # Longer tokens first: a token may begin with another.
        ordered = sorted(added.values(), key=lambda token: -len(token.content))
        self._cut = re.compile("|".join(_pattern(token) for token in ordered)) if ordered else None

    def __call__(self, text: str) -> tuple[int, ...]:
        """The ids of a whole text."""
        if not text:
            return ()
        if self._legacy:
            return tuple(self._all(text, " "))
        ids = self._all(" " + text.replace(BLANK, " "), "")
        # The blank in front stays, unless a token with a name follows it at once.
        blank = len(ids) > 1 and ids[0] == self._pieces.ids.get(BLANK) and ids[1] in self._named
        return tuple(ids[1:] if blank else ids)

    def _all(self, text: str, before: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for found in self._cut.finditer(text) if self._cut else ():
            ids += self._part(text[end : found.start()], before)
            ids.append(self._ids[found.group(found.lastindex or 0)])
            end = found.end()
        return ids + self._part(text[end:], before)

    def _part(self, part: str, before: str) -> list[int]:
        return self._pieces(before + part) if part else []


def _pattern(token: Added) -> str:
    left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    return f"{left}({re.escape(token.content)}){right}"
