"""MMBench and MMBench-CN: single choice, asked once for every rotation of the choices."""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import Tally, Totals, ratio
from quecc_jax.evaluate.tasks.base import LETTER, File, Judged, Sample, Task, asked, letters, options

LETTER_CN = "请直接回答选项字母。"
"""LLaVA's response format for MMBench-CN."""
ROTATION = 1_000_000
"""Index of a question's first rotated copy less the question's own."""
_SITE = "download.openmmlab.com/mmclassification/datasets/mmbench"
_NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that the server's spreadsheet lacks (LLaVA's convert_mmbench_for_submission.py)."""


_AROUND = (("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
           (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."))  # fmt: skip
"""What may stand around a letter that names an option, in the order that it is looked for."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header; quoted fields may hold line breaks.

    Raises:
      UserError: the file is not such a table.
    """
    import pyarrow
    from pyarrow import csv

    try:
        # The picture of a row is one field of megabytes, and a row must fit into a block.
        table = csv.read_csv(
            path, csv.ReadOptions(block_size=1 << 28),
            csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            csv.ConvertOptions(column_types=dict.fromkeys(_columns(path), pyarrow.string()),
                               strings_can_be_null=False),
        )  # fmt: skip
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a tab-separated table ({error}); download it again") from None
    return table.to_pylist()


def _columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return file.readline().rstrip("\r\n").split("\t")


def loader(name: str, form: str) -> Any:
    """The function that loads `mmbench/NAME.tsv` and asks for answers in the response format `form`."""

    def load(data: Path) -> list[Sample]:
        path, samples = data / f"mmbench/{name}.tsv", []
        rows = read_table(path)
        for column in ("index", "question", "A", "B", "answer", "image"):
            if rows and column not in rows[0]:
                raise UserError(f"{path} has no column {column}; take the development split, with answers")
        pictures = {row["index"]: row["image"] for row in rows}
        for number, row in enumerate(rows, start=1):
            choices = _choices(row)
            hint = f"{row['hint']}\n" if _given(row.get("hint")) else ""
            text = f"{hint}{row['question']}\n{options(choices)}"
            # A rotated copy may name the row that holds its picture.
            image = pictures.get(row["image"], row["image"])
            kinds = [row["category"]] if _given(row.get("category")) else []
            sent = {column: value for column, value in row.items() if column not in _NOT_SENT}
            samples.append(Sample(
                int(row["index"]), (_decoded(image, path, number),), asked(text, form), row["answer"],
                {"text": text, "choices": choices, "kinds": kinds, "row": sent,
                 "llava": {"round_id": 0, "options": choices, "option_char": letters(len(choices))}},
            ))  # fmt: skip
        return samples

    return load


def _given(value: str | None) -> bool:
    return value is not None and value.strip().lower() not in ("", "nan", "none")


def _choices(row: Mapping[str, str]) -> list[str]:
    """Choices up to the first that is not given."""
    choices = []
    for letter in "ABCD":
        if not _given(row.get(letter)):
            break
        choices.append(row[letter])
    return choices


def _decoded(image: str, path: Path, number: int) -> bytes:
    try:
        return base64.b64decode(image, validate=True)
    except binascii.Error:
        raise UserError(f"{path}, row {number} has no picture in base64; download it again") from None


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The option that an answer names by letter or by its text, "" where it is not clear."""
    parsed = infer_letter(answer) or infer_choice(answer, sample.extra["choices"])
    return parsed, float(parsed == sample.truth)


def infer_letter(answer: str) -> str:
    """The one letter A to E that stands alone among the words, or with one kind of mark around it.

    A lone A among more than three words may be an article and does not count.
    """
    words = answer.split()
    for before, after in _AROUND:
        named = [letter for letter in letters(5) if before + letter + after in words]
        bare = not before and not after
        if len(named) == 1 and not (bare and "A" in words and len(words) > 3):
            return named[0]
    return ""


def infer_choice(answer: str, choices: Sequence[str]) -> str:
    """The letter of the one choice whose text occurs in the answer, case apart."""
    within = [letter for letter, choice in zip(letters(len(choices)), choices, strict=True)
              if choice.lower() in answer.lower()]  # fmt: skip
    return within[0] if len(within) == 1 else ""


def unit(sample: Sample) -> int:
    """The question that a row is a rotation of."""
    return int(sample.id) % ROTATION


def tally(unit: Sequence[Judged]) -> Tally:
    """Whether all rotations of a question are right, and whether the question as printed is."""
    right = float(all(one.score for one in unit))
    printed = [one.score or 0.0 for one in unit if int(one.sample.id) < ROTATION]
    tally = {"right": right, "questions": 1.0, "printed": sum(printed), "rows": float(len(printed))}
    for kind in unit[0].sample.extra["kinds"]:
        tally |= {f"right/{kind}": right, f"questions/{kind}": 1.0}
    return tally


def metrics(totals: Totals) -> dict[str, Any]:
    """CircularEval and VanillaEval accuracy in %, and the former by category.

    Liu et al. 2023, "MMBench: Is Your Multi-modal Model an All-around Player?", section 4: a question
    counts if every rotation of its choices is answered right. The official evaluation asks ChatGPT
    about answers in which its rules find no option; here these are wrong, so that a score is a lower
    bound. With a model that answers by letter the two agree.
    """
    found = {"circular": 100 * ratio(totals["right"], totals["questions"]),
             "vanilla": 100 * ratio(totals["printed"], totals["rows"])}  # fmt: skip
    for name in totals:
        if name.startswith("questions/"):
            kind = name.removeprefix("questions/")
            found[f"circular/{kind}"] = 100 * ratio(totals[f"right/{kind}"], totals[name])
    return found


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """mmbench_upload.xlsx for the server: the table without pictures, the prediction as 7th column."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for number, one in enumerate(judged):
        row = {**one.sample.extra["row"], "index": one.sample.id}
        if not number:
            names = list(row)
            sheet.append([*names[:6], "prediction", *names[6:]])
        values = list(row.values())
        sheet.append([*values[:6], one.answer, *values[6:]])
    aside = folder / ".mmbench_upload.xlsx"
    book.save(aside)
    os.replace(aside, folder / "mmbench_upload.xlsx")


def _task(name: str, file: str, form: str, about: str, column: str) -> Task:
    return Task(name, about, (File(f"mmbench/{file}.tsv", f"{_SITE}/{file}.tsv"),), loader(file, form), judge,
                unit, tally, metrics, headline="circular", column=column, write=write)  # fmt: skip


MMBENCH = _task("mmbench", "mmbench_dev_20230712", LETTER, "MMBench dev, with rotations", "MMB")
MMBENCH_CN = _task("mmbench_cn", "mmbench_dev_cn_20231003", LETTER_CN, "MMBench-CN dev, with rotations", "")
