"""Which conversation template a checkpoint was trained with: the one that its own chat template renders as.

A chat template is a program; it is run on a few conversations, and what it writes is compared with what
each of `data.templates` lays out, character by character. Where several published spellings mean one
template, `SPELLINGS` has them. BOS in front is the tokenizer's affair and is left out of the comparison.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from quecc_jax.convert.formats.compressors.llava_mini import LLAVA_MINI
from quecc_jax.convert.formats.families import family_of
from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.formats.llava import is_original
from quecc_jax.convert.formats.llava_hf import is_llava_hf, text_config
from quecc_jax.convert.formats.towers.families import KINDS
from quecc_jax.data.files import read_json, write_json
from quecc_jax.data.text.templates import (
    LLAMA_2_SYSTEM,
    PLACEHOLDER,
    TEMPLATES,
    Mark,
    Template,
    check_name,
    pieces,
)
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.text.tokenizer_files import holds_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

Kind = Literal["original", "llava_mini", "llava_hf", "decoder"]
"""Whose a checkpoint is: the original project's, LLaVA-Mini's, transformers' LLaVA, or a language model by itself."""

BY_FAMILY = {
    "llama": "v1",
    "mistral": "mistral_instruct",
    "qwen2": "qwen",
    "phi3": "phi3",
    "mpt": "mpt",
    "qwen3": "chatml",
    "smollm3": "chatml",
    "olmo2": "olmo2",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
}
"""What LLaVA fine-tunes a family with whose tokenizer has no chat template; where LLaVA has none, the family's own
format."""

ORIGINALS: dict[str, tuple[str, ...]] = {
    "mistral_v1": ("mistral_instruct",),
    "mistral_v3": ("mistral_instruct",),
    "chatml": ("chatml_direct", "chatml"),
    "llama_3": ("llava_llama_3", "llama_3"),
    "llama_3_1": ("llava_llama_3", "llama_3_1"),
    "llama_2_chat": ("v1", "llama_2", "llama_2_chat"),
    "llama_2": ("v1", "llama_2"),
}
"""What the original project trains models with whose tokenizers came with a chat template: it has formats
of its own and chooses by the model's name, and the tokenizer keeps its language model's template."""
MINIS = ORIGINALS | {"llama_3": ("llava_llama_3",), "llama_3_1": ("llava_llama_3_1",)}
"""The same of LLaVA-Mini, which has one format each for Llama 3 and 3.1 (llavamini/conversation.py)."""

# transformers' LLaVA writes a blank where an answer's EOS was in training.
_NO_EOS: JsonObject = {"around_answer": (" ", " "), "end": ""}
SPELLINGS: list[tuple[str, Template]] = [
    ("v1", dataclasses.replace(TEMPLATES["v1"], **_NO_EOS)),
    ("short", dataclasses.replace(TEMPLATES["short"], **_NO_EOS)),
    ("mistral_v1", dataclasses.replace(TEMPLATES["mistral_v1"], around_answer=("", ""))),
    ("mistral_v1", dataclasses.replace(TEMPLATES["mistral_v1"], around_answer=("", ""), after=" ")),
    ("mistral_v3", dataclasses.replace(TEMPLATES["mistral_v3"], around_answer=("", ""))),
    ("llama_2", dataclasses.replace(TEMPLATES["llama_2"], system=LLAMA_2_SYSTEM.replace("  ", " "))),
]
"""Published chat templates that are one of ours but for blanks, or for what closes an earlier answer."""

_Q1, _A1, _Q2, _A2, _S = "First question?", "First answer.", "Second question?", "Second answer.", "Be brief."
ASKED = ((_Q1,), (_Q1, _A1, _Q2))
TAUGHT = ((_Q1, _A1), (_Q1, _A1, _Q2, _A2))
DAY = "26 Jul 2024"
"""For chat templates that write today's date: the day that they fall back on."""

TEMPLATE_KEY = "conversation_template"
"""Key of config.json in which an export names its template, where its other files would not give it back."""

Render = Callable[[Sequence[str], str | None, bool], str]
"""(turns, system sentence or None, whether an answer is asked for) -> text."""


class Choice(NamedTuple):
    """A template and why it was chosen."""

    name: str
    why: str


def kind_of(hf: JsonObject) -> Kind:
    """Whose a checkpoint with this config.json is."""
    if is_llava_hf(hf):
        return "llava_hf"
    if not is_original(hf):
        return "decoder"
    return "llava_mini" if hf.get("model_type") == LLAVA_MINI.model_type else "original"


