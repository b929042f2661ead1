"""Conversations to token ids, labels and visual slots, built together piece by piece.

A template turns the turns of a row into pieces, each with a flag that says whether it carries loss.
Ids, labels and slots are then laid down piece by piece in one pass, so they cannot disagree.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.config import DataConfig
from quecc_jax.data.batch import IGNORE, NEWLINE
from quecc_jax.data.references import image_refs
from quecc_jax.data.text.queries import row_limit
from quecc_jax.data.text.templates import PLACEHOLDER, TEMPLATES, Mark, pieces
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.tiles import Arrangement
from quecc_jax.errors import BadRow, UserError

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
"""Who speaks, by the names that data sets use."""


class Conversation(NamedTuple):
    """What a row says."""

    system: str | None
    """The row's own system sentence, if it has one."""
    turns: list[str]
    """Human and assistant in turn, the human first."""


def encode(
    row: dict[str, Any],
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    prompt: bool = False,
    arranged: Sequence[Arrangement] = (),
) -> dict[str, np.ndarray]:
    """Lays out one LLaVA-format row.

    The query of a picture is the human turn that holds its placeholder (see `query_turns`) without
    placeholders, tokenised bare behind BOS; it is the same under every template.

    Args:
      row: {"image": one or several picture references, or absent; "conversations": turns
        {"from": "human" or "gpt", "value": text with `<image>` placeholders}}. Human and gpt, also
        called user and assistant, alternate; a first turn of "system" replaces the template's
        sentence, and an assistant's turn before the first human one is left out.
      tokenizer: Gives ids of the pieces of text.
      data: Template, label choice and lengths.
      visual_tokens: Slots V that one picture takes.
      prompt: Stop right where the first answer begins; no position carries loss then.
      arranged: What stands for each picture, if not its V tokens.

    Returns:
      int32 arrays: `tokens`, `labels` and `slots` of one length L <= data.max_length (see `Batch`),
      `query` [Q], the different questions about its pictures one behind the other, each of at most
      data.query_limit tokens; `query_ends` [P], where among them the question ends about the picture in each
      of P places; `query_cut` [], the tokens that limits took from questions; and `cut` [], the number of
      tokens that did not fit: all of them, and L = 0, where data.too_long drops the row.

    Raises:
      BadRow: the row is not of that form, its text is not UTF-8, its placeholders and pictures differ
        in number, it has more pictures than a row has room for, or it is too long and may not be, or
        cannot usefully be, truncated. The caller adds file and row number.
    """
    talk = _talk(row)
    pictures = len(image_refs(row))
    if not prompt and len(talk.turns) % 2:
        raise BadRow("turns", "its last turn has no answer; add one or drop the turn")
    _check(talk, pictures, data)
    asked = query_turns(talk.turns, talk.system)
    return _encode(
        talk._replace(turns=talk.turns[:1]) if prompt else talk,
        asked,
        tokenizer,
        data,
        visual_tokens,
        arranged,
    )


def prompt(
    question: str,
    images: int,
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    history: Sequence[str] = (),
    system: str | None = None,
    arranged: Sequence[Arrangement] = (),
    latest: bool = False,
) -> dict[str, np.ndarray]:
    """Lays out a question for generation, as `encode` does a row, ending where the answer begins.

    Args:
      question: What the human asks now.
      images: Pictures the conversation is about. Where no turn holds a placeholder, those of all of
        them go in front of the first human turn, a line each.
      history: What human and assistant said before, in turn, the human first. The prompt of a longer
        history begins with the ids of the shorter one's.
      system: Replaces the template's system sentence.
      arranged: What stands for each picture, if not its V tokens.
      latest: The query of every picture is what is asked now, not the turn that holds it.

    Returns:
      As `encode`; the history's answers are labelled, so that a pre-fusion leaves them out as in training.

    Raises:
      UserError: as `encode`, or the history does not end with an answer.
    """
    talk = _asking(question, images, history, system)
    _check(talk, images, data)
    asked = [question] * images if latest else query_turns(talk.turns, talk.system)
    return _encode(talk, asked, tokenizer, data, visual_tokens, arranged)


