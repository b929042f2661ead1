"""GGUF files of LLaMA-type models as Hugging Face would store them: tensors, config and tokenizer.

llama.cpp's conversion renames the tensors, interleaves the rotary halves of Q and K, quantises, and
keeps config and tokenizer as metadata. All of it is undone here, so that such a file is one more
Hugging Face checkpoint to everything else.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.data.files import fresh_directory
from quecc_jax.errors import UserError

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names and Hugging Face's."""

DIGITS_ALONE = {"smollm": True, "gpt-2": False, "gpt2": False}
"""By `tokenizer.ggml.pre`: whether every digit is split off before GPT-2's own splitting."""
CONTROL, USER_DEFINED = 3, 4
"""Entries of `tokenizer.ggml.token_type` that are matched in the text before any splitting."""


class GgufFile:
    """Tensors of a GGUF file by Hugging Face's names, as float32; a `tensors.TensorSource`.

    Tensors are dequantised one at a time, when they are read.

    Args:
      path: the file.

    Raises:
      UserError: the file is missing, truncated or no GGUF file, its architecture is not LLaMA's, it
        holds tensors that LLaMA has not, or package gguf is not installed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        reader = _open(self.path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        """GGUF's keys and values, tokenizer included."""
        if (kind := self.metadata.get("general.architecture")) != "llama":
            raise UserError(f"{path} holds a model of architecture {kind!r}; only llama is read from GGUF, "
                            "give the Hugging Face directory of this model")  # fmt: skip
        self._tensors = {self._hf_name(tensor.name): tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in self._tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, np.dtype(np.float32))

    def _hf_name(self, name: str) -> str:
        if name in WHOLE:
            return WHOLE[name]
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if found is None or found[2] not in LAYER:
            raise UserError(f"{self.path} holds the tensor {name}, which no LLaMA has; "
                            "give the Hugging Face directory of this model")  # fmt: skip
        return f"model.layers.{found[1]}.{LAYER[found[2]]}.weight"

    def read(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            array = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            raise UserError(f"{self.path} stores {name} as {tensor.tensor_type.name}, which package gguf "
                            "cannot dequantise; give a file in F16 or Q8_0") from None  # fmt: skip
        array = array.reshape(self.shapes[name])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = halves(array, self._heads("_kv" if "k_proj" in name else ""))
        return array

    def _heads(self, kind: str) -> int:
        heads = int(self.metadata["llama.attention.head_count"])
        return int(self.metadata.get(f"llama.attention.head_count{kind}", heads))

    def close(self) -> None:
        """Lets go of the mapped file."""
        self._tensors = {}


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix from interleaved to half-split rotary order.

    GGUF rotates rows (0, 1), (2, 3), ... of each head of d rows; Hugging Face, and this library,
    rows (0, d/2), (1, d/2 + 1), ...

    Args:
      weight: [heads * d, D].
      heads: query heads for Q, key-value heads for K.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"package gguf, which reads {path}, is not installed; pip install gguf") from None
    if not path.is_file():
        raise UserError(f"{path} is not a file; check the path")
    try:
        return GGUFReader(path)
    except Exception as error:
        # The reader trusts the file and fails wherever its bytes lead it.
        raise UserError(f"{path} is truncated or not a GGUF file ({error}); download it again") from None


def hf_config(gguf: GgufFile) -> dict[str, Any]:
    """The config.json that Hugging Face would keep beside these tensors.

    Raises:
      UserError: a setting is missing, or one that changes the mathematics is not implemented.
    """

    def setting(name: str, default: Any = None) -> Any:
        value = gguf.metadata.get(f"llama.{name}", default)
        if value is None:
            raise UserError(f"{gguf.path} does not say its llama.{name}; download it again")
        return value

    for name, harmless in (("expert_count", 0), ("rope.scaling.type", "none")):
        if (value := setting(name, harmless)) != harmless:
            raise UserError(f"{gguf.path} has llama.{name} {value!r}, which is not read from GGUF; "
                            "give the Hugging Face directory of this model")  # fmt: skip
    width, heads = setting("embedding_length"), setting("attention.head_count")
    tokens = gguf.metadata.get("tokenizer.ggml.tokens", ())
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gguf.shapes.get("model.embed_tokens.weight", (len(tokens),))[0],
        "hidden_size": width,
        "num_hidden_layers": setting("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": setting("attention.head_count_kv", heads),
        "head_dim": setting("attention.key_length", width // heads),
        "intermediate_size": setting("feed_forward_length"),
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(setting("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(setting("rope.freq_base", 10000.0)),
        "max_position_embeddings": setting("context_length"),
        "tie_word_embeddings": "lm_head.weight" not in gguf.shapes,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **{f"{name}_token_id": number for name, number in _special(gguf).items() if name != "unk"},
    }


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-5 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _special(gguf: GgufFile) -> dict[str, int]:
    """Ids of the special tokens by transformers' names: bos, eos, unk, pad."""
    theirs = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {name: gguf.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in theirs.items()}
    return {name: int(number) for name, number in found.items() if number is not None}


def write_tokenizer(gguf: GgufFile, directory: str | Path) -> None:
    """Saves the file's byte-level BPE tokenizer as transformers reads it.

    Text is split as `tokenizer.ggml.pre` says. transformers' own conversion of GGUF files ignores
    that key and differs where several blanks or line breaks stand before a digit.

    Args:
      directory: written whole or not at all; replaced when it exists.

    Raises:
      UserError: the file holds no tokenizer, or one of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    told = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf.metadata.items()}
    if told.get("model") != "gpt2" or told.get("pre") not in DIGITS_ALONE:
        raise UserError(f"the tokenizer in {gguf.path} is {told.get('model')!r} of kind {told.get('pre')!r}; "
                        f"only gpt2 of kind {', '.join(DIGITS_ALONE)} is read from GGUF, "
                        "give the Hugging Face directory of this model")  # fmt: skip
    tokens: list[str] = told["tokens"]
    merges = [tuple(merge.split(" ")) for merge in told["merges"]]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_ALONE[told["pre"]] else []
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, told["token_type"], strict=True):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    special = _special(gguf)
    if told.get("add_bos_token"):
        number = special["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[number], "$A"], special_tokens=[(tokens[number], number)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.metadata.get("llama.context_length"),
        "chat_template": gguf.metadata.get("tokenizer.chat_template"),
        **{f"{name}_token": tokens[number] for name, number in special.items()},
    }
    with fresh_directory(directory) as aside:
        backend.save(str(aside / "tokenizer.json"))
        text = json.dumps({key: value for key, value in config.items() if value is not None}, indent=2)
        (aside / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
