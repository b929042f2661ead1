"""Numbers, times and bars for people."""

import pytest

from quecc_jax import progress
from quecc_jax.progress import byte_bar, duration, human


@pytest.mark.parametrize(
    "value, text",
    [
        (0.5, "0.5 u"),
        (12.34, "12.3 u"),
        (999.4, "999 u"),
        (999.6, "1 ku"),
        (12345, "12.3 ku"),
        (3.2e12, "3.2 Tu"),
        (4e18, "4 Eu"),
        (0.0, "0 u"),
    ],
)
def test_human(value: float, text: str) -> None:
    assert human(value, "u") == text


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_bytes_are_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 10.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with byte_bar("importing it", 4000) as count:
        for _ in range(3):
            count(1000)
    out, err = capsys.readouterr()
    assert out == "" and err == "importing it 2 kB of 4 kB  200 B/s  0:10 left\n"


def test_on_a_terminal_bytes_are_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with byte_bar("importing it", 4000) as count:
        count(4000)
    err = capsys.readouterr().err
    assert "importing it" in err and "4.0/4.0 kB" in err
