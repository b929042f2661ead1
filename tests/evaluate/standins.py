"""A few questions of each benchmark in the layout of the real files.

Rows of POPE, GQA, VizWiz, TextVQA, ScienceQA, MME and MMBench are real (tests/real/llava_eval); their
images, and truths that are not public, are made up. Of the other benchmarks everything is.
"""

import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from quecc_jax.evaluate.tasks.base import LETTER, SHORT
from quecc_jax.evaluate.tasks.mmmu import DOMAINS

REAL = Path(__file__).parents[1] / "real/llava_eval"


def real_lines(name: str) -> list[Any]:
    """Records of a file of real rows, one JSON value a line."""
    return [json.loads(line) for line in (REAL / name).read_text(encoding="utf-8").splitlines()]


def real_table(name: str) -> list[dict[str, str]]:
    """Rows of a tab-separated file of real rows."""
    with (REAL / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def png(seed: int) -> bytes:
    """A small PNG of random stripes."""
    rng = np.random.default_rng(seed)
    pixels = np.repeat(rng.integers(0, 255, (6, 1, 3)), 8, axis=1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).save(out, "PNG")
    return out.getvalue()


def _save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def pope(root: Path) -> None:
    """Real rows and labels: four images a split, two of each label."""
    (root / "pope/coco").mkdir(parents=True)
    for split in ("adversarial", "popular", "random"):
        shutil.copy(REAL / f"units/coco_pope_{split}.json", root / "pope/coco")
    shutil.copy(REAL / "units/llava_pope_test.jsonl", root / "pope")
    images = dict.fromkeys(row["image"] for row in real_lines("units/llava_pope_test.jsonl"))
    for n, image in enumerate(images):
        _save(root / "pope/val2014" / image, n)


def gqa(root: Path) -> None:
    """Real rows: two open questions and a binary one; their truths are LLaVA's answers."""
    rows, answers = real_lines("gqa_questions.jsonl")[:3], real_lines("gqa_answers.jsonl")[:3]
    kinds = ("query", "query", "choose")
    _json(
        root / "gqa/data/testdev_balanced_questions.json",
        {
            row["question_id"]: {"answer": answer["text"].lower(), "types": {"structural": kind}}
            for row, answer, kind in zip(rows, answers, kinds, strict=True)
        },
    )
    _lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", rows)
    for row in rows:
        _save(root / "gqa/data/images" / row["image"])


def vqav2(root: Path) -> None:
    """Two test-dev questions among three of the test set."""
    lines = [
        {
            "question_id": n,
            "image": f"COCO_test2015_{n:012d}.jpg",
            "text": f"What is {n}?\n{SHORT}",
            "category": "default",
        }
        for n in (1, 2, 3)
    ]
    _lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", lines[:2])
    _lines(root / "vqav2/llava_vqav2_mscoco_test2015.jsonl", lines)
    for line in lines:
        _save(root / "vqav2/test2015" / str(line["image"]))


def _humans(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(answers)]


def vqav2_val(root: Path) -> None:
    """One question of each of two answer types."""
    asked = [
        {"image_id": 7, "question": "What color?", "question_id": 70},
        {"image_id": 7, "question": "How many?", "question_id": 71},
    ]
    truths = [
        {"question_id": 71, "image_id": 7, "answer_type": "number", "answers": _humans(*["2"] * 10)},
        {
            "question_id": 70,
            "image_id": 7,
            "answer_type": "other",
            "answers": _humans(*["red"] * 2, *["blue"] * 8),
        },
    ]
    _json(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    _json(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": truths})
    _save(root / "vqav2/val2014/COCO_val2014_000000000007.jpg")


def vizwiz(root: Path) -> None:
    """One real row."""
    row = real_lines("vizwiz_questions.jsonl")[0]
    _lines(root / "vizwiz/llava_test.jsonl", [row])
    _save(root / "vizwiz/test" / row["image"])


def vizwiz_val(root: Path) -> None:
    """One question that can be answered and one that cannot."""
    records = [
        ("a.jpg", "other", _humans(*["a can"] * 10)),
        ("b.jpg", "unanswerable", _humans(*["unanswerable"] * 9, "blurry")),
    ]
    _json(
        root / "vizwiz/val.json",
        [
            {
                "image": image,
                "question": "What is this?",
                "answers": humans,
                "answer_type": kind,
                "answerable": int(kind == "other"),
            }
            for image, kind, humans in records
        ],
    )
    for image, _, _ in records:
        _save(root / "vizwiz/val" / image)


def textvqa(root: Path) -> None:
    """Two real rows; their truths are LLaVA's answers, the questions in capitals."""
    rows, answers = real_lines("textvqa_questions.jsonl")[:2], real_lines("textvqa_answers.jsonl")[:2]
    _json(
        root / "textvqa/TextVQA_0.5.1_val.json",
        {
            "data": [
                {
                    "image_id": row["question_id"],
                    "question": row["text"].split("\n")[0].upper(),
                    "question_id": n,
                    "answers": [answer["text"]] * 10,
                }
                for n, (row, answer) in enumerate(zip(rows, answers, strict=True))
            ]
        },
    )
    _lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", rows)
    for row in rows:
        _save(root / "textvqa/train_images" / row["image"])


def scienceqa(root: Path, rows: int = 2) -> None:
    """Real rows, the first with an image, the second without; and a problem of another split."""
    questions = json.loads((REAL / "scienceqa_questions.json").read_text(encoding="utf-8"))[:rows]
    problems: dict[str, Any] = {"x": {"choices": ["x", "y"], "answer": 0}}
    for answer in real_lines("scienceqa_answers.jsonl")[:rows]:
        choices = re.findall(r"^[A-E]\. (.*)$", answer["question"], re.MULTILINE)
        truth = "ABCDE".index(answer["ground_truth"])
        problems[answer["question_id"]] = {"choices": choices, "answer": truth}
    _json(root / "scienceqa/problems.json", problems)
    _json(root / "scienceqa/pid_splits.json", {"test": [row["id"] for row in questions], "train": ["x"]})
    _json(root / "scienceqa/llava_test_CQM-A.json", questions)
    for row in questions:
        if "image" in row:
            _save(root / "scienceqa/images/test" / row["image"])


def mme(root: Path, folder: str = "units/", questions: str = "units/llava_mme.jsonl") -> None:
    """Real rows: two images of one perception category and one of a cognition category.

    Texts of the first lie in a folder of their own, those of the second beside the images: both occur.
    """
    release = root / "MME/MME_Benchmark_release_version"
    rows = real_lines(questions)
    texts: dict[Path, str] = {}
    for line in (REAL / f"{folder}mme_truths.tsv").read_text(encoding="utf-8").splitlines():
        category, name, asked = line.split("\t", 2)
        beside = category == "code_reasoning"
        path = release / category / ("" if beside else "questions_answers_YN") / name
        texts[path] = texts.get(path, "") + f"{asked}\n"
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for row in rows:
        _save(release / row["image"])
    _lines(root / "MME/llava_mme.jsonl", rows)


def _mmbench(root: Path, name: str, table: str = "units/mmbench.tsv") -> None:
    """Real rows: two questions, the first of two choices in both rotations; the category is made up."""
    image = base64.b64encode(png(1)).decode()
    rows = [{**row, "category": "color", "image": image} for row in real_table(table)]
    if len(rows) == 3:
        rows[2]["image"] = rows[0]["index"]
    path = root / f"mmbench/{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table_file = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        table_file.writeheader()
        table_file.writerows(rows)


def mmbench(root: Path) -> None:
    """See `_mmbench`."""
    _mmbench(root, "mmbench_dev_20230712")


def mmbench_cn(root: Path) -> None:
    """The English rows stand in for the Chinese ones."""
    _mmbench(root, "mmbench_dev_cn_20231003")


def seed(root: Path) -> None:
    """A question on an image and one on a video."""
    _json(
        root / "seed_bench/SEED-Bench.json",
        {
            "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
            "questions": [
                {"question_id": "101", "answer": "B", "data_type": "image", "question_type_id": 1},
                {"question_id": "v_1", "answer": "A", "data_type": "video", "question_type_id": 10},
            ],
        },
    )
    folders = {"101": "SEED-Bench-image/101", "v_1": "SEED-Bench-video-image/1.png"}
    _lines(
        root / "seed_bench/llava-seed-bench.jsonl",
        [
            {
                "question_id": int(key) if key.isdigit() else key,
                "image": image,
                "text": f"What?\nA. a\nB. b\nC. c\nD. d\n{LETTER}",
            }
            for key, image in folders.items()
        ],
    )
    for image in folders.values():
        _save(root / "seed_bench" / image)


def mmmu(root: Path) -> None:
    """One question a subject; Math's is open, Art's has two images."""
    for subject in (subject for subjects in DOMAINS.values() for subject in subjects):
        row: dict[str, Any] = {
            "id": f"validation_{subject}_1",
            "question": "What is in <image 1>?",
            "options": "['a cat', '$5', 'neither']",
            "answer": "B",
            "question_type": "multiple-choice",
            **{f"image_{n}": {"bytes": png(n), "path": None} if n == 1 else None for n in range(1, 8)},
        }
        if subject == "Math":
            row |= {"options": "[]", "answer": "['1,024', '2^10']", "question_type": "open"}
        if subject == "Art":
            row |= {"options": "['<image 1>', '<image 2>']", "question": "Which?", "image_2": row["image_1"]}
        path = root / f"mmmu/{subject}/validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)


def ai2d(root: Path) -> None:
    """Two questions about a test image, the first about a letter; another image is of no split."""
    folder = root / "ai2d"
    for number in (1, 2):
        _json(
            folder / f"annotations/{number}.png.json",
            {
                "text": {
                    "T0": {
                        "id": "T0",
                        "rectangle": [[4, 6], [24, 30]],
                        "replacementText": "X",
                        "value": "ear",
                    }
                }
            },
        )
        _json(
            folder / f"questions/{number}.png.json",
            {
                "imageName": f"{number}.png",
                "questions": {
                    f"What is {letter}?": {
                        "abcLabel": not n,
                        "answerTexts": ["ear", "nose", "eye", "leg"],
                        "correctAnswer": n,
                        "questionId": f"{number}.png-{n}",
                    }
                    for n, letter in enumerate("XY")
                },
            },
        )
        _save(folder / f"images/{number}.png")
    (folder / "ai2d_test_ids.csv").write_text("1\n3\n")


def chartqa(root: Path) -> None:
    """One human question and one augmented."""
    for part, label in (("human", "20"), ("augmented", "Yes")):
        _json(
            root / f"chartqa/test/test_{part}.json",
            [{"imgname": "c.png", "query": f"What of {part}?", "label": label}],
        )
    _save(root / "chartqa/test/png/c.png")


def docvqa(root: Path) -> None:
    """Two questions about a page."""
    _json(
        root / "docvqa/val_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "data": [
                {
                    "questionId": 5,
                    "question": "Which date?",
                    "question_types": ["form"],
                    "image": "documents/p_1.png",
                    "answers": ["May 1", "1 May"],
                },
                {
                    "questionId": 6,
                    "question": "Who?",
                    "question_types": ["layout"],
                    "image": "documents/p_1.png",
                    "answers": ["Smith"],
                },
            ],
        },
    )
    _save(root / "docvqa/documents/p_1.png")


def mathvista(root: Path) -> None:
    """A problem of every kind; the first brings its query text."""
    rows: list[dict[str, Any]] = [
        {
            "question": "Which?",
            "choices": ["larger than", "equal to"],
            "unit": None,
            "precision": None,
            "answer": "equal to",
            "question_type": "multi_choice",
            "answer_type": "text",
            "query": "Hint: so.\nWhich?",
        },
        {
            "question": "How long?",
            "choices": None,
            "unit": "m",
            "precision": 1.0,
            "answer": "1.2",
            "question_type": "free_form",
            "answer_type": "float",
        },
        {
            "question": "How many?",
            "choices": None,
            "unit": None,
            "precision": None,
            "answer": "14",
            "question_type": "free_form",
            "answer_type": "integer",
        },
        {
            "question": "When?",
            "choices": None,
            "unit": None,
            "precision": None,
            "answer": "[2007, 2008]",
            "question_type": "free_form",
            "answer_type": "list",
        },
    ]
    _json(
        root / "mathvista/annot_testmini.json",
        {
            str(n): {
                **row,
                "pid": str(n),
                "image": f"images/{n}.jpg",
                "metadata": {"task": "figure", "context": "plot"},
            }
            for n, row in enumerate(rows, start=1)
        },
    )
    for n in range(1, 5):
        _save(root / f"mathvista/images/{n}.jpg")


def llava_bench(root: Path) -> None:
    """One question."""
    _lines(
        root / "llava-bench-in-the-wild/questions.jsonl",
        [{"question_id": 0, "image": "001.jpg", "text": "What is this?", "category": "conv"}],
    )
    _save(root / "llava-bench-in-the-wild/images/001.jpg")


def mmvet(root: Path) -> None:
    """One question."""
    _lines(
        root / "mm-vet/llava-mm-vet.jsonl", [{"question_id": 0, "image": "v1_0.png", "text": "What is x?"}]
    )
    _save(root / "mm-vet/images/v1_0.png")


STANDINS = {
    maker.__name__: maker
    for maker in (
        pope,
        gqa,
        vqav2,
        vqav2_val,
        vizwiz,
        vizwiz_val,
        textvqa,
        scienceqa,
        mme,
        mmbench,
        mmbench_cn,
        seed,
        mmmu,
        ai2d,
        chartqa,
        docvqa,
        mathvista,
        llava_bench,
        mmvet,
    )
}
"""Makers by benchmark: each writes its files into a data directory."""
