"""Prompt formats: ids and labels of the original's, and texts and labels written out by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quecc_jax.config import DataConfig
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.text.templates import (
    LLAMA_2_SYSTEM,
    LLAVA_SYSTEM,
    MPT_SYSTEM,
    SYSTEM,
    TEMPLATES,
    check_name,
    stops,
)
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from tests.laid_out import encode, prompt

GOLDEN = Path(__file__).parents[2] / "golden" / "llava_tiny"
NAMES = ("conversations", "more_conversations")
ROWS = {row["id"]: row for name in NAMES for row in json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))}
EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
CASES = json.loads((GOLDEN / "templates.json").read_text("utf-8"))
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


@pytest.fixture(scope="module")
def llama():
    """A real legacy SentencePiece tokenizer of 32000 tokens."""
    return load_tokenizer(GOLDEN)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    """A byte-level tokenizer that knows every template's marks; its ids decode to the exact text."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [SYSTEM, LLAMA_2_SYSTEM, "user\nassistant\nsystem\n\n"] * 2,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=["<s>", "</s>", *MARKS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    directory = tmp_path_factory.mktemp("tokenizer") / "bytes"
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        add_bos_token=True,
        additional_special_tokens=MARKS,
    ).save_pretrained(directory)
    return load_tokenizer(directory)


def as_original(made):
    """Ids with one -200 for an image, and labels."""
    return np.where(made.slots >= 0, -200, made.tokens).tolist(), made.labels.tolist()


@pytest.mark.parametrize(("template", "name"), [(t, name) for t, rows in CASES.items() for name in rows])
def test_ids_and_labels_equal_the_original(llama, template, name):
    made = encode(ROWS[name], llama, DataConfig(template=template, max_length=512), 1)
    assert as_original(made) == (CASES[template][name]["input_ids"], CASES[template][name]["labels"])


@pytest.mark.parametrize("name", EXPECTED["generate"])
def test_prompts_equal_the_original(llama, name):
    wanted = EXPECTED["generate"][name]["prompt_ids"]
    made = encode(ROWS[name], llama, DataConfig(max_length=512), 1, prompt=True)
    assert as_original(made) == (wanted, [IGNORE] * len(wanted))
    question = ROWS[name]["conversations"][0]["value"]
    assert as_original(prompt(question, 1, llama, DataConfig(max_length=512), 1))[0] == wanted


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("name", "text"), list(zip("abc", EXPECTED["query_text"], strict=True)))
def test_queries_equal_the_original_under_every_template(llama, template, name, text):
    row = ROWS[name] | {"conversations": ROWS[name]["conversations"][:2]}
    made = encode(row, llama, DataConfig(template=template, max_length=512), 1)
    # The original encodes a word for a row without an image, and no token depends on it.
    assert made.queries.tolist() == (llama.hf.encode(text) if "image" in row else [])


def inst(first, turns, again):
    """[INST] formats: `first` stands before the first question, `again` before the others."""
    out = []
    for number in range(0, len(turns), 2):
        lead = f"{again}[INST] " if number else f"<s>[INST] {first}"
        out.append((f"{lead}{turns[number]} [/INST]", False))
        out += [(f" {answer} </s>", True) for answer in turns[number + 1 : number + 2]]
    return out


def flat(opening, turns, ask, end, after=""):
    """Other formats: `ask` surrounds questions, `end` closes answers."""
    out = [(f"<s>{opening}", False)]
    for number, turn in enumerate(turns):
        out += [(turn + end, True), (after, False)] if number % 2 else [(ask.replace("Q", turn), False)]
    return out


def mistral(first, turns, close, before):
    """Mistral's own: `close` ends a question, `before` stands before an answer, nothing between turns."""
    opening = f"{first}\n\n" if first else ""
    out = [("<s>", False)]
    for number, turn in enumerate(turns):
        asked = f"[INST]{before}{'' if number else opening}{turn}{close}"
        out.append((f"{before}{turn}</s>", True) if number % 2 else (asked, False))
    return out


def chatml(system, default, turns):
    said = default if system is None else system
    return flat(
        "" if said == "" else f"<|im_start|>system\n{said}<|im_end|>\n",
        turns,
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        "\n",
    )


