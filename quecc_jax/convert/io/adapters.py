"""Weights that change other weights, and weights in a form that is not read: refused by name.

An adapter is worth nothing without being merged into its base model; a file of it that is left out makes
another model of the same name.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from quecc_jax.convert.rules import some
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

TENSORS = (
    r"safetensors|bin|pt|pth|ckpt|pkl|pickle|npz|npy|h5|msgpack|onnx|onnx_data"
    r"|gguf|ggml|ot|tflite|mlmodel|pdparams"
)
"""Suffixes of files that may hold tensors, as alternatives of a regular expression."""

_FILE = re.compile(
    rf"adapter_config\.json|non_lora_trainables\..+|(adapters?|llama_adapter)([._-].*)?\.({TENSORS})"
    rf"|(.*[^a-z])?q?lora.*\.({TENSORS})",
    re.IGNORECASE,
)
"""Files of an adapter, as PEFT, LLaVA's training with LoRA, diffusers, MLX and LLaMA-Adapter call them."""

_TENSOR = re.compile(
    r"^base_model\.model\."
    r"|(^|\.)(lora|ia3|hada|lokr|oft|boft|vera|vblora|randlora|fourierft|waveft|hra|bone|miss|shira|c3a|road"
    r"|ln_tuning|trainable_tokens)_"
    r"|(^|[._])lora([._]|$)"
    r"|\.(base_layer|modules_to_save|original_module)\."
    r"|(^|\.)(adaption_(prompt|gate)|prompt_(encoder|embeddings)|adapter_query|adapter)(\.|$)",
    re.IGNORECASE,
)
"""Parts of tensor names that PEFT's methods (and LLaMA-Adapter) add to a model's own."""

_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv|_2)?|input_scale|weight_zero_point|weight_packed"
    r"|SCB|weight_format|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+))$"
)
"""Ends of names that GPTQ, AWQ, compressed-tensors, FP8 and bitsandbytes store beside quantised weights."""

_DELTA = re.compile(r"(^|[-_.])delta([-_.]|$)", re.IGNORECASE)

_MERGE = "give its base with --from and the adapter's directory with --adapter, or merged weights"


def is_adapter_file(name: str) -> bool:
    """Whether a file of this name belongs to an adapter."""
    return _FILE.fullmatch(name) is not None


def refuse_adapter_files(directory: Path, levels: int = 3, read: Path | None = None) -> None:
    """Refuses a directory with an adapter, in itself or in a folder inside (lora/checkpoint-500/ and such), so
    many levels deep.

    Args:
      directory: of weights.
      levels: how deep.
      read: the adapter that is read with these weights, which may be a folder inside.

    Raises:
      UserError: there is another one; all files of it are named.
    """
    if _DELTA.search(directory.resolve().name):
        raise UserError(
            f"{directory} holds, as its name says, differences that have to be added to other "
            "weights; add them, and give the sum a name without 'delta'"
        )
    found = [
        str(file.relative_to(directory))
        for folder in _folders(directory, levels, None if read is None else read.resolve())
        for file in sorted(folder.iterdir())
        # A link to a file that is gone tells of an adapter all the same.
        if not file.is_dir() and is_adapter_file(file.name)
    ]
    if found and read is not None and read.resolve() == directory.resolve():
        raise UserError(
            f"{directory} holds weights and an adapter ({', '.join(found)}), and may be merged already; if it is not, "
            "move the adapter into a folder of its own and give that with --adapter"
        )
    if found:
        raise UserError(
            f"{directory} holds an adapter ({', '.join(found)}), which changes the weights of "
            f"another model; {_MERGE}, or move it away if it is left over"
        )


def _folders(directory: Path, levels: int, but: Path | None) -> Iterator[Path]:
    """A directory and the folders inside of it but one, so many levels deep, since links may lead in circles."""
    yield directory
    if levels:
        for folder in sorted(directory.iterdir()):
            if folder.is_dir() and not folder.name.startswith(".") and folder.resolve() != but:
                yield from _folders(folder, levels - 1, but)


def refuse_tensors(names: Iterable[str], hf: JsonObject, where: str) -> None:
    """Refuses an adapter that was saved unmerged, and quantised weights.

    Args:
      names: all tensors of a checkpoint.
      hf: its config.json.
      where: the checkpoint, for messages.

    Raises:
      UserError: there are some; a few are named.
    """
    names = list(names)
    if added := [name for name in names if _TENSOR.search(name)]:
        raise UserError(f"{where} holds tensors of an unmerged adapter ({some(added, 3)}); {_MERGE}")
    parts = [hf, *(hf[name] for name in ("text_config", "vision_config") if isinstance(hf.get(name), dict))]
    told = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    stored = [name for name in names if _QUANTISED.search(name)]
    if told or stored:
        method = told.get("quant_method") if isinstance(told, dict) else None
        signs = f"quantization_config of its config.json: {method or told!r}" if told else some(stored, 3)
        raise UserError(
            f"{where} holds quantised weights ({signs}), which are not read; give the model in half precision"
        )