def prompt_text(
    question: str,
    images: int,
    tokenizer: Tokenizer,
    data: DataConfig,
    history: Sequence[str] = (),
    system: str | None = None,
) -> str:
    """What `prompt` lays out, as text for people: one placeholder a picture, special tokens by name."""
    talk = _asking(question, images, history, system)
    turns = [_placed(turn, data) for turn in talk.turns]
    marks = {Mark.BOS: _bos(tokenizer), Mark.EOS: (tokenizer.eos_token_id,)}
    laid = pieces(TEMPLATES[data.template], turns, system)
    parts: list[str | Mark] = [Mark.BOS, *(part for part, _ in laid)]
    return "".join(part if isinstance(part, str) else tokenizer.decode(marks[part], False) for part in parts)


def query_turns(turns: Sequence[str], system: str | None = None) -> list[str]:
    """The turn whose words condition each picture of a conversation, in the order of their placeholders.

    It is the human turn that holds the placeholder, as in the original, whose query is the text between a
    row's last placeholder and the answer. A picture in an answer belongs to the turn that is answered, and
    one in the system sentence to the first turn.
    """
    found = [turns[0]] * (system or "").count(PLACEHOLDER)
    for number, turn in enumerate(turns):
        found += [turns[number - number % 2]] * turn.count(PLACEHOLDER)
    return found


def _asking(question: str, images: int, history: Sequence[str], system: str | None) -> Conversation:
    if len(history) % 2:
        raise UserError("the history ends with a question; give its answer as well")
    turns = [*history, question]
    if not any(PLACEHOLDER in turn for turn in turns):
        turns[0] = f"{PLACEHOLDER}\n" * images + turns[0]
    return Conversation(system, turns)


def _talk(row: dict[str, Any]) -> Conversation:
    if not isinstance(row, dict):
        raise BadRow("not a row", f"it is a {type(row).__name__}, not an object; give it conversations")
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadRow("turns", "it has no list of conversations; give it turns of human and gpt")
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns):
        speaker = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if speaker is None or not isinstance(turn.get("value"), str):
            raise BadRow(
                "turns", f"turn {number + 1} is not {{'from': 'human' or 'gpt', 'value': text}}; write it so"
            )
        if not _is_utf8(turn["value"]):
            raise BadRow("text", f"turn {number + 1} is not UTF-8 text; convert it")
        said.append((speaker, turn["value"]))
    system = said.pop(0)[1] if said[0][0] == "system" else None
    if said and said[0][0] == "gpt":
        said.pop(0)
    left_out = len(turns) - len(said)
    for number, (speaker, _) in enumerate(said):
        wanted = "gpt" if number % 2 else "human"
        if speaker != wanted:
            raise BadRow(
                "turns",
                f"turn {number + 1 + left_out} is of {speaker}, not of {wanted}; human and "
                "gpt must alternate, and system may only come first",
            )
    if not said:
        raise BadRow("turns", "it has no turn of the human; add one")
    return Conversation(system, [value for _, value in said])


def _is_utf8(text: str) -> bool:
    """Whether a text can be written: JSON's escapes and lenient reading let halves of characters in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(talk: Conversation, pictures: int, data: DataConfig) -> None:
    if TEMPLATES[data.template].caption and (len(talk.turns) > 2 or talk.system is not None):
        raise BadRow(
            "turns",
            f"template {data.template} takes one caption, no further turns and no system sentence; use v1",
        )
    placeholders = sum(text.count(PLACEHOLDER) for text in (talk.system or "", *talk.turns))
    if placeholders != pictures:
        raise BadRow(
            "placeholders",
            f"it has {pictures} pictures but {placeholders} {PLACEHOLDER} "
            "placeholders; make the numbers equal",
        )
    if pictures > data.images_per_row:
        raise BadRow(
            "too many pictures",
            f"it has {pictures} pictures but data.images_per_row is "
            f"{data.images_per_row}; raise that or split the row",
        )


def _encode(
    talk: Conversation,
    asked: Sequence[str],
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    arranged: Sequence[Arrangement],
) -> dict[str, np.ndarray]:
    """Lays out a conversation; `asked` has the turn that conditions each of its pictures."""
    arranged = arranged or [Arrangement(1, np.arange(visual_tokens))] * len(asked)
    tokens, slots, loss = _lay_out(talk, tokenizer, data, visual_tokens, arranged)
    cut = _fit(slots, loss, data, asked=len(talk.turns) % 2 == 1)
    kept = len(tokens) - cut
    ids, learned = np.array(tokens[:kept], np.int32), np.array(loss[:kept], bool)
    places = [one.places for one in arranged]
    queries, query_ends, query_cut = _queries(asked, places, tokenizer, data)
    return {
        "tokens": ids,
        "slots": np.array(slots[:kept], np.int32),
        "labels": np.where(learned, ids, IGNORE).astype(np.int32),
        "query": queries,
        "query_ends": query_ends,
        "query_cut": query_cut,
        "cut": np.array(cut, np.int32),
    }


def _queries(
    asked: Sequence[str], places: Sequence[int], tokenizer: Tokenizer, data: DataConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`query`, `query_ends` and `query_cut` of `encode`, of pictures that take so many places each."""
    turns = list(dict.fromkeys(asked))
    read = [query_ids(turn, tokenizer, data) for turn in turns]
    # A row that was truncated may hold less than the whole of its turns.
    room, cut, kept = row_limit(data, len(asked)), sum(cut for _, cut in read), list[np.ndarray]()
    for behind, (ids, _) in zip(range(len(read))[::-1], read, strict=True):
        kept.append(ids[: room - behind])
        cut += len(ids) - len(kept[-1])
        room -= len(kept[-1])
    last = dict(zip(turns, np.cumsum([len(ids) for ids in kept]) - 1, strict=True))
    ends = [last[turn] for turn, count in zip(asked, places, strict=True) for _ in range(count)]
    none = np.zeros(0, np.int32)
    return np.concatenate([none, *kept]), np.array(ends, np.int32), np.array(cut, np.int32)


