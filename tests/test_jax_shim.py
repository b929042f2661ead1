"""Where jax keeps what `tests.jax_shim` reaches for."""

import jax
import jax.numpy as jnp
import pytest
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from tests.jax_shim import compiled_programs


@pytest.mark.parametrize(
    "owner, name",
    [
        (xla_bridge.xla_client, "pjrt_plugin_loaded"),
        (xla_bridge, "get_tpu_library_path"),
        (cudnn, "check_cudnn_version"),
    ],
)
def test_what_is_replaced_is_there(owner, name):
    assert callable(getattr(owner, name, None)), (
        f"jax has no {owner.__name__}.{name} any more: find what asks for the plugin or cuDNN's version now, and "
        "replace that in tests/jax_shim.py"
    )


def test_compiled_programs_are_counted():
    double = jax.jit(lambda x: 2 * x)
    for size in (1, 2, 2):
        double(jnp.ones(size))
    assert compiled_programs(double) == 2, (
        "jax counts a function's programs in another way: change compiled_programs in tests/jax_shim.py"
    )
