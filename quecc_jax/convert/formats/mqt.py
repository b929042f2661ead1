"""MQT's projector between the original's PyTorch names and layouts and this library's."""

from typing import Any

import numpy as np

from quecc_jax.convert.rules import Array, Arrays, Rule, Scope, attention, from_tree, norm, same, to_tree
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.positions import sine_cosine


def mqt_rules(width: int, queries: int, output: int, heads: int, prefix: str = "") -> list[Rule]:
    """Rules of compressor and projector, which are one module in the original.

    Args:
      width: D, the tower's width.
      queries: how many learned queries there are, a square number.
      output: M, the decoder's width.
      heads: attention heads H; ours splits the projections' outputs among them.
      prefix: what stands before the original's names, e.g. "model.mm_projector.".
    """
    scope = Scope(("compressor",))
    rules = [
        _positions(f"{prefix}pos_embed", queries, width),
        same(f"{prefix}query", scope.slab("queries", queries, width)),
        *attention(f"{prefix}attn", scope, "attention", width, heads),
        same(f"{prefix}proj", Scope(("projector",)).slab("fc1/kernel", width, output)),
    ]
    for k in "qkv":
        rules += norm(f"{prefix}ln_{k}", scope, f"{k}_norm", width, bias=True)
    return rules


def _positions(name: str, queries: int, width: int) -> Rule:
    """A constant that the original stores and we compute."""
    wanted = sine_cosine(round(queries**0.5), width)

    def compare(theirs: Arrays) -> Arrays:
        # Half precision is what published files hold.
        if not np.allclose(np.asarray(theirs[0], np.float32), wanted, atol=1e-2):
            raise UserError(
                f"{name} is not the sine-cosine positions of a square of {queries} queries; "
                "only these are implemented"
            )
        return ()

    return Rule((name,), (wanted.shape,), (), compare, lambda _: (wanted,))


def from_torch(params: dict[str, Array], heads: int) -> dict[str, Any]:
    """The original's state dict as {"compressor": ..., "projector": ...} (an exact rearrangement).

    Args:
      params: the original's names, e.g. `ln_q.weight`; Linear weights are [out, in], `proj` is [D, M], the
        attention's input projections are stacked q, k, v.
      heads: attention heads H, 16 in the original; kernels here are [D, H, D / H].

    Raises:
      UserError: the positions are other ones.
    """
    (queries, width), output = params["query"].shape, params["proj"].shape[1]
    return to_tree(mqt_rules(width, queries, output, heads), params)


def to_torch(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: the original's names, shapes and layouts."""
    compressor, output = params["compressor"], params["projector"]["fc1"]["kernel"].shape[1]
    (queries, width), heads = compressor["queries"].shape, compressor["attention"]["q_kernel"].shape[1]
    return {k: np.asarray(v) for k, v in from_tree(mqt_rules(width, queries, output, heads), params).items()}
