"""Parameters of compressors in the originals' PyTorch form and in this library's: exact rearrangements.

A state dict of theirs holds Linear weights as [out, in], the attention's input projections stacked q, k, v, and
depthwise kernels as [D, 1, k, k]. Ours is {"compressor": ..., "projector": ...}, with kernels [D, H, D / H].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quecc_jax.convert.formats.compressors import mqt, tokenpacker
from quecc_jax.convert.formats.compressors.quecc import quecc_rules
from quecc_jax.convert.rules import Array, Arrays, PyTree, Rule, Scope, dense, from_tree, to_tree
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.positions import sine_cosine

StateDict = dict[str, Array]


class Names(NamedTuple):
    """The two ways of one compressor."""

    rules: Callable[[StateDict, int], list[Rule]]
    """(the original's state dict, attention heads H) -> rules of its parameters."""

    def from_torch(self, params: StateDict, heads: int) -> PyTree:
        return to_tree(self.rules(params, heads), params)

    def to_torch(self, params: PyTree, like: StateDict, heads: int) -> StateDict:
        """The inverse, for parameters of the shapes in a state dict."""
        return {k: np.asarray(v) for k, v in from_tree(self.rules(like, heads), params).items()}


def _quecc(params: StateDict, heads: int) -> list[Rule]:
    width, text = params["text_projection.0.weight"].shape
    multi, kernel = params["k_proj.0.weight"].shape[1], params["q_downsample.weight"].shape[2]
    return quecc_rules(width, text, multi, kernel, heads)


def _mqt(params: StateDict, heads: int) -> list[Rule]:
    """Compressor and projector, which are one module in the original."""
    (queries, width), output = params["query"].shape, params["proj"].shape[1]
    return [*mqt.compressor_rules(queries, width, output, heads), _positions("pos_embed", queries, width)]


def _positions(name: str, queries: int, width: int) -> Rule:
    """A constant that the original stores and we compute."""
    wanted = sine_cosine(round(queries**0.5), width)

    def compare(theirs: Arrays) -> Arrays:
        # Half precision is what published files hold.
        if not np.allclose(np.asarray(theirs[0], np.float32), wanted, atol=1e-2):
            raise UserError(f"{name} is not the sine-cosine positions of a square of {queries} queries")
        return ()

    return Rule((name,), (wanted.shape,), (), compare, lambda _: (wanted,))


def _tokenpacker(params: StateDict, heads: int) -> list[Rule]:
    """Compressor and projector, which are one module in the original."""
    width, multi = params["q_proj_1.weight"].shape[0], params["k_proj_1.0.weight"].shape[1]
    output, after = (params["mlp.0.weight"].shape[0],), Scope(("projector",))
    return [
        *tokenpacker.compressor_rules(width, multi, heads),
        *dense("mlp.0", after, "fc1", (width,), output, bias=True),
        *dense("mlp.2", after, "fc2", output, output, bias=True),
    ]


QUECC, MQT, TOKENPACKER = Names(_quecc), Names(_mqt), Names(_tokenpacker)
