"""Shapes of published language models and vision towers, by name, as their `config.json` states them."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from quecc_jax.config import DecoderConfig, PixelConfig, RopeScaling, VisionConfig
from quecc_jax.config.io import nearest
from quecc_jax.errors import UserError

T = TypeVar("T")


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


def qwen3(
    width: int, depth: int, heads: int, mlp_width: int, *, tie_embeddings: bool = False
) -> DecoderConfig:
    """A Qwen3 decoder: norms of queries and keys in place of biases, and heads of 128 whatever the width."""
    return DecoderConfig(
        vocab_size=151936,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=8,
        head_width=0 if heads * 128 == width else 128,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        rope_theta=1e6,
        qk_norm="head",
        tie_embeddings=tie_embeddings,
        max_positions=40960,
    )


def llama3(
    width: int, depth: int, heads: int, mlp_width: int, *, factor: float, tie_embeddings: bool = False
) -> DecoderConfig:
    """A decoder of Llama 3.1 or 3.2."""
    return DecoderConfig(
        vocab_size=128256,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=8,
        mlp_width=mlp_width,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", factor=factor, original_length=8192),
        tie_embeddings=tie_embeddings,
        max_positions=131072,
    )


def gemma3(
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    *,
    kv_heads: int,
    head_width: int = 256,
    query_scalar: float = 0.0,
    window: int = 1024,
    factor: float = 8.0,
    vocab_size: int = 262208,
    max_positions: int = 131072,
) -> DecoderConfig:
    """The text decoder of a Gemma 3."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        mlp_width=mlp_width,
        mlp="geglu",
        norm_eps=1e-6,
        norm_sites="both",
        zero_centred_norm=True,
        qk_norm="head",
        rope_theta=1e6,
        rope_scaling=RopeScaling("linear", factor=factor) if factor != 1.0 else RopeScaling(),
        local_rope_theta=1e4,
        window=window,
        full_every=6,
        query_scalar=query_scalar,
        scale_embeddings=True,
        tie_embeddings=True,
        max_positions=max_positions,
    )


def feature_levels(depth: int, select_layer: int = -2) -> tuple[int, ...]:
    """QueCC's levels in a tower of so many layers: the states after a half and two thirds of them, and the two before
    the last, which are 12, 16, 22 and 23 of CLIP-L's 24. Towers of less than 8 layers have the select layer alone."""
    if depth < 8:
        return (select_layer,)
    return depth // 2, round(2 * depth / 3), depth - 2, depth - 1


HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def siglip(
    image_size: int,
    patch_size: int,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    mlp_width: int = 3072,
    *,
    resample: Literal["bicubic", "bilinear"],
) -> VisionConfig:
    """A SigLIP tower, base by default; SigLIP 2's of one resolution are resized bilinearly."""
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        drop_border=image_size % patch_size != 0,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
        norm_eps=1e-6,
        activation="gelu_tanh",
        cls=False,
        patch_bias=True,
        pre_norm=False,
        post_norm=True,
        pixels=PixelConfig(HALF, HALF, resample, "stretch"),
        levels=feature_levels(depth),
    )


def so400m(image_size: int, patch_size: int, resample: Literal["bicubic", "bilinear"]) -> VisionConfig:
    """SigLIP's shape-optimised tower of 400M parameters."""
    return siglip(image_size, patch_size, 1152, 27, 16, 4304, resample=resample)


def dinov2(width: int, depth: int, heads: int, registers: int = 0) -> VisionConfig:
    """A DINOv2 tower at the 224 pixels of its processor; its positions are those of 518."""
    return VisionConfig(
        image_size=224,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        norm_eps=1e-6,
        activation="gelu",
        registers=registers,
        patch_bias=True,
        pre_norm=False,
        layer_scale=True,
        post_norm=True,
        position_grid=518 // 14,
        antialias_positions=registers > 0,
        pixels=PixelConfig(IMAGENET_MEAN, IMAGENET_STD, resized=256),
        levels=feature_levels(depth),
    )


