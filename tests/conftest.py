"""Every test sees eight emulated CPU devices, compiled for in a hurry; subprocesses inherit both. With
JAX_PLATFORMS=cuda,cpu, for the tests of `make test-gpu`, they see the GPU instead.

Shapes that stand in signatures are checked, and programs that took long to compile are shared by all processes."""

import atexit
import gc
import os
import shutil
import tempfile

import jaxtyping
import pytest

from quecc_jax.xla_flags import FAST_COMPILE, with_flags
from tests import typechecker

# Compiling is most of the tests' time.
FLAGS = ("--xla_force_host_platform_device_count=8", *FAST_COMPILE)
CHECKED = ["quecc_jax.models", "quecc_jax.data.batch", "scaling"]
"""Modules whose annotations of shapes are checked at every call; imported from here on."""

jaxtyping.install_import_hook(CHECKED, f"{typechecker.__name__}.checked")

if os.environ.get("JAX_PLATFORMS") != "cuda,cpu":
    os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""), FLAGS)
    os.environ["JAX_PLATFORMS"] = "cpu"

# Tracing makes many objects that live long: looking for garbage among them every 700 took a tenth of the time.
gc.set_threshold(100_000, 20, 20)

# The first process makes the folder; pytest-xdist's workers and the tests' subprocesses inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="quecc_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def bucket(tmp_path):
    """The directory that gs://bucket is in this test."""
    # Imports jax, which reads the environment.
    from tests.bucket import pretended_bucket

    with pretended_bucket(tmp_path / "buckets") as root:
        yield root
