"""Linear layers: their gradients' types."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.models.layers import linear


def gradients(inputs: int, **options: Any):
    """Output, gradients of input and kernel, and the program, of one layer in bfloat16."""
    rng = np.random.default_rng(0)
    shape, axes = ((3, 40, 4, 8), (None,) * 3) if inputs == 2 else ((3, 40, 32), (None,) * 3)
    outputs = (6,) if inputs == 2 else (4, 6)
    layer: Any = linear(outputs, axes, inputs=inputs, bias=False, dtype=jnp.bfloat16, **options)
    x = jnp.array(rng.normal(size=shape), jnp.bfloat16)
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))
    weight = jnp.array(rng.normal(size=layer.apply(params, x).shape), jnp.bfloat16)

    def total(params, x):
        out = layer.apply(params, x)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    run = jax.grad(total, (0, 1), has_aux=True)
    (to_params, to_x), out = run(params, x)
    exact = np.einsum("bsi,bso->io", *(np.asarray(a, np.float64).reshape(3, 40, -1) for a in (x, weight)))
    kernel = to_params["params"]["kernel"]
    error = np.abs(np.asarray(kernel, np.float64).reshape(exact.shape) - exact).max() / np.abs(exact).max()
    return out, to_x, kernel, error, str(jax.make_jaxpr(run)(params, x))


@pytest.mark.parametrize("inputs", [1, 2])
def test_gradients_may_be_float32_from_their_product_on(inputs):
    """Nothing else changes, and the product itself is in float32, before devices add theirs up."""
    out, to_x, kernel, error, program = gradients(inputs)
    same_out, same_x, wide, less, wide_program = gradients(inputs, gradients=jnp.float32)
    np.testing.assert_array_equal(out, same_out)
    np.testing.assert_array_equal(to_x, same_x)
    assert kernel.dtype == wide.dtype == jnp.float32
    assert 1e-4 < error < 2**-7 and less < 1e-6
    assert "preferred_element_type=float32" in wide_program
    assert "preferred_element_type=float32" not in program
