"""A tiny run whose heads and words divide over eight devices, and questions for it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.config import RunConfig
from quecc_jax.evaluate import benchmarks
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.records import CRC32
from tests.evaluate.standins import STANDINS
from tests.evaluate.word_model import word_run

TASK, QUESTIONS = "pope", 12


class Asked(NamedTuple):
    """A run, POPE's files, the same questions as rows of a data set, and what one device answers."""

    run: RunConfig
    data: Path
    rows: Path
    alone: Path


def asked(root: Path) -> Asked:
    """Everything below `root`."""
    STANDINS[TASK](root / "data")
    samples = TASKS[TASK].load(root / "data")
    assert len(samples) == QUESTIONS
    run = word_run(root, [*(sample.prompt for sample in samples), "yes no A B C D"], heads=8)
    rows = [
        {
            "id": sample.id,
            "image": str(sample.images[0]),
            "conversations": [
                {"from": "human", "value": f"<image>\n{sample.prompt}"},
                {"from": "gpt", "value": "yes" if number % 2 else "no"},
            ],
        }
        for number, sample in enumerate(samples)
    ]
    (root / "rows.json").write_text(json.dumps(rows))
    benchmarks.run(Path(run.out), TASK, root / "data", root / "alone", max_new_tokens=3, batch_size=4)
    told = Asked(run, root / "data", root / "rows.json", root / "alone")
    assert len({line["answer"] for line in lines(told.alone / TASK / "answers.jsonl")}) > 3
    return told


def lines(path: Path) -> list[dict[str, Any]]:
    """Records of a file of lines, without their checksums."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in one.items() if key != CRC32} for one in found]
