"""XLA flags for the processes that are started here: which there are, and how they join the user's."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

FAST_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""A step compiles in a fifth of the time and runs slower: right for tests and for few steps."""
LESS_OPTIMIZED = ("--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1")
"""A small model's step compiles in three quarters of the time, and runs as fast."""
ONE_THREAD = ("--xla_cpu_multi_thread_eigen=false",)


def with_flags(given: str, flags: tuple[str, ...]) -> str:
    """The value of XLA_FLAGS that adds flags to it.

    Args:
      given: its present value: flags, or the name of a file that holds them, or nothing.
      flags: what to add, as --name=value; left out are those that `given` has a value for, and those that
        the installed XLA does not know.
    """
    if given.strip() and not given.lstrip().startswith("-"):
        # XLA reads a file only where its name is all there is. One that cannot be read is its to refuse.
        file = Path(given)
        if not file.is_file():
            return given
        given = file.read_text().strip()
    taken = re.findall(r"--(\w+)", given)
    added = tuple(flag for flag in flags if _name(flag) not in taken)
    return " ".join([*known_flags(added), given]).strip()


@functools.cache
def known_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the flags that the installed XLA knows: it ends a process that is given any other, and new
    releases drop old flags. Each answer takes a process of under a second."""
    while flags:
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        probe = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if probe.returncode == 0:
            break
        refused = " ".join(re.findall(r"Unknown flags? in XLA_FLAGS:(.*)", probe.stderr)).split()
        left = tuple(flag for flag in flags if flag not in refused)
        flags = left if len(left) < len(flags) else ()
    return flags


def _name(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0]
