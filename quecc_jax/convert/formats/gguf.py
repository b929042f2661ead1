"""GGUF files of LLaMA-type models as Hugging Face would store them: tensors and config.

llama.cpp's conversion renames the tensors, interleaves the rotary halves of Q and K, quantises, and
keeps config and tokenizer as metadata. It is undone here and in `gguf_tokenizer`, so that such a file
is one more Hugging Face checkpoint to everything else.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from quecc_jax.config import RopeScaling
from quecc_jax.convert.formats.gguf_rope import scaling_of
from quecc_jax.convert.formats.gguf_tokenizer import TokenizerMetadata
from quecc_jax.convert.formats.rope import hf_scaling
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

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
REMEDY = "give the Hugging Face directory of this model"
"""What helps where a GGUF file is not read."""

FREQUENCIES = "rope_freqs.weight"
"""What the frequency of each rotary pair is divided by; LLaMA 3.1 and later."""
_HARMLESS = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout",
}
_OFF = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.sliding_window": 0,
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "use_parallel_residual": False,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}
"""Settings that are read, and others with the value that changes nothing."""


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
        self.metadata: JsonObject = {name: field.contents() for name, field in reader.fields.items()}
        """GGUF's keys and values, tokenizer included."""
        self._refuse_parts(reader.byte_order)
        if (kind := self.metadata.get("general.architecture")) != "llama":
            raise UserError(
                f"{path} holds a model of architecture {kind!r}; only llama is read from GGUF, {REMEDY}"
            )
        held = {tensor.name: tensor for tensor in reader.tensors}
        divisors = held.pop(FREQUENCIES, None)
        self.divisors = None if divisors is None else np.array(divisors.data, np.float32).reshape(-1)
        """float32 [pairs]: what the frequency of each rotary pair is divided by; None for ones."""
        self._tensors = {self._hf_name(name): tensor for name, tensor in held.items()}
        self.shapes = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in self._tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, np.dtype(np.float32))

    def _refuse_parts(self, order: str) -> None:
        """Raises UserError for what is no whole model, or not in this machine's order of bytes."""
        kind, count = self.metadata.get("general.type", "model"), int(self.metadata.get("split.count", 1))
        if kind != "model":
            raise UserError(
                f"{self.path} holds no model but something of type {kind!r} (general.type); "
                "give the model's file, with adapters merged into it"
            )
        if count > 1:
            raise UserError(
                f"{self.path} is one of {count} parts of a model; join them with "
                "llama-gguf-split --merge and give the whole file"
            )
        if order != "I":
            raise UserError(
                f"{self.path} was written for machines of the other order of bytes; "
                "convert the model to GGUF on a machine like this one"
            )

    def _hf_name(self, name: str) -> str:
        if name in WHOLE:
            return WHOLE[name]
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if found is None or found[2] not in LAYER:
            raise UserError(f"{self.path} holds the tensor {name}, which no LLaMA has; {REMEDY}")
        return f"model.layers.{found[1]}.{LAYER[found[2]]}.weight"

    def read(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            array = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            raise UserError(
                f"{self.path} stores {name} as {tensor.tensor_type.name}, which package gguf "
                "cannot dequantise; give a file in F16 or Q8_0"
            ) from None
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
    """A file as package gguf reads it."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"package gguf, which reads {path}, is not installed; pip install gguf") from None
    if not path.is_file():
        raise UserError(f"{path} is not a file; check the path")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader trusts the file and fails wherever its bytes lead it
        unknown = isinstance(error, ValueError) and "GGMLQuantizationType" in str(error)
        if unknown:
            why, remedy = (
                "holds tensors of a type that package gguf does not know",
                "give a file in F16 or Q8_0",
            )
        else:
            why, remedy = "is truncated or not a GGUF file", "download it again"
        raise UserError(f"{path} {why} ({error}); {remedy}") from None


def hf_config(gguf: GgufFile) -> JsonObject:
    """The config.json that Hugging Face would keep beside these tensors.

    Raises:
      UserError: a setting is missing, or one that changes the mathematics is not implemented.
    """

    def refuse(what: str) -> NoReturn:
        raise UserError(f"{gguf.path} has {what}, which is not read from GGUF; {REMEDY}")

    def setting(name: str, default: Any = None) -> Any:
        value = gguf.metadata.get(f"llama.{name}", default)
        if value is None:
            raise UserError(f"{gguf.path} does not say its llama.{name}; download it again")
        return value

    for key, value in gguf.metadata.items():
        name = key.removeprefix("llama.")
        if name == key or name in _HARMLESS:
            continue
        if name not in _OFF or value != _OFF[name]:
            refuse(f"{key} {value!r}")
    width = setting("embedding_length")
    special = TokenizerMetadata(gguf.metadata, gguf.path).special
    tokens = gguf.metadata.get("tokenizer.ggml.tokens", ())
    depth, mlp_width, heads = map(setting, ("block_count", "feed_forward_length", "attention.head_count"))
    kv_heads = setting("attention.head_count_kv", heads)
    counts = {"block_count": depth, "feed_forward_length": mlp_width}
    counts |= {"attention.head_count": heads, "attention.head_count_kv": kv_heads}
    for name, value in counts.items():
        if not isinstance(value, int):
            raise UserError(
                f"{gguf.path} has a llama.{name} for every layer, which is not read from GGUF; "
                "give a model whose layers are alike"
            )
    head = setting("attention.key_length", width // heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if (value := setting(name, head)) != head:
            refuse(f"llama.{name} {value} beside heads of {head}")
    vocabulary = gguf.shapes.get("model.embed_tokens.weight", (len(tokens),))[0]
    if len(tokens) > vocabulary:
        raise UserError(
            f"{gguf.path} has {len(tokens)} tokens and embeddings of {vocabulary}; "
            "convert the model to GGUF again"
        )
    theta = _decimal(setting("rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(setting("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_scaling": hf_scaling(_scaling(gguf, head, theta)),
        "max_position_embeddings": setting("context_length"),
        "tie_word_embeddings": "lm_head.weight" not in gguf.shapes,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **{f"{name}_token_id": number for name, number in special.items() if name != "unk"},
    }


def _scaling(gguf: GgufFile, head: int, theta: float) -> RopeScaling:
    """What a file's settings and divisors make of the rotary frequencies.

    Raises:
      UserError: a kind that is not implemented, or divisors that no kind explains.
    """
    kind = gguf.metadata.get("llama.rope.scaling.type", "none")
    # Files of 2023 know linear scaling alone, and name its factor otherwise.
    factor = gguf.metadata.get("llama.rope.scaling.factor") or gguf.metadata.get("llama.rope.scale_linear")
    if kind not in ("none", "linear") or (kind == "linear" and factor is None):
        raise UserError(
            f"{gguf.path} has llama.rope.scaling.type {kind!r} with factor {factor}, which is "
            f"not read from GGUF; {REMEDY}"
        )
    # The factor counts where the kind is told, or where files know one kind alone.
    linear = factor if kind == "linear" or "llama.rope.scaling.type" not in gguf.metadata else None
    if gguf.divisors is None:
        return RopeScaling() if linear in (None, 1) else RopeScaling("linear", _decimal(linear))
    if linear not in (None, 1):
        raise UserError(f"{gguf.path} has both {FREQUENCIES} and llama.rope.scaling; {REMEDY}")
    try:
        length = gguf.metadata.get("llama.rope.scaling.original_context_length")
        return scaling_of(gguf.divisors, head, theta, length)
    except ValueError as error:
        raise UserError(f"{FREQUENCIES} in {gguf.path} {error}; {REMEDY}") from None


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-5 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
