"""ChartQA and DocVQA: reading charts and scanned pages."""

from pathlib import Path

from quecc_jax.data.files import read_json
from quecc_jax.evaluate.metrics import anls, relaxed_match
from quecc_jax.evaluate.tasks.base import LMMS_EVAL, File, Sample, Scorer, Task, asked, records, upload

_CHARTQA_SITE = "github.com/vis-nlp/ChartQA (ChartQA Dataset.zip)"
_DOCVQA_SITE = "the Robust Reading Competition, rrc.cvc.uab.es/?ch=17, task 1"
_WORD = "Answer the question with a single word."
"""Response format of lmms-eval's chartqa."""
_DOCVQA = "docvqa/val_v1.0_withQT.json"


def _load_chartqa(data: Path) -> list[Sample]:
    """Questions in the words of lmms-eval's chartqa; LLaVA has no script for ChartQA."""
    samples = []
    for part in ("human", "augmented"):
        path = data / f"chartqa/test/test_{part}.json"
        for number, record in enumerate(records(path), start=1):
            image = data / "chartqa/test/png" / record["imgname"]
            samples.append(
                Sample(
                    f"{part}/{number}",
                    (str(image),),
                    asked(record["query"], _WORD),
                    str(record["label"]),
                    {"kinds": [part]},
                )
            )
    return samples


def _judge_chartqa(sample: Sample, answer: str) -> tuple[str, float]:
    """Relaxed accuracy, see `metrics.relaxed_match`, in all and on human and augmented questions."""
    return answer, float(relaxed_match(answer, sample.truth))


def _load_docvqa(data: Path) -> list[Sample]:
    """Questions in the words of lmms-eval's docvqa_val, which are LLaVA-1.5's for short answers."""
    path, samples = data / _DOCVQA, []
    for record in records(path, read_json(path)["data"]):
        image = data / "docvqa" / record["image"]
        samples.append(
            Sample(
                record["questionId"],
                (str(image),),
                asked(record["question"]),
                [str(truth) for truth in record["answers"]],
                {"kinds": record.get("question_types") or []},
            )
        )
    return samples


def _judge_docvqa(sample: Sample, answer: str) -> tuple[str, float]:
    """ANLS with threshold 0.5 (Mathew et al. 2021, "DocVQA", section 5), see `metrics.anls`."""
    return answer, anls(answer, sample.truth)


CHARTQA = Task(
    "chartqa",
    "ChartQA test, 2,500 questions on charts",
    (
        File("chartqa/test/test_human.json", _CHARTQA_SITE),
        File("chartqa/test/test_augmented.json", _CHARTQA_SITE),
        File("chartqa/test/png/", _CHARTQA_SITE),
    ),
    _load_chartqa,
    (Scorer("lmms_eval", f"relaxed_correctness in tasks/chartqa/utils.py of {LMMS_EVAL}", _judge_chartqa),),
    max_new_tokens=16,
)
DOCVQA = Task(
    "docvqa",
    "DocVQA validation, 5,349 questions on document pages; `accuracy` is the mean ANLS",
    (File(_DOCVQA, _DOCVQA_SITE), File("docvqa/documents/", _DOCVQA_SITE)),
    _load_docvqa,
    (
        Scorer(
            "lmms_eval", f"anls in api/metrics.py of {LMMS_EVAL}, as the competition has it", _judge_docvqa
        ),
    ),
    write=upload("docvqa_upload.json", lambda one: {"questionId": one.sample.id, "answer": one.answer}),
    max_new_tokens=32,
)