def header(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def llama_3(opening, turns):
    return flat(opening, turns, f"{header('user')}Q<|eot_id|>{header('assistant')}", "<|eot_id|>")


def in_header(system):
    return f"{header('system')}{system}<|eot_id|>" if system else ""


DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def sys_inst(system):
    return f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""


SPELLED = {
    "v1": lambda s, t: flat(f"{SYSTEM if s is None else s} ".lstrip(), pad(t), "USER: Q ASSISTANT:", "</s>"),
    "short": lambda s, t: flat(f"{s or ''} ".lstrip(), pad(t), "USER: Q ASSISTANT:", "</s>"),
    "llama_2": lambda s, t: inst(sys_inst(LLAMA_2_SYSTEM if s is None else s), t, "<s>"),
    "mistral_instruct": lambda s, t: inst(sys_inst(s), t, ""),
    "phi3": lambda s, t: flat(
        f"<|system|>\n{s}<|end|>\n" if s else "", t, "<|user|>\nQ<|end|>\n<|assistant|>\n", "<|end|>", "\n"
    ),
    "mpt": lambda s, t: flat(
        "" if s == "" else f"<|im_start|>system\n{MPT_SYSTEM if s is None else s}<|im_end|>",
        t,
        "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "chatml_direct": lambda s, t: flat(
        "" if s == "" else f"<|im_start|>system\n{'Answer the questions.' if s is None else s}<|im_end|>",
        t,
        "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "qwen": lambda s, t: chatml(s, "You are a helpful assistant.", t),
    "qwen1_5": lambda s, t: chatml(s, "You are a helpful assistant", t),
    "qwen2_5": lambda s, t: chatml(
        s, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", t
    ),
    "smollm2": lambda s, t: chatml(
        s, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", t
    ),
    "chatml": lambda s, t: chatml(s, "", t),
    "llama_2_chat": lambda s, t: inst(sys_inst(s), t, "<s>"),
    "llama_3": lambda s, t: llama_3(in_header(s), t),
    "llama_3_1": lambda s, t: llama_3(in_header(DATES + (s or "")), t),
    "llava_llama_3": lambda s, t: llama_3(in_header(LLAVA_SYSTEM if s is None else s), t),
    "llava_llama_3_1": lambda s, t: llama_3(in_header(DATES + (LLAVA_SYSTEM if s is None else s)), t),
    "mistral_v1": lambda s, t: mistral(s, t, " [/INST]", " "),
    "mistral_v3": lambda s, t: mistral(s, t, "[/INST]", " "),
    "mistral_tekken": lambda s, t: mistral(s, t, "[/INST]", ""),
    "phi4_mini": lambda s, t: flat(
        f"<|system|>{s}<|end|>" if s else "", t, "<|user|>Q<|end|><|assistant|>", "<|end|>"
    ),
    "zephyr": lambda s, t: flat(
        f"<|system|>\n{s}</s>\n" if s else "", t, "<|user|>\nQ</s>\n<|assistant|>\n", "</s>", "\n"
    ),
    "gemma": lambda s, t: flat(
        "",
        [f"{s}\n\n{t[0]}" if s else t[0], *t[1:]],
        "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
        "<end_of_turn>",
        "\n",
    ),
    "olmo2": lambda s, t: flat(
        f"<|system|>\n{s}\n" if s else "", t, "<|user|>\nQ\n<|assistant|>\n", "</s>", "\n"
    ),
    "qwen3_no_think": lambda s, t: flat(
        f"<|im_start|>system\n{s}<|im_end|>\n" if s else "",
        t,
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
        "\n",
    ),
    "plain": lambda s, t: [
        ("<s>" + "<image>" * t[0].count("<image>"), False),
        *((answer + "\n", True) for answer in t[1:]),
    ],
}
"""(system or None, turns) -> [(text, carries loss)], marks of the bytewise tokenizer included."""


def pad(turns):
    return [f" {turn}" if number % 2 else turn for number, turn in enumerate(turns)]


def read(made, tokenizer, visual):
    """[(text, carries loss)] of a laid-out row, neighbours of one kind joined."""
    out, kinds = [], made.labels != IGNORE
    assert np.array_equal(made.labels[kinds], made.tokens[kinds])
    runs = np.split(np.arange(len(kinds)), np.flatnonzero(np.diff(kinds)) + 1)
    for run in (run for run in runs if len(run)):
        text = ""
        for k in run.tolist():
            if made.slots[k] < 0:
                text += tokenizer.hf.decode([made.tokens[k]])
            elif made.slots[k] % visual == 0:
                text += "<image>"
        out.append((text, bool(kinds[run[0]])))
    return out


def joined(spelled):
    out: list[tuple[str, bool]] = []
    for text, learned in spelled:
        if text and out and out[-1][1] == learned:
            out[-1] = (out[-1][0] + text, learned)
        elif text:
            out.append((text, learned))
    return out


SAID = ["red", "A circle.", "user", "{}", "\n", "[INST]", "Q?", "<image>", "3", " "]
WORDS = st.lists(st.sampled_from(SAID), max_size=5).map(" ".join)
TALK = st.lists(WORDS, min_size=1, max_size=6)
SYSTEMS = st.sampled_from([None, "", "Be brief.", "See <image> first"])


def row_of(system, turns):
    said = [{"from": "gpt" if k % 2 else "human", "value": turn} for k, turn in enumerate(turns)]
    if system is not None:
        said.insert(0, {"from": "system", "value": system})
    images = sum(turn["value"].count("<image>") for turn in said)
    return {"conversations": said, "image": list(range(images))}, images


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TALK, system=SYSTEMS, visual=st.integers(1, 4))
@pytest.mark.parametrize("template", TEMPLATES)
def test_any_conversation_is_written_as_spelled_by_hand(bytewise, template, turns, system, visual):
    data = DataConfig(template=template, max_length=10_000, images_per_row=99, image_place="keep")
    if template == "plain":
        turns, system = [*turns, "a caption"][:2], None
    turns = turns[: len(turns) // 2 * 2] or [*turns, "so"]
    row, images = row_of(system, turns)
    made = encode(row, bytewise, data, visual)
    # An image in an answer carries no loss and cuts the labelled text in two.
    spelled = [
        (part, learned and part != "<image>")
        for text, learned in SPELLED[template](system, turns)
        for part in split(text)
    ]
    assert joined(spelled) == read(made, bytewise, visual)
    assert made.slots[made.slots >= 0].tolist() == list(range(images * visual))
    assert len(made.tokens) == len(made.slots) == len(made.labels)
    assert not made.tokens[made.slots >= 0].any()


def split(text):
    parts = text.split("<image>")
    return [part for pair in zip(parts, ["<image>"] * len(parts), strict=True) for part in pair][:-1]


@settings(max_examples=40, deadline=None)
@given(turns=TALK, system=SYSTEMS, visual=st.integers(1, 3))
@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "plain"])
@pytest.mark.parametrize("which", ["llama", "bytewise"])
def test_prompts_begin_what_is_taught(request, which, template, turns, system, visual):
    tokenizer = request.getfixturevalue(which)
    data = DataConfig(template=template, max_length=10_000, images_per_row=99)
    turns = [turn.replace("<image>", "") for turn in turns]
    turns = turns[: len(turns) // 2 * 2] or [*turns, "so"]
    turns[0] = "<image>\n" + turns[0]
    row, images = row_of(system, turns)
    taught = encode(row, tokenizer, data, visual)
    for asked in range(0, len(turns), 2):
        made = prompt(turns[asked], images, tokenizer, data, visual, history=turns[:asked], system=system)
        length = len(made.tokens)
        assert length < len(taught.tokens)
        for key in ("tokens", "slots", "labels"):
            assert np.array_equal(getattr(made, key), getattr(taught, key)[:length])
        assert taught.labels[length - 1] == IGNORE != taught.labels[length]
        assert np.array_equal(made.queries, taught.queries)


@settings(max_examples=60, deadline=None)
@given(
    turns=TALK,
    system=SYSTEMS,
    visual=st.integers(1, 6),
    room=st.floats(0, 1),
    data=st.data(),
    too_long=st.sampled_from(["truncate", "drop", "error"]),
)
def test_truncation_never_cuts_an_image(bytewise, turns, system, visual, room, data, too_long):
    template = data.draw(st.sampled_from([name for name in TEMPLATES if name != "plain"]))
    turns = turns[: len(turns) // 2 * 2] or [*turns, "so"]
    row, _ = row_of(system, turns)
    whole = encode(row, bytewise, DataConfig(template=template, max_length=10_000, images_per_row=99), visual)
    length = max(1, int(room * len(whole.tokens)))
    config = DataConfig(template=template, max_length=length, images_per_row=99, too_long=too_long)
    cut = len(whole.tokens) - length
    last_slot = int(np.flatnonzero(whole.slots >= 0).max(initial=-1))
    refused = cut > 0 and (
        too_long == "error"
        or (too_long == "truncate" and (last_slot >= length or (whole.labels[:length] == IGNORE).all()))
    )
    if refused:
        with pytest.raises(UserError, match="max_length"):
            encode(row, bytewise, config, visual)
        return
    made = encode(row, bytewise, config, visual)
    kept = 0 if cut and too_long == "drop" else length
    assert made.cut == len(whole.tokens) - kept
    for key in ("tokens", "slots", "labels"):
        assert np.array_equal(getattr(made, key), getattr(whole, key)[:kept])


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "plain"])
def test_parts_have_the_ids_of_the_whole_text(bytewise, template):
    turns = ["What is it?", "A circle.", "And its colour?", "Red, I think."]
    made = encode(row_of(None, turns)[0], bytewise, DataConfig(template=template), 1)
    text = "".join(part for part, _ in SPELLED[template](None, turns))
    assert made.tokens.tolist() == bytewise.hf.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "turns",
    [
        ["Name one.", "2, 3 and 5.", "More:\n```\nx  = 1\n```", "```\nx = 2\n```"],
        ["naïve café 你好", "— nothing  else"],
    ],
)
def test_parts_have_the_ids_of_the_whole_sentencepiece_text(llama, turns):
    # Single blanks only: where they repeat, transformers' own encoding is not SentencePiece's.
    turns = [turn.replace("  ", " ") for turn in turns]
    for template in ("v1", "mistral_instruct"):
        made = encode(row_of(None, turns)[0], llama, DataConfig(template=template), 1)
        text = "".join(part for part, _ in SPELLED[template](None, turns))
        assert made.tokens.tolist() == llama.hf.encode(text, add_special_tokens=False)


