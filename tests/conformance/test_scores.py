"""Score tables of other programs, and plans for other compressors.

Expected are the numbers that were written, and what MQT-LLaVA's README offers: 2 to 256 visual tokens of one
set of weights. The lmms-eval file is a stand-in of what its 0.7.3 writes (evaluator.py,
evaluation_tracker.py).
"""

import csv
import io
import json

import pytest

from scaling.cost import find_llm, model_config
from scaling.scores import read_scores

SIZES, COUNTS = [0.5, 7.0], [4.0, 36.0]
SCORE = [[0.31, 0.38], [0.6, 0.65]]


def spreadsheet(dialect: str, percent: bool = False) -> str:
    """As Python's csv module writes it for that program."""
    file = io.StringIO()
    writer = csv.writer(file, dialect=dialect)
    writer.writerow(["params_b", 4, 36])
    for n, row in zip(SIZES, SCORE, strict=True):
        writer.writerow([n, *(f"{100 * x:.1f}%" if percent else x for x in row)])
    return file.getvalue()


TIDY = "params_b,visual_tokens,score\n" + "".join(
    f"{n},{v},{x}\n" for n, row in zip(SIZES, SCORE, strict=True) for v, x in zip(COUNTS, row, strict=True)
)
FILES = {
    "Excel .csv": ("a.csv", "\ufeff" + spreadsheet("excel")),
    "Excel .tsv": ("a.tsv", spreadsheet("excel-tab")),
    "percent signs": ("a.csv", spreadsheet("unix", percent=True)),
    "tidy .csv": ("a.csv", TIDY),
    "tidy .tsv": ("a.tsv", TIDY.replace(",", "\t")),
    "semicolons": ("a.csv", TIDY.replace(",", ";")),
}


@pytest.mark.parametrize("case", FILES)
def test_tables(conforms, tmp_path, case):
    name, text = FILES[case]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    table = read_scores(tmp_path / name)
    conforms("scores", case, SCORE, table.score.round(6).tolist())


def test_lmms_eval(conforms, tmp_path):
    sources = []
    for n, row in zip(SIZES, SCORE, strict=True):
        for v, score in zip(COUNTS, row, strict=True):
            told = {
                "results": {
                    "gqa": {
                        "alias": "gqa",
                        "exact_match,none": score,
                        "samples": 3,
                        "exact_match_stderr,none": 0.01,
                    }
                },
                "higher_is_better": {"gqa": {"exact_match": True}},
                "config": {"model": "quecc_jax", "model_args": f"checkpoint=runs/a,visual_tokens={v:g}"},
                "lmms_eval_version": "0.7.3",
            }
            path = tmp_path / f"{n}-{v}" / "a" / "2026-01-01T01-01-01_results.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(told))
            sources.append(f"{tmp_path}/{n}-{v}@{n:g}B")
    conforms("scores", "lmms-eval 0.7.3", SCORE, read_scores(*sources).score.tolist())


@pytest.mark.parametrize(
    "name, counts",
    [
        ("mqt", [2, 4, 8, 16, 36, 64, 144, 256]),
        ("m3", [1, 9, 36, 144, 576]),
        ("prumerge", [1, 40, 300]),
        ("quecc", [1, 4, 16, 36]),
    ],
)
def test_plans_take_what_a_compressor_makes(conforms, name, counts):
    made = [model_config(find_llm("7"), count, compressor=name).visual_tokens for count in counts]
    conforms("plan", f"{name}'s token counts", counts, made)
