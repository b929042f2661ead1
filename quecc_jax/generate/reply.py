"""One answer as it grows: its text in pieces, how it ends, and what it took."""

import time
from collections.abc import Sequence

from quecc_jax.data.text.templates import Stops
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.generate.questions import Limits, Prompt, Usage
from quecc_jax.generate.text_stream import TextStream


class Reply:
    """Tokens in, pieces of text out, until a token, a text or the number of tokens ends it.

    Args:
      prompt: what it answers.
      began: when it was asked, in `time.perf_counter`'s seconds.
      ends: of the template.
      read: somebody reads pieces. Else tokens become text once, unless a text may end it.
    """

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: Tokenizer,
        ends: Stops,
        limits: Limits,
        *,
        began: float,
        read: bool = True,
    ):
        stop = (*limits.stop, ends.text) if ends.text else limits.stop
        self.ended_by = ""
        """`end` (a token), `stop` (a text) or `length`; nothing before."""
        self._prompt, self._ends, self._most = prompt, ends.ids, limits.max_new_tokens
        self._text, self._read = TextStream(tokenizer, stop), read or bool(stop)
        self._began = began
        self._first = self._last = 0.0

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain after these tokens, and was not before; those behind the end are left out."""
        now = time.perf_counter() - self._began
        self._first = self._first or now
        text = self._text
        ids, at_end = until_end(ids[: self._most - len(text.ids)], self._ends)
        if self._read:
            piece = text.push(ids)
        else:
            piece = ""
            text.ids += ids
        if text.stopped is not None:
            self.ended_by = "stop"
        elif at_end:
            self.ended_by = "end"
        elif len(text.ids) >= self._most:
            self.ended_by = "length"
        if self.ended_by:
            self._last = now
            piece += text.finish() if self._read else ""
        return piece

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text.text

    def usage(self) -> Usage:
        """What it took until it ended."""
        encoded = self._prompt.encoded
        return Usage(
            prompt_tokens=len(encoded.codes),
            visual_tokens=int((encoded.codes < 0).sum()),
            cut_question_tokens=encoded.query_cut,
            new_tokens=len(self._text.ids),
            first_token_seconds=self._first,
            seconds=self._last,
            ended_by=self.ended_by,
            unknown_words=self._prompt.unknown_words,
        )


def until_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[Sequence[int], bool]:
    """The ids before the first token that ends an answer, and whether it is there."""
    before = next((number for number, token in enumerate(ids) if token in ends), len(ids))
    return ids[:before], before < len(ids)
