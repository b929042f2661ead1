"""Conversations to token ids, labels and visual slots, built together piece by piece.

A template turns the turns of a row into pieces, each with a flag that says whether it carries loss.
Ids, labels and slots are then laid down piece by piece in one pass, so they cannot disagree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quecc_jax.config import DataConfig
from quecc_jax.config.shapes import row_limit
from quecc_jax.data.batch import NEWLINE
from quecc_jax.data.text.templates import PLACEHOLDER, TEMPLATES, Mark, pieces
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.text.turns import Conversation, asking
from quecc_jax.data.tiles import Arrangement, maps_of
from quecc_jax.errors import BadRow


class Encoded(NamedTuple):
    """A conversation laid out in L positions, without padding."""

    codes: np.ndarray
    """int32 [L] a token id, or -1 - k at slot k of the row's visual tokens."""
    loss: np.ndarray
    """bool [L] positions that carry loss."""
    queries: np.ndarray
    """int32 [Q] the different questions about its images, one behind the other, each of at most
    data.query_limit tokens."""
    query_ends: np.ndarray
    """int32 [I] position in `queries` of the last token of the question about each of its I crops."""
    query_cut: int
    """Tokens that limits took from questions."""
    cut: int
    """Tokens that did not fit: all of them, and L = 0, where data.too_long drops the row."""
    maps: np.ndarray | None = None
    """int32 [I, MAP] as `Batch.maps`; None where no map is shrunk."""

    @property
    def crops(self) -> int:
        """Images I of a batch's row that its images take: one each, or more with tiles."""
        return len(self.query_ends)


def prompt_text(
    question: str,
    images: int,
    tokenizer: Tokenizer,
    data: DataConfig,
    history: Sequence[str] = (),
    system: str | None = None,
) -> str:
    """The prompt of a question, see `asking`, as text for people: one placeholder an image, special tokens by name."""
    turns = [_placed(turn, data) for turn in asking(question, images, history, system).turns]
    marks = {Mark.BOS: _bos(tokenizer), Mark.EOS: (tokenizer.eos_token_id,)}
    laid = pieces(TEMPLATES[data.template], turns, system)
    parts: list[str | Mark] = [Mark.BOS, *(part for part, _ in laid)]
    return "".join(part if isinstance(part, str) else tokenizer.decode(marks[part], False) for part in parts)


def _check(said: Conversation, data: DataConfig) -> None:
    """Raises BadRow if a conversation does not fit its template or its images."""
    if TEMPLATES[data.template].caption and (len(said.turns) > 2 or said.system is not None):
        raise BadRow(
            "turns",
            f"template {data.template} takes one caption, no further turns and no system sentence; use v1",
        )
    placeholders = sum(text.count(PLACEHOLDER) for text in (said.system or "", *said.turns))
    if placeholders != said.images:
        raise BadRow(
            "placeholders",
            f"it has {said.images} images but {placeholders} {PLACEHOLDER} "
            "placeholders; make the numbers equal",
        )
    if said.images > data.images_per_row:
        raise BadRow(
            "too many pictures",
            f"it has {said.images} images but data.images_per_row is "
            f"{data.images_per_row}; raise that or split the row",
        )


def lay_out(
    said: Conversation,
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    arranged: Sequence[Arrangement] = (),
    asked: int | None = None,
    latest: bool = False,
) -> Encoded:
    """Lays out a conversation as token ids and visual slots, in training and answering alike.

    The query of an image is its turn (`Conversation.asked`) without placeholders, tokenised bare behind
    BOS; it is the same under every template. A conversation that ends with a human turn stops where its
    answer begins.

    Args:
      said: What is laid out.
      tokenizer: Gives ids of the pieces of text.
      data: Template, label choice and lengths.
      visual_tokens: Slots V that one image takes.
      arranged: What stands for each image, if not its V tokens.
      asked: Stop where the answer to this human turn, from 0, begins, whatever was said then.
      latest: The query of every image is that turn.

    Raises:
      BadRow: its placeholders and images differ in number, it has more images than a row has room for or
        more than its template takes, or it is too long and may not be, or cannot usefully be, truncated.
    """
    _check(said, data)
    if asked is not None:
        turns = said.turns[: 2 * asked + 1]
        said = said._replace(turns=turns, asked=turns[-1:] * len(said.asked) if latest else said.asked)
    arranged = arranged or [Arrangement(1, np.arange(visual_tokens))] * len(said.asked)
    codes, loss = _positions(said, tokenizer, data, visual_tokens, arranged)
    cut = _fit(codes, loss, data, is_open=len(said.turns) % 2 == 1)
    kept = len(codes) - cut
    queries = _queries(said.asked, [one.crops for one in arranged], tokenizer, data)
    return Encoded(
        np.array(codes[:kept], np.int32), np.array(loss[:kept], bool), *queries, cut, maps_of(arranged)
    )


