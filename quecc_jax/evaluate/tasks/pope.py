"""POPE: is this object in the image?"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quecc_jax.data.files import read_json_lines
from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import Tally, Totals, ratio
from quecc_jax.evaluate.metrics import says_no
from quecc_jax.evaluate.tasks.base import EVAL_ZIP, LLAVA, File, Judged, Record, Sample, Scorer, Task, records

_SPLITS = ("random", "popular", "adversarial")
_COCO = "output/coco of github.com/AoiDragon/POPE at commit e3e3926, whose questions LLaVA asks"


def load(data: Path) -> list[Sample]:
    """LLaVA's questions; labels stand in POPE's files in the same order, split by split."""
    folder = data / "pope"
    asked: dict[str, list[Record]] = defaultdict(list)
    for line in records(folder / "llava_pope_test.jsonl"):
        asked[str(line.get("category"))].append(line)
    samples = []
    for split in _SPLITS:
        path = folder / f"coco/coco_pope_{split}.json"
        # POPE's .json files hold one value a line.
        labels = list(records(path, read_json_lines(path)))
        if len(labels) != len(asked[split]):
            raise UserError(
                f"{path} has {len(labels)} questions but llava_pope_test.jsonl has "
                f"{len(asked[split])} of {split}; take both from the same release"
            )
        for number, (line, truth) in enumerate(zip(asked[split], labels, strict=True), start=1):
            if line["image"] != truth.get("image"):
                raise UserError(
                    f"{path}, line {number} is about another image than its question in "
                    "llava_pope_test.jsonl; take both from the same release"
                )
            samples.append(
                Sample(
                    line["question_id"],
                    (str(folder / "val2014" / line["image"]),),
                    line["text"],
                    truth["label"],
                    {"split": split},
                )
            )
    return samples


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """Yes or no as `metrics.says_no` reads it, and whether that is the label."""
    parsed = "no" if says_no(answer) else "yes"
    return parsed, float(parsed == sample.truth)


def tally(unit: Sequence[Judged]) -> Tally:
    """True and false positives and negatives of each split; yes is positive."""
    counts: dict[str, float] = defaultdict(float)
    for one in unit:
        outcome = ("t" if one.score else "f") + ("p" if one.parsed == "yes" else "n")
        counts[f"{one.sample.extra['split']}/{outcome}"] += 1
    return counts


def metrics(totals: Totals) -> Totals:
    """Accuracy, precision, recall, F1 and share of yes of each split in %, and the mean F1 over splits.

    Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", section 5. LLaVA-1.5's
    table shows the mean F1. Precision, recall and F1 are 0 where nothing is positive.
    """
    found: dict[str, np.ndarray] = {}
    present = [s for s in _SPLITS if any(f"{s}/{o}" in totals for o in ("tp", "fp", "tn", "fn"))]
    for split in present:
        tp, fp, tn, fn = (totals.get(f"{split}/{outcome}", 0.0) for outcome in ("tp", "fp", "tn", "fn"))
        found[f"accuracy/{split}"] = 100 * ratio(tp + tn, tp + fp + tn + fn)
        found[f"precision/{split}"] = 100 * ratio(tp, tp + fp, empty=0.0)
        found[f"recall/{split}"] = 100 * ratio(tp, tp + fn, empty=0.0)
        found[f"f1/{split}"] = 100 * ratio(2 * tp, 2 * tp + fp + fn, empty=0.0)
        found[f"yes/{split}"] = 100 * ratio(tp + fp, tp + fp + tn + fn)
    return {"f1": sum(found[f"f1/{split}"] for split in present) / len(present), **found}


POPE = Task(
    "pope",
    "POPE, 8,910 yes-or-no questions on COCO val2014",
    (
        File("pope/llava_pope_test.jsonl", EVAL_ZIP),
        *(File(f"pope/coco/coco_pope_{split}.json", _COCO) for split in _SPLITS),
        File("pope/val2014/", "images.cocodataset.org/zips/val2014.zip"),
    ),
    load,
    (Scorer("llava", f"llava/eval/eval_pope.py of {LLAVA}, which is POPE's evaluate.py", judge),),
    tally=tally,
    metrics=metrics,
    headline="f1",
    column="POPE",
    note="the mean F1 of three splits, which LLaVA's row shows; the script in QueCC's repository prints the "
    "accuracy on the random split alone (accuracy/random in results.json), and which of the two QueCC's "
    "rows show it does not say",
)
