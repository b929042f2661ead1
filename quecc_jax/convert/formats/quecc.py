"""QueCC's parameters between the original's PyTorch names and layouts and this library's."""

from quecc_jax.convert.rules import Arrays, Path, Rule, Scope, attention, dense, norm, vector


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
