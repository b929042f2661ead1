"""The arrays of annotations, whose shapes the tests check at every call."""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array
else:
    # Outside of jit a module takes numpy's arrays as they are; to a type checker they would be in every result.
    Array = jax.Array | np.ndarray
