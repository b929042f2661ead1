"""How far arrays may be from the original's."""

import math
from typing import Any

import numpy as np

TOLERANCE = 1e-4


def error(ours: Any, theirs: np.ndarray, largest_gradient: float = 0.0) -> float:
    """max|a - b| / (max|b| + 1e-3 G) with G the largest |gradient| of a file for gradients, 0 otherwise;
    infinite when shapes differ or a value is not finite."""
    ours = np.asarray(ours)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return math.inf
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-3 * largest_gradient))
