"""Writes expected.json with transformers 4.37.2; see README.md. `ids` holds, by the text's place in TEXTS,
those that differ from the golden tokenizer's."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "golden" / "llava_tiny" / "tokenizer.model"
TOLD: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
}
TEXTS = [
    "Hello, what is it?",
    " Hello",
    "Hello  there",
    "a   b    c",
    "trailing ",
    "  ",
    "",
    "\n",
    "\n\nHi\n",
    "Hi\r\nthere\r\n",
    "\tTab\t\tTab",
    "<s>Hi</s>",
    "a</s>b",
    "a </s> b",
    "a</s>  b",
    "</s>",
    " </s>",
    "<image>\nWhat?",
    "What <image> here",
    "[PAD]",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>",
    "na\u00efve caf\u00e9 e\u0301",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "\u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f469\u200d\U0001f467 x\U0001f600y",
    "\u00a0\u2003\u3000 \ufeffx",
    "\u2581literal\u2581 \u2581",
    "1234567890 3.14 1e-5",
    "def f(x):\n    return x  # ok\n",
    "\uff26\uff35 \ufb01 \u00bd",
    "[INST] Hi [/INST] yes </s><s>[INST]",
    "\u2581<PRE> x",
    "\x00\x01\x7f",
    "'s don't I'M",
]


def token(content: str, **more: bool) -> dict[str, Any]:
    """An added token as files describe it."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **flags, **more}


def without(*names: str) -> dict[str, Any]:
    """The golden tokenizer's settings, less some."""
    return {key: value for key, value in TOLD.items() if key not in names}


def told(**more: Any) -> dict[str, Any]:
    """The files of the golden tokenizer with other settings."""
    return {"tokenizer_config.json": TOLD | more}


