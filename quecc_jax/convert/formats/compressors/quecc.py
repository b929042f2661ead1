"""QueCC's own models (github.com/locuslab/llava-token-compression)."""

from quecc_jax.config import DecoderConfig, ModelConfig, QueccConfig, VisionConfig
from quecc_jax.convert.formats.compressors.project import Limit, Project, one_v
from quecc_jax.convert.rules import Arrays, Path, Rule, Scope, attention, dense, norm, vector
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

HEADS = 8
"""Attention heads, whatever the tower."""
_TYPE = "mm_vision_token_compression_type"
_KERNEL, _STRIDE = (f"mm_vision_token_compression_{name}" for name in ("kernel_size", "stride"))


def _settings(hf: JsonObject) -> QueccConfig | None:
    if hf.get(_TYPE) != "quecc":
        return None
    if hf.get("mm_projector_type") == "identity":
        raise UserError(
            "config.json has mm_projector_type 'identity' beside a compressor, which the original then leaves out; set "
            f"{_TYPE} to null"
        )
    return QueccConfig(kernel=hf.get(_KERNEL) or 4, stride=hf.get(_STRIDE) or 4, heads=HEADS)


def _sizes(decoder: DecoderConfig, tower: VisionConfig) -> JsonObject:
    return {
        "mm_vision_output_text_embedding_size": decoder.width,
        "mm_vision_output_token_count": tower.patches,
    }


def _keys(model: ModelConfig) -> JsonObject:
    compressor = model.compressor
    assert isinstance(compressor, QueccConfig)
    return {
        _TYPE: "quecc",
        "mm_vision_output_token_count": model.vision.patches,
        "mm_vision_output_text_embedding_size": model.decoder.width,
        "mm_vision_output_combined_token_count": None,
        _KERNEL: compressor.kernel,
        _STRIDE: compressor.stride,
    }


def _limits(model: ModelConfig) -> list[Limit]:
    compressor = model.compressor
    assert isinstance(compressor, QueccConfig)
    return [
        one_v(compressor),
        ("model.compressor.heads", compressor.heads, (HEADS,)),
        ("model.compressor.query", compressor.query, ("question",)),
        ("model.query.encoder", model.query.encoder, ("decoder",)),
    ]


def _rules(model: ModelConfig, family: str, prefix: str) -> list[Rule]:
    del family
    compressor, width = model.compressor, model.vision.feature_width
    assert isinstance(compressor, QueccConfig)
    multi, name = width * len(model.vision.levels), f"{prefix}mm_projector.0."
    return quecc_rules(width, model.decoder.width, multi, compressor.kernel, compressor.heads, name)


def quecc_rules(
    width: int, text: int, multi: int, kernel: int, heads: int, prefix: str = "", path: Path = ("compressor",)
) -> list[Rule]:
    """Rules of one compressor.

    Args:
      width: D, the tower's width.
      text: M, the width of the query feature.
      multi: width of the multi-level features, levels * D.
      kernel: side of the depthwise convolution.
      heads: attention heads; ours splits the projections' outputs among them.
      prefix: what stands before the original's names, e.g. "model.mm_projector.0.".
      path: where our leaves are.
    """
    scope, one, conv = Scope(path), (width,), f"{prefix}q_downsample"
    rules = [
        *dense(f"{prefix}text_projection.0", scope, "text_projection", (text,), one, bias=True),
        *norm(f"{prefix}text_projection.1", scope, "text_norm", width, bias=True),
        Rule(
            (f"{conv}.weight",),
            ((width, 1, kernel, kernel),),
            (scope.slab("q_downsample/kernel", kernel, kernel, 1, width),),
            _channels_last,
            _channels_first,
        ),
        vector(f"{conv}.bias", scope.slab("q_downsample/bias", width)),
        *attention(f"{prefix}clip_attn", scope, "clip_attn", width, heads),
    ]
    for name, inputs in (("q_proj", width), ("k_proj", multi), ("v_proj", multi)):
        rules += dense(f"{prefix}{name}.0", scope, f"{name}/fc1", (inputs,), one, bias=True)
        rules += dense(f"{prefix}{name}.2", scope, f"{name}/fc2", one, one, bias=True)
        rules += norm(f"{prefix}{name}.3", scope, f"{name}/norm", width, bias=True)
    return rules


def _channels_last(theirs: Arrays) -> Arrays:
    return (theirs[0].transpose(2, 3, 1, 0),)


def _channels_first(ours: Arrays) -> Arrays:
    return (ours[0].transpose(3, 2, 0, 1),)


QUECC = Project(
    "locuslab/llava-token-compression",
    _settings,
    _keys,
    _limits,
    _rules,
    multi=True,
    first=1,
    scales=True,
    sizes=_sizes,
    decoders=(),
)
