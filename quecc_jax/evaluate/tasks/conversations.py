"""LLaVA-Bench and MM-Vet: free answers, which GPT-4 grades elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path

from quecc_jax.data.files import write_json
from quecc_jax.evaluate.tasks.base import EVAL_ZIP, File, Judged, Sample, Scorer, Task, records

_WILD, _MMVET = "llava-bench-in-the-wild", "mm-vet"
_WILD_SITE = "huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"


def _loader(questions: str, images: str) -> Callable[[Path], list[Sample]]:
    def load(data: Path) -> list[Sample]:
        """Questions as LLaVA's model_vqa.py asks them: as they stand, without a response format."""
        return [
            Sample(
                line["question_id"],
                (str(data / images / line["image"]),),
                line["text"],
                None,
                {"kinds": [line["category"]] if "category" in line else []},
            )
            for line in records(data / questions)
        ]

    return load


def judge(sample: Sample, answer: str) -> tuple[str, None]:
    """No score: both benchmarks have GPT-4 grade answers (Liu et al. 2023, "Visual Instruction Tuning",
    section 5.1; Yu et al. 2023, "MM-Vet")."""
    return answer, None


def _write_mmvet(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """mmvet_results.json as LLaVA's convert_mmvet_for_eval.py writes it."""
    write_json(folder / "mmvet_results.json", {f"v1_{one.sample.id}": one.answer for one in judged})


_GRADED = (Scorer("gpt4", "none here: GPT-4 grades the answers", judge),)
LLAVA_BENCH = Task(
    "llava_bench",
    "LLaVA-Bench in the wild, 60 questions; answers only",
    (File(f"{_WILD}/questions.jsonl", _WILD_SITE), File(f"{_WILD}/images/", _WILD_SITE)),
    _loader(f"{_WILD}/questions.jsonl", f"{_WILD}/images"),
    _GRADED,
    submit="llava_answers.jsonl to LLaVA's eval_gpt_review_bench.py",
    max_new_tokens=1024,
)
MMVET = Task(
    "mmvet",
    "MM-Vet, 218 questions; answers only",
    (
        File(f"{_MMVET}/llava-mm-vet.jsonl", EVAL_ZIP),
        File(f"{_MMVET}/images/", "mm-vet.zip, release v1 of github.com/yuweihao/MM-Vet"),
    ),
    _loader(f"{_MMVET}/llava-mm-vet.jsonl", f"{_MMVET}/images"),
    _GRADED,
    write=_write_mmvet,
    submit="mmvet_results.json to the MM-Vet evaluator",
    max_new_tokens=1024,
)
