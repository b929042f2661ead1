"""QueCC's parameters between the original's PyTorch names and layouts and this library's."""

from typing import Any

import numpy as np

Array = Any


def from_torch(params: dict[str, Array], heads: int) -> dict[str, Any]:
    """The original's state dict as this library's parameters (an exact rearrangement).

    Args:
      params: the original's names, e.g. `q_proj.0.weight`; Linear weights are [out, in], the
        attention's input projections are stacked q, k, v, the depthwise kernel is [D, 1, k, k].
      heads: attention heads H; kernels here are [D, H, D / H].
    """

    def dense(name: str) -> dict[str, Array]:
        return {"kernel": params[f"{name}.weight"].T, "bias": params[f"{name}.bias"]}

    def norm(name: str) -> dict[str, Array]:
        return {"scale": params[f"{name}.weight"], "bias": params[f"{name}.bias"]}

    def tower(name: str) -> dict[str, Any]:
        return {"fc1": dense(f"{name}.0"), "fc2": dense(f"{name}.2"), "norm": norm(f"{name}.3")}

    weight, bias = params["clip_attn.in_proj_weight"], params["clip_attn.in_proj_bias"]
    width = weight.shape[1]
    split = (heads, width // heads)
    attention: dict[str, Any] = {
        "out": {
            "kernel": params["clip_attn.out_proj.weight"].T.reshape(*split, width),
            "bias": params["clip_attn.out_proj.bias"],
        }
    }
    for i, name in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        attention[f"{name}_kernel"] = weight[rows].T.reshape(width, *split)
        attention[f"{name}_bias"] = bias[rows].reshape(split)
    return {
        "text_projection": dense("text_projection.0"),
        "text_norm": norm("text_projection.1"),
        "q_proj": tower("q_proj"),
        "k_proj": tower("k_proj"),
        "v_proj": tower("v_proj"),
        "q_downsample": {
            "kernel": params["q_downsample.weight"].transpose(2, 3, 1, 0),
            "bias": params["q_downsample.bias"],
        },
        "clip_attn": attention,
    }


def to_torch(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: the original's names, shapes and layouts."""
    out: dict[str, Array] = {}

    def dense(name: str, leaf: dict[str, Array]) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = leaf["kernel"].T, leaf["bias"]

    def norm(name: str, leaf: dict[str, Array]) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = leaf["scale"], leaf["bias"]

    for name in ("q_proj", "k_proj", "v_proj"):
        dense(f"{name}.0", params[name]["fc1"])
        dense(f"{name}.2", params[name]["fc2"])
        norm(f"{name}.3", params[name]["norm"])
    dense("text_projection.0", params["text_projection"])
    norm("text_projection.1", params["text_norm"])
    out["q_downsample.weight"] = params["q_downsample"]["kernel"].transpose(3, 2, 0, 1)
    out["q_downsample.bias"] = params["q_downsample"]["bias"]
    attention = params["clip_attn"]
    width = attention["q_kernel"].shape[0]
    kernels = [np.asarray(attention[f"{k}_kernel"]).reshape(width, width).T for k in "qkv"]
    out["clip_attn.in_proj_weight"] = np.concatenate(kernels)
    out["clip_attn.in_proj_bias"] = np.concatenate([np.ravel(attention[f"{k}_bias"]) for k in "qkv"])
    out["clip_attn.out_proj.weight"] = attention["out"]["kernel"].reshape(width, width).T
    out["clip_attn.out_proj.bias"] = attention["out"]["bias"]
    return {k: np.asarray(v) for k, v in out.items()}