def choose_template(
    directory: Path,
    family: str,
    kind: Kind,
    given: str = "",
    source: Path | None = None,
    told: str | None = None,
) -> Choice:
    """Finds the conversation template that a checkpoint was trained with.

    Args:
      directory: where its tokenizer and chat template lie; neither need be there.
      source: the file that they were taken from, for messages, where the directory is not the checkpoint's.
      family: its decoder's.
      kind: whose it is.
      given: a template's name that is taken without looking; "" to look.
      told: what its config.json says under `TEMPLATE_KEY`, which counts next.

    Raises:
      UserError: no such template; the tokenizer cannot be read; or the files leave more than one choice,
        or none.
    """
    if given:
        return Choice(check_name(given), "as --template says")
    if told is not None:
        if told not in TEMPLATES:
            raise UserError(
                f"{TEMPLATE_KEY} in config.json is {told!r}; choose one of {', '.join(TEMPLATES)} with "
                "--template NAME"
            )
        return Choice(told, "as its config.json says")
    if not holds_tokenizer(directory):
        return Choice(BY_FAMILY[family], f"no tokenizer beside it, {_whose(family)} format for {family}")
    tokenizer = Tokenizer(directory, setting="--from")
    text, file = chat_template(directory, kind)
    file = file if source is None else source
    if text is None:
        return _without_chat_template(tokenizer, file, family)
    name, why = recognise(text, tokenizer, file)
    own = {"original": ORIGINALS, "llava_mini": MINIS}.get(kind, {})
    choices = own.get(name, (name,))
    if len(choices) > 1:
        raise UserError(
            f"the chat template in {file} is {name}, but the original project trains such models "
            f"with formats of its own; choose one of {', '.join(choices)} with --template NAME"
        )
    return Choice(choices[0], why if choices[0] == name else f"LLaVA's own format where {why}")


def keep_template(folder: Path, name: str) -> None:
    """Names a run's template in the config.json of its export, unless importing that gives it anyway; that of
    a tower has none.

    Args:
      folder: the export, complete but for the weights.
      name: the template.
    """
    file = folder / "config.json"
    hf = read_json(file)
    if hf.get("model_type") in (*KINDS, "clip_text_model"):
        return
    family = family_of(text_config(hf) if is_llava_hf(hf) else hf)
    try:
        found = choose_template(folder, family, kind_of(hf), told=hf.get(TEMPLATE_KEY)).name
    except UserError:  # It asks, or its tokenizer is not read.
        found = ""
    if found != name:
        write_json(file, {**hf, TEMPLATE_KEY: name})


def chat_template(directory: Path, kind: Kind = "decoder") -> tuple[str | None, Path]:
    """A checkpoint's own chat template, if it has one, and the file that holds it.

    The order is transformers': a file of its own counts before tokenizer_config.json, and a processor's
    before that where there is one. Of other checkpoints transformers reads no processor, whose template is
    then better than none.

    Raises:
      UserError: there are several, by name, and none is the default.
    """
    processor, tokenizer = ("chat_template.json", "processor_config.json"), ("tokenizer_config.json",)
    names = (*processor, *tokenizer) if kind == "llava_hf" else (*tokenizer, *processor)
    for file in (directory / name for name in ("chat_template.jinja", *names)):
        if not file.is_file():
            continue
        if file.suffix == ".jinja":
            return file.read_text(encoding="utf-8"), file
        told = read_json(file)
        text = told.get("chat_template") if isinstance(told, dict) else None
        if isinstance(text, list):
            text = {one.get("name"): one.get("template") for one in text}
        if isinstance(text, dict):
            if text and not text.get("default"):
                raise UserError(
                    f"{file} has chat templates called {', '.join(map(str, text))} and none "
                    f"called default; choose one of {', '.join(TEMPLATES)} with --template NAME"
                )
            text = text.get("default")
        if text:
            return str(text), file
    return None, directory


def check_same_chat_template(adapter: Path, base: Path, where: str) -> None:
    """Raises UserError where an adapter's directory has a chat template that is not its base's, with which it may
    have been trained.

    Args:
      adapter: the adapter's directory.
      base: where the base's tokenizer lies.
      where: the base, for messages.
    """
    text, file = chat_template(adapter)
    if text is not None and text.strip() != (chat_template(base)[0] or "").strip():
        raise UserError(
            f"{file} has a chat template that is not that of {where}; say which one the adapter was trained with, by "
            f"--template and one of {', '.join(TEMPLATES)}"
        )


def recognise(text: str, tokenizer: Tokenizer, file: Path) -> Choice:
    """The conversation template that a chat template renders as.

    Args:
      text: the chat template.
      tokenizer: whose special tokens it may name.
      file: where it is, for messages.

    Raises:
      UserError: it renders as none, or begins with a BOS that the tokenizer does not write.
    """
    failed = ""
    for parts in (False, True):
        render = functools.partial(_rendered, text, tokenizer, parts)
        image = f"{PLACEHOLDER}\n" if parts and "image" in text else ""
        try:
            found, begins = _matching(render, tokenizer, image)
        except Exception as error:  # It is a stranger's program, which may raise what it likes.
            # Most that know no parts fail at them; only the first failure says something.
            failed = failed if parts else f" ({type(error).__name__}: {' '.join(str(error).split())})"
            continue
        if found is None:
            continue
        if begins and tokenizer.bos_token_id is None:
            raise UserError(
                f"{file} begins a conversation with BOS, but its tokenizer puts none before a "
                "text; set add_bos_token to true in tokenizer_config.json"
            )
        return found
    known = (
        " (LLaVA-OneVision's is not what it was trained with: that is qwen)" if _is_onevision(text) else ""
    )
    raise UserError(
        f"the chat template in {file} renders as none of the templates{failed}; choose one of "
        f"{', '.join(TEMPLATES)} with --template NAME{known}"
    )


