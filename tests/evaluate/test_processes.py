"""Several processes answer one benchmark or data set: their shares, deaths, other numbers of them."""

import json
import signal
import time
from pathlib import Path

import pytest

from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine
from tests.evaluate import mesh_run
from tests.evaluate.mesh_run import QUESTIONS, TASK, Asked, lines
from tests.processes import Processes


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Asked:
    return mesh_run.asked(tmp_path_factory.mktemp("asked"))


def evaluate(asked: Asked, out: Path | str, mesh: tuple[int, int, int], *more: object) -> list[object]:
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    return [
        "launch.evaluate",
        *("--checkpoint", asked.run.out, "--data", asked.data, "--out", out, "--max-new-tokens", 3),
        *("--batch-size", 2, *(part for name, size in axes for part in (f"--mesh.{name}", size))),
        *more,
    ]


def benchmark(asked: Asked, out: Path | str, mesh: tuple[int, int, int], *more: object) -> list[object]:
    return evaluate(asked, out, mesh, "--tasks", TASK, *more)


def check(asked: Asked, out: Path) -> None:
    """Compares everything with what one device has written."""
    assert lines(out / TASK / "answers.jsonl") == lines(asked.alone / TASK / "answers.jsonl")
    assert {path.name for path in (out / TASK).iterdir()} == {
        path.name for path in (asked.alone / TASK).iterdir()
    }
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (out, asked.alone))
    assert found["tasks"][TASK]["metrics"] == expected["tasks"][TASK]["metrics"]


def kept(out: Path) -> int:
    """Whole lines of all files of answers."""
    return sum(path.read_bytes().count(b"\n") for path in (out / TASK).glob("answers*.jsonl"))


def test_two_processes_answer_a_share_each(asked, tmp_path):
    out = tmp_path / "out"
    with Processes(benchmark(asked, out, (2, 2, 1)), 2, tmp_path / "two") as two:
        assert two.statuses(300) == [0, 0], two.said()
        assert "12/12" in two.said(0) and "12/12" not in two.said(1)
        assert "f1" in two.printed(0) and not two.printed(1)
    check(asked, out)
    reuse = json.loads((out / "results.json").read_text())["tasks"][TASK]["reuse"]
    # All questions are counted, and some images were encoded by both.
    assert all(one["hits"] + one["misses"] == QUESTIONS for one in reuse.values())


@pytest.mark.slow
def test_four_processes_are_killed_and_two_and_one_go_on(asked, tmp_path):
    """Groups of two processes, then one of two, and then none."""
    out = tmp_path / "out"
    with Processes(benchmark(asked, out, (2, 1, 2), "--batch-size", 1), 4, tmp_path / "four", 1) as four:
        four.wait_for(lambda: kept(out) >= 2, 400)
        four.processes[3].send_signal(signal.SIGKILL)
        statuses = four.statuses(200)
        assert statuses[3] == -signal.SIGKILL and 0 not in statuses, four.said()
    before = kept(out)
    assert 2 <= before < QUESTIONS and not (out / "results.json").exists()
    with Processes(benchmark(asked, out, (1, 2, 1), "--batch-size", 1), 2, tmp_path / "two", 1) as two:
        two.wait_for(lambda: kept(out) > before, 400)
        for process in two.processes:
            process.send_signal(signal.SIGKILL)
        two.statuses(60)
    again = kept(out)
    assert before < again
    with Processes(benchmark(asked, out, (1, 1, 1)), 1, tmp_path / "one", 1) as one:
        assert one.statuses(300) == [0], one.said()
    check(asked, out)


@pytest.mark.slow
def test_four_processes_finish_what_one_began(asked, tmp_path):
    out = tmp_path / "out"
    with Processes(benchmark(asked, out, (1, 1, 1), "--batch-size", 1), 1, tmp_path / "one", 1) as one:
        one.wait_for(lambda: kept(out) >= 3, 300)
        one.processes[0].send_signal(signal.SIGKILL)
        one.statuses(60)
    with Processes(benchmark(asked, out, (4, 1, 1)), 4, tmp_path / "four", 1) as four:
        assert four.statuses(500) == [0] * 4, four.said()
    check(asked, out)


@pytest.mark.slow
def test_two_processes_share_out_a_data_set(asked, tmp_path):
    command = evaluate(asked, tmp_path / "out", (2, 1, 1), "--data", asked.rows)
    with Processes(command, 2, tmp_path / "two", 1) as two:
        assert two.statuses(300) == [0, 0], two.said()
    found = [line["prediction"] for line in lines(tmp_path / "out/answers.jsonl")]
    assert found == [line["answer"] for line in lines(asked.alone / TASK / "answers.jsonl")]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["questions"] == QUESTIONS == sum(results["reuse"]["images"][k] for k in ("hits", "misses"))


@pytest.mark.slow
def test_two_processes_answer_one_question_and_talk_together(asked, tmp_path):
    image = str(json.loads(asked.rows.read_text())[0]["image"])
    first = lines(asked.alone / TASK / "answers.jsonl")[0]
    model = ["--checkpoint", asked.run.out, "--max-new-tokens", 3, "--mesh.fsdp", 2]
    command = ["launch.generate", *model, "--image", image, "--question", first["question"]]
    with Processes(command, 2, tmp_path / "generate", 1) as two:
        assert two.statuses(300) == [0, 0], two.said()
        assert [two.printed(0), two.printed(1)] == [f"{first['answer']}\n", ""]
    line = first["question"].partition("\n")[0]
    (answer,) = load_engine(asked.run.out).answers([Question(line, (image,))], Limits(3))
    with Processes(["launch.chat", *model], 2, tmp_path / "chat", 1) as two:
        stdin = two.processes[0].stdin
        assert stdin is not None
        stdin.write(f"/image nowhere.png\n/image {image}\n{line}\n/quit\n".encode())
        stdin.flush()
        assert two.statuses(300) == [0, 0], two.said()
        assert f"> {answer}\n" in two.printed(0)
        assert not two.printed(1) and "nowhere.png does not exist" in two.said(0)
    with Processes(["launch.chat", *model, "--web"], 2, tmp_path / "web", 1) as two:
        assert two.statuses(300) == [1, 1] and "--web answers on the devices of one process" in two.said(0)


@pytest.mark.slow
def test_what_differs_between_processes_is_refused(asked, tmp_path):
    """A folder that not all hosts see, and settings that are not those of the first."""
    command = benchmark(asked, tmp_path / "out{process}", (2, 1, 1))
    with Processes(command, 2, tmp_path / "folders", 1) as two:
        assert two.statuses(300)[1] == 1
        assert f"out directory {tmp_path}/out1 is another one on process 0; give one that all" in two.said(1)
    began = time.monotonic()
    command = benchmark(asked, tmp_path / "out", (2, 1, 1), "--limit", "1{process}")
    with Processes(command, 2, tmp_path / "limits", 1) as two:
        assert two.statuses(300)[1] == 1 and time.monotonic() - began < 300
        assert "process 1 has other settings, parameters or questions than process 0; start" in two.said(1)
