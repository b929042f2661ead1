"""MME: two yes-or-no questions on each image, perception and cognition."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quecc_jax.data.files import read_text
from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import Tally, Totals, ratio
from quecc_jax.evaluate.tasks.base import (
    EVAL_ZIP,
    LMMS_EVAL,
    SHORT,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    records,
)
from quecc_jax.paths import write_text

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_QUESTIONS = "MME/llava_mme.jsonl"
_RELEASE = "MME/MME_Benchmark_release_version"
_YES_NO = "Please answer yes or no."


def load(data: Path) -> list[Sample]:
    """LLaVA's questions with the answers of MME's text files, which lie beside the images."""
    truths = _truths(data / _RELEASE)
    samples, counts = [], dict[str, int]()
    for number, line in enumerate(records(data / _QUESTIONS), start=1):
        name = str(line["question_id"])
        category, stem = name.split("/")[0], name.split("/")[-1].split(".")[0]
        question = " ".join(line["text"].replace(SHORT, "").split())
        question = question if _YES_NO in question else f"{question} {_YES_NO}"
        truth = truths.get((category, stem, question))
        if truth is None:
            raise UserError(
                f"{data / _QUESTIONS}, line {number}: no text file of {data / _RELEASE} has "
                f"this question about {name}; take both from the same release"
            )
        image = f"{category}/{stem}"
        counts[image] = counts.get(image, 0) + 1
        samples.append(
            Sample(
                f"{image}#{counts[image]}",
                (str(data / _RELEASE / line["image"]),),
                line["text"],
                truth,
                {"question_id": name, "image": image, "category": category, "question": question},
            )
        )
    odd = [image for image, count in counts.items() if count != 2]
    if odd:
        raise UserError(
            f"{data / _QUESTIONS} asks {counts[odd[0]]} questions about {odd[0]}; MME asks two "
            "about every image"
        )
    return samples


def _truths(release: Path) -> dict[tuple[str, str, str], str]:
    """Answer by category, image and question; texts lie in questions_answers_YN or with the images."""
    found = {}
    for category in (*PERCEPTION, *COGNITION):
        folder = release / category / "questions_answers_YN"
        folder = folder if folder.is_dir() else release / category
        for path in sorted(folder.glob("*.txt")):
            for line in read_text(path).split("\n"):
                question, tab, truth = line.strip().rpartition("\t")
                if tab:
                    found[category, path.stem, " ".join(question.split())] = truth.strip()
    return found


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Yes or no, whichever stands within the first four letters; anything else is "other" and wrong."""
    return _scored(sample, answer.lower())


def _judge_lmms_eval(sample: Sample, answer: str) -> tuple[str, float]:
    """lmms-eval's rule: the same, but blanks and periods go first, and y and n alone are yes and no."""
    text = answer.lower().strip().replace(".", "")
    return _scored(sample, {"y": "yes", "n": "no"}.get(text, text))


def _scored(sample: Sample, text: str) -> tuple[str, float]:
    begin = text[:4]
    parsed = "yes" if "yes" in begin else "no" if "no" in begin else "other"
    return parsed, float(parsed == str(sample.truth).lower())


def unit(sample: Sample) -> str:
    """The image."""
    return sample.extra["image"]


def tally(unit: Sequence[Judged]) -> Tally:
    """Right answers and questions, and images on which both are right, of the category."""
    category, right = unit[0].sample.extra["category"], sum(one.score or 0 for one in unit)
    both = float(right == len(unit) == 2)
    return {
        f"right/{category}": right,
        f"questions/{category}": len(unit),
        f"both/{category}": both,
        f"images/{category}": 1,
    }


def metrics(totals: Totals) -> Totals:
    """Per category accuracy plus accuracy+ (both questions right), each in %, and their sums.

    Fu et al. 2023, "MME", section 2.2: 0 to 200 a category, 2,000 for perception and 800 for cognition.
    """
    found: dict[str, np.ndarray] = {}
    sums: dict[str, list[np.ndarray]] = defaultdict(list)
    for side, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
        for category in categories:
            if f"images/{category}" not in totals:
                continue
            accuracy = ratio(totals[f"right/{category}"], totals[f"questions/{category}"])
            plus = ratio(totals[f"both/{category}"], totals[f"images/{category}"])
            found[f"{side}/{category}"] = 100 * accuracy + 100 * plus
            sums[side].append(found[f"{side}/{category}"])
    return {**{side: sum(values) for side, values in sums.items()}, **found}


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """results/CATEGORY.txt, which MME's calculation.py reads: image, question, truth and answer."""
    lines: dict[str, list[str]] = defaultdict(list)
    for one in judged:
        extra = one.sample.extra
        name = extra["question_id"].split("/")[-1]
        lines[extra["category"]].append(
            "\t".join((name, extra["question"], one.sample.truth, " ".join(one.answer.split())))
        )
    for category, rows in lines.items():
        write_text(folder / "results" / f"{category}.txt", "\n".join(rows) + "\n")


MME = Task(
    "mme",
    "MME, 2,374 yes-or-no questions in 14 categories",
    (
        File(_QUESTIONS, EVAL_ZIP),
        File(
            f"{_RELEASE}/", "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation"
        ),
    ),
    load,
    (
        Scorer("mme", "eval_tool/calculation.py of MME's eval_tool.zip (2023-07-01)", judge, "other"),
        Scorer("lmms_eval", f"tasks/mme/utils.py of {LMMS_EVAL}", _judge_lmms_eval, "other"),
    ),
    unit,
    tally,
    metrics,
    headline="perception",
    column="MME",
    write=write,
)
