"""Flags of ours beside the user's, and only those that the installed XLA knows."""

import os
import subprocess
import sys

import pytest

from quecc_jax import xla_flags
from quecc_jax.experiments.worker import worker_environment
from quecc_jax.xla_flags import FAST_COMPILE, ONE_THREAD, known_flags, with_flags

SLOW = "--xla_backend_optimization_level=0"


@pytest.fixture
def all_known(monkeypatch):
    monkeypatch.setattr(xla_flags, "known_flags", lambda flags: flags)


@pytest.mark.parametrize(
    "given, expected",
    [
        ("", f"{ONE_THREAD[0]} {SLOW}"),
        ("--xla_dump_to=x", f"{ONE_THREAD[0]} {SLOW} --xla_dump_to=x"),
        ("--xla_cpu_multi_thread_eigen=true", f"{SLOW} --xla_cpu_multi_thread_eigen=true"),
        ("--xla_cpu_multi_thread_eigen", f"{SLOW} --xla_cpu_multi_thread_eigen"),
        (f"--xla_dump_to=x\n\t{SLOW} {ONE_THREAD[0]}", f"--xla_dump_to=x\n\t{SLOW} {ONE_THREAD[0]}"),
        # A name that merely begins like ours is another flag.
        ("--xla_cpu_multi_thread_eigen_too=1", f"{ONE_THREAD[0]} {SLOW} --xla_cpu_multi_thread_eigen_too=1"),
    ],
)
def test_what_the_user_says_stays_and_wins(given, expected, all_known):
    assert with_flags(given, (*ONE_THREAD, SLOW)) == expected


def test_flags_in_a_file_are_read_from_there(tmp_path, all_known):
    """XLA takes a value without dashes for a file's name."""
    file = tmp_path / "flags"
    file.write_text("--xla_cpu_multi_thread_eigen=true\n--xla_dump_to=x\n")
    expected = f"{SLOW} --xla_cpu_multi_thread_eigen=true\n--xla_dump_to=x"
    assert with_flags(str(file), (*ONE_THREAD, SLOW)) == expected
    missing = str(tmp_path / "missing")
    assert with_flags(missing, ONE_THREAD) == missing


def test_flags_that_this_xla_does_not_know_are_left_out():
    """Asked of XLA itself: its next release drops others than its last."""
    invented = ("--xla_no_such_flag=1", "--xla_nor_this_one=true")
    assert known_flags((invented[0], SLOW, invented[1])) == (SLOW,)
    assert known_flags(invented) == known_flags(()) == ()
    # A value that it refuses is no unknown flag; better none of ours than a process that dies.
    assert known_flags((SLOW, "--xla_cpu_multi_thread_eigen=perhaps")) == ()


def test_a_process_with_what_is_left_of_ours_starts():
    """The tests' own flags and those of scheduled jobs, with a user's flag that must still be there."""
    given = with_flags("--xla_cpu_multi_thread_eigen=true", FAST_COMPILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", given)
        with worker_environment():
            assert os.environ["XLA_FLAGS"] == given
            subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], check=True)
        assert os.environ["XLA_FLAGS"] == given
