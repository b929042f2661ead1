"""The pools of the data's tests."""

from tests.data.conftest import pools, text_pool, tokenizer

__all__ = ["pools", "text_pool", "tokenizer"]
