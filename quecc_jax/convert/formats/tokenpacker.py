"""TokenPacker's projector between the original's PyTorch names and layouts and this library's."""

from typing import Any

import numpy as np

from quecc_jax.convert.rules import Array, Rule, Scope, attention, dense, from_tree, norm, to_tree


def tokenpacker_rules(width: int, multi: int, output: int, heads: int, prefix: str = "") -> list[Rule]:
    """Rules of compressor and projector, which are one module in the original.

    Args:
      width: D, the tower's width.
      multi: width of the multi-level features, levels * D.
      output: M, the decoder's width.
      heads: attention heads H; ours splits the projections' outputs among them.
      prefix: what stands before the original's names, e.g. "model.mm_projector.".
    """
    scope, after, one = Scope(("compressor",)), Scope(("projector",)), (width,)
    rules = [
        *dense(f"{prefix}q_proj_1", scope, "q_proj", one, one, bias=False),
        *norm(f"{prefix}ln_q_1", scope, "q_norm", width, bias=True),
        *attention(f"{prefix}clip_attn", scope, "clip_attn", width, heads),
        *dense(f"{prefix}mlp.0", after, "fc1", one, (output,), bias=True),
        *dense(f"{prefix}mlp.2", after, "fc2", (output,), (output,), bias=True),
    ]
    for k in "kv":
        rules += dense(f"{prefix}{k}_proj_1.0", scope, f"{k}_proj/fc1", (multi,), one, bias=True)
        rules += dense(f"{prefix}{k}_proj_1.2", scope, f"{k}_proj/fc2", one, one, bias=True)
        rules += norm(f"{prefix}ln_{k}_1", scope, f"{k}_proj/norm", width, bias=True)
    return rules


def from_torch(params: dict[str, Array], heads: int) -> dict[str, Any]:
    """The original's state dict as {"compressor": ..., "projector": ...} (an exact rearrangement).

    Args:
      params: the original's names, e.g. `q_proj_1.weight`; Linear weights are [out, in], the attention's
        input projections are stacked q, k, v.
      heads: attention heads H, D / 128 in the original; kernels here are [D, H, D / H].
    """
    multi, output = params["k_proj_1.0.weight"].shape[1], params["mlp.0.weight"].shape[0]
    return to_tree(tokenpacker_rules(params["q_proj_1.weight"].shape[0], multi, output, heads), params)


def to_torch(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: the original's names, shapes and layouts."""
    compressor, output = params["compressor"], params["projector"]["fc1"]["kernel"].shape[1]
    multi, width = compressor["k_proj"]["fc1"]["kernel"].shape
    heads = compressor["clip_attn"]["q_kernel"].shape[1]
    rules = tokenpacker_rules(width, multi, output, heads)
    return {k: np.asarray(v) for k, v in from_tree(rules, params).items()}
