"""Tests here need PyTorch: `make test-parity` installs it, a bare pytest without it leaves them out."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]
