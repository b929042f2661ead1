"""TokenPacker's models (github.com/CircleRadon/TokenPacker)."""

from quecc_jax.config import ModelConfig
from quecc_jax.convert.formats.compressors.project import GRID, Limit, Project, mlp_rules, one_v
from quecc_jax.convert.rules import Rule, Scope, attention, dense, norm
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.compressors.tokenpacker_config import TokenPackerConfig

HEADS = 8
"""Whatever the tower: the original writes 1024 // 128."""


def _settings(hf: JsonObject) -> TokenPackerConfig | None:
    # Its code builds the same module whatever mm_projector_type says; scale_factor is its own key.
    scale = hf.get("scale_factor")
    if hf.get("mm_projector_type") != "tokenpacker" and scale is None:
        return None
    if type(scale) is not int or scale < 1 or GRID % scale:
        raise UserError(
            f"config.json is of a TokenPacker and has scale_factor {scale!r}, which is to be the patches along one "
            "side of a token's region (2, 3 or 4); write there what it was trained with"
        )
    return TokenPackerConfig(kernel=scale, stride=scale, heads=HEADS)


def _keys(model: ModelConfig) -> JsonObject:
    compressor = model.compressor
    assert isinstance(compressor, TokenPackerConfig)
    return {"mm_projector_type": "tokenpacker", "scale_factor": compressor.stride}


def _limits(model: ModelConfig) -> list[Limit]:
    compressor = model.compressor
    assert isinstance(compressor, TokenPackerConfig)
    return [
        one_v(compressor),
        ("model.compressor.heads", compressor.heads, (HEADS,)),
        ("model.compressor.kernel", compressor.kernel, (compressor.stride,)),
        ("model.compressor.stride", compressor.stride, tuple(n for n in range(1, GRID + 1) if GRID % n == 0)),
    ]


def _rules(model: ModelConfig, family: str, prefix: str) -> list[Rule]:
    del family
    compressor, width = model.compressor, model.vision.feature_width
    assert isinstance(compressor, TokenPackerConfig)
    name = f"{prefix}mm_projector."
    multi = width * len(model.vision.levels)
    return [*compressor_rules(width, multi, compressor.heads, name), *mlp_rules(model, f"{name}mlp.")]


def compressor_rules(width: int, multi: int, heads: int, name: str = "") -> list[Rule]:
    """Rules of the module without its MLP to the decoder's width.

    Args:
      width: D, the tower's.
      multi: width of the multi-level features, levels * D.
      heads: attention heads.
      name: what stands before the original's names.
    """
    scope, one = Scope(("compressor",)), (width,)
    rules = [
        *dense(f"{name}q_proj_1", scope, "q_proj", one, one, bias=False),
        *norm(f"{name}ln_q_1", scope, "q_norm", width, bias=True),
        *attention(f"{name}clip_attn", scope, "clip_attn", width, heads),
    ]
    for k in "kv":
        rules += dense(f"{name}{k}_proj_1.0", scope, f"{k}_proj/fc1", (multi,), one, bias=True)
        rules += dense(f"{name}{k}_proj_1.2", scope, f"{k}_proj/fc2", one, one, bias=True)
        rules += norm(f"{name}ln_{k}_1", scope, f"{k}_proj/norm", width, bias=True)
    return rules


TOKENPACKER = Project(
    "CircleRadon/TokenPacker 771a16e",
    _settings,
    _keys,
    _limits,
    _rules,
    own=("scale_factor",),
    multi=True,
    projector="mlp2x_gelu",
    grid=GRID,
    model_type="llava",
    architecture="LlavaLlamaForCausalLM",
)