def test_what_ends_an_answer(llama, bytewise):
    ids = dict(zip(MARKS, bytewise.hf.convert_tokens_to_ids(MARKS), strict=True))
    assert stops("v1", bytewise) == stops("llama_2", bytewise) == ((1,), None)
    assert stops("phi3", bytewise) == ((1, ids["<|end|>"]), None)
    assert stops("mpt", bytewise) == stops("qwen", bytewise) == ((1, ids["<|im_end|>"]), None)
    assert stops("plain", bytewise) == ((1, bytewise.hf.convert_tokens_to_ids("\u010a")), None)
    assert stops("v1", llama) == ((2,), None)
    assert stops("plain", llama) == ((2, 13), None)
    # A tokenizer without the mark spells it; the text ends the answer then.
    assert stops("qwen", llama) == ((2,), "<|im_end|>")


def test_what_a_model_was_published_to_stop_at_ends_an_answer_too(bytewise, tmp_path):
    shutil.copytree(bytewise.directory, tmp_path / "own")
    eot, ended = bytewise.hf.convert_tokens_to_ids(["<|eot_id|>", "<|end|>"])
    for told, ends in (([ended, eot], (1, eot, ended)), (ended, (1, eot, ended)), (None, (1, eot))):
        (tmp_path / "own" / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
        assert stops("llama_3", load_tokenizer(tmp_path / "own")) == (ends, None)


def test_an_unknown_template_is_refused_with_the_choices():
    assert check_name("llama_3") == "llama_3"
    with pytest.raises(UserError, match="'llama3'; choose one of plain, v1"):
        check_name("llama3")
