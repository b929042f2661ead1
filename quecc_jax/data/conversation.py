"""Conversations to token ids, labels and visual slots, built together piece by piece.

A template turns the turns of a row into pieces: text, a picture's place, or the end of an answer,
each with a flag that says whether it carries loss. Ids, labels and slots are then laid down piece
by piece in one pass, so they cannot disagree.
"""

import enum
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.tokenizer import Tokenizer
from quecc_jax.errors import UserError

PLACEHOLDER = "<image>"
SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
"""System sentence of Vicuna v1, on which LLaVA-1.5 is trained."""


class Mark(enum.Enum):
    """Pieces that are not text."""

    PICTURE = 0
    END = 1


Piece = tuple[str | Mark, bool]
"""What comes next, and whether it carries loss."""


def template_text() -> str:
    """The words that templates and queries add to what rows say."""
    return f"{SYSTEM} USER: ASSISTANT: image"


def image_refs(row: dict[str, Any]) -> list[Any]:
    """References to a row's pictures, in the order of their placeholders; empty for a text-only row."""
    image = row.get("image")
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def encode(row: dict[str, Any], tokenizer: Tokenizer, data: DataConfig, visual_tokens: int,
           prompt: bool = False) -> dict[str, np.ndarray]:
    """Lays out one LLaVA-format row.

    The query is the first human turn without placeholders, or the word "image" where nothing is left
    or the row has no picture; it is tokenised bare behind BOS and is the same for every picture.

    Args:
      row: {"image": one or several picture references, or absent; "conversations": turns
        {"from": "human" or "gpt", "value": text with `<image>` placeholders}}, human first,
        alternating.
      tokenizer: Gives ids of the pieces of text.
      data: Template, label choice and lengths.
      visual_tokens: Slots V that one picture takes.
      prompt: Stop right where the first answer begins; no position carries loss then.

    Returns:
      int32 arrays: `tokens`, `labels` and `slots` of one length L <= data.max_length (see `Batch`),
      `query` of at most data.query_length; and `cut` [], the number of tokens that did not fit.

    Raises:
      UserError: the row is not of that form, its placeholders and pictures differ in number, it has
        more pictures than data.images_per_row, or it is too long and may not be, or cannot usefully
        be, truncated. The caller adds file and row number.
    """
    turns = _turns(row)
    pictures = len(image_refs(row))
    _check(turns, pictures, data, prompt)
    if prompt:
        turns = turns[:1]
    tokens, slots, loss = _lay_out(turns, tokenizer, data, visual_tokens, prompt)
    cut = _fit(slots, loss, data, prompt)
    if cut:
        tokens, slots, loss = tokens[:-cut], slots[:-cut], loss[:-cut]
    ids = np.array(tokens, np.int32)
    question = turns[0].replace(PLACEHOLDER, "").strip() if pictures else ""
    query = (*_bos(tokenizer), *tokenizer.encode(question or "image"))[: data.query_length]
    return {"tokens": ids, "slots": np.array(slots, np.int32),
            "labels": np.where(loss, ids, IGNORE).astype(np.int32),
            "query": np.array(query, np.int32), "cut": np.array(cut, np.int32)}


def prompt(question: str, images: int, tokenizer: Tokenizer, data: DataConfig,
           visual_tokens: int) -> dict[str, np.ndarray]:
    """Lays out a question for generation, as `encode` does a row, ending where the answer begins.

    Args:
      question: What the human asks; placeholders for `images` pictures go in front, a line each,
        unless the question holds its own.
      images: Pictures the question is about.

    Returns:
      As `encode`.
    """
    if PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}\n" * images + question
    row = {"image": list(range(images)), "conversations": [{"from": "human", "value": question}]}
    return encode(row, tokenizer, data, visual_tokens, prompt=True)


def _turns(row: dict[str, Any]) -> list[str]:
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise UserError("it has no list of conversations; give it turns of human and gpt")
    for number, turn in enumerate(turns):
        who = "gpt" if number % 2 else "human"
        if not isinstance(turn, dict) or turn.get("from") != who or not isinstance(turn.get("value"), str):
            raise UserError(f"turn {number + 1} is not {{'from': '{who}', 'value': text}}; "
                            "turns must alternate and begin with the human")
    return [turn["value"] for turn in turns]


