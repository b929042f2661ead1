"""Every test sees eight emulated CPU devices, compiled for in a hurry; subprocesses inherit both."""

import os

import pytest

FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Compiling is most of the tests' time: these cut it to a fifth.
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_use_fusion_emitters": "false",
}

given = os.environ.get("XLA_FLAGS", "")
added = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.fixture
def bucket(tmp_path):
    """The directory that gs://bucket is in this test."""
    from tests.bucket import pretended_bucket

    with pretended_bucket(tmp_path / "buckets") as root:
        yield root