def query_ids(question: str, tokenizer: Tokenizer, data: DataConfig) -> tuple[np.ndarray, int]:
    """The query for pictures that a human turn asks about.

    A turn of nothing but placeholders is BOS alone, as in the original. Where texts have no BOS, the
    original reads the state of a padding token; the word "image" stands in there, its own query for rows
    without a picture.

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


def _lay_out(
    talk: Conversation,
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    arranged: Sequence[Arrangement],
) -> tuple[list[int], list[int], list[bool]]:
    start = _bos(tokenizer)
    tokens, slots, loss = list(start), [-1] * len(start), [False] * len(start)
    asked = len(talk.turns) % 2 == 1
    turns = [_placed(turn, data) for turn in talk.turns]
    place, coming = 0, iter(arranged)
    for piece, answer in pieces(TEMPLATES[data.template], turns, talk.system):
        learned = piece is not Mark.BOS and (answer or (data.labels == "all" and not asked))
        parts: Sequence[str | Mark] = piece.split(PLACEHOLDER) if isinstance(piece, str) else [piece]
        for number, part in enumerate(parts):
            if number:
                places, own = next(coming)
                tokens += [0] * len(own)
                slots += np.where(own == NEWLINE, NEWLINE, own + place * visual_tokens).tolist()
                loss += [False] * len(own)
                place += places
            begins = len(tokens) == len(start) or slots[-1] >= 0
            ids = _ids(part, tokenizer, None if begins else tokens[-1])
            tokens += ids
            slots += [-1] * len(ids)
            loss += [learned] * len(ids)
    # Nothing stands before the first token to predict it from, least of all a neighbour's last one.
    loss[:1] = [False] * len(loss[:1])
    return tokens, slots, loss


def _ids(part: str | Mark, tokenizer: Tokenizer, after: int | None) -> tuple[int, ...]:
    if part is Mark.BOS:
        return _bos(tokenizer)
    return (tokenizer.eos_token_id,) if isinstance(part, Mark) else tokenizer.encode(part, after)


def _fit(slots: Sequence[int], loss: Sequence[bool], data: DataConfig, asked: bool) -> int:
    """Tokens to cut from the end so that the row fits."""
    cut = len(slots) - data.max_length
    if cut <= 0:
        return 0
    too_long = f"it has {len(slots)} tokens but data.max_length is {data.max_length}"
    if asked or data.too_long == "error":
        raise BadRow("too long", f"{too_long}; raise that or shorten the text")
    if data.too_long == "drop":
        return len(slots)
    if max(slots[-cut:]) >= 0:
        raise BadRow(
            "too long",
            f"{too_long}, and truncation would cut a picture; raise that or let data.too_long drop it",
        )
    if not any(loss[:-cut]):
        raise BadRow(
            "too long",
            f"{too_long}, and truncation would leave nothing to learn; raise that or "
            "let data.too_long drop it",
        )
    return cut
