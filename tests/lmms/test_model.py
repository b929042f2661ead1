"""lmms-eval itself, from its command line, on a tiny model and a task on local files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmms_eval.models import get_model
from PIL import Image

from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import answer_questions, question_engine
from quecc_jax.evaluate.likelihood import log_likelihoods
from quecc_jax.generate.questions import Question
from quecc_jax.load import load_vlm
from tests.evaluate.standins import png
from tests.evaluate.word_model import word_run

ROOT = Path(__file__).parents[2]
QUESTIONS = ("what color is it?", "is it red?", "how many shapes are there?", "what is left of it?", "why?")
TASK = """
task: quecc_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
  until: ["?"]
process_results: !function utils.process_results
metric_list:
  - metric: quecc_right
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
UTILS = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")] if doc["image"] else []


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"quecc_right": float(results[0] == doc["answer"])}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return word_run(tmp_path_factory.mktemp("run"), [*QUESTIONS, "red blue two green circle square"])


@pytest.fixture(scope="module")
def docs(run, tmp_path_factory) -> list[dict[str, Any]]:
    """Questions on images, the last without one, three of five with the model's own answer as truth."""
    folder = tmp_path_factory.mktemp("docs")
    images = []
    for number in range(len(QUESTIONS)):
        (folder / f"{number}.png").write_bytes(png(number))
        images.append(str(folder / f"{number}.png"))
    images[-1] = ""
    answers = [""] * len(QUESTIONS)
    answer_questions(
        question_engine(*load_vlm(run.out)),
        [Question(q, (i,) if i else ()) for q, i in zip(QUESTIONS, images, strict=True)],
        max_new_tokens=4,
        batch_size=2,
        keep=answers.__setitem__,
    )
    answers = [answer.split("?")[0].strip() for answer in answers]
    assert len(set(answers)) > 2, "answers hardly depend on question and image; the test shows nothing"
    return [
        {"question": q, "image": i, "answer": a if n < 3 else "something else", "said": a}
        for n, (q, i, a) in enumerate(zip(QUESTIONS, images, answers, strict=True))
    ]


def test_lmms_eval_scores_what_the_model_answers(run, docs, tmp_path):
    (tmp_path / "docs.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "task").mkdir()
    (tmp_path / "task/local.yaml").write_text(TASK.format(data=tmp_path / "docs.json"))
    (tmp_path / "task/utils.py").write_text(UTILS)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lmms_eval",
            "--model",
            "quecc_jax",
            "--model_args",
            f"checkpoint={run.out}",
            "--tasks",
            "quecc_local",
            "--include_path",
            str(tmp_path / "task"),
            "--batch_size",
            "2",
            "--output_path",
            str(tmp_path / "out"),
            "--log_samples",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    # lmms-eval ends with status 0 after an error of its own.
    found = list((tmp_path / "out").rglob("*results.json"))
    assert done.returncode == 0 and len(found) == 1, done.stderr[-3000:]
    (results,) = found
    found = json.loads(results.read_text())["results"]["quecc_local"]
    assert found["quecc_right,none"] == pytest.approx(0.6)
    (samples,) = (tmp_path / "out").rglob("*samples_quecc_local.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    said = {line["doc_id"]: line["filtered_resps"] for line in lines}
    assert [str(said[n][0] if isinstance(said[n], list) else said[n]) for n in range(5)] == [
        doc["said"] for doc in docs
    ]


def request(options: Any, text: str = QUESTIONS[0]) -> Any:
    """A request as lmms-eval makes it."""
    return SimpleNamespace(args=(text, options, lambda doc: [doc], 0, "task", "test"))


@pytest.fixture(scope="module")
def model(run):
    made = get_model("quecc_jax").create_from_arg_string(f"checkpoint={run.out}", {"batch_size": 2})
    made.task_dict = {"task": {"test": [Image.new("RGB", (20, 10), "red")]}}
    return made


def test_answers_keep_the_order_of_requests_of_different_length(model):
    long, short = {"max_new_tokens": 5}, {"max_new_tokens": 1}
    both = model.generate_until([request(long), request(short), request(long, QUESTIONS[1])])
    assert both[0] != both[2] and both[0].startswith(both[1])
    assert len(both[0].split()) > len(both[1].split())
    word = both[0].split()[1]
    (cut,) = model.generate_until([request({"max_new_tokens": 5, "until": [word]})])
    assert cut == both[0].split(word)[0].strip()


def test_given_answers_get_the_likelihoods_of_this_project(model):
    answers = ["red", " blue two"]
    requests = [request(options, text) for options, text in zip(answers, QUESTIONS, strict=False)]
    requests.append(request(lambda doc: "green", QUESTIONS[2]))
    shown = image_of(model)
    wanted = log_likelihoods(
        model.engine,
        [
            (Question(text, (shown,)), answer)
            for text, answer in zip(QUESTIONS, ("red", "blue two", "green"), strict=False)
        ],
        batch_size=2,
    )
    assert model.loglikelihood(requests) == wanted and len({value for value, _ in wanted}) == 3


def image_of(model) -> bytes:
    """The one image of its task, encoded."""
    out = io.BytesIO()
    model.task_dict["task"]["test"][0].save(out, "PNG")
    return out.getvalue()


def test_what_is_not_offered_is_refused_in_one_sentence(model, run):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"do_sample": True, "temperature": 0.7}, "greedily"),
        ({"num_beams": 3}, "beam"),
    ]
    for options, message in refused:
        with pytest.raises(UserError, match=message):
            model.generate_until([request(options)])
    with pytest.raises(UserError, match="single questions"):
        model.generate_until_multi_round([])
    with pytest.raises(UserError, match="chekpoint is not an option"):
        get_model("quecc_jax")(checkpoint=run.out, chekpoint=1)
