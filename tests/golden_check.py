"""Compares this library with arrays computed by the original PyTorch code.

    python -m tests.golden_check PATH.npz     a compressor alone: QueCC, TokenPacker or MQT
    python -m tests.golden_check DIRECTORY    a whole model in the original's on-disk format

prints a JSON object {key: max relative error} and exits 1 if any error exceeds 1e-4.
"""

import json
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.mqt import MQT
from quecc_jax.models.compressors.quecc import QueCC
from quecc_jax.models.compressors.tokenpacker import TokenPacker
from quecc_jax.models.projector import Projector
from tests import golden_model, golden_names
from tests.golden_names import Names
from tests.measure import TOLERANCE, error

Tree = dict[str, Any]

CANCELLED = ("k_proj.3.bias", "ln_k_1.bias", "ln_k.bias")
"""Biases of the keys' norms: they add the same to all logits of a query, which softmax ignores, so that their
gradients are sums of numbers that cancel."""


class Original(NamedTuple):
    """A golden file's module here, and its parameters there."""

    compressor: nn.Module
    projector: Projector
    names: Names
    theirs: dict[str, np.ndarray]
    """The original's state dict."""
    heads: int


def _group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _original(arrays: dict[str, np.ndarray]) -> Original:
    """Which compressor a file holds is told by the names of its parameters."""
    theirs, meta = _group(arrays, "param/"), [int(x) for x in arrays["meta"]]
    if "pos_embed" in theirs:
        _, heads, _, side, width, tokens = meta
        compressor: nn.Module = MQT(side**2, tokens, heads)
        return Original(compressor, Projector("matrix", width), golden_names.MQT, theirs, heads)
    if "q_proj_1.weight" in theirs:
        _, heads, grid, scale, width = meta
        compressor = TokenPacker((grid // scale,), heads)
        return Original(compressor, Projector("mlp2x_gelu", width), golden_names.TOKENPACKER, theirs, heads)
    width, _, _, kernel, stride, heads = meta
    compressor = QueCC(kernel, stride, width, heads)
    return Original(compressor, Projector("identity", width), golden_names.QUECC, theirs, heads)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
      UserError: it is none of NumPy's, damaged, or holds no compressor in the goldens' layout.
    """
    try:
        with np.load(path) as file:
            arrays = dict(file)
    # A file without an archive's signature is taken for one array or a pickle.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a file of arrays as numpy.savez writes it ({error})") from None
    wanted = ("meta", "out", "cotangent", "in/single_level")
    if missing := next((name for name in wanted if name not in arrays), ""):
        raise UserError(f"{path} holds no compressor in the goldens' layout: it has no {missing}")
    return arrays


def check(path: Path) -> dict[str, float]:
    """Maximal relative error per key of a compressor's file, in float32.

    The error of a key is max|a - b| / (max|b| + 1e-3 G) with G the largest |gradient| of the file
    for gradients and 0 for the others. `CANCELLED` gradients, of which both sides hold round-off alone, are
    compared on the scale of G instead.
    """
    arrays = _arrays(path)
    original, inputs = _original(arrays), _group(arrays, "in/")
    params_here = original.names.from_torch(original.theirs, original.heads)

    def objective(params: Tree, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        absent = jnp.zeros((len(inputs["single_level"]), 1, 1))
        features = Features(inputs["single_level"], inputs.get("multi_level", absent))
        call: Any = original.compressor.apply
        tokens = call({"params": params["compressor"]}, features, inputs.get("query", absent))
        out: Any = original.projector.apply({"params": params.get("projector", {})}, tokens)
        return jnp.sum(out * arrays["cotangent"]), out

    with jax.default_matmul_precision("highest"):
        run = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        (_, out), (grads, input_grads) = run(params_here, inputs)
    grads = original.names.to_torch(grads, original.theirs, original.heads)

    pairs = {"out": (out, arrays["out"])}
    pairs |= {f"grad/{k}": (g, arrays[f"grad/{k}"]) for k, g in grads.items() if k != "pos_embed"}
    pairs |= {f"grad_in/{k}": (g, arrays[f"grad_in/{k}"]) for k, g in input_grads.items()}
    missing = {k for k in arrays if k == "out" or k.startswith("grad")} ^ set(pairs)
    if missing:
        raise ValueError(f"{path} and the module disagree on the keys {sorted(missing)}")
    largest = max(float(np.abs(b).max()) for k, (_, b) in pairs.items() if k.startswith("grad"))
    scales = {k: largest if k.startswith("grad") else 0.0 for k in pairs}
    scales |= {k: 1e3 * largest for k in pairs if k.startswith("grad/") and k.endswith(CANCELLED)}
    return {k: error(a, b, scales[k]) for k, (a, b) in pairs.items()}


def main(arguments: list[str]) -> int:
    """Checks the file or directory named on the command line; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m tests.golden_check PATH.npz or DIRECTORY", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if not path.exists():
        print(f"error: {path} does not exist; check the path", file=sys.stderr)
        return 2
    if path.is_dir() and not (path / "expected.npz").is_file():
        print(f"{path} holds no model in the original format with its expected.npz", file=sys.stderr)
        return 2
    try:
        errors = golden_model.check(path) if path.is_dir() else check(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(errors, indent=1))
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
