"""Text of tokens while they come: pieces that never have to be taken back, and texts that end an answer."""

from collections.abc import Iterable, Sequence

from quecc_jax.data.tokenizer import Tokenizer

BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, such as the first half of one."""


class TextStream:
    """Tokens in, pieces of text out.

    The pieces joined are the text of all tokens up to the first stop text, which is found wherever token
    boundaries lie. Held back are an end that may become a stop text, bytes of a character that is not
    complete, and blanks, until it is known what follows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.stopped: str | None = None
        """The stop text that was met."""
        self.ids: list[int] = []
        self._tokenizer, self._stop, self._sent = tokenizer, tuple(s for s in stop if s), ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain after these tokens, and was not before."""
        self.ids += ids
        text, self.stopped = cut(self._tokenizer.decode(self.ids), self._stop)
        return self._send(text if self.stopped else certain(text, self._stop))

    def finish(self) -> str:
        """What was held back."""
        return self._send(cut(self._tokenizer.decode(self.ids), self._stop)[0])

    @property
    def text(self) -> str:
        """All text so far, stop text left out."""
        return cut(self._tokenizer.decode(self.ids), self._stop)[0]

    def _send(self, text: str) -> str:
        # Decoders that close gaps before punctuation may shorten what is held back, never more.
        piece = text[len(self._sent) :] if text.startswith(self._sent) else ""
        self._sent += piece
        return piece


def cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The text up to the earliest stop text, without blanks at its end, and that stop text."""
    found = [(text.index(s), s) for s in stop if s in text]
    if not found:
        return text.rstrip(), None
    at, which = min(found)
    return text[:at].rstrip(), which


def certain(text: str, stop: Sequence[str]) -> str:
    """The part of a text that is the same whatever follows."""
    kept = text.rstrip(BROKEN)
    longest = max((n for s in stop for n in range(1, len(s)) if kept.endswith(s[:n])), default=0)
    return kept[: len(kept) - longest].rstrip()
