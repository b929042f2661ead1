"""Choices of an import or an export, by name; the command line's too, which imports nothing heavy for them."""

from typing import Literal

DType = Literal["keep", "float32", "bfloat16", "float16"]
"""What floating-point numbers become; "keep" changes none."""

Format = Literal["auto", "llava", "llava_hf"]
"""The form in which an imported run came, or the usual one of another run's parts; the original
project's; transformers' LlavaForConditionalGeneration."""

Only = Literal["projector", "decoder", "vision", "text"]
"""A part of a model: compressor and projector together, the language model, the towers."""
