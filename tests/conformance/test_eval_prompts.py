"""What benchmarks ask, and what published answers are read as, against LLaVA-1.5's own evaluation.

Expected values are published: the rows in tests/real/llava_eval (its README has the sources), and prompts
that the owners' programs made, in official_prompts.json.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from quecc_jax.evaluate.task_answers import summary
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import LETTER, Judged, Sample, llava_answers
from tests.evaluate import standins
from tests.evaluate.standins import real_lines, real_table

PROMPTS = json.loads((Path(__file__).parent / "official_prompts.json").read_text(encoding="utf-8"))


def write_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pope(root: Path) -> list[Sample]:
    """All 40 rows; the loader gives them split by split."""
    write_lines(root / "pope/llava_pope_test.jsonl", real_lines("pope_questions.jsonl"))
    labels = real_lines("pope_labels.jsonl")
    for split in ("random", "popular", "adversarial"):
        own = [row for row in labels if row["category"] == split]
        write_lines(root / f"pope/coco/coco_pope_{split}.json", own)
    return TASKS["pope"].load(root)


def with_stand_in_truths(name: str, root: Path) -> list[Sample]:
    """All 40 rows of GQA, TextVQA or VizWiz."""
    rows = real_lines(f"{name}_questions.jsonl")
    if name == "gqa":
        write_lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", rows)
        truths: dict[str, Any] = {row["question_id"]: {"answer": ""} for row in rows}
        (root / "gqa/data").mkdir()
        (root / "gqa/data/testdev_balanced_questions.json").write_text(json.dumps(truths))
    if name == "textvqa":
        write_lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", rows)
        truths = {
            "data": [
                {"image_id": row["question_id"], "question": row["text"].split("\n")[0], "answers": [""] * 10}
                for row in rows
            ]
        }
        (root / "textvqa/TextVQA_0.5.1_val.json").write_text(json.dumps(truths))
    if name == "vizwiz":
        write_lines(root / "vizwiz/llava_test.jsonl", rows)
    return TASKS[name].load(root)


def by_question(name: str) -> dict[Any, dict[str, Any]]:
    return {row["question_id"]: row for row in real_lines(f"{name}_answers.jsonl")}


def read(name: str, samples: list[Sample], answers: list[str]) -> list[Judged]:
    return [
        Judged(sample, answer, *TASKS[name].judge(sample, answer))
        for sample, answer in zip(samples, answers, strict=True)
    ]


def test_pope(conforms, tmp_path):
    samples, published = pope(tmp_path), by_question("pope")
    answers = [published[sample.id] for sample in samples]
    conforms("prompt", "pope, 40 rows", [row["prompt"] for row in answers], [s.prompt for s in samples])
    judged = read("pope", samples, [row["text"] for row in answers])
    conforms(
        "reading",
        "pope, 40 answers",
        [row["text"].lower() for row in answers],
        [one.parsed for one in judged],
    )


@pytest.mark.parametrize("name", ["gqa", "textvqa", "vizwiz"])
def test_questions_as_they_stand(conforms, tmp_path, name):
    samples, published = with_stand_in_truths(name, tmp_path), real_lines(f"{name}_answers.jsonl")
    conforms("prompt", f"{name}, 40 rows", [row["prompt"] for row in published], [s.prompt for s in samples])


def test_scienceqa(conforms, tmp_path):
    """With `parsed_ans` and the share that is right by it."""
    standins.scienceqa(tmp_path, rows=40)
    samples, published = TASKS["scienceqa"].load(tmp_path), real_lines("scienceqa_answers.jsonl")
    judged = read("scienceqa", samples, [row["pred"] for row in published])
    sent = llava_answers(judged, "m")
    conforms(
        "prompt",
        "scienceqa, 40 rows with <image>",
        [row["question"] for row in published],
        [row["prompt"] for row in sent],
    )
    conforms(
        "prompt",
        "scienceqa, 40 rows as asked",
        [row["question"].removeprefix("<image>\n") for row in published],
        [sample.prompt for sample in samples],
    )
    conforms(
        "reading",
        "scienceqa, 40 parsed_ans",
        [row["parsed_ans"] for row in published],
        [one.parsed for one in judged],
    )
    right = [row["parsed_ans"] == row["ground_truth"] for row in published]
    found = summary(TASKS["scienceqa"], judged, resamples=3)["metrics"]["accuracy"]["value"]
    conforms("score", "scienceqa, 40 answers", round(100 * sum(right) / 40, 9), round(found, 9))


def test_mme(conforms, tmp_path):
    standins.mme(tmp_path, folder="", questions="mme_pairs.jsonl")
    samples = TASKS["mme"].load(tmp_path)
    published = {(row["question_id"], row["prompt"]): row["text"] for row in real_lines("mme_answers.jsonl")}
    asked = [(sample.extra["question_id"], sample.prompt) for sample in samples]
    conforms("prompt", "mme, 40 rows", [], sorted(set(published) - set(asked)))
    kept = [sample for sample, key in zip(samples, asked, strict=True) if key in published]
    answers = [published[sample.extra["question_id"], sample.prompt] for sample in kept]
    conforms(
        "reading",
        "mme, 40 answers",
        [a.lower() if a in ("Yes", "No") else "other" for a in answers],
        [one.parsed for one in read("mme", kept, answers)],
    )


def test_mmbench(conforms, tmp_path):
    """The published prompt is what stood before the response format was added."""
    standins._mmbench(tmp_path, "mmbench_dev_20230712", "mmbench_rows.tsv")
    samples, published = TASKS["mmbench"].load(tmp_path), real_lines("mmbench_answers.jsonl")
    conforms(
        "prompt",
        "mmbench, 40 rows as asked",
        [f"{row['prompt']}\n{LETTER}" for row in published],
        [sample.prompt for sample in samples],
    )
    judged = read("mmbench", samples, [row["text"] for row in published])
    for name in ("question_id", "prompt", "options", "option_char", "round_id"):
        conforms(
            "answer file",
            f"mmbench, {name}",
            [row[name] for row in published],
            [row[name] for row in llava_answers(judged, "m")],
        )
    conforms("reading", "mmbench, 40 answers", [row["text"] for row in published], [j.parsed for j in judged])
    right = sum(
        row["text"] == own["answer"]
        for row, own in zip(published, real_table("mmbench_rows.tsv"), strict=True)
    )
    conforms("score", "mmbench, 40 answers", right, sum(int(one.score or 0) for one in judged))


def load_record(task: str, record: dict[str, Any], root: Path) -> str:
    """The prompt that a benchmark's loader makes of one record, written in the benchmark's own layout."""
    getattr(standins, task)(root)
    if task == "mmmu":
        image = {"bytes": standins.png(0), "path": None}
        row = {"id": "validation_Art_1", **record, "image_1": image, "image_2": image}
        parquet.write_table(
            pyarrow.Table.from_pylist([row]), root / "mmmu/Art/validation-00000-of-00001.parquet"
        )
    elif task == "ai2d":
        truth = {"abcLabel": False, "answerTexts": record["options"], "correctAnswer": 0, "questionId": "q"}
        (root / "ai2d/questions/1.png.json").write_text(
            json.dumps({"imageName": "1.png", "questions": {record["question"]: truth}})
        )
    elif task == "chartqa":
        (root / "chartqa/test/test_human.json").write_text(
            json.dumps([{"imgname": "c.png", "query": record["question"], "label": "1"}])
        )
    elif task == "docvqa":
        (root / "docvqa/val_v1.0_withQT.json").write_text(
            json.dumps(
                {
                    "data": [
                        {
                            "questionId": 1,
                            "question": record["question"],
                            "image": "documents/p_1.png",
                            "answers": ["x"],
                        }
                    ]
                }
            )
        )
    elif task == "vqav2_val":
        path = root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
        path.write_text(path.read_text().replace("What color?", record["question"]))
    elif task == "vizwiz_val":
        path = root / "vizwiz/val.json"
        path.write_text(path.read_text().replace("What is this?", record["question"]))
    else:
        (root / "mathvista/annot_testmini.json").write_text(
            json.dumps({"1": {**record, "pid": "1", "image": "images/1.jpg"}})
        )
    return TASKS[task].load(root)[0].prompt


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["task"])
def test_other_programs_prompts(conforms, tmp_path, case):
    """MMMU's, MathVista's and lmms-eval's own prompts of one record."""
    obtained = load_record(case["task"], case["record"], tmp_path)
    conforms("prompt", f"{case['task']}: {case['program']}", case["prompt"], obtained)
