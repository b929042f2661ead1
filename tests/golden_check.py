"""Compares this library with arrays computed by the original PyTorch code.

    python -m tests.golden_check PATH.npz     a compressor alone
    python -m tests.golden_check DIRECTORY    a whole model in the original's on-disk format

prints a JSON object {key: max relative error} and exits 1 if any error exceeds 1e-4.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.convert.quecc import from_torch, to_torch
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.quecc import QueCC
from tests import golden_model
from tests.measure import TOLERANCE, error


def _group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def check(path: Path) -> dict[str, float]:
    """Maximal relative error per key of a `quecc_*.npz` file, in float32.

    The error of a key is max|a - b| / (max|b| + 1e-3 G) with G the largest |gradient| of the file
    for gradients and 0 for the others.
    """
    with np.load(path) as file:
        arrays = dict(file)
    _, _, _, kernel, stride, heads = (int(x) for x in arrays["meta"])
    module: Any = QueCC(kernel, stride, heads)
    inputs = tuple(arrays[f"in/{k}"] for k in ("single_level", "multi_level", "query"))

    def objective(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        single, multi, query = inputs
        out = module.apply({"params": params}, Features(single, multi), query)
        return jnp.sum(out * arrays["cotangent"]), out

    with jax.default_matmul_precision("highest"):
        run = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
        (_, out), (grads, input_grads) = run(from_torch(_group(arrays, "param/"), heads), inputs)

    pairs = {"out": (out, arrays["out"])}
    pairs |= {f"grad/{k}": (g, arrays[f"grad/{k}"]) for k, g in to_torch(grads).items()}
    for name, ours in zip(("single_level", "multi_level", "query"), input_grads, strict=True):
        pairs[f"grad_in/{name}"] = (ours, arrays[f"grad_in/{name}"])
    missing = {k for k in arrays if k == "out" or k.startswith("grad")} ^ set(pairs)
    if missing:
        raise ValueError(f"{path} and the module disagree on the keys {sorted(missing)}")
    largest = max(float(np.abs(b).max()) for k, (_, b) in pairs.items() if k.startswith("grad"))
    scales = {k: largest if k.startswith("grad") else 0.0 for k in pairs}
    return {k: error(a, b, scales[k]) for k, (a, b) in pairs.items()}


def main(arguments: list[str]) -> int:
    """Checks the file or directory named on the command line; returns the exit status."""
    if len(arguments) != 1 or not Path(arguments[0]).exists():
        print("usage: python -m tests.golden_check PATH.npz or DIRECTORY", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    errors = golden_model.check(path) if path.is_dir() else check(path)
    print(json.dumps(errors, indent=1))
    return int(max(errors.values()) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
