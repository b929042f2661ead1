"""Choices of an import or an export, by name; the command line's too, which imports nothing heavy for them."""

from typing import Literal

DType = Literal["keep", "float32", "bfloat16", "float16"]
"""What floating-point numbers become; "keep" changes none."""

Format = Literal["auto", "llava", "llava_hf"]
"""The form in which an imported run came, or the usual one of another run's parts; the original
project's; transformers' LlavaForConditionalGeneration."""

ExportFormat = Format | Literal["vllm"]
"""The same; or a directory of a plain language model for vLLM, beside that of what makes its prompt embeddings."""

AdapterForm = Literal["merge", "peft", "llava"]
"""A run's adapters in an export: merged into the weights; alone, in PEFT's form; or with compressor and
projector beside them, as the original's training with LoRA leaves them."""

Only = Literal["projector", "decoder", "vision", "text"]
"""A part of a model: compressor and projector together, the language model, the towers."""
