"""Random weights for torch models, and how far our numbers are from theirs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tests.golden_check import error


def randomise(model: torch.nn.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws every parameter anew and returns them by name: scales near one, biases and embeddings of
    order one, and matrices large enough for sharp attention and bent activations."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = rng.normal(size=parameter.shape)
            if name.endswith("bias"):
                value = 0.3 * noise
            elif parameter.ndim == 1 and "norm" in name:
                value = 1 + 0.3 * noise
            elif "embed" in name or "wte" in name:
                value = noise
            else:
                value = 1.5 * noise / parameter[0].numel() ** 0.5
            parameter.copy_(torch.from_numpy(value))
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Gradients by name of the parameters that have one."""
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


def errors(
    ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], are_gradients: bool
) -> dict[str, float]:
    """max|a - b| / (max|b| + 1e-3 G) by name, G the largest |gradient| of all, 0 for other arrays."""
    assert set(ours) == set(theirs)
    largest = max(float(np.abs(b).max()) for b in theirs.values()) if are_gradients else 0.0
    return {name: error(np.asarray(a), theirs[name], largest) for name, a in ours.items()}