OWN = {str(k): token(text) for k, text in enumerate(("<unk>", "<s>", "</s>"))}
IMAGE = {**OWN, "32000": token("<image>"), "32001": token("<pad>")}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA = {"config.json": {"model_type": "llama"}}
EMPTY = {"bos_token": "", "eos_token": "", "unk_token": ""}
MODEL: dict[str, dict[str, Any]] = {
    "golden": told(),
    **{
        f"class {name}": told(tokenizer_class=name)
        for name in (
            "LLaMATokenizer",
            "LlamaTokenizerFast",
            "CodeLlamaTokenizer",
            "PreTrainedTokenizerFast",
            "GemmaTokenizer",
            "T5Tokenizer",
            "InternLMTokenizer",
            "Qwen2Tokenizer",
        )
    },
    "class LlamaTokenizerFast, legacy false": told(tokenizer_class="LlamaTokenizerFast", legacy=False),
    "no class": {"tokenizer_config.json": without("tokenizer_class")},
    "no class, model llama": {"tokenizer_config.json": without("tokenizer_class"), **LLAMA},
    "no class, model mistral": {
        "tokenizer_config.json": without("tokenizer_class"),
        "config.json": {"model_type": "mistral"},
    },
    "no add_bos_token": {"tokenizer_config.json": without("add_bos_token")},
    "add_bos_token false": told(add_bos_token=False),
    "add_bos_token null": told(add_bos_token=None),
    "add_eos_token true": told(add_eos_token=True),
    "model alone": {},
    "model alone, model llama": LLAMA,
    "model alone, class in config.json": {
        "config.json": {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"}
    },
    "class alone": {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}},
    "empty strings": {
        "tokenizer_config.json": {**EMPTY, "tokenizer_class": "LlamaTokenizer"},
        "special_tokens_map.json": {},
    },
    "empty strings, map": {
        "tokenizer_config.json": {**EMPTY, "tokenizer_class": "LlamaTokenizer"},
        "special_tokens_map.json": NAMES,
    },
    "empty strings, LLaMATokenizer": {
        "tokenizer_config.json": {**EMPTY, "tokenizer_class": "LLaMATokenizer"}
    },
    "bos empty": told(bos_token=""),
    "eos empty": told(eos_token=""),
    "unk empty": told(unk_token=""),
    "pad empty": told(pad_token=""),
    "bos null": told(bos_token=None),
    "eos null": told(eos_token=None),
    "bos null, none added": told(bos_token=None, add_bos_token=False),
    "bos missing": {"tokenizer_config.json": without("bos_token")},
    "eos missing": {"tokenizer_config.json": without("eos_token")},
    "map alone": {"special_tokens_map.json": NAMES, **LLAMA},
    "map alone, objects": {
        "special_tokens_map.json": {k: token(v) for k, v in NAMES.items()}
        | {k: {x: y for x, y in token(v).items() if x != "special"} for k, v in NAMES.items()},
        **LLAMA,
    },
    "map with another eos": told() | {"special_tokens_map.json": {"eos_token": "<unk>"}},
    "map with another eos, decoder": told(added_tokens_decoder=OWN)
    | {"special_tokens_map.json": {"eos_token": "<unk>"}},
    "objects": told(
        **{k: {"__type": "AddedToken", **token(v)} for k, v in NAMES.items()}, legacy=False, pad_token=None
    ),
    "objects, stripping": told(eos_token={"__type": "AddedToken", **token("</s>", rstrip=True, lstrip=True)}),
    "legacy false": told(legacy=False),
    "legacy null": told(legacy=None),
    "no legacy": {"tokenizer_config.json": without("legacy")},
    "add_prefix_space false": told(add_prefix_space=False),
    "add_prefix_space false, legacy false": told(add_prefix_space=False, legacy=False),
    "add_prefix_space true, legacy false": told(add_prefix_space=True, legacy=False),
    "use_fast true": told(use_fast=True),
    "use_fast false": told(use_fast=False),
    "added_tokens.json": told() | {"added_tokens.json": {"<image>": 32000, "[PAD]": 32001}},
    "added_tokens.json, pad": told(pad_token="[PAD]") | {"added_tokens.json": {"[PAD]": 32000}},
    "pad without a number": told(pad_token="[PAD]"),
    "additional_special_tokens": told(additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
    "additional_special_tokens, map": told()
    | {"special_tokens_map.json": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
    "decoder": told(added_tokens_decoder=IMAGE, pad_token="<pad>"),
    "decoder, legacy false": told(added_tokens_decoder=IMAGE, pad_token="<pad>", legacy=False),
    "decoder with a gap": told(added_tokens_decoder={**OWN, "32007": token("<image>")}),
    "decoder, single_word": told(added_tokens_decoder={**OWN, "32000": token("What", single_word=True)}),
    "chatml eos": told(
        eos_token="<|im_end|>",
        added_tokens_decoder={**OWN, "32000": token("<|im_end|>"), "32001": token("<|im_start|>")},
    ),
    "eos is bos": told(eos_token="<s>"),
    "split_special_tokens": told(split_special_tokens=True),
    "model_max_length 4": told(model_max_length=4),
}
"""Files beside the golden tokenizer.model."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{model}, {name}": (model, told(legacy=legacy))
    for model in ("unigram.model", "no_blank.model", "tiktoken")
    for name, legacy in (("legacy", True), ("not legacy", False))
}
"""The same settings beside other files of that name."""
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}


def whole(kind: str | None, **more: Any) -> dict[str, Any]:
    """tokenizer_config.json beside a tokenizer.json."""
    return {"tokenizer_config.json": ENDS | ({"tokenizer_class": kind} if kind else {}) | more}


FAST = "PreTrainedTokenizerFast"
JSON: dict[str, tuple[str, dict[str, Any]]] = {
    f"{base}, {name}": (base, files)
    for base in ("bytes", "bytes with bos", "bytes, cut and padded", "pieces")
    for name, files in {
        **{
            f"class {kind}": whole(kind)
            for kind in (
                FAST,
                "LlamaTokenizer",
                "LlamaTokenizerFast",
                "LLaMATokenizer",
                "CodeLlamaTokenizer",
                "Qwen2Tokenizer",
                "GPT2Tokenizer",
                "GPTNeoXTokenizerFast",
            )
        },
        **{
            f"class {kind}, add_bos_token {adds}": whole(kind, add_bos_token=adds)
            for kind in (FAST, "LlamaTokenizerFast", "GPT2Tokenizer")
            for adds in (True, False)
        },
        "bos empty": whole(FAST, bos_token=""),
        "eos empty": whole(FAST, eos_token=""),
        "pad without a number": whole(FAST, pad_token="[PAD]"),
        "add_prefix_space": whole(FAST, add_prefix_space=True),
        "legacy false": whole("LlamaTokenizerFast", legacy=False),
        "map alone": {"tokenizer_config.json": {"tokenizer_class": FAST}, "special_tokens_map.json": ENDS},
        "map with another eos": whole(FAST) | {"special_tokens_map.json": {"eos_token": "<|im_end|>"}},
        "added_tokens.json elsewhere": whole(FAST) | {"added_tokens.json": {"<image>": 99999}},
        "additional_special_tokens": whole(FAST, additional_special_tokens=["<image>"]),
        "no class, model llama": {"special_tokens_map.json": ENDS, **LLAMA},
        "no class, model qwen2": {"special_tokens_map.json": ENDS, "config.json": {"model_type": "qwen2"}},
    }.items()
}
"""Settings beside a tokenizer.json. Python tokenizers cannot read one alone: these are of `use_fast=True`."""


def write(directory: Path, name: str) -> None:
    """The files of one case."""
    if name in MODEL:
        shutil.copyfile(GOLDEN, directory / "tokenizer.model")
        files = MODEL[name]
    elif name in OTHERS:
        model, files = OTHERS[name]
        if model == "tiktoken":
            (directory / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
        else:
            shutil.copyfile(HERE / model, directory / "tokenizer.model")
    else:
        base, files = JSON[name]
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json(base)), encoding="utf-8")
    for file, value in files.items():
        (directory / file).write_text(json.dumps(value))


def tokenizer_json(base: str) -> dict[str, Any]:
    """A tokenizer.json: byte-level with and without BOS, or with truncation; or of SentencePiece's kind."""
    made = json.loads((HERE / "bytes.json").read_text("utf-8"))
    if base == "pieces":
        letters = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581a", "th", "the"]
        made["model"] |= {
            "vocab": {c: i for i, c in enumerate(letters)},
            "byte_fallback": False,
            "unk_token": "<unk>",
            "merges": ["\u2581 a", "t h", "th e"],
        }
        made["pre_tokenizer"], made["added_tokens"] = (
            None,
            [{"id": k, **token(text)} for k, text in enumerate(("<unk>", "<s>", "</s>"))],
        )
        made["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        }
    if base != "bytes":
        number = next(one["id"] for one in made["added_tokens"] if one["content"] == "<s>")
        single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        made["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}},
        }
    if base.endswith("padded"):
        made["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        made["padding"] = {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    return made


def main() -> None:
    """Runs transformers 4.37.2 on every case."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers

    assert transformers.__version__ == "4.37.2"
    expected: dict[str, Any] = {}
    for name in [*MODEL, *OTHERS, *JSON]:
        with tempfile.TemporaryDirectory() as made:
            write(Path(made), name)
            try:
                read = transformers.AutoTokenizer.from_pretrained(made, use_fast=name in JSON)
                bos = read.bos_token_id
                expected[name] = {
                    "bos": bos if bos is not None and read.encode("a")[:1] == [bos] else None,
                    "eos": read.eos_token_id,
                    "size": len(read),
                    "ids": [read.encode(text, add_special_tokens=False) for text in TEXTS],
                }
            except Exception as error:
                expected[name] = {"error": type(error).__name__}
    usual = expected["golden"]["ids"]
    for name, found in expected.items():
        # The golden tokenizer's ids are left out of the others, which mostly agree.
        if "ids" in found:
            own = enumerate(found["ids"])
            found["ids"] = {k: ids for k, ids in own if name == "golden" or ids != usual[k]}
    text = json.dumps(expected, separators=(",", ":")).replace("},", "},\n")
    (HERE / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