def _queries(
    asked: Sequence[str], crops: Sequence[int], tokenizer: Tokenizer, data: DataConfig
) -> tuple[np.ndarray, np.ndarray, int]:
    """`queries`, `query_ends` and `query_cut` of `Encoded`, of images of so many crops each."""
    turns = list(dict.fromkeys(asked))
    read = [query_ids(turn, tokenizer, data) for turn in turns]
    # A row that was truncated may hold less than the whole of its turns.
    room, cut, kept = row_limit(data, len(asked)), sum(cut for _, cut in read), list[np.ndarray]()
    for behind, (ids, _) in zip(range(len(read))[::-1], read, strict=True):
        kept.append(ids[: room - behind])
        cut += len(ids) - len(kept[-1])
        room -= len(kept[-1])
    last = dict(zip(turns, np.cumsum([len(ids) for ids in kept]) - 1, strict=True))
    ends = [last[turn] for turn, count in zip(asked, crops, strict=True) for _ in range(count)]
    none = np.zeros(0, np.int32)
    return np.concatenate([none, *kept]), np.array(ends, np.int32), cut


def query_ids(question: str, tokenizer: Tokenizer, data: DataConfig) -> tuple[np.ndarray, int]:
    """The query of a human turn, for the images that it asks about.

    A turn of nothing but placeholders is BOS alone, as in the original. Where texts have no BOS, the
    original reads the state of a padding token; the word "image" stands in there, its own query for rows
    without an image.

    With `data.query_tokenizer` the ids are of that one, and the last is its EOS, as CLIP's text tower needs
    it however long the question is.

    Returns:
      int32 [Q], the turn without placeholders, bare behind BOS, Q <= data.query_limit; and the number of
      tokens that the limit cut.
    """
    bare, room = question.replace(PLACEHOLDER, "").strip(), data.query_limit
    reader = tokenizer.questions if data.query_tokenizer else tokenizer
    if reader is None:
        raise ValueError("the tokenizer was loaded without data.query_tokenizer")
    end = (reader.eos_token_id,) if data.query_tokenizer else ()
    ids = (*_bos(reader), *reader.encode(bare or ("" if _bos(reader) else "image")))
    kept = ids[: room - len(end)]
    return np.array((*kept, *end), np.int32), len(ids) - len(kept)


def _bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)


def _placed(turn: str, data: DataConfig) -> str:
    if data.image_place == "keep" or turn.count(PLACEHOLDER) != 1:
        return turn
    return f"{PLACEHOLDER}\n{turn.replace(PLACEHOLDER, '').strip()}".strip()


def _positions(
    said: Conversation,
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    arranged: Sequence[Arrangement],
) -> tuple[list[int], list[bool]]:
    """`codes` and `loss` of `Encoded`, of a whole conversation."""
    start = _bos(tokenizer)
    codes, loss = list(start), [False] * len(start)
    is_open = len(said.turns) % 2 == 1
    turns = [_placed(turn, data) for turn in said.turns]
    crop, coming = 0, iter(arranged)
    for piece, answer in pieces(TEMPLATES[data.template], turns, said.system):
        learned = piece is not Mark.BOS and (answer or (data.labels == "all" and not is_open))
        parts: Sequence[str | Mark] = piece.split(PLACEHOLDER) if isinstance(piece, str) else [piece]
        for number, part in enumerate(parts):
            if number:
                crops, own, _ = next(coming)
                codes += (-1 - np.where(own == NEWLINE, NEWLINE, own + crop * visual_tokens)).tolist()
                loss += [False] * len(own)
                crop += crops
            begins = len(codes) == len(start) or codes[-1] < 0
            ids = _ids(part, tokenizer, None if begins else codes[-1])
            codes += ids
            loss += [learned] * len(ids)
    # Nothing stands before the first token to predict it from, least of all a neighbour's last one.
    loss[:1] = [False] * len(loss[:1])
    return codes, loss


def _ids(part: str | Mark, tokenizer: Tokenizer, after: int | None) -> tuple[int, ...]:
    if part is Mark.BOS:
        return _bos(tokenizer)
    return (tokenizer.eos_token_id,) if isinstance(part, Mark) else tokenizer.encode(part, after)


def _fit(codes: Sequence[int], loss: Sequence[bool], data: DataConfig, is_open: bool) -> int:
    """Tokens to cut from the end so that the row fits."""
    cut = len(codes) - data.max_length
    if cut <= 0:
        return 0
    too_long = f"it has {len(codes)} tokens but data.max_length is {data.max_length}"
    if is_open or data.too_long == "error":
        raise BadRow("too long", f"{too_long}; raise that or shorten the text")
    if data.too_long == "drop":
        return len(codes)
    if min(codes[-cut:]) < 0:
        raise BadRow(
            "too long",
            f"{too_long}, and truncation would cut an image; raise that or let data.too_long drop it",
        )
    if not any(loss[:-cut]):
        raise BadRow(
            "too long",
            f"{too_long}, and truncation would leave nothing to learn; raise that or "
            "let data.too_long drop it",
        )
    return cut
