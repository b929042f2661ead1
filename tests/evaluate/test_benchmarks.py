"""`launch.evaluate --tasks` from data files in the benchmarks' layout to the row of table 1."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quecc_jax.commands.cli import execute
from quecc_jax.config import RunConfig
from quecc_jax.errors import UserError, run_cli
from quecc_jax.evaluate import answers, benchmarks
from quecc_jax.evaluate.failures_page import write_failures
from quecc_jax.evaluate.task_answers import fingerprint, run_task, summary
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import Judged
from quecc_jax.generate.engine import Engine
from quecc_jax.records import CRC32
from tests import tiny
from tests.evaluate.standins import STANDINS
from tests.evaluate.word_model import word_run

NAMES = ("pope", "mmbench", "scienceqa", "vizwiz", "mme")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Stand-ins of a few benchmarks."""
    root = tmp_path_factory.mktemp("data")
    for name in NAMES:
        STANDINS[name](root)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> RunConfig:
    """A run with random parameters whose tokenizer knows the benchmarks' words."""
    texts = [sample.prompt for name in NAMES for sample in TASKS[name].load(data)] + ["yes no A B C D"]
    return word_run(tmp_path_factory.mktemp("runs"), texts)


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        run_cli(lambda: execute("evaluate", sys.argv[1:]))
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def score(monkeypatch, capsys, run, data):
    """Runs benchmarks into a folder."""

    def one(out: Path, *more: object, tasks: str = ",".join(NAMES)) -> tuple[int, str, str]:
        return call(
            monkeypatch,
            capsys,
            "--checkpoint",
            run.out,
            "--tasks",
            tasks,
            "--data",
            data,
            "--out",
            out,
            "--max-new-tokens",
            3,
            "--batch-size",
            4,
            *more,
        )

    return one


