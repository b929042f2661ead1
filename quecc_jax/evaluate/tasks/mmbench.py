"""MMBench and MMBench-CN: single choice, asked once for every rotation of the choices."""

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import Tally, Totals, ratio
from quecc_jax.evaluate.tasks.base import (
    LETTER,
    LMMS_EVAL,
    File,
    Judged,
    Sample,
    Scorer,
    Task,
    asked,
    letters,
    options,
)

LETTER_CN = "请直接回答选项字母。"
"""LLaVA's response format for MMBench-CN."""
ROTATION = 1_000_000
"""Index of a question's first rotated copy less the question's own."""
_SITE = "download.openmmlab.com/mmclassification/datasets/mmbench"
_NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that the server's spreadsheet lacks (LLaVA's convert_mmbench_for_submission.py)."""


_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_NO_ANSWER = "Z"
"""VLMEvalKit's reading of a refusal."""
_FAILED = "Failed to obtain answer via API"
_TOLD = re.compile(r"(?i)answer\s+is\s+\**([ABCD])\**")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FORMS = ["{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{})."]
"""How lmms-eval lets a letter be written, in the order that it is looked for."""
_NOT_IN_SHEETS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Control characters, which a spreadsheet cannot hold and a model that was hardly trained may say."""
_MISSING = "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null"
_NOT_GIVEN = frozenset(("", "#N/A N/A", *_MISSING.split()))
"""Fields that pandas.read_table, with which LLaVA reads the file, takes for missing."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated file with a header; quoted fields may hold line breaks.

    Raises:
      UserError: the file is not such a table.
    """
    import pyarrow
    from pyarrow import csv

    try:
        # The image of a row is one field of megabytes, and a row must fit into a block.
        table = csv.read_csv(
            path,
            csv.ReadOptions(block_size=1 << 28),
            csv.ParseOptions(delimiter="\t", newlines_in_values=True),
            csv.ConvertOptions(
                column_types=dict.fromkeys(_columns(path), pyarrow.string()), strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a tab-separated table ({error}); download it again") from None
    return table.to_pylist()


def _columns(path: Path) -> list[str]:
    # pyarrow leaves a byte order mark out of the first name.
    with path.open(encoding="utf-8-sig") as file:
        return file.readline().rstrip("\r\n").split("\t")


def loader(name: str, form: str) -> Callable[[Path], list[Sample]]:
    """The function that loads `mmbench/NAME.tsv` and asks for answers in the response format `form`.

    The text is that of LLaVA's model_vqa_mmbench.py with --single-pred-prompt (and --lang cn): hint,
    question, choices up to the first that is not given, response format. Its answer file has it without the
    last.
    """

    def load(data: Path) -> list[Sample]:
        path, samples = data / f"mmbench/{name}.tsv", []
        rows = read_table(path)
        for column in ("index", "question", "A", "B", "answer", "image"):
            if rows and column not in rows[0]:
                raise UserError(f"{path} has no column {column}; take the development split, with answers")
        images = {row["index"]: row["image"] for row in rows}
        for number, row in enumerate(rows, start=1):
            choices = _choices(row)
            hint = f"{row['hint']}\n" if _given(row.get("hint")) else ""
            text = f"{hint}{row['question']}\n{options(choices)}"
            # A rotated copy may name the row that holds its image.
            image = images.get(row["image"], row["image"])
            kinds = [row["category"]] if _given(row.get("category")) else []
            sent = {column: value for column, value in row.items() if column not in _NOT_SENT}
            samples.append(
                Sample(
                    int(row["index"]),
                    (_decoded(image, path, number),),
                    asked(text, form),
                    row["answer"],
                    {
                        "text": text,
                        "choices": choices,
                        "kinds": kinds,
                        "row": sent,
                        "llava": {"round_id": 0, "options": choices, "option_char": letters(len(choices))},
                    },
                )
            )
        return samples

    return load


def _given(value: str | None) -> bool:
    return value is not None and value not in _NOT_GIVEN and value.lower() not in ("nan", "none")


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
        raise UserError(f"{path}, row {number} has no image in base64; download it again") from None


def judge(sample: Sample, answer: str) -> tuple[str, float]:
    """The option that an answer names by letter or by its text, "" where it is not clear."""
    choices = sample.extra["choices"]
    parsed = infer_letter(answer, len(choices)) or infer_choice(answer, choices)
    return parsed, float(parsed == sample.truth)


def _judge_2026(sample: Sample, answer: str) -> tuple[str, float]:
    """VLMEvalKit's rules of 2026: the letter must be among the last four words or follow "answer is", and the
    text of a choice counts in short answers only."""
    choices = sample.extra["choices"]
    parsed = infer_letter(answer, len(choices), last=4)
    told = _TOLD.search(answer)
    if not parsed and told and told[1].upper() in letters(len(choices)) and _FAILED not in answer:
        parsed = told[1].upper()
    if not parsed and len(answer.lower()) <= 2 * sum(map(len, choices)):
        parsed = infer_choice(answer, choices)
    return parsed, float(parsed == sample.truth)


def _judge_lmms_eval(sample: Sample, answer: str) -> tuple[str, float]:
    """lmms-eval's rule: the one letter A to E that stands alone among the words, or with one kind of mark
    around it; a lone A among more than three words may be an article and does not count."""
    words, parsed = answer.split() if _FAILED not in answer else [], ""
    for form in _FORMS:
        named = [letter for letter in letters(5) if form.format(letter) in words]
        if len(named) == 1 and not (form == "{}" and "A" in words and len(words) > 3):
            parsed = named[0]
            break
    parsed = parsed or infer_choice(answer, sample.extra["choices"])
    return parsed, float(parsed == sample.truth)


def infer_letter(answer: str, count: int, last: int | None = None) -> str:
    """The one letter of `count` choices that is a word of the answer, marks apart; Z for a refusal.

    Args:
      answer: what was said.
      count: of choices.
      last: words at the answer's end among which it must come first; None for all.
    """
    if _FAILED in answer:
        return ""
    if any(refusal in answer for refusal in _REFUSALS):
        return _NO_ANSWER
    words = answer.translate(_MARKS).split()
    named = [letter for letter in letters(count) if letter in words]
    if len(named) == 1:
        far = last is not None and words.index(named[0]) < len(words) - last
        return "" if far else named[0]
    return _NO_ANSWER if not named and _NO_ANSWER in words else ""


def infer_choice(answer: str, choices: Sequence[str]) -> str:
    """The letter of the one choice whose text occurs in the answer, case apart."""
    within = [
        letter
        for letter, choice in zip(letters(len(choices)), choices, strict=True)
        if choice.lower() in answer.lower()
    ]
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


def metrics(totals: Totals) -> Totals:
    """CircularEval and VanillaEval accuracy in %, and the former by category.

    Liu et al. 2023, "MMBench: Is Your Multi-modal Model an All-around Player?", section 4: a question
    counts if every rotation of its choices is answered right. The official evaluation asks ChatGPT
    about answers in which its rules find no option; here these are wrong, so that a score is a lower
    bound. With a model that answers by letter the two agree.
    """
    found = {
        "circular": 100 * ratio(totals["right"], totals["questions"]),
        "vanilla": 100 * ratio(totals["printed"], totals["rows"]),
    }
    for name in totals:
        if name.startswith("questions/"):
            kind = name.removeprefix("questions/")
            found[f"circular/{kind}"] = 100 * ratio(totals[f"right/{kind}"], totals[name])
    return found


def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """mmbench_upload.xlsx for the server: the table without images, the prediction as 7th column."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    for number, one in enumerate(judged):
        row = {**one.sample.extra["row"], "index": one.sample.id}
        if not number:
            names = list(row)
            sheet.append([*names[:6], "prediction", *names[6:]])
        values = list(row.values())
        sheet.append([*values[:6], _NOT_IN_SHEETS.sub("", one.answer), *values[6:]])
    aside = folder / ".mmbench_upload.xlsx"
    book.save(aside)
    os.replace(aside, folder / "mmbench_upload.xlsx")


_SCORERS = (
    Scorer(
        "vlmevalkit",
        "vlmeval/utils/matching_util.py of github.com/open-compass/VLMEvalKit at commit "
        "c026693, as it was from 2024-02 to 2025-07, when table 1 was made",
        judge,
        _NO_ANSWER,
    ),
    Scorer("vlmevalkit_2026", "the same file at commit e8e78f0 (2026-08)", _judge_2026, _NO_ANSWER),
    Scorer("lmms_eval", f"tasks/mmbench/mmbench_evals.py of {LMMS_EVAL}", _judge_lmms_eval),
)


def _task(name: str, file: str, form: str, about: str, column: str) -> Task:
    return Task(
        name,
        about,
        (File(f"mmbench/{file}.tsv", f"{_SITE}/{file}.tsv"),),
        loader(file, form),
        _SCORERS,
        unit,
        tally,
        metrics,
        headline="circular",
        column=column,
        write=write,
        max_new_tokens=1024,
    )


MMBENCH = _task("mmbench", "mmbench_dev_20230712", LETTER, "MMBench dev, with rotations", "MMB")
MMBENCH_CN = _task("mmbench_cn", "mmbench_dev_cn_20231003", LETTER_CN, "MMBench-CN dev, with rotations", "")