def _is_onevision(text: str) -> bool:
    """Whether a chat template is the one that LLaVA-OneVision is published with for transformers, which writes a blank
    behind the role, no system sentence, and another beginning of answers that were given than of those it asks for."""
    return "'<|im_start|>' + message['role'] + ' '" in text and "<|im_start|>assistant\\n" in text


def _matching(render: Render, tokenizer: Tokenizer, image: str) -> tuple[Choice | None, bool]:
    """The template that agrees, if one does; and whether the chat template writes BOS in front of it."""
    exact = [(name, template, "") for name, template in TEMPLATES.items() if not template.caption]
    close = [(name, template, ", but for what stands around answers") for name, template in SPELLINGS]
    for name, template, note in (*exact, *close):
        if _agrees(template, render, tokenizer, image):
            alike = _same_system(template, render, tokenizer)
            note += "" if alike else ", but for system sentences that rows bring"
            first, bos = (image + _Q1,), tokenizer.bos_token
            begins = bool(bos) and render(first, None, True).startswith(bos)
            begins = begins and not laid_out(template, first, None, tokenizer).startswith(bos)
            return Choice(name, f"its chat template renders as that{note}"), begins
    return None, False


def _without_chat_template(tokenizer: Tokenizer, where: Path, family: str) -> Choice:
    """Where there is no chat template: LLaVA's for the family, unless the vocabulary has another's marks."""
    name = BY_FAMILY[family]
    known = {token.content for token in tokenizer.added.values() if token.content.startswith("<|")}
    others = [other for other, template in TEMPLATES.items() if template.end in known]
    if others and name not in others:
        raise UserError(
            f"{where} has no chat template, and its tokenizer knows "
            f"{TEMPLATES[others[0]].end}, which {_whose(family)} format for {family} does not use; "
            f"choose one of {', '.join([name, *others])} with --template NAME"
        )
    return Choice(name, f"no chat template, {_whose(family)} format for {family}")


def _whose(family: str) -> str:
    """Whose format `BY_FAMILY` has."""
    return "LLaVA's" if FAMILIES[family].original else "the usual"


def _rendered(
    text: str, tokenizer: Tokenizer, parts: bool, turns: Sequence[str], system: str | None, asked: bool
) -> str:
    """What a chat template writes, with contents as lists of parts or as strings."""
    said = [("user" if number % 2 == 0 else "assistant", turn) for number, turn in enumerate(turns)]
    said = [*([] if system is None else [("system", system)]), *said]
    messages = [{"role": role, "content": _parts(turn) if parts else turn} for role, turn in said]
    return str(
        tokenizer.hf.apply_chat_template(
            messages, chat_template=text, tokenize=False, add_generation_prompt=asked, date_string=DAY
        )
    )


def _parts(turn: str) -> list[dict[str, str]]:
    images = [{"type": "image"}] * turn.count(PLACEHOLDER)
    return [*images, {"type": "text", "text": turn.replace(f"{PLACEHOLDER}\n", "")}]


def _agrees(template: Template, render: Render, tokenizer: Tokenizer, image: str) -> bool:
    """Whether both write the same prompts; a chat template that ignores that an answer is asked for is
    compared by whole conversations."""

    def same(turns: Sequence[str], asked: bool, ends: Sequence[str]) -> bool:
        turns = (image + turns[0], *turns[1:])
        ours, starts = laid_out(template, turns, None, tokenizer), ("", tokenizer.bos_token)
        return render(turns, None, asked) in [bos + ours + end for bos in starts for end in ends]

    if all(same(turns, True, ("",)) for turns in ASKED):
        return True
    deaf = render((_Q1,), None, True) == render((_Q1,), None, False)
    return deaf and all(same(turns, False, ("", tokenizer.eos_token)) for turns in TAUGHT)


def _same_system(template: Template, render: Render, tokenizer: Tokenizer) -> bool:
    try:
        theirs = render((_Q1,), _S, True)
    except Exception:  # Some refuse a system sentence.
        return False
    ours = laid_out(template, (_Q1,), _S, tokenizer)
    # Chat templates that know no generation prompt end before the words that call for an answer.
    return _S in theirs and (ours.startswith(theirs) or (tokenizer.bos_token + ours).startswith(theirs))


def laid_out(template: Template, turns: Sequence[str], system: str | None, tokenizer: Tokenizer) -> str:
    """A conversation as `data.conversation` lays it out, as text without the BOS in front."""
    marks = {Mark.BOS: tokenizer.bos_token, Mark.EOS: tokenizer.eos_token}
    laid = (part for part, _ in pieces(template, turns, system))
    return "".join(marks[part] if isinstance(part, Mark) else part for part in laid)