def _check(turns: Sequence[str], pictures: int, data: DataConfig, prompt: bool) -> None:
    if not prompt and len(turns) % 2:
        raise UserError("its last turn has no answer; add one or drop the turn")
    if data.template == "plain" and len(turns) > 2:
        raise UserError(f"template plain takes one caption, not {len(turns)} turns; use v1")
    placeholders = sum(turn.count(PLACEHOLDER) for turn in turns)
    if placeholders != pictures:
        raise UserError(f"it has {pictures} pictures but {placeholders} {PLACEHOLDER} placeholders; "
                        "make the numbers equal")
    if pictures > data.images_per_row:
        raise UserError(f"it has {pictures} pictures but data.images_per_row is {data.images_per_row}; "
                        "raise that or split the row")


def _bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)


def _pictures_and_text(text: str, loss: bool) -> Iterator[Piece]:
    for number, part in enumerate(text.split(PLACEHOLDER)):
        if number:
            yield Mark.PICTURE, False
        yield part, loss


def _plain(turns: Sequence[str], prompt: bool) -> Iterator[Piece]:
    for _ in range(turns[0].count(PLACEHOLDER)):
        yield Mark.PICTURE, False
    if not prompt:
        yield from _pictures_and_text(turns[1] + "\n", True)


def _vicuna(turns: Sequence[str], system: str) -> Iterator[Piece]:
    yield system, False
    for number, turn in enumerate(turns):
        if number % 2:
            yield from _pictures_and_text(f" {turn}", True)
            yield Mark.END, True
        else:
            yield "USER: ", False
            yield from _pictures_and_text(turn, False)
            yield " ASSISTANT:", False


def _pieces(turns: Sequence[str], data: DataConfig, prompt: bool) -> Iterator[Piece]:
    """The pieces of a conversation, neighbouring texts of one kind joined, empty ones dropped."""
    if data.template == "plain":
        pieces = _plain(turns, prompt)
    else:
        pieces = _vicuna(turns, f"{SYSTEM} " if data.template == "v1" else "")
    for (is_text, loss), group in itertools.groupby(pieces, lambda p: (isinstance(p[0], str), p[1])):
        if is_text:
            text = "".join(str(piece) for piece, _ in group)
            if text:
                yield text, loss
        else:
            yield from group


def _lay_out(turns: Sequence[str], tokenizer: Tokenizer, data: DataConfig, visual_tokens: int,
             prompt: bool) -> tuple[list[int], list[int], list[bool]]:
    tokens, slots, loss = list(_bos(tokenizer)), [-1] * len(_bos(tokenizer)), [False] * len(_bos(tokenizer))
    picture = 0
    for piece, answer in _pieces(turns, data, prompt):
        if piece is Mark.PICTURE:
            tokens += [0] * visual_tokens
            slots += range(picture * visual_tokens, (picture + 1) * visual_tokens)
            loss += [False] * visual_tokens
            picture += 1
            continue
        ids = (tokenizer.eos_token_id,) if isinstance(piece, Mark) else tokenizer.encode(piece)
        tokens += ids
        slots += [-1] * len(ids)
        loss += [not prompt and (answer or data.labels == "all")] * len(ids)
    return tokens, slots, loss


def _fit(slots: Sequence[int], loss: Sequence[bool], data: DataConfig, prompt: bool) -> int:
    """Tokens to cut from the end so that the row fits."""
    cut = len(slots) - data.max_length
    if cut <= 0:
        return 0
    too_long = f"it has {len(slots)} tokens but data.max_length is {data.max_length}"
    if prompt or data.too_long == "error":
        raise UserError(f"{too_long}; raise that or shorten the text")
    if max(slots[-cut:]) >= 0:
        raise UserError(f"{too_long}, and truncation would cut a picture; raise that")
    if not any(loss[:-cut]):
        raise UserError(f"{too_long}, and truncation would leave nothing to learn; raise that")
    return cut
