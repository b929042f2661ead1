"""What the tests use of the private parts of jax; `tests/test_jax_shim.py` watches them."""

from collections.abc import Callable
from typing import Any

import pytest
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn


def hide_tpu_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes jax find no libtpu, loaded or installed."""
    monkeypatch.setattr(xla_bridge.xla_client, "pjrt_plugin_loaded", lambda name: False)
    monkeypatch.setattr(xla_bridge, "get_tpu_library_path", lambda: None)


def pretend_cudnn(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Makes jax find a cuDNN of this version, where there is none."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: version)


def compiled_programs(function: Callable[..., Any]) -> int:
    """For how many shapes a jitted function has been compiled."""
    return function._cache_size()  # type: ignore[attr-defined]
