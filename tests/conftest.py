"""Every test sees eight emulated CPU devices, compiled for in a hurry; subprocesses inherit both. With
JAX_PLATFORMS=cuda,cpu, for the tests of `make test-gpu`, they see the GPU instead."""

import os

import pytest

from quecc_jax.xla_flags import FAST_COMPILE, with_flags

# Compiling is most of the tests' time.
FLAGS = ("--xla_force_host_platform_device_count=8", *FAST_COMPILE)

if os.environ.get("JAX_PLATFORMS") != "cuda,cpu":
    os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""), FLAGS)
    os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.fixture
def bucket(tmp_path):
    """The directory that gs://bucket is in this test."""
    from tests.bucket import pretended_bucket

    with pretended_bucket(tmp_path / "buckets") as root:
        yield root
