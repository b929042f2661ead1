"""Reads rows of data sets and chats as turns of human and assistant, each image with its question."""

from collections.abc import Sequence
from typing import NamedTuple

from quecc_jax.data.references import Row, image_refs
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.errors import BadRow, UserError

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
"""human, gpt or system, by the names that data sets give them."""


class Conversation(NamedTuple):
    """The turns of a row or of a chat; where the human speaks last, an answer is asked for."""

    system: str | None
    """Its own system sentence, if it has one."""
    turns: tuple[str, ...]
    """Human and assistant in turn, the human first."""
    images: int
    """How many images it is about."""
    asked: tuple[str, ...]
    """The turn whose words condition each image, see `query_turns`."""


def query_turns(turns: Sequence[str], system: str | None = None) -> tuple[str, ...]:
    """The turn whose words condition each image of a conversation, in the order of their placeholders.

    It is the human turn that holds the placeholder, as in the original, whose query is the text between a
    row's last placeholder and the answer. An image in an answer belongs to the turn that is answered, and
    one in the system sentence to the first turn.
    """
    found = [turns[0]] * (system or "").count(PLACEHOLDER)
    for number, turn in enumerate(turns):
        found += [turns[number - number % 2]] * turn.count(PLACEHOLDER)
    return tuple(found)


def asking(
    question: str, images: int, history: Sequence[str] = (), system: str | None = None, latest: bool = False
) -> Conversation:
    """The conversation that a question continues.

    Args:
      question: What the human asks now.
      images: How many the conversation is about. Where no turn holds a placeholder, those of all of
        them go in front of the first human turn, a line each.
      history: What human and assistant said before, in turn, the human first. The prompt of a longer
        history begins with the ids of the shorter one's.
      system: Replaces the template's system sentence.
      latest: The query of every image is what is asked now, not the turn that holds it.

    Raises:
      UserError: the history does not end with an answer, or something said is not UTF-8 text.
    """
    if not all(map(_is_utf8, (*history, question, system or ""))):
        raise UserError("the question, or what was said before it, is not UTF-8 text; write it so")
    if len(history) % 2:
        raise UserError("the history ends with a question; give its answer as well")
    turns = (*history, question)
    if not any(PLACEHOLDER in turn for turn in turns):
        turns = (f"{PLACEHOLDER}\n" * images + turns[0], *turns[1:])
    asked = (question,) * images if latest else query_turns(turns, system)
    return Conversation(system, turns, images, asked)


def read_row(row: Row) -> Conversation:
    """The conversation of a LLaVA-format row.

    Args:
      row: {"image": one or several image references, or absent; "conversations": turns
        {"from": "human" or "gpt", "value": text with `<image>` placeholders}}. Human and gpt, also
        called user and assistant, alternate; a first turn of "system" replaces the template's
        sentence, and an assistant's turn before the first human one is left out.

    Raises:
      BadRow: it is not of that form, or its text is not UTF-8.
    """
    if not isinstance(row, dict):
        raise BadRow("not a row", f"it is a {type(row).__name__}, not an object; give it conversations")
    images = len(image_refs(row))
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
    spoken = tuple(value for _, value in said)
    return Conversation(system, spoken, images, query_turns(spoken, system))


def _is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON's escapes and lenient reading let halves of characters in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
