"""data_report.json: which rows a run left out or cut, and why, over all its processes and restarts."""

import collections
import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from quecc_jax.data.bad_rows import LeftOut, Tally
from quecc_jax.distributed import notice
from quecc_jax.paths import write_text
from quecc_jax.records import Count, Damaged, read_record, sealed
from quecc_jax.train.logs.records import LEFT_OUT, Record

FILE = "data_report.json"


class _Row(TypedDict):
    id: Count
    reason: str
    message: str


class _Report(TypedDict):
    """What the file holds."""

    rows: Count
    left_out: dict[str, Count]
    truncated: Count
    cut_questions: NotRequired[Count]
    left_out_rows: list[_Row]
    truncated_rows: list[Count]
    cut_question_rows: NotRequired[list[Count]]


class DataReport:
    """Collects what the processes' tallies say; the first process writes it. A context.

    Rows count once, however often epochs and restarts meet them, and however many processes read them.

    Args:
      run: the run's directory.
      done: steps done before; 0 starts a new report.
      tally: of this process; None where its batches count nothing, and nothing is written.
    """

    def __init__(self, run: Path, done: int, tally: Tally | None):
        self.path, self.tally = run / FILE, tally
        self._told = [0, 0, 0]
        self._left_out: dict[int, LeftOut] = {}
        self._truncated: set[int] = set()
        self._cut_questions: set[int] = set()
        if done and tally is not None:
            so = f"rows left out before step {done} are counted no more"
            try:
                found = read_record(self.path, _Report, so)
                self._left_out = {one["id"]: LeftOut(**one) for one in found["left_out_rows"]}
                self._truncated = set(found["truncated_rows"])
                self._cut_questions = set(found.get("cut_question_rows", ()))
            except FileNotFoundError:
                notice(f"WARNING: {self.path} is lost: {so}")
            except Damaged:
                notice(f"WARNING: {self.path} is damaged: {so}")
        self._written = self._counts() if done else None

    def record(self) -> Record:
        """The counts for a log line, by the names `truncated`, `cut_questions`, `dropped` and LEFT_OUT + each
        reason.

        All processes must call this together.
        """
        if self.tally is None:
            return {}
        tally = self.tally
        found: list[list[Any]] = [[*tally.left_out.values()], [*tally.truncated], [*tally.cut_questions]]
        # What is new stands at the end: dictionaries keep their order.
        new = [items[told:] for items, told in zip(found, self._told, strict=True)]
        self._told = [len(items) for items in found]
        for left_out, truncated, cut_questions in gathered(new):
            self._left_out = {one[0]: LeftOut(*one) for one in left_out} | self._left_out
            self._truncated.update(truncated)
            self._cut_questions.update(cut_questions)
        dropped, cut, questions = self._counts()
        reasons = sorted(self._reasons().items())
        return {
            "truncated": cut,
            "cut_questions": questions,
            "dropped": dropped,
            **{LEFT_OUT + reason: n for reason, n in reasons},
        }

    def write(self) -> None:
        """Writes the file, in the first process, if there is anything new to say."""
        if self.tally is None or jax.process_index() or self._written == self._counts():
            return
        self._written = self._counts()
        rows = [one._asdict() for one in sorted(self._left_out.values())]
        record = sealed(
            {
                "rows": self.tally.rows,
                "left_out": self._reasons(),
                "truncated": len(self._truncated),
                "cut_questions": len(self._cut_questions),
                "left_out_rows": rows,
                "truncated_rows": sorted(self._truncated),
                "cut_question_rows": sorted(self._cut_questions),
            }
        )
        # A line each: for people, who look for a row.
        lines = [
            f'"{name}": {json.dumps(value)}' for name, value in record.items() if name != "left_out_rows"
        ]
        listed = ",\n  ".join(json.dumps(row) for row in rows)
        lines.insert(4, f'"left_out_rows": [\n  {listed}\n ]')
        write_text(self.path, "{\n " + ",\n ".join(lines) + "\n}\n")

    def _counts(self) -> tuple[int, int, int]:
        return len(self._left_out), len(self._truncated), len(self._cut_questions)

    def _reasons(self) -> dict[str, int]:
        return dict(collections.Counter(one.reason for one in self._left_out.values()).most_common())

    def __enter__(self) -> "DataReport":
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            # What ended the run may be among the last rows; of several processes, some may be gone.
            self.record()
        self.write()


def gathered(value: Any) -> list[Any]:
    """The JSON value of each process, in their order; all of them must call this together."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    parts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
