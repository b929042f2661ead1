"""What the file system refuses, as sentences; how programs end."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quecc_jax.errors import UserError, disk_fault, disk_faults, run_cli

TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Failed writing: "/runs/a/checkpoints/8.orbax-checkpoint-tmp/d/10bd": Failed to write '
    "208252 bytes to file 28: No space left on device [os_error_code='28']"
)
ARRAY_RECORD = (
    "write() failed: No space left on device; writing /runs/a/.rows-00000-of-00001.array_record.7075; at byte "
    "200704; Failed to close chunk_writer"
)
AGAIN = "make room there and start the same command again"


@pytest.mark.parametrize("error", [ValueError(TENSORSTORE), RuntimeError(ARRAY_RECORD)])
def test_errors_of_libraries_in_other_languages_are_read(error):
    assert str(disk_fault(error, "/runs/a")) == f"/runs/a: No space left on device; {AGAIN}"
    path = str(disk_fault(error)).partition(": ")[0]
    assert path.startswith("/runs/a/") and path in str(error)


def refused(number, path):
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room in the quota"),
        (errno.EROFS, "have it mounted for writing"),
        (errno.EIO, "have the disk looked at"),
        (errno.EACCES, "have its permissions changed"),
    ],
)
def test_a_refusal_anywhere_in_a_chain_is_one_sentence(number, advice, capsys):
    def main():
        try:
            raise refused(number, "runs/a/metrics.jsonl")
        except OSError:
            raise ExceptionGroup("of threads", [ValueError("first"), RuntimeError("second")])  # noqa: B904

    with pytest.raises(SystemExit) as stop:
        run_cli(main)
    said = f"error: runs/a/metrics.jsonl: {os.strerror(number)}; {advice} and start the same command again\n"
    assert stop.value.code == 1 and capsys.readouterr().err == said


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (
        ValueError("a defect"),
        refused(errno.ENOENT, "nowhere"),
        BrokenPipeError(errno.EPIPE, "x"),
    ):
        assert disk_fault(error) is None
        with pytest.raises(type(error)), disk_faults(str(tmp_path)):
            raise error
    for error in (KeyboardInterrupt(), UserError(f"{tmp_path} has a sentence already")):
        with pytest.raises(type(error)) as raised, disk_faults(str(tmp_path), str(tmp_path / "gone")):
            raise error
        assert raised.value is error
    unraised = ValueError("a defect")
    unraised.__context__, unraised.__suppress_context__ = refused(errno.ENOSPC, "x"), True
    assert disk_fault(unraised) is None


def test_a_folder_in_the_place_of_a_file_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with (
        pytest.raises(UserError, match="move the folder away that stands in the place"),
        disk_faults(str(tmp_path)),
    ):
        (tmp_path / "metrics.jsonl").read_bytes()


def test_a_folder_that_is_gone_is_told_whatever_it_leads_to(tmp_path):
    (tmp_path / "lock").touch()
    for error in (refused(errno.ENOENT, str(tmp_path / "metrics.jsonl")), ValueError("no metadata")):
        with (
            pytest.raises(
                UserError, match=f"^{tmp_path}: No such file or directory; do not move or delete it"
            ),
            disk_faults(str(tmp_path), str(tmp_path / "lock")),
        ):
            (tmp_path / "lock").unlink(missing_ok=True)
            raise error


def ended(code, **options):
    program = f"import sys\nfrom quecc_jax.errors import UserError, program\n{code}"
    return subprocess.run([sys.executable, "-c", program], stderr=-1, text=True, timeout=60, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_report_that_does_not_fit_is_one_sentence(unbuffered):
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = ended("program(lambda: print('x'))", stdout=full, env=environment)
    said = f"error: standard output or a file being written: No space left on device; {AGAIN}\n"
    assert (done.returncode, done.stderr) == (1, said)


THREAD = """
import threading, time
def main():
    threading.Thread(target=time.sleep, args=(600,)).start()
    print("done", end="")
    {last}
program(main)
"""


@pytest.mark.parametrize(
    "last, status, said",
    [
        ("pass", 0, ""),
        ("raise UserError('no')", 1, "error: no\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('a defect')", 1, "ValueError: a defect\n"),
    ],
)
def test_a_program_ends_with_its_status_though_threads_still_run(last, status, said):
    done = ended(THREAD.format(last=last), stdout=-1)
    assert (done.returncode, done.stdout) == (status, "done")
    assert done.stderr.endswith(said) and ("Traceback" in done.stderr) == ("defect" in said)


LOST = """
import os, signal, time
class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Callback()
    time.sleep(30)
program(main)
"""


def test_a_ctrl_c_in_a_callback_comes_again():
    done = ended(LOST, stdout=-1)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_what_is_registered_for_the_end_is_done(tmp_path):
    code = "import atexit, pathlib\natexit.register(pathlib.Path({!r}).touch)\nprogram(lambda: None)"
    assert ended(code.format(str(tmp_path / "end"))).returncode == 0 and (tmp_path / "end").exists()
