"""Stand-ins for the benchmarks: a few made-up questions each, in the layout of the real files.

Nothing in them is of the benchmarks themselves.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from quecc_jax.evaluate.tasks.base import LETTER, SHORT
from quecc_jax.evaluate.tasks.mmmu import DOMAINS
from quecc_jax.evaluate.tasks.vqa import UNANSWERABLE


def picture(seed: int) -> bytes:
    """A small PNG of random stripes."""
    rng = np.random.default_rng(seed)
    pixels = np.repeat(rng.integers(0, 255, (6, 1, 3)), 8, axis=1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).save(out, "PNG")
    return out.getvalue()


def _picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def pope(root: Path) -> None:
    """Four questions a split: two of each label."""
    questions = []
    for s, split in enumerate(("adversarial", "popular", "random")):
        labels = []
        for n in range(4):
            image, text = f"COCO_val2014_{n:012d}.png", f"Is there a thing {n} in the image?"
            label = "yes" if n < 2 else "no"
            labels.append({"question_id": n + 1, "image": image, "text": text, "label": label})
            questions.append({"question_id": 10 * s + n, "image": image, "text": f"{text}\n{SHORT}",
                              "category": split})  # fmt: skip
            _picture(root / "pope/val2014" / image, n)
        _lines(root / f"pope/coco/coco_pope_{split}.json", labels)
    _lines(root / "pope/llava_pope_test.jsonl", questions)


def gqa(root: Path) -> None:
    """An open question and two binary ones."""
    truths = {"20": ("red", "query"), "21": ("yes", "verify"), "22": ("left", "choose")}
    _json(root / "gqa/data/testdev_balanced_questions.json",
          {key: {"answer": answer, "imageId": "n1", "types": {"structural": kind}}
           for key, (answer, kind) in truths.items()})  # fmt: skip
    _lines(root / "gqa/llava_gqa_testdev_balanced.jsonl",
           [{"question_id": key, "image": "n1.jpg", "category": "default",
             "text": f"What of {key}?\n{SHORT}"} for key in truths])  # fmt: skip
    _picture(root / "gqa/data/images/n1.jpg")


def vqav2(root: Path) -> None:
    """Two test-dev questions among three of the test set."""
    lines = [{"question_id": n, "image": f"COCO_test2015_{n:012d}.jpg", "text": f"What is {n}?\n{SHORT}",
              "category": "default"} for n in (1, 2, 3)]  # fmt: skip
    _lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", lines[:2])
    _lines(root / "vqav2/llava_vqav2_mscoco_test2015.jsonl", lines)
    for line in lines:
        _picture(root / "vqav2/test2015" / str(line["image"]))


def _humans(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(answers)]


def vqav2_val(root: Path) -> None:
    """One question of each of two answer types."""
    asked = [{"image_id": 7, "question": "What color?", "question_id": 70},
             {"image_id": 7, "question": "How many?", "question_id": 71}]  # fmt: skip
    truths = [{"question_id": 71, "image_id": 7, "answer_type": "number", "answers": _humans(*["2"] * 10)},
              {"question_id": 70, "image_id": 7, "answer_type": "other",
               "answers": _humans(*["red"] * 2, *["blue"] * 8)}]  # fmt: skip
    _json(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    _json(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": truths})
    _picture(root / "vqav2/val2014/COCO_val2014_000000000007.jpg")


def vizwiz(root: Path) -> None:
    """One question."""
    _lines(root / "vizwiz/llava_test.jsonl",
           [{"question_id": "VizWiz_test_0.jpg", "image": "VizWiz_test_0.jpg",
             "text": f"What is this?\n{UNANSWERABLE}\n{SHORT}", "category": "default"}])  # fmt: skip
    _picture(root / "vizwiz/test/VizWiz_test_0.jpg")


def vizwiz_val(root: Path) -> None:
    """One question that can be answered and one that cannot."""
    records = [("a.jpg", "other", _humans(*["a can"] * 10)),
               ("b.jpg", "unanswerable", _humans(*["unanswerable"] * 9, "blurry"))]  # fmt: skip
    _json(root / "vizwiz/val.json",
          [{"image": image, "question": "What is this?", "answers": humans, "answer_type": kind,
            "answerable": int(kind == "other")} for image, kind, humans in records])  # fmt: skip
    for image, _, _ in records:
        _picture(root / "vizwiz/val" / image)


def textvqa(root: Path) -> None:
    """Two questions about one picture, one of them with OCR tokens."""
    _json(root / "textvqa/TextVQA_0.5.1_val.json", {"data": [
        {"image_id": "ab", "question": "what Is written?", "question_id": 1, "answers": ["stop"] * 10},
        {"image_id": "ab", "question": "which number?", "question_id": 2, "answers": ["7"] * 10},
    ]})  # fmt: skip
    _lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", [
        {"question_id": "ab", "image": "ab.jpg", "category": "default",
         "text": f"what is written?\nReference OCR token: STOP, 7\n{SHORT}"},
        {"question_id": "ab", "image": "ab.jpg", "category": "default", "text": f"which number?\n{SHORT}"},
    ])  # fmt: skip
    _picture(root / "textvqa/train_images/ab.jpg")


def scienceqa(root: Path) -> None:
    """One problem with a picture, one without, and one of another split."""
    _json(root / "scienceqa/problems.json", {
        "4": {"choices": ["cat", "dog"], "answer": 1, "split": "test"},
        "5": {"choices": ["up", "down", "left"], "answer": 0, "split": "test"},
        "6": {"choices": ["x", "y"], "answer": 0, "split": "train"},
    })  # fmt: skip
    _json(root / "scienceqa/pid_splits.json", {"test": ["4", "5"], "train": ["6"]})
    _json(root / "scienceqa/llava_test_CQM-A.json", [
        {"id": "4", "image": "4/image.png", "conversations": [
            {"from": "human", "value": f"<image>\nWhich?\nA. cat\nB. dog\n{LETTER}"},
            {"from": "gpt", "value": "B"}]},
        {"id": "5", "conversations": [
            {"from": "human", "value": f"Where?\nA. up\nB. down\nC. left\n{LETTER}"},
            {"from": "gpt", "value": "A"}]},
    ])  # fmt: skip
    _picture(root / "scienceqa/images/test/4/image.png")


def mme(root: Path) -> None:
    """Two pictures of one perception category and one of a cognition category."""
    release, lines = root / "MME/MME_Benchmark_release_version", []
    for category, names in (("color", ("a", "b")), ("code_reasoning", ("0001",))):
        for name in names:
            nested = category == "color"
            _picture(release / category / ("images" if nested else "") / f"{name}.png")
            text = release / category / ("questions_answers_YN" if nested else "") / f"{name}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            asked = [f"Is {name} {word}? Please answer yes or no." for word in ("red", "blue")]
            text.write_text(f"{asked[0]}\tYes\n{asked[1]}\tNo\n")
            image = f"{category}/images/{name}.png" if nested else f"{category}/{name}.png"
            lines += [{"question_id": image, "image": image, "text": f"{question}\n{SHORT}",
                       "category": category} for question in asked]  # fmt: skip
    _lines(root / "MME/llava_mme.jsonl", lines)


def _mmbench(root: Path, name: str) -> None:
    """Two questions; the first, with two choices, is there in both rotations."""
    def row(index: int, choices: list[str], answer: str, image: str, hint: str = "") -> dict[str, Any]:
        given = dict(zip("ABCD", [*choices, "", "", "", ""], strict=False))
        return {"index": index, "question": f'What is "{index % 10}"?', "hint": hint, **given,
                "answer": answer, "category": "color", "image": image, "source": "made",
                "l2-category": "fine", "comment": "", "split": "dev"}  # fmt: skip

    image = base64.b64encode(picture(1)).decode()
    rows = [row(1, ["cat", "dog"], "A", image, "Look\nhere"), row(2, ["up", "down", "left"], "C", image),
            row(1_000_001, ["dog", "cat"], "B", "1")]  # fmt: skip
    quoted = ["\t".join(rows[0])]
    quoted += ["\t".join('"' + str(v).replace('"', '""') + '"' for v in r.values()) for r in rows]
    path = root / f"mmbench/{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(quoted) + "\n")


def mmbench(root: Path) -> None:
    """See `_mmbench`."""
    _mmbench(root, "mmbench_dev_20230712")


def mmbench_cn(root: Path) -> None:
    """See `_mmbench`."""
    _mmbench(root, "mmbench_dev_cn_20231003")


def seed(root: Path) -> None:
    """A question on a picture and one on a video."""
    _json(root / "seed_bench/SEED-Bench.json", {
        "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
        "questions": [
            {"question_id": "101", "answer": "B", "data_type": "image", "question_type_id": 1},
            {"question_id": "v_1", "answer": "A", "data_type": "video", "question_type_id": 10},
        ],
    })  # fmt: skip
    folders = {"101": "SEED-Bench-image/101", "v_1": "SEED-Bench-video-image/1.png"}
    _lines(root / "seed_bench/llava-seed-bench.jsonl", [
        {"question_id": int(key) if key.isdigit() else key, "image": image,
         "text": f"What?\nA. a\nB. b\nC. c\nD. d\n{LETTER}"} for key, image in folders.items()
    ])  # fmt: skip
    for image in folders.values():
        _picture(root / "seed_bench" / image)


def mmmu(root: Path) -> None:
    """One question a subject; Math's is open, Art's has two pictures."""
    for subject in (subject for subjects in DOMAINS.values() for subject in subjects):
        row: dict[str, Any] = {
            "id": f"validation_{subject}_1", "question": "What is in <image 1>?",
            "options": "['a cat', '$5', 'neither']", "answer": "B", "question_type": "multiple-choice",
            **{f"image_{n}": {"bytes": picture(n), "path": None} if n == 1 else None for n in range(1, 8)},
        }  # fmt: skip
        if subject == "Math":
            row |= {"options": "[]", "answer": "['1,024', '2^10']", "question_type": "open"}
        if subject == "Art":
            row |= {"options": "['<image 1>', '<image 2>']", "question": "Which?", "image_2": row["image_1"]}
        path = root / f"mmmu/{subject}/validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)


def ai2d(root: Path) -> None:
    """Two questions about a test picture, the first about a letter; another picture is of no split."""
    folder = root / "ai2d"
    for number in (1, 2):
        _json(folder / f"annotations/{number}.png.json", {"text": {"T0": {
            "id": "T0", "rectangle": [[4, 6], [24, 30]], "replacementText": "X",
            "value": "ear"}}})  # fmt: skip
        _json(folder / f"questions/{number}.png.json", {"imageName": f"{number}.png", "questions": {
            f"What is {letter}?": {"abcLabel": not n, "answerTexts": ["ear", "nose", "eye", "leg"],
                                   "correctAnswer": n, "questionId": f"{number}.png-{n}"}
            for n, letter in enumerate("XY")}})  # fmt: skip
        _picture(folder / f"images/{number}.png")
    (folder / "ai2d_test_ids.csv").write_text("1\n3\n")


def chartqa(root: Path) -> None:
    """One human question and one augmented."""
    for part, label in (("human", "20"), ("augmented", "Yes")):
        _json(root / f"chartqa/test/test_{part}.json",
              [{"imgname": "c.png", "query": f"What of {part}?", "label": label}])  # fmt: skip
    _picture(root / "chartqa/test/png/c.png")


def docvqa(root: Path) -> None:
    """Two questions about a page."""
    _json(root / "docvqa/val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [
        {"questionId": 5, "question": "Which date?", "question_types": ["form"], "image": "documents/p_1.png",
         "answers": ["May 1", "1 May"]},
        {"questionId": 6, "question": "Who?", "question_types": ["layout"], "image": "documents/p_1.png",
         "answers": ["Smith"]},
    ]})  # fmt: skip
    _picture(root / "docvqa/documents/p_1.png")


def mathvista(root: Path) -> None:
    """A problem of every kind; the first brings its query text."""
    rows: list[dict[str, Any]] = [
        {"question": "Which?", "choices": ["larger than", "equal to"], "unit": None, "precision": None,
         "answer": "equal to", "question_type": "multi_choice", "answer_type": "text",
         "query": "Hint: so.\nWhich?"},
        {"question": "How long?", "choices": None, "unit": "m", "precision": 1.0, "answer": "1.2",
         "question_type": "free_form", "answer_type": "float"},
        {"question": "How many?", "choices": None, "unit": None, "precision": None, "answer": "14",
         "question_type": "free_form", "answer_type": "integer"},
        {"question": "When?", "choices": None, "unit": None, "precision": None, "answer": "[2007, 2008]",
         "question_type": "free_form", "answer_type": "list"},
    ]  # fmt: skip
    _json(root / "mathvista/annot_testmini.json", {
        str(n): {**row, "pid": str(n), "image": f"images/{n}.jpg",
                 "metadata": {"task": "figure", "context": "plot"}}
        for n, row in enumerate(rows, start=1)})  # fmt: skip
    for n in range(1, 5):
        _picture(root / f"mathvista/images/{n}.jpg")


def llava_bench(root: Path) -> None:
    """One question."""
    _lines(root / "llava-bench-in-the-wild/questions.jsonl",
           [{"question_id": 0, "image": "001.jpg", "text": "What is this?", "category": "conv"}])
    _picture(root / "llava-bench-in-the-wild/images/001.jpg")


def mmvet(root: Path) -> None:
    """One question."""
    _lines(root / "mm-vet/llava-mm-vet.jsonl",
           [{"question_id": 0, "image": "v1_0.png", "text": "What is x?"}])
    _picture(root / "mm-vet/images/v1_0.png")


STANDINS = {
    maker.__name__: maker
    for maker in (pope, gqa, vqav2, vqav2_val, vizwiz, vizwiz_val, textvqa, scienceqa, mme,
                  mmbench, mmbench_cn, seed, mmmu, ai2d, chartqa, docvqa, mathvista, llava_bench, mmvet)
}  # fmt: skip
"""Makers by benchmark: each writes its files into a data directory."""