def records(out: Path, name: str) -> list[dict[str, Any]]:
    """Lines without their checksums."""
    lines = (out / name / "answers.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != CRC32} for line in lines]


@pytest.fixture(scope="module")
def finished(run, data, tmp_path_factory) -> Path:
    """All benchmarks, scored once."""
    out = tmp_path_factory.mktemp("out")
    benchmarks.run(
        Path(run.out),
        ",".join(NAMES),
        data,
        out,
        name="tiny",
        limit=None,
        max_new_tokens=3,
        batch_size=4,
        seed=0,
        html=True,
    )
    return out


def test_every_answer_is_kept_with_its_exact_prompt(finished, data):
    assert len({record["answer"] for name in NAMES for record in records(finished, name)}) > 3
    for name in NAMES:
        samples = TASKS[name].load(data)
        found = records(finished, name)
        assert [record["id"] for record in found] == [sample.id for sample in samples]
        for record, sample in zip(found, samples, strict=True):
            image = "<image>\n" if sample.images else ""
            assert record["prompt"] == f"<bos>USER: {image}{sample.prompt} ASSISTANT:"
            assert record["question"] == sample.prompt and record["truth"] == sample.truth
            assert (record["parsed"], record["score"]) == TASKS[name].judge(sample, record["answer"])
        sent = (finished / name / "llava_answers.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in sent] == [record["answer"] for record in found]
        assert all(json.loads(line)["model_id"] == "tiny" for line in sent)
    assert (finished / "mmbench/mmbench_upload.xlsx").is_file()
    assert (finished / "mme/results/color.txt").is_file()


def test_results_and_table_say_the_same(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results["tasks"]) == set(NAMES) and results["visual_tokens"] == 4
    pope = results["tasks"]["pope"]
    right = [record["score"] for record in records(finished, "pope")]
    splits = ("random", "popular", "adversarial")
    accuracies = [pope["metrics"][f"accuracy/{split}"]["value"] for split in splits]
    assert sum(accuracies) / 3 == pytest.approx(100 * sum(right) / 12) and pope["questions"] == 12
    # Four images are asked about in each of three splits, two of them with other questions in one split.
    counted = pope["reuse"]
    different = len({record["question"] for record in records(finished, "pope")})
    assert different == 5
    assert (counted["images"]["hits"], counted["images"]["misses"]) == (8, 4)
    assert (counted["questions"]["hits"], counted["questions"]["misses"]) == (12 - different, different)
    assert results["tasks"]["vizwiz"]["metrics"] == {} and "1911" in results["tasks"]["vizwiz"]["submit"]
    table = (finished / "table1.md").read_text()
    heads = [cell.strip() for cell in table.splitlines()[0].split("|")]
    last = [cell.strip() for cell in table.splitlines()[16].split("|")]
    own = dict(zip(heads, last, strict=True))
    f1 = pope["metrics"]["f1"]
    assert own["POPE"] == f"{f1['value']:.1f} ± {f1['standard_error']:.1f}" and own["GQA"] == "–"
    assert (own["Method"], own["V"], own["VizWiz"]) == ("**tiny**", "4", "–") and own["MME"] != "–"
    assert "| QueCC | 1 | 53.5 | 59.4 | 1269.1 | 81.3 | 69.9 | 46.8 | 44.1 | 67.3 |" in table
    assert "VizWiz: answers are scored by the server" in table and "2411.03312" in table
    assert "POPE: the mean F1 of three splits" in table and "accuracy/random" in table


def test_a_killed_run_goes_on_where_it_stopped(finished, run, score, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    out = tmp_path / "out"
    whole = (out / "pope/answers.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (out / "pope/answers.jsonl").write_text("".join(lines[:5]) + lines[5][:30])
    asked, start = 0, Engine.run

    def counted(engine, questions, *more):
        nonlocal asked
        asked += len(questions)
        return start(engine, questions, *more)

    monkeypatch.setattr(Engine, "run", counted)
    status, printed, err = score(out, "--name", "tiny")
    assert status == 0, err
    assert asked == 7 and "12/12" in err and "left" in err
    assert (out / "pope/answers.jsonl").read_text() == whole
    assert "results.json" in printed and "f1" in printed
    first, again = (json.loads((folder / "results.json").read_text()) for folder in (finished, out))
    for name in NAMES:
        assert first["tasks"][name]["metrics"] == again["tasks"][name]["metrics"]


def test_a_limit_asks_less_and_says_so(score, tmp_path):
    status, _, err = score(tmp_path, "--limit", 2, tasks="mme,mmbench")
    assert status == 0, err
    assert [record["id"] for record in records(tmp_path, "mme")] == [
        "code_reasoning/0020#1",
        "code_reasoning/0020#2",
    ]
    table = (tmp_path / "table1.md").read_text()
    assert "about 2 questions of each benchmark" in table
    # Both are about code: nothing is known of perception.
    assert "MME: none of the questions asked counts for perception." in table
    # More questions later: those answered are kept.
    status, _, err = score(tmp_path, "--limit", 4, tasks="mme")
    assert status == 0 and "4/4" in err
    assert [record["id"] for record in records(tmp_path, "mme")][:2] == [
        "code_reasoning/0020#1",
        "code_reasoning/0020#2",
    ]


def test_another_scorer_reads_kept_answers_anew_and_asks_nothing(finished, score, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out/mme/answers.jsonl"
    rows = records(tmp_path / "out", "mme")
    path.write_text("".join(json.dumps({**row, "answer": "y"}) + "\n" for row in rows))
    monkeypatch.setattr(Engine, "run", lambda *a, **k: pytest.fail("it asks again"))
    for rule, reading in (("lmms_eval", "yes"), ("mme", "other")):
        status, _, err = score(tmp_path / "out", "--scorer", f"mme={rule}", tasks="mme")
        assert status == 0, err
        results = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["mme"]
        assert results["scorer"]["name"] == rule and results["unread"] == (6 if reading == "other" else 0)
        assert {row["parsed"] for row in records(tmp_path / "out", "mme")} == {reading}
        assert sum(row["score"] for row in records(tmp_path / "out", "mme")) == (3 if reading == "yes" else 0)


def test_pixels_may_be_those_of_the_original_and_are_recorded(finished, data, score, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data/vizwiz/test").iterdir():
        Image.open(path).save(path, "PNG", exif=exif)
    found = {}
    for decoding in ("upright", "original"):
        out = tmp_path / decoding
        status, _, err = score(out, "--image-decoding", decoding, "--data", tmp_path / "data", tasks="vizwiz")
        assert status == 0, err
        assert json.loads((out / "results.json").read_text())["image_decoding"] == decoding
        assert json.loads((out / "vizwiz/settings.json").read_text())["image_decoding"] == decoding
        found[decoding] = records(out, "vizwiz")[0]["answer"]
    assert json.loads((finished / "results.json").read_text())["image_decoding"] == "upright"
    # The image is stored as it lay in the other folder, so that only the original's reading is the same.
    assert found["original"] == records(finished, "vizwiz")[0]["answer"]
    status, _, err = score(tmp_path / "original", "--data", tmp_path / "data", tasks="vizwiz")
    assert status == 1 and "image_decoding original -> upright" in err


def test_answers_of_another_model_or_setting_are_not_mixed_in(finished, run, data, score, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    status, _, err = score(tmp_path / "out", "--max-new-tokens", 2, tasks="pope")
    assert status == 1 and "holds answers under other settings (max_new_tokens 3 -> 2)" in err
    assert len(err.strip().splitlines()[-1]) < 400
    params = tiny.random_params(run, seed=2)
    assert fingerprint(params) == json.loads((finished / "pope/settings.json").read_text())["model"]
    assert fingerprint(tiny.random_params(run, seed=3)) != fingerprint(params)
    path = tmp_path / "out/pope/answers.jsonl"
    rows = [json.dumps(row) + "\n" for row in records(tmp_path / "out", "pope")]
    path.write_text("".join(rows).replace("Is there a snow", "Is there no snow"))
    with pytest.raises(UserError, match="line 1 answers another question than the data files now ask as"):
        run_task(
            TASKS["pope"],
            TASKS["pope"].load(data),
            tmp_path / "out/pope",
            answers.question_engine(run, params),
            fingerprint(params),
            max_new_tokens=3,
            batch_size=4,
            data=data,
            model="tiny",
        )


@pytest.mark.parametrize(
    "tasks, data_given, message",
    [
        ("pope,popr", True, r"popr is not a benchmark; did you mean pope\?"),
        ("pope,gqa,chartqa", True, r"6 files or folders are missing; download them:"),
        ("pope", False, "--data .*nowhere is not a folder"),
    ],
)
def test_what_is_missing_is_said_at_once(data, monkeypatch, capsys, tmp_path, tasks, data_given, message):
    where = data if data_given else tmp_path / "nowhere"
    status, out, err = call(
        monkeypatch,
        capsys,
        "--checkpoint",
        tmp_path,
        "--tasks",
        tasks,
        "--data",
        where,
        "--out",
        tmp_path / "out",
    )
    assert status == 1 and out == "" and re.match(f"error: .*{message}", err), err
    if "6 files" in message:
        lines = err.splitlines()[1:]
        assert len(lines) == 6
        assert lines[1].endswith(
            "gqa/data/testdev_balanced_questions.json  from questions1.2.zip "
            "from cs.stanford.edu/people/dorarad/gqa/download.html"
        )


def test_missing_and_torn_images_are_named(data, score, tmp_path, monkeypatch, capsys, run):
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data/pope/val2014").iterdir():
        path.unlink()
    arguments = (
        "--checkpoint",
        run.out,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--max-new-tokens",
        3,
        "--batch-size",
        4,
        "--tasks",
    )
    status, _, err = call(monkeypatch, capsys, *arguments, "pope")
    assert status == 1 and "4 images are missing" in err and "COCO_val2014_000000211674.jpg" in err
    (tmp_path / "data/vizwiz/test/VizWiz_test_00000001.jpg").write_bytes(b"torn")
    status, _, err = call(monkeypatch, capsys, *arguments, "vizwiz")
    assert status == 1
    assert re.search(r"error: question 1: image .* not an image", err), err


def test_options_of_benchmarks_need_benchmarks(monkeypatch, capsys, tmp_path):
    status, _, err = call(
        monkeypatch, capsys, "--checkpoint", tmp_path, "--data", tmp_path, "--out", tmp_path, "--limit", 3
    )
    assert status == 1 and err == "error: --limit goes with --tasks; name benchmarks or leave it out\n"


def test_the_page_of_failures_holds_images_and_escapes_text(finished, data, tmp_path):
    page = (finished / "failures.html").read_text()
    wrong = sum(record["score"] != 1 for name in NAMES for record in records(finished, name))
    assert page.count('<article class="card">') == wrong > 5
    assert page.count("data:image/jpeg;base64,") >= wrong - 2 and "http" not in page
    samples = TASKS["pope"].load(data)
    judged = {"pope": [Judged(sample, "<b>&", "yes", 0.0) for sample in samples]}
    results: Any = {
        "model": "<m>",
        "visual_tokens": 1,
        "tasks": {"pope": {"about": "POPE", "headline": "f1", "metrics": {}}},
    }
    write_failures(tmp_path / "page.html", results, judged)
    text = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text and "12 of 12 answers" in text


def test_the_page_of_failures_where_no_question_counts_for_the_headline(data, tmp_path):
    """As of ScienceQA, whose headline counts questions with an image, on the others alone."""
    samples = [sample for sample in TASKS["scienceqa"].load(data) if not sample.images]
    judged = [Judged(sample, "C", *TASKS["scienceqa"].judge(sample, "C")) for sample in samples]
    assert samples and all(one.score is not None for one in judged)
    told: Any = {
        "model": "m",
        "visual_tokens": 1,
        "tasks": {"scienceqa": summary(TASKS["scienceqa"], judged)},
    }
    assert told["tasks"]["scienceqa"]["headline"] is None
    write_failures(tmp_path / "page.html", told, {"scienceqa": judged})
    wrong = sum(one.score != 1 for one in judged)
    assert f"{wrong} of {len(judged)} answers are not fully right" in (tmp_path / "page.html").read_text()
