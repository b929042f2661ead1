"""Prompt formats: what stands around the turns of a conversation, and where answers end.

A format is a value of `Template`; `pieces` applies it. Texts that carry loss and texts that do not
are different pieces, so that a prompt is always the beginning of what was trained on, id by id.
"""

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.errors import UserError

PLACEHOLDER = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""System sentence of Vicuna v1, on which LLaVA-1.5 is trained."""
# Two spaces after "safe." are part of the published sentence.
LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
"""LLaVA-NeXT's for Llama 3."""
MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers."
)


class Mark(enum.Enum):
    """Pieces that are tokens of the tokenizer's own choice, not text."""

    BOS = 0
    EOS = 1


Piece = tuple[str | Mark, bool]
"""What comes next, and whether it carries loss. Text may hold placeholders."""


@dataclasses.dataclass(frozen=True)
class Template:
    """One prompt format; each pair is what stands before and after."""

    system: str = ""
    """Sentence of conversations that bring none of their own."""
    around_system: tuple[str, str] = ("", "")
    """Written around a sentence that is not empty."""
    empty_system: bool = False
    """They are written around an empty one too."""
    system_in_turn: bool = False
    """The sentence stands inside of the first human turn."""
    around_human: tuple[str, str] = ("", "")
    """The second ends with the words that call for an answer."""
    around_answer: tuple[str, str] = ("", "")
    """Part of the answer: these carry loss with it."""
    end: str | None = None
    """Text that ends an answer and generation; None for the tokenizer's EOS."""
    after: str = ""
    """What follows the end; nobody has to predict it."""
    bos_every_turn: bool = False
    """BOS stands before every human turn, not just before the first."""
    caption: bool = False
    """One image, one caption: the human's words are dropped and there is one answer."""


def _chatml(system: str, after: str = "\n", thought: str = "") -> Template:
    """ChatML; `thought` stands in front of every answer, without loss."""
    return Template(
        system=system,
        around_system=("<|im_start|>system\n", "<|im_end|>" + after),
        around_human=("<|im_start|>user\n", f"<|im_end|>{after}<|im_start|>assistant\n{thought}"),
        end="<|im_end|>",
        after=after,
    )


_V1 = Template(
    system=SYSTEM, around_system=("", " "), around_human=("USER: ", " ASSISTANT:"), around_answer=(" ", "")
)
_INST = Template(
    around_system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    system_in_turn=True,
    around_human=("[INST] ", " [/INST]"),
    around_answer=(" ", " "),
)
_LLAMA_2 = dataclasses.replace(_INST, bos_every_turn=True)
# Mistral's own, whose system sentence is the first line of the turn.
_MISTRAL = dataclasses.replace(_INST, around_system=("", "\n\n"), around_answer=(" ", ""))
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_3 = Template(
    around_system=(_HEADER.format("system"), "<|eot_id|>"),
    around_human=(_HEADER.format("user"), "<|eot_id|>" + _HEADER.format("assistant")),
    end="<|eot_id|>",
)
# The first lines are part of the published format; the day is the one that it falls back on.
_LLAMA_3_1 = dataclasses.replace(
    _LLAMA_3,
    empty_system=True,
    around_system=(
        _HEADER.format("system") + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
        "<|eot_id|>",
    ),
)

