"""VQAv2, VizWiz and TextVQA: short answers, compared with ten people's."""

from collections.abc import Sequence
from pathlib import Path

from quecc_jax.data.files import read_json, write_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.metrics import normalise_answer, vqa_accuracy, vqa_challenge_accuracy
from quecc_jax.evaluate.tasks.base import (
    EVAL_ZIP,
    LLAVA,
    LMMS_EVAL,
    SHORT,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    asked,
    records,
    upload,
)

_EVERY = "vqav2/llava_vqav2_mscoco_test2015.jsonl"
_VQA_SITE = "visualqa.org/download.html"
_VIZWIZ_SITE = "vizwiz.org/tasks-and-datasets/vqa"
_TEXTVQA_SITE = "textvqa.org/dataset"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
"""What LLaVA-1.5 adds to VizWiz questions, where a third of the images do not show what is asked."""


def judge(sample: Sample, answer: str) -> tuple[str, float | None]:
    """The normalised answer and its VQA accuracy, see `metrics.vqa_accuracy`.

    VizWiz (Gurari et al. 2018) uses the same measure; "unanswerable" is an answer like any other there.
    """
    score = None if sample.truth is None else vqa_accuracy(answer, sample.truth)
    return normalise_answer(answer), score


def _judge_challenge(sample: Sample, answer: str) -> tuple[str, float]:
    """What LLaVA sends to the VQA challenge, and what the challenge's script says of it."""
    sent = normalise_answer(answer)
    return sent, vqa_challenge_accuracy(sent, sample.truth)


def _judge_lmms_eval(sample: Sample, answer: str) -> tuple[str, float]:
    """lmms-eval's VQAv2: the challenge's normalisation alone, on both sides, always."""
    return normalise_answer(answer), vqa_challenge_accuracy(answer, sample.truth, always=True)


def _questions(path: Path, images: Path) -> list[Sample]:
    """LLaVA's questions without public truth."""
    return [
        Sample(
            line["question_id"], (str(images / line["image"]),), line["text"], None, {"image": line["image"]}
        )
        for line in records(path)
    ]


def _load_vqav2(data: Path) -> list[Sample]:
    return _questions(data / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", data / "vqav2/test2015")


def _load_vqav2_val(data: Path) -> list[Sample]:
    folder = data / "vqav2"
    path = folder / "v2_mscoco_val2014_annotations.json"
    truths = {truth["question_id"]: truth for truth in read_json(path)["annotations"]}
    samples = []
    for question in read_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]:
        truth = truths.get(question["question_id"])
        if truth is None:
            raise UserError(f"{path} has no question {question['question_id']}; take both files of val2014")
        image = folder / f"val2014/COCO_val2014_{question['image_id']:012d}.jpg"
        samples.append(
            Sample(
                question["question_id"],
                (str(image),),
                asked(question["question"]),
                [human["answer"] for human in truth["answers"]],
                {"kinds": [truth["answer_type"]]},
            )
        )
    return samples


def _load_vizwiz(data: Path) -> list[Sample]:
    return _questions(data / "vizwiz/llava_test.jsonl", data / "vizwiz/test")


def _load_vizwiz_val(data: Path) -> list[Sample]:
    samples = []
    for record in records(data / "vizwiz/val.json"):
        humans = [human["answer"] for human in record["answers"]]
        samples.append(
            Sample(
                record["image"],
                (str(data / "vizwiz/val" / record["image"]),),
                asked(record["question"], f"{UNANSWERABLE}\n{SHORT}"),
                humans,
                {"image": record["image"], "kinds": [record["answer_type"]]},
            )
        )
    return samples


def _load_textvqa(data: Path) -> list[Sample]:
    """Image and question together name the truth, as in LLaVA's eval_textvqa."""
    folder = data / "textvqa"
    path, prompts = folder / "TextVQA_0.5.1_val.json", folder / "llava_textvqa_val_v051_ocr.jsonl"
    truths = {(record["image_id"], record["question"].lower()): record for record in read_json(path)["data"]}
    samples = []
    for number, line in enumerate(records(prompts), start=1):
        image = line["question_id"]
        truth = truths.get((image, _question_in(line["text"]).lower()))
        if truth is None:
            raise UserError(f"{prompts}, line {number} asks what {path} does not; take TextVQA 0.5.1")
        samples.append(
            Sample(
                f"{image}/{number}",
                (str(folder / "train_images" / line["image"]),),
                line["text"],
                truth["answers"],
                {"question_id": image},
            )
        )
    return samples


