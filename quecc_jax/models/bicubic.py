"""Bicubic interpolation along a line, as torch has it."""

import math

import numpy as np


def bicubic_weights(size: int, target: int) -> np.ndarray:
    """float64 [target, size]: what each new position takes of the old ones. Keys' kernel with a = -0.75, corners
    not aligned, the edge repeated, no antialiasing."""
    a, weights = -0.75, np.zeros((target, size))
    for row in range(target):
        at = (row + 0.5) * size / target - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            x = abs(at - tap)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((x - 5) * x + 8) * x * a - 4 * a
            weights[row, min(max(tap, 0), size - 1)] += near if x <= 1 else far
    return weights