TOWERS = {
    "clip-l-14-336": VisionConfig(post_norm=True),
    **{f"siglip-base-16-{side}": siglip(side, 16, resample="bicubic") for side in (224, 256, 384, 512)},
    "siglip-so400m-14-384": so400m(384, 14, "bicubic"),
    **{f"siglip2-base-16-{side}": siglip(side, 16, resample="bilinear") for side in (224, 256, 384, 512)},
    "siglip2-so400m-14-384": so400m(384, 14, "bilinear"),
    "siglip2-so400m-16-384": so400m(384, 16, "bilinear"),
    "dinov2-base": dinov2(768, 12, 12),
    "dinov2-large": dinov2(1024, 24, 16),
    "dinov2-large-registers": dinov2(1024, 24, 16, registers=4),
}
"""By name: LLaVA-1.5's, SigLIP with patches of 16 and of 14 pixels at sides of 224 to 512, DINOv2."""

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
    "qwen3-0.6b": qwen3(1024, 28, 16, 3072, tie_embeddings=True),
    "qwen3-1.7b": qwen3(2048, 28, 16, 6144, tie_embeddings=True),
    "qwen3-4b": qwen3(2560, 36, 32, 9728, tie_embeddings=True),
    "qwen3-8b": qwen3(4096, 36, 32, 12288),
    "qwen3-14b": qwen3(5120, 40, 40, 17408),
    "qwen3-32b": qwen3(5120, 64, 64, 25600),
    "llama3.2-1b": llama3(2048, 16, 32, 8192, factor=32.0, tie_embeddings=True),
    "llama3.2-3b": llama3(3072, 28, 24, 8192, factor=32.0, tie_embeddings=True),
    "llama3.1-8b": llama3(4096, 32, 32, 14336, factor=8.0),
    "gemma3-1b": gemma3(
        1152, 26, 4, 6912, kv_heads=1, window=512, factor=1.0, vocab_size=262144, max_positions=32768
    ),
    "gemma3-4b": gemma3(2560, 34, 8, 10240, kv_heads=4),
    "gemma3-12b": gemma3(3840, 48, 16, 15360, kv_heads=8),
    "gemma3-27b": gemma3(5376, 62, 32, 21504, kv_heads=16, head_width=128, query_scalar=168.0),
}
"""LLaVA-1.5's two, the scaling study's five (Qwen-1.5), the one that installs as a package, and today's ladders:
Qwen3, Llama 3.2 and 3.1, and the text decoders of Gemma 3."""

SIZES_B = {
    "vicuna-7b": 7.0,
    "vicuna-13b": 13.0,
    "qwen1.5-0.5b": 0.5,
    "qwen1.5-1.8b": 1.8,
    "qwen1.5-4b": 4.0,
    "qwen1.5-7b": 7.0,
    "qwen1.5-14b": 14.0,
    "smollm2-135m": 0.135,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.0,
    "qwen3-14b": 14.0,
    "qwen3-32b": 32.0,
    "llama3.2-1b": 1.0,
    "llama3.2-3b": 3.0,
    "llama3.1-8b": 8.0,
    "gemma3-1b": 1.0,
    "gemma3-4b": 4.0,
    "gemma3-12b": 12.0,
    "gemma3-27b": 27.0,
}
"""Billions of parameters as their names say, which is how the scaling law counts N."""

BY_SIZE = (
    "vicuna-7b",
    "vicuna-13b",
    *(name for name in SIZES_B if name.startswith("qwen1.5-")),
    "smollm2-135m",
)
"""Those whose shape a bare number of parameters stands for: the scaling study's family, so that costs rise smoothly
with it."""


def decoder(name: str) -> DecoderConfig:
    """The decoder of a name such as `qwen1.5-4b`.

    Raises:
      UserError: no such model is known; the message names the nearest.
    """
    return _known(DECODERS, "language model", name)


def tower(name: str) -> VisionConfig:
    """The vision tower of a name such as `siglip2-so400m-14-384`.

    Raises:
      UserError: no such tower is known; the message names the nearest.
    """
    return _known(TOWERS, "vision tower", name)


def _known(presets: Mapping[str, T], kind: str, name: str) -> T:
    if name not in presets:
        raise UserError(f"the {kind} {name!r} is not known; {nearest(name, sorted(presets))}")
    return presets[name]
