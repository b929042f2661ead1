"""What importing the settings costs."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["quecc_jax.config", "quecc_jax.config.validation", "quecc_jax.config.io"])
def test_settings_import_no_array_library_and_nothing_above_them(module):
    code = f"import sys, {module}; print(*(m for m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"jax", "flax", "numpy", "quecc_jax.flops", "quecc_jax.data"}.intersection(loaded)