def _question_in(text: str) -> str:
    """The question among the OCR tokens and the response format that LLaVA puts around it."""
    return next(line for line in text.split("\n") if not line.startswith("Reference OCR token:"))


def _write_vqav2(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """vqav2_upload.json: the server wants all questions of test2015, "" for those not asked.

    What LLaVA's convert_vqav2_for_submission.py sends.
    """
    given = {one.sample.id: one.parsed for one in judged}
    write_json(
        folder / "vqav2_upload.json",
        [
            {"question_id": line["question_id"], "answer": given.get(line["question_id"], "")}
            for line in read_json(data / _EVERY)
        ],
    )


_write_vizwiz = upload(
    "vizwiz_upload.json", lambda one: {"image": one.sample.extra["image"], "answer": one.parsed}
)


_M4C = "llava/eval/m4c_evaluator.py"
_SENT = (
    Scorer(
        "llava", f"none here, the truth is not public; answers are normalised by {_M4C} of {LLAVA}", judge
    ),
)
VQAV2 = Task(
    "vqav2",
    "VQAv2 test-dev, 107,394 questions whose answers only the server knows",
    (
        File("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", EVAL_ZIP),
        File(_EVERY, EVAL_ZIP),
        File("vqav2/test2015/", "images.cocodataset.org/zips/test2015.zip"),
    ),
    _load_vqav2,
    _SENT,
    column="VQAv2",
    write=_write_vqav2,
    submit="vqav2_upload.json to eval.ai challenge 830",
)
VQAV2_VAL = Task(
    "vqav2_val",
    "VQAv2 val2014, 214,354 questions",
    (
        File("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", _VQA_SITE),
        File("vqav2/v2_mscoco_val2014_annotations.json", _VQA_SITE),
        File("vqav2/val2014/", "images.cocodataset.org/zips/val2014.zip"),
    ),
    _load_vqav2_val,
    (
        Scorer(
            "vqa",
            "vqaEvaluation/vqaEval.py of github.com/GT-Vision-Lab/VQA at commit a013f00, on answers "
            f"that {_M4C} of {LLAVA} has normalised",
            _judge_challenge,
        ),
        Scorer("lmms_eval", f"tasks/vqav2/utils.py of {LMMS_EVAL}", _judge_lmms_eval),
    ),
)
VIZWIZ = Task(
    "vizwiz",
    "VizWiz test, 8,000 questions whose answers only the server knows",
    (File("vizwiz/llava_test.jsonl", EVAL_ZIP), File("vizwiz/test/", f"test.zip from {_VIZWIZ_SITE}")),
    _load_vizwiz,
    _SENT,
    column="VizWiz",
    write=_write_vizwiz,
    submit="vizwiz_upload.json to eval.ai challenge 1911",
)
VIZWIZ_VAL = Task(
    "vizwiz_val",
    "VizWiz val, 4,319 questions",
    (
        File("vizwiz/val.json", f"Annotations.zip from {_VIZWIZ_SITE}"),
        File("vizwiz/val/", f"val.zip from {_VIZWIZ_SITE}"),
    ),
    _load_vizwiz_val,
    (Scorer("lmms_eval", f"tasks/vizwiz_vqa/utils.py of {LMMS_EVAL}", judge),),
    write=_write_vizwiz,
)
TEXTVQA = Task(
    "textvqa",
    "TextVQA val, 5,000 questions with reference OCR tokens",
    (
        File("textvqa/llava_textvqa_val_v051_ocr.jsonl", EVAL_ZIP),
        File("textvqa/TextVQA_0.5.1_val.json", _TEXTVQA_SITE),
        File("textvqa/train_images/", f"train_val_images.zip from {_TEXTVQA_SITE}"),
    ),
    _load_textvqa,
    (Scorer("llava", f"llava/eval/eval_textvqa.py and m4c_evaluator.py of {LLAVA}", judge),),
    column="TextVQA",
)
