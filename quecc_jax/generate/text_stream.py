"""Text of tokens while they come: pieces that never have to be taken back, and texts that end an answer."""

import re
from collections.abc import Iterable, Sequence

from quecc_jax.data.text.byte_pieces import REPLACEMENT
from quecc_jax.data.text.tokenizer import Tokenizer

_UNFINISHED = 3
"""Bytes of a character that lacks its last one, at most; decoders write a replacement for some or each."""
_CLEANED = re.compile(r"( (n'?|'[vr])?| ?' ?)\Z")
"""Ends that transformers' clean-up of blanks may change when more follows, as in `do n't` and `it 's`."""


class TextStream:
    """Tokens in, pieces of text out.

    The pieces joined are `text`, whatever the tokens are. Held back are an end that may become a stop text,
    bytes of a character that is not complete, and blanks, until it is known what follows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.stopped: str | None = None
        """The stop text that was met."""
        self.ids: list[int] = []
        self._tokenizer, self._stop, self._sent = tokenizer, tuple(s for s in stop if s), ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain after these tokens, and was not before; those behind a stop text are left out."""
        known = len(self.ids)
        self.ids += ids
        text, self.stopped = self._certain(len(self.ids))
        if self.stopped is not None:
            # How many come at a time depends on the company, and the answer's tokens are counted.
            met = next(n for n in range(known, len(self.ids) + 1) if self._certain(n)[1] is not None)
            del self.ids[met:]
            text, self.stopped = self._certain(met)
        # A decoder that takes back more than `certain` expects has to wait for the end.
        return self._send(text) if text.startswith(self._sent) else ""

    def finish(self) -> str:
        """What was held back."""
        text, self.stopped = cut(_decoded(self._tokenizer, self.ids), self._stop)
        return self._send(text)

    @property
    def text(self) -> str:
        """All text so far, stop text and blanks at both ends left out."""
        return answer_text(self._tokenizer, self.ids, self._stop)

    def _certain(self, count: int) -> tuple[str, str | None]:
        """As `certain`, of the first tokens."""
        return certain(_decoded(self._tokenizer, self.ids[:count]), self._stop)

    def _send(self, text: str) -> str:
        same = next(
            (k for k, (a, b) in enumerate(zip(self._sent, text, strict=False)) if a != b),
            min(len(self._sent), len(text)),
        )
        piece = text[same:]
        self._sent += piece
        return piece


def answer_text(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of an answer's tokens up to the first stop text, without blanks at both ends."""
    return cut(_decoded(tokenizer, ids), stop)[0]


def _decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    # Blanks at the end stay, for a stop text may end with one.
    return tokenizer.decode(ids, strip=False).lstrip()


def cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text up to the earliest stop text, without blanks at its end, and that stop text."""
    found = [(text.index(s), s) for s in stop if s in text]
    if not found:
        return text.rstrip(), None
    at, which = min(found)
    return text[:at].rstrip(), which


def certain(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The part of `cut(text, stop)` that is the same whatever follows; the stop text once it is settled."""
    kept = text[: len(text) - min(_UNFINISHED, len(text) - len(text.rstrip(REPLACEMENT)))]
    kept = _CLEANED.sub("", kept)
    longest = max((n for s in stop for n in range(1, len(s)) if kept.endswith(s[:n])), default=0)
    before, which = cut(kept, stop)
    begins = len(kept) - longest
    # Another stop text may have begun in front of the one that is there.
    if which is not None and kept.index(which) <= begins:
        return before, which
    return kept[: min(begins, len(before))].rstrip(), None
