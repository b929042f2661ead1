"""Shapes of published language models, by name, as their `config.json` states them."""

from quecc_jax.config import DecoderConfig
from quecc_jax.config.io import nearest
from quecc_jax.errors import UserError


def qwen15(
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    *,
    vocab_size: int = 151936,
    rope_theta: float = 1e6,
    tie_embeddings: bool = False,
) -> DecoderConfig:
    """A Qwen-1.5 decoder: LLaMA with biases on queries, keys and values."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        rope_theta=rope_theta,
        qkv_bias=True,
        tie_embeddings=tie_embeddings,
        max_positions=32768,
    )


DECODERS = {
    "vicuna-7b": DecoderConfig(max_positions=4096),
    "vicuna-13b": DecoderConfig(
        width=5120, depth=40, heads=40, kv_heads=40, mlp_width=13824, max_positions=4096
    ),
    "qwen1.5-0.5b": qwen15(1024, 24, 16, 2816, tie_embeddings=True),
    "qwen1.5-1.8b": qwen15(2048, 24, 16, 5504),
    "qwen1.5-4b": qwen15(2560, 40, 20, 6912, rope_theta=5e6),
    "qwen1.5-7b": qwen15(4096, 32, 32, 11008),
    "qwen1.5-14b": qwen15(5120, 40, 40, 13696, vocab_size=152064),
    "smollm2-135m": DecoderConfig(
        vocab_size=49152,
        width=576,
        depth=30,
        heads=9,
        kv_heads=3,
        mlp_width=1536,
        rope_theta=1e5,
        tie_embeddings=True,
        max_positions=8192,
    ),
}
"""LLaVA-1.5's two, the scaling study's five (Qwen-1.5), and the one that installs as a package."""

SIZES_B = {
    "vicuna-7b": 7.0,
    "vicuna-13b": 13.0,
    "qwen1.5-0.5b": 0.5,
    "qwen1.5-1.8b": 1.8,
    "qwen1.5-4b": 4.0,
    "qwen1.5-7b": 7.0,
    "qwen1.5-14b": 14.0,
    "smollm2-135m": 0.135,
}
"""Billions of parameters as their names say, which is how the scaling law counts N."""


def decoder(name: str) -> DecoderConfig:
    """The decoder of a name such as `qwen1.5-4b`.

    Raises:
      UserError: no such model is known; the message names the nearest.
    """
    if name not in DECODERS:
        raise UserError(f"the language model {name!r} is not known; {nearest(name, sorted(DECODERS))}")
    return DECODERS[name]
