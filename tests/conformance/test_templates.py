"""Which template a checkpoint gets, and that its prompts are those of its own chat template.

Expected names and texts are those of the published chat templates, each spelled here anew: what it writes for
a conversation is its publisher's (Llama 2 and 3, Mistral, Qwen, Yi, Phi, SmolLM2, Zephyr, Gemma, OLMo; llava-hf's
processors; LLaVA's `conversation.py`). transformers renders them. The tokenizer is the small byte-level one
of tokenizers/README.md, with the marks of all of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quecc_jax.config import DataConfig
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.convert.template_match import BY_FAMILY, choose_template, kind_of
from quecc_jax.data.text.templates import TEMPLATES, stops
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import UserError
from tests.conformance.tokenizers.make import token, tokenizer_json
from tests.convert.names import load
from tests.convert.test_run import small, write_checkpoint
from tests.laid_out import prompt

MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<think>",
    "</think>",
]
GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
DATES = "Cutting Knowledge Date: December 2023\\nToday Date: "


def each(user: str, answer: str, system: str = "", ask: str = "", first: str = "") -> str:
    """A chat template: Q, A and S stand for what is said, `ask` for the generation prompt."""

    def said(text: str, letter: str) -> str:
        return text.replace(letter, "{{ m['content'] }}")

    no_system = "{{ raise_exception('no system') }}"
    return (
        f"{first}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{said(user, 'Q')}"
        f"{{% elif m['role'] == 'assistant' %}}{said(answer, 'A')}"
        f"{{% else %}}{said(system, 'S') or no_system}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{ask}{{% endif %}}"
    )


def chatml(default: str = "", line: str = "{{ '\\n' }}") -> str:
    head = f"<|im_start|>system\n{default}<|im_end|>{line}" if default else ""
    return (
        f"{{% if messages[0]['role'] != 'system' %}}{head}{{% endif %}}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
        f"{line}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
    )


def headers(first: str = "", skip: str = "") -> str:
    return (
        f"{{{{ bos_token }}}}{first}{{% for m in messages {skip} %}}"
        "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
    )


def dated(day: str) -> str:
    return headers(
        "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        f"{{% set day = {day} %}}<|start_header_id|>system<|end_header_id|>\n\n"
        f"{{{{ '{DATES}' + day + '\\n\\n' + s }}}}<|eot_id|>",
        "if m['role'] != 'system'",
    )


def qwen3() -> str:
    """Thoughts stand in answers that no question follows; without thinking, in front of the one asked for."""
    thought = "<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}"
    return (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ '\\n' }}"
        f"{{% if m['role'] == 'assistant' and loop.index0 > ns.last %}}{thought}{{% endif %}}"
        "{{ m['content'] }}<|im_end|>{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}"
        f"{{% if enable_thinking is defined and not enable_thinking %}}{thought}{{% endif %}}{{% endif %}}"
    )


def gemma(system: str) -> str:
    """Gemma 3 writes the system sentence as the first line of the first turn, Gemma 2 refuses one."""
    return (
        "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}"
        f"{{% if m['role'] == 'system' %}}{system}{{% else %}}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}{{ '\\n' + ns.first }}"
        "{% set ns.first = '' %}{{ m['content'] | trim }}<end_of_turn>{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model{{ '\\n' }}{% endif %}"
    )


def parts(end: str) -> str:
    """llava-hf's: contents are lists of parts, images first."""
    return (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
        "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ c['text'] + ' ' }}"
        f"{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
    )