TEMPLATES = {
    "plain": Template(end="\n", caption=True),
    "v1": _V1,
    "short": dataclasses.replace(_V1, system=""),
    "llama_2": dataclasses.replace(_LLAMA_2, system=LLAMA_2_SYSTEM),
    "llama_2_chat": _LLAMA_2,
    "llama_3": _LLAMA_3,
    "llama_3_1": _LLAMA_3_1,
    "llava_llama_3": dataclasses.replace(_LLAMA_3, system=LLAVA_SYSTEM),
    "llava_llama_3_1": dataclasses.replace(_LLAMA_3_1, system=LLAVA_SYSTEM),
    "mistral_instruct": _INST,
    "mistral_v1": _MISTRAL,
    "mistral_v3": dataclasses.replace(_MISTRAL, around_human=("[INST] ", "[/INST]")),
    "mistral_tekken": dataclasses.replace(
        _MISTRAL, around_human=("[INST]", "[/INST]"), around_answer=("", "")
    ),
    "phi3": Template(
        around_system=("<|system|>\n", "<|end|>\n"),
        around_human=("<|user|>\n", "<|end|>\n<|assistant|>\n"),
        end="<|end|>",
        after="\n",
    ),
    "phi4_mini": Template(
        around_system=("<|system|>", "<|end|>"),
        around_human=("<|user|>", "<|end|><|assistant|>"),
        end="<|end|>",
    ),
    "gemma": Template(
        around_human=("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        around_system=("", "\n\n"),
        system_in_turn=True,
        end="<end_of_turn>",
        after="\n",
    ),
    "olmo2": Template(
        around_system=("<|system|>\n", "\n"), around_human=("<|user|>\n", "\n<|assistant|>\n"), after="\n"
    ),
    "zephyr": Template(
        around_system=("<|system|>\n", "</s>\n"),
        around_human=("<|user|>\n", "</s>\n<|assistant|>\n"),
        end="</s>",
        after="\n",
    ),
    "mpt": _chatml(MPT_SYSTEM, ""),
    "chatml_direct": _chatml("Answer the questions.", ""),
    "chatml": _chatml(""),
    "qwen": _chatml("You are a helpful assistant."),
    "qwen1_5": _chatml("You are a helpful assistant"),
    "qwen2_5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3_no_think": _chatml("", thought="<think>\n\n</think>\n\n"),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
}
"""By the name that `DataConfig.template` has."""


def pieces(template: Template, turns: Sequence[str], system: str | None = None) -> Iterator[Piece]:
    """A conversation as texts and marks, the BOS in front of it left out.

    Args:
      template: the format.
      turns: what human and assistant say in turn, the human first. When the human speaks last, the
        pieces end where the answer begins.
      system: replaces the template's system sentence; "" for none.

    Yields:
      Neighbours with and without loss alternate, except around marks; no text is empty.
    """
    system = template.system if system is None else system
    opening = _within(template.around_system, system) if system or template.empty_system else ""
    lead = "" if template.system_in_turn else opening
    for number, turn in enumerate(turns):
        if number % 2:
            yield _within(template.around_answer, turn) + (template.end or ""), True
            if template.end is None:
                yield Mark.EOS, True
            lead = template.after
            continue
        if number and template.bos_every_turn:
            yield Mark.BOS, False
        said = PLACEHOLDER * turn.count(PLACEHOLDER) if template.caption else turn
        if template.system_in_turn and not number:
            said = opening + said
        asked = lead + _within(template.around_human, said)
        if asked:
            yield asked, False
    if len(turns) % 2 == 0 and template.after:
        yield template.after, False


def _within(around: tuple[str, str], text: str) -> str:
    return around[0] + text + around[1]


def check_name(name: str) -> str:
    """The name, if there is such a template.

    Raises:
      UserError: there is none; lists them.
    """
    if name not in TEMPLATES:
        raise UserError(f"there is no template {name!r}; choose one of {', '.join(TEMPLATES)}")
    return name


class Stops(NamedTuple):
    """What ends a generated answer."""

    ids: tuple[int, ...]
    """Any of these tokens, EOS first; none of them belongs to the answer."""
    text: str | None
    """A text to stop at as well, where the template's end is not one token; None for none."""


def stops(name: str, tokenizer: Tokenizer) -> Stops:
    """What ends an answer under the template of that name.

    The tokenizer's EOS always does, and so do the ends that its model was published with: models are taught
    the template's end, but their pretraining knows these.
    """
    ids = end_ids(name, tokenizer)
    single = ids if len(ids) == 1 else ()
    known = tuple(dict.fromkeys((tokenizer.eos_token_id, *single, *tokenizer.ends)))
    return Stops(known, TEMPLATES[name].end if len(ids) > 1 else None)


def end_ids(name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that close an answer under the template of that name."""
    end = TEMPLATES[name].end
    if end is None:
        return (tokenizer.eos_token_id,)
    # An end stands behind an answer's last word: any word will do.
    return tuple(tokenizer.encode(end, after=tokenizer.encode("a")[-1]))


def template_text() -> str:
    """The words that the word-level templates and queries add to what rows say."""
    return f"{SYSTEM} USER: ASSISTANT: image"
