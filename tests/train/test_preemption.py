"""Signals at every moment: where Python hears them, and where its main thread cannot."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.train.preemption import Preempted, Preemption

ROOT = Path(__file__).parents[2]

PROGRAM = """
import ctypes, json, os, signal, sys, time
from quecc_jax.train import preemption

# A shell in the background has its programs ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A pipe that nobody reads stands for a disk that does not answer.
reader, writer = os.pipe()
mutex, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)

def write(to=writer):
    while True:
        os.write(to, bytes(1 << 20))

def stay_in_c():
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def write_to_stderr():
    os.dup2(writer, 2)
    write(2)

def save(noticed):
    with noticed.saving():
        write()

def run(where, stepping, limits):
    preemption.START_S, preemption.GRACE_S, preemption.SAVE_S = limits
    with preemption.Preemption("runs/a") as noticed:
        if stepping:
            noticed.reached(1)
        os.write(1, b"x")
        eval(where)

# Importing JAX takes longest.
for case in json.loads(sys.argv[1]):
    (ready, told), (said, err) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(told, 1)
        os.dup2(err, 2)
        run(*case["run"])
    os.close(err)
    os.read(ready, 1)
    for number in case["signals"]:
        # It is to get where it stays; and two that come together are one.
        time.sleep(0.5 if number > 0 else 0.02)
        os.kill(pid, abs(number))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([status, os.read(said, 4096).decode()]), flush=True)
"""
NEVER, SOON = 600, 0.5
LATE = "did not end within 0.5 s of SIGTERM"
CASES: list[Any] = [
    # Where the main thread is, whether it has done a step, seconds to end in; signals; what is said.
    ("write()", True, (NEVER, SOON, NEVER), [signal.SIGTERM], LATE),
    ("save(noticed)", True, (NEVER, NEVER, SOON), [signal.SIGTERM], LATE),
    ("stay_in_c()", False, (SOON, NEVER, NEVER), [signal.SIGTERM], LATE),
    ("stay_in_c()", False, (SOON, NEVER, NEVER), [signal.SIGINT], LATE.replace("SIGTERM", "SIGINT")),
    ("write()", True, (NEVER,) * 3, [signal.SIGTERM] * 2, "ended at once on a second signal"),
    ("stay_in_c()", True, (NEVER,) * 3, [signal.SIGINT] * 2, "ended at once on a second signal"),
    # As timeout sends it: to the process, and right behind it to its group.
    ("write()", True, (NEVER, SOON, NEVER), [signal.SIGTERM, -signal.SIGTERM], LATE),
    ("write_to_stderr()", True, (NEVER, SOON, NEVER), [signal.SIGTERM], None),
]


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as in the foreground of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_main_thread_that_hears_nothing_is_ended():
    given = json.dumps([{"run": case[:3], "signals": case[3]} for case in CASES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], cwd=ROOT, stdout=-1, text=True, timeout=120, check=True
    )
    for line, (*case, signals, said) in zip(done.stdout.splitlines(), CASES, strict=True):
        again = "the same command goes on from the newest checkpoint"
        expected = f"error: runs/a {said}; {again}\n" if said else ""
        assert json.loads(line) == [128 + abs(signals[-1]), expected], case


def handlers():
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    watching = sum(thread.name == "preemption" for thread in threading.enumerate())
    return (
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        descriptor,
        watching,
        sys.unraisablehook,
    )


def test_before_the_first_step_there_is_nothing_to_save():
    before = handlers()
    with pytest.raises(Preempted) as stop, Preemption("runs/a"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert str(stop.value) == "runs/a: stopped on SIGTERM before its first step"
    assert stop.value.code == 143 and handlers() == before


def test_between_steps_it_is_noted():
    before = handlers()
    with Preemption("runs/a") as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
        with preemption.saving():
            pass
    assert handlers() == before


class Interrupted:
    """Sends a signal where an exception has nowhere to go."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_lost_ctrl_c_is_raised_after_the_step(monkeypatch):
    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    before = handlers()
    with pytest.raises(KeyboardInterrupt), Preemption("runs/a") as preemption:
        assert not preemption.reached(1)
        Interrupted()
        preemption.reached(2)
    assert handlers() == before and shown == []


def test_a_program_that_listens_itself_is_left_alone():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with Preemption("runs/a") as preemption:
            assert handlers()[2:4] == (writer, 0) and not preemption.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached(2) and os.read(reader, 1) == bytes([signal.SIGTERM])
    finally:
        assert signal.set_wakeup_fd(-1) == writer
        os.close(reader)
        os.close(writer)