BOS, EOS, LINE = "{{ bos_token }}", "{{ eos_token }}", "{{ '\\n' }}"
CHATS: dict[str, tuple[str, str]] = {
    "Llama-3": (headers(), "llama_3"),
    "Llama-3.1": (dated("'26 Jul 2024'"), "llama_3_1"),
    "Llama-3.2, today's date": (
        dated("date_string if date_string is defined else strftime_now('%d %b %Y')"),
        "llama_3_1",
    ),
    "Llama-3 without generation prompt or BOS": (
        "{% for m in messages %}<|start_header_id|>{{m['role']}}<|end_header_id|>\n\n{{m['content']}}"
        "<|eot_id|>{% endfor %}",
        "llama_3",
    ),
    "Llama-2-chat": (each(f"{BOS}[INST] Q [/INST]", f" A {EOS}"), "llama_2_chat"),
    "Mistral-7B-Instruct-v0.1": (each("[INST] Q [/INST]", f"A{EOS} ", first=BOS), "mistral_v1"),
    "Mistral-7B-Instruct-v0.2": (each("[INST] Q [/INST]", f"A{EOS}", first=BOS), "mistral_v1"),
    "Mistral-7B-Instruct-v0.2, newer": (each("[INST] Q [/INST]", f" A{EOS}", first=BOS), "mistral_v1"),
    "Mistral-7B-Instruct-v0.3": (each("[INST] Q[/INST]", f" A{EOS}", first=BOS), "mistral_v3"),
    "Mistral-Nemo-Instruct": (each("[INST]Q[/INST]", f"A{EOS}", first=BOS), "mistral_tekken"),
    "Yi-34B-Chat": (chatml(), "chatml"),
    "Yi-34B-Chat without generation prompt": (
        "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}",
        "chatml",
    ),
    "Qwen1.5": (chatml("You are a helpful assistant"), "qwen1_5"),
    "Qwen2": (chatml("You are a helpful assistant."), "qwen"),
    "Qwen2.5": (chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."), "qwen2_5"),
    "SmolLM2": (chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"), "smollm2"),
    "llava-v1.6-34b-hf": (chatml("Answer the questions.", ""), "chatml_direct"),
    "Phi-3": (each(f"<|user|>\nQ<|end|>\n<|assistant|>{LINE}", f"A<|end|>{LINE}", first=BOS), "phi3"),
    "Phi-3, newer": (
        each(
            f"<|user|>\nQ<|end|>{LINE}",
            f"<|assistant|>\nA<|end|>{LINE}",
            f"<|system|>\nS<|end|>{LINE}",
            f"<|assistant|>{LINE}",
        ),
        "phi3",
    ),
    "Phi-4-mini": (
        each("<|user|>Q<|end|>", "<|assistant|>A<|end|>", "<|system|>S<|end|>", "<|assistant|>"),
        "phi4_mini",
    ),
    "TinyLlama-Chat": (
        each(
            f"<|user|>\nQ{EOS}{LINE}",
            f"<|assistant|>\nA{EOS}{LINE}",
            f"<|system|>\nS{EOS}{LINE}",
            f"<|assistant|>{LINE}",
        ),
        "zephyr",
    ),
    "Qwen3": (qwen3(), "chatml"),
    "Gemma-2": (gemma("{{ raise_exception('System role not supported') }}"), "gemma"),
    "Gemma-3": (gemma("{% set ns.first = m['content'] + '\\n\\n' %}"), "gemma"),
    "OLMo-2": (
        each(
            f"<|user|>\nQ{LINE}",
            "<|assistant|>\nA{% if loop.last %}{{ eos_token }}{% else %}{{ eos_token + '\\n' }}{% endif %}",
            f"<|system|>\nS{LINE}",
            f"<|assistant|>{LINE}",
            first=BOS,
        ),
        "olmo2",
    ),
    "llava-1.5-hf": (parts(""), "short"),
}
UNKNOWN = {
    "every turn in [INST]": "{% for m in messages %}[INST] {{m['content']}} [/INST]{% endfor %}",
    "a robot": each("robot: Q ", "man: A ", ask="man:"),
    "another system sentence": chatml("You are a pirate."),
    "no program": "{% for",
    "always fails": "{{ raise_exception('functions first') }}",
    "other image place": parts("").replace("<image>\n", "<image>"),
}


def write(
    directory: Path,
    chat: str | None,
    marks: Any = MARKS,
    bos: bool = True,
    eos: str = "</s>",
    file: str = "tokenizer_config.json",
) -> Path:
    """A tokenizer with marks and a chat template."""
    directory.mkdir(exist_ok=True)
    made = tokenizer_json("bytes with bos" if bos else "bytes")
    size = len(made["model"]["vocab"])
    made["added_tokens"] = [{"id": size + k, **token(text)} for k, text in enumerate(("<s>", "</s>", *marks))]
    if bos:
        made["post_processor"]["special_tokens"]["<s>"]["ids"] = [size]
    (directory / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": eos}
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    if chat is not None and file.endswith(".jinja"):
        (directory / file).write_text(chat)
    elif chat is not None:
        own = told if file == "tokenizer_config.json" else {}
        (directory / file).write_text(json.dumps(own | {"chat_template": chat}))
    return directory


@pytest.mark.parametrize("model", CHATS)
def test_the_chat_template_decides(conforms: Any, tmp_path: Path, model: str) -> None:
    chat, wanted = CHATS[model]
    conforms("template", model, wanted, choose_template(write(tmp_path, chat), "llama", "decoder").name)


@pytest.mark.parametrize("model", CHATS)
def test_prompts_have_the_ids_of_what_the_chat_template_renders(
    conforms: Any, tmp_path: Path, model: str
) -> None:
    """transformers' apply_chat_template, tokenised, behind the tokenizer's own BOS."""
    chat, name = CHATS[model]
    if "without generation" in model:
        chat += (
            "{% if add_generation_prompt %}"
            + {
                "chatml": "<|im_start|>assistant\n",
                "llama_3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
            }[name]
            + "{% endif %}"
        )
    tokenizer = load_tokenizer(write(tmp_path, chat))
    text = "Which \u4f60\u597d  colour?"
    said = [{"type": "text", "text": text}] if "llava-1.5" in model else text
    ids = tokenizer.hf.apply_chat_template(
        [{"role": "user", "content": said}],
        chat_template=chat,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
        date_string="26 Jul 2024",
    )
    ids = ids if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id, *ids]
    made = prompt(text, 0, tokenizer, DataConfig(template=name), 1)  # type: ignore[arg-type]
    conforms("template ids", model, ids, made.tokens.tolist())


def test_qwen3_without_thinking_has_an_empty_thought(conforms: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, qwen3()))
    assert tokenizer.bos_token_id is not None
    text = tokenizer.hf.apply_chat_template(
        [{"role": "user", "content": "Which colour?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    made = prompt("Which colour?", 0, tokenizer, DataConfig(template="qwen3_no_think"), 1)
    conforms(
        "template",
        "Qwen3 without thinking",
        [tokenizer.bos_token_id, *tokenizer.encode(text)],
        made.tokens.tolist(),
    )


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_chat_template_is_refused(conforms: Any, tmp_path: Path, case: str) -> None:
    with pytest.raises(UserError) as error:
        choose_template(write(tmp_path, UNKNOWN[case]), "llama", "llava_hf")
    said = str(error.value)
    conforms("template", case, True, all(name in said for name in [*TEMPLATES, "--template NAME"]))
    assert ("functions first" in said) == (case == "always fails")


def test_what_a_template_is_called_by_hand(conforms: Any, tmp_path: Path) -> None:
    write(tmp_path, UNKNOWN["a robot"])
    conforms(
        "template",
        "by hand",
        ("zephyr", "as --template says"),
        tuple(choose_template(tmp_path, "llama", "decoder", "zephyr")),
    )
    with pytest.raises(UserError, match="no template 'robot'; choose one of plain"):
        choose_template(tmp_path, "llama", "decoder", "robot")


@pytest.mark.parametrize(
    ("chat", "choices"),
    [
        ("Llama-3", "llava_llama_3, llama_3"),
        ("Yi-34B-Chat", "chatml_direct, chatml"),
        ("Llama-2-chat", "v1, llama_2, llama_2_chat"),
    ],
)
def test_the_original_projects_models_with_two_readings_ask(
    conforms: Any, tmp_path: Path, chat: str, choices: str
) -> None:
    """LLaVA's conversation.py and its choice by the model's name: llama3-llava-next and llava-v1.6-34b were
    trained with formats of LLaVA's own, and their tokenizers have their language models' chat templates."""
    with pytest.raises(UserError) as error:
        choose_template(write(tmp_path, CHATS[chat][0]), "llama", "original")
    asks = f"choose one of {choices} with --template" in str(error.value)
    conforms("template", f"LLaVA on {chat}", True, asks)


def test_llava_mini_has_one_format_for_llama_3_1(conforms: Any, tmp_path: Path) -> None:
    """llavamini/conversation.py, conv_llava_llama_3_1: the language model's own template, given LLaVA's sentence."""
    kind = kind_of({"model_type": "llava_mini_llama", "mm_projector_type": "mlp2x_gelu"})
    chat = CHATS["Llama-3.1"][0]
    found = choose_template(write(tmp_path, chat), "llama", kind).name
    conforms("template", "LLaVA-Mini on Llama-3.1", "llava_llama_3_1", found)


def test_the_original_projects_mistral(conforms: Any, tmp_path: Path) -> None:
    """llava-v1.6-mistral-7b: conv_mode mistral_instruct, whatever blanks its tokenizer's template has."""
    write(tmp_path, CHATS["Mistral-7B-Instruct-v0.2"][0])
    conforms(
        "template",
        "LLaVA on Mistral",
        "mistral_instruct",
        choose_template(tmp_path, "mistral", "original").name,
    )


@pytest.mark.parametrize(
    ("family", "marks", "wanted"),
    [
        ("llama", (), "v1"),
        ("mistral", (), "mistral_instruct"),
        ("qwen2", ("<|im_end|>",), "qwen"),
        ("phi3", ("<|end|>",), "phi3"),
        ("mpt", (), "mpt"),
        ("llama", ("<|eot_id|>",), "llama_3"),
        ("llama", ("<|im_end|>",), "chatml"),
    ],
)
def test_without_a_chat_template(
    conforms: Any, tmp_path: Path, family: str, marks: tuple[str, ...], wanted: str
) -> None:
    """LLaVA's format for the family (Vicuna came without a chat template); a vocabulary with another's marks
    asks."""
    write(tmp_path, None, marks)
    try:
        found = choose_template(tmp_path, family, "decoder")
    except UserError as error:
        asks = f"choose one of {BY_FAMILY[family]}, " in str(error) and f" {wanted}," in str(error)
        conforms("template", f"none, {family} {marks}", True, asks)
        return
    conforms("template", f"none, {family} {marks}", wanted, found.name)
    assert "no chat template" in found.why


def test_where_chat_templates_lie(conforms: Any, tmp_path: Path) -> None:
    """transformers reads a file of its own before tokenizer_config.json; a list holds one called default."""
    write(tmp_path, CHATS["Qwen2"][0])
    write(tmp_path, CHATS["SmolLM2"][0], file="chat_template.json")
    told = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {
        "chat_template": [
            {"name": "tool_use", "template": CHATS["Phi-3"][0]},
            {"name": "default", "template": CHATS["Qwen2"][0]},
        ]
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    found = [choose_template(tmp_path, "llama", kind).name for kind in ("decoder", "llava_hf")]
    (tmp_path / "chat_template.jinja").write_text(CHATS["Qwen2.5"][0])
    found += [choose_template(tmp_path, "llama", kind).name for kind in ("decoder", "llava_hf")]
    conforms("template", "where it lies", ["qwen", "smollm2", "qwen2_5", "qwen2_5"], found)


@pytest.mark.parametrize("kind", ["original", "decoder", "llava_hf"])
@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_processors_chat_template_is_better_than_none(
    conforms: Any, tmp_path: Path, file: str, kind: Any
) -> None:
    """Processors of transformers 4.43 wrote theirs into processor_config.json, later ones beside it."""
    write(tmp_path, None)
    (tmp_path / file).write_text(json.dumps({"chat_template": CHATS["Qwen2"][0]}))
    conforms("template", f"{file}, {kind}", "qwen", choose_template(tmp_path, "llama", kind).name)


@pytest.mark.parametrize("held", [list, dict])
def test_several_chat_templates_without_a_default_ask(conforms: Any, tmp_path: Path, held: Any) -> None:
    """transformers' apply_chat_template asks for a name then."""
    write(tmp_path, None)
    named = {"tool_use": CHATS["Phi-3"][0], "rag": CHATS["Qwen2"][0]}
    told = named if held is dict else [{"name": name, "template": text} for name, text in named.items()]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((tmp_path / "tokenizer_config.json").read_text()), "chat_template": told})
    )
    with pytest.raises(UserError) as error:
        choose_template(tmp_path, "llama", "decoder")
    asks = "called tool_use, rag and none called default" in str(error.value)
    conforms("template", f"several, none the default, {held.__name__}", True, asks)


def test_a_bos_that_the_tokenizer_does_not_write_is_told(conforms: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        choose_template(write(tmp_path, CHATS["Llama-3"][0], bos=False), "llama", "decoder")
    told = "begins a conversation with BOS" in str(error.value)
    conforms("template", "BOS in the template alone", True, told)


@pytest.mark.parametrize(
    ("chat", "told", "ends"),
    [
        (
            "Llama-3",
            {"generation_config.json": [335, 343]},
            ("</s>", "<|eot_id|>", "<|im_start|>", "<|end|>"),
        ),
        ("Yi-34B-Chat", {"config.json": 335}, ("</s>", "<|im_end|>", "<|im_start|>")),
        (
            "Yi-34B-Chat",
            {"config.json": 335, "generation_config.json": 343},
            ("</s>", "<|im_end|>", "<|end|>"),
        ),
    ],
)
def test_an_import_keeps_template_and_ends(
    conforms: Any, tmp_path: Path, chat: str, told: dict[str, Any], ends: tuple[str, ...]
) -> None:
    """Llama 3's generation_config.json lists two tokens that end an answer; older files say it in
    config.json, and transformers takes the former first."""
    small = load("llama")
    hf = small["config"] | {"eos_token_id": told.get("config.json", 2)}
    write_checkpoint(tmp_path / "given", hf, small["tensors"], np.float16)
    write(tmp_path / "given", CHATS[chat][0])
    if "generation_config.json" in told:
        ids = json.dumps({"eos_token_id": told["generation_config.json"]})
        (tmp_path / "given" / "generation_config.json").write_text(ids)
    plan = import_weights(tmp_path / "given", tmp_path / "run")
    tokenizer = Tokenizer(tmp_path / "run" / "tokenizer")
    found = stops(plan.config.data.template, tokenizer).ids
    conforms(
        "template",
        f"import of {chat}",
        (CHATS[chat][1], set(ends)),
        (plan.config.data.template, set(tokenizer.hf.convert_ids_to_tokens(list(found)))),
    )
    assert found[0] == tokenizer.eos_token_id and "renders as that" in plan.why


@pytest.mark.parametrize(
    ("chat", "name"),
    [
        (None, "short"),
        (None, "v1"),
        (None, "plain"),
        ("Yi-34B-Chat", "chatml_direct"),
        ("Llama-3", "zephyr"),
        ("Mistral-7B-Instruct-v0.2", "mistral_v1"),
        ("Mistral-7B-Instruct-v0.2", "mistral_instruct"),
    ],
)
@pytest.mark.parametrize("case", ["llama", "llava_tiny"])
def test_an_export_gives_the_template_back(
    conforms: Any, tmp_path: Path, case: str, chat: str | None, name: str
) -> None:
    """No file of the original's format, or of a language model, says which template it was trained with; an
    import of an export, and of its export in turn, answers with that of the run."""
    write_checkpoint(tmp_path / "given", small(case)["config"], small(case)["tensors"], np.float16)
    write(tmp_path / "given", chat and CHATS[chat][0], ())
    tower = None if case == "llama" else tmp_path / "clip"
    if tower:
        write_checkpoint(tower, load("clip_tiny")["config"], load("clip_tiny")["tensors"], np.float16)
    import_weights(tmp_path / "given", tmp_path / "0", vision=tower, template=name)
    found = []
    for number in (0, 1):
        export_weights(tmp_path / f"{number}", tmp_path / f"out{number}")
        plan = import_weights(tmp_path / f"out{number}", tmp_path / f"{number + 1}")
        found.append(plan.config.data.template)
    again = import_weights(tmp_path / "out1", tmp_path / "other", template="phi3").config.data.template
    export_weights(tmp_path / "other", tmp_path / "out2")
    found += [again, import_weights(tmp_path / "out2", tmp_path / "last").config.data.template]
    conforms("template", f"export of {case}, {name}", [name, name, "phi3", "phi3"], found)


def test_a_bos_that_is_a_mark_of_the_template(conforms: Any, tmp_path: Path) -> None:
    """SmolLM2 names <|im_start|> as its BOS, and puts none in front of a text."""
    write(tmp_path, CHATS["SmolLM2"][0], bos=False)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"bos_token": "<|im_start|>"}))
    name, why = choose_template(tmp_path, "llama", "decoder")
    conforms("template", "BOS <|im_start|>", ("smollm2", "its chat template renders as that"), (name, why))


def test_mistral_v1_has_the_ids_of_mistral_common(conforms: Any) -> None:
    """MistralTokenizer.v1() of mistral-common 1.13.1, which carries this tokenizer.model."""
    expected = [
        1,
        733,
        16289,
        28793,
        22557,
        28725,
        767,
        349,
        378,
        28804,
        733,
        28748,
        16289,
        28793,
        330,
        9661,
        28723,
        2,
        733,
        16289,
        28793,
        1015,
        871,
        11474,
        28804,
        733,
        28748,
        16289,
        28793,
    ]
    made = prompt(
        "And its colour?",
        0,
        load_tokenizer(GOLDEN),
        DataConfig(template="mistral_v1"),
        1,
        history=("Hello, what is it?", "A circle."),
    )
    conforms("template ids", "mistral-common v1", expected, made.tokens.tolist())
