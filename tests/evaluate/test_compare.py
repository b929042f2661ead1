"""Comparisons of answers: tests and intervals against their definitions, folders that do not fit."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import Answer
from quecc_jax.evaluate.comparison.compare import compare
from quecc_jax.evaluate.comparison.paired import clusters, discordant, estimate, holm, means, two_sided_p
from quecc_jax.evaluate.kept_answers import check_settings, write_answers
from quecc_jax.evaluate.score import write_scored
from quecc_jax.evaluate.task_answers import summary
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import Judged, Sample
from quecc_jax.records import write_record

SETTINGS: dict[str, str | int] = {
    "max_new_tokens": 8,
    "template": "v1",
    "dtype": "float32",
    "image_aspect": "pad",
    "image_decoding": "upright",
    "query": "question",
    "query_length": 32,
}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_a_coin_thrown_once_for_each_question_that_one_alone_answers(pairs):
    first, other = np.array(pairs, float).T
    found = discordant(first, other)
    assert found is not None
    mine, theirs = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    assert (found.first_alone, found.other_alone) == (mine, theirs)
    n = mine + theirs
    tail = sum(math.comb(n, k) for k in range(min(mine, theirs) + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_says_nothing_of_partial_scores():
    assert discordant(np.array([0.3, 1.0]), np.array([0.0, 1.0])) is None


def test_holm_corrects_as_its_paper_does():
    # Holm 1979: the k-th smallest of n times n - k + 1, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_questions_about_one_image_stand_together_and_those_of_unknown_ones_alone():
    assert clusters(["a", "", "b", "a", ""]).tolist() == [0, 1, 2, 0, 3]


def test_the_error_is_that_of_images_and_not_of_questions():
    """Every image's four questions are answered alike, so that there are 50 facts, not 200."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(50) < 0.4, 4)[None].astype(float)
    found = means(right, np.repeat(np.arange(50), 4), 4000, [0])
    p = right.mean()
    assert estimate(p, found.replicates[:, 0]).error == pytest.approx(math.sqrt(p * (1 - p) / 50), rel=0.05)


def test_intervals_cover_the_true_difference_and_equal_models_are_rarely_called_different():
    rng, covered, called, runs = np.random.default_rng(1), 0, 0, 300
    groups = np.repeat(np.arange(60), 3)
    for run in range(runs):
        image = rng.normal(size=60)[groups]
        both = [(image + rng.normal(size=180) + shift > 0).astype(float) for shift in (0.0, 0.0)]
        found = means(np.stack(both), groups, 400, [run])
        moved = found.replicates[:, 1] - found.replicates[:, 0]
        one = estimate(found.values[1] - found.values[0], moved)
        covered += one.low <= 0 <= one.high
        called += two_sided_p(moved) < 0.05
    # 95 % less three binomial errors; percentiles of few images are a little short.
    assert covered / runs > 0.91 and called / runs < 0.09


def test_parts_of_the_questions_are_drawn_with_the_same_images():
    scores, groups = np.array([[1.0, 0, 1, 0, 1, 1]]), np.array([0, 0, 1, 1, 2, 2])
    half = np.array([True, False] * 3)
    whole = means(scores, groups, 50, [3])
    parts = [means(scores, groups, 50, [3], chosen) for chosen in (half, ~half)]
    # Every image has one question of each part, so the whole is the mean of both in every replicate.
    np.testing.assert_allclose(whole.replicates, (parts[0].replicates + parts[1].replicates) / 2)
    assert [part.questions for part in parts] == [3, 3]


def samples(count: int = 12) -> list[Sample]:
    """Questions in two kinds, two about each image."""
    return [
        Sample(
            number,
            (f"{number // 2}.jpg",),
            f"what is {number}?",
            "red",
            {"kinds": ["even", "odd"][number % 2 :][:1]},
        )
        for number in range(count)
    ]


def benchmark(
    folder: Path, right: set[int], v: int = 1, task: str = "gqa", asked: list[Sample] | None = None
) -> Path:
    """What launch.evaluate leaves of a model that answers these questions rightly."""
    chosen = TASKS[task]
    asked = samples() if asked is None else asked
    settings = {"task": task, "model": folder.name, "visual_tokens": v, **SETTINGS}
    judged = [
        Judged(one, answer, *chosen.judge(one, answer))
        for one in asked
        for answer in ("red" if one.id in right else "blue",)
    ]
    (folder / task).mkdir(parents=True)
    check_settings(folder / task, settings)
    lines = [
        {
            "id": one.sample.id,
            "images": list(one.sample.images),
            "kinds": one.sample.extra["kinds"],
            "question": one.sample.prompt,
            "answer": one.answer,
            "truth": one.sample.truth,
            "score": one.score,
        }
        for one in judged
    ]
    write_answers(folder / task, lines, settings)  # type: ignore[arg-type]
    path = folder / "results.json"
    told = json.loads(path.read_text())["tasks"] if path.exists() else {}
    told[task] = {**summary(chosen, judged, 50), "cut_questions": 0, "seconds": 1.0, "reuse": {}}
    results = {
        "model": folder.name,
        "checkpoint": "x",
        "visual_tokens": v,
        "weights": "run",
        "image_decoding": "upright",
    }
    write_record(path, {**results, "limit": None, "resamples": 50, "seed": 0, "tasks": told})
    return folder


def test_what_is_told_of_a_benchmark(tmp_path):
    full = benchmark(tmp_path / "full", set(range(10)), 576)
    a = benchmark(tmp_path / "a", {0, 1, 2, 3, 4, 5}, 4)
    b = benchmark(tmp_path / "b", {0, 1, 2, 3, 6, 7, 8, 9}, 1)
    tiny, small = benchmark(tmp_path / "tiny", {0, 1}, 1), benchmark(tmp_path / "small", {1, 2, 3, 4, 5}, 16)
    record = compare([a, b], full, [small, tiny], 400)
    found = record["tasks"]["gqa"]
    assert (found["questions"], found["images"], record["first"]) == (12, 6, "a")
    assert found["scores"]["a"]["value"] == pytest.approx(50)
    assert found["headlines"]["b"] == "accuracy 66.7"
    (one,) = found["against"]
    assert one["model"] == "b" and one["difference"]["value"] == pytest.approx(100 / 6)
    assert (one["first_alone"], one["model_alone"]) == (2, 4)
    assert one["mcnemar_p"] == pytest.approx(2 * (1 + 6 + 15) / 64) == one["mcnemar_p_corrected"]
    assert found["retention"]["b"]["value"] == pytest.approx(80) and "full" not in found["retention"]
    fine = [(part["name"], part["questions"], part["scores"]["b"]["value"]) for part in found["fineness"]]
    assert fine == [
        ("a shrunk image of 1 token answers", 2, 100.0),
        ("a shrunk image of 16 tokens answers", 4, 50.0),
        ("no shrunk image answers", 6, pytest.approx(100 * 4 / 6)),
    ]
    kinds = {part["name"]: part["differences"]["b"]["value"] for part in found["kinds"]}
    assert kinds == {"even": pytest.approx(100 / 6), "odd": pytest.approx(100 / 6)}
    assert found["turns"] == [] and record["notes"] == []


def test_equal_answers_differ_by_nothing(tmp_path):
    a, b = (benchmark(tmp_path / name, {0, 3}) for name in "ab")
    (one,) = compare([a, b])["tasks"]["gqa"]["against"]
    assert one["difference"] == {"value": 0.0, "standard_error": 0.0, "low": 0.0, "high": 0.0}
    assert one["p"] == one["mcnemar_p"] == 1.0


def test_p_values_are_corrected_over_benchmarks_and_models(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for number, folder in enumerate(folders):
        for task in ("gqa", "chartqa"):
            benchmark(folder, set(range(4 + 2 * number)), task=task)
    record = compare(folders)
    against = [one for task in record["tasks"].values() for one in task["against"]]
    assert len(against) == 4
    assert [one["p_corrected"] for one in against] == pytest.approx(holm([one["p"] for one in against]))
    assert [one["mcnemar_p_corrected"] for one in against] == pytest.approx(
        holm([one["mcnemar_p"] for one in against])
    )
    overall = record["overall"]
    assert [one["difference"]["value"] for one in overall] == pytest.approx([100 / 6, 100 / 3])


def rows(folder: Path, right: set[int], turns: int = 2, query: str = "own") -> Path:
    """What launch.evaluate leaves of a data set of conversations."""
    said = [
        {"from": speaker, "value": value}
        for turn in range(turns)
        for speaker, value in (("human", f"what is {turn}?"), ("gpt", "red"))
    ]
    answers = [
        Answer(
            {"id": row, "kind": "mosaic/cell", "image": row, "conversations": said},
            "red" if row * turns + turn in right else "blue",
            turn=turn + 1,
        )
        for row in range(6)
        for turn in range(turns)
    ]
    write_scored(folder, answers, {"checkpoint": "x", "data": "d.json", "visual_tokens": 1, "query": query})
    return folder


def test_turns_of_a_data_set_are_told_apart(tmp_path):
    a, b = rows(tmp_path / "a", set(range(12))), rows(tmp_path / "b", set(range(0, 12, 2)))
    found = compare([a, b])["tasks"]["mosaic"]
    assert found["images"] == 6 and found["kinds"] == []
    turns = {part["name"]: part["differences"]["b"]["value"] for part in found["turns"]}
    assert turns == {"turn 1": 0.0, "turn 2": -100.0}


def changed(folder: Path, **changes: Any) -> Path:
    """The folder with another value in its first answers."""
    asked = [one._replace(**changes) if one.id in (0, 1) else one for one in samples()]
    return benchmark(folder, {0}, asked=asked)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda f: changed(f, prompt="what else?"),
            r"a and b answer other questions of gqa: question 1 is 0 'what is 0",
        ),
        (
            lambda f: changed(f, truth="blue"),
            "a and b hold other truths of gqa: question 1 .0. is answered by 'red' in",
        ),
        (
            lambda f: benchmark(f, {0}, asked=samples(10)),
            "a answers 12 questions of gqa and b 10; evaluate both on",
        ),
        (
            lambda f: benchmark(f, {0}, task="chartqa"),
            r"no scored benchmark is answered by all of them \(a: gqa; b: c",
        ),
        (lambda f: rows(f, {0}), r"no scored benchmark is answered by all .*b: mosaic"),
        (lambda f: f, "b has no results.json; name a folder that launch.evaluate has written to its end"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, other, message):
    a = benchmark(tmp_path / "a", {0, 3})
    with pytest.raises(UserError, match=message) as caught:
        compare([a, other(tmp_path / "b")])
    assert "\n" not in str(caught.value)


def test_damaged_and_unfinished_answers_are_refused(tmp_path):
    a, b = (benchmark(tmp_path / name, {0, 3}) for name in "ab")
    path = b / "gqa/answers.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"red"', '"rad"', 1))
    with pytest.raises(UserError, match=r"answers\.jsonl, line 1 is damaged"):
        compare([a, b])
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="does not hold all answers of 12 questions"):
        compare([a, b])
    path.write_text(whole)
    assert compare([a, b])["first"] == "a"
    lines = rows(tmp_path / "c", {0}) / "answers.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="holds 11 answers of 12"):
        compare([a, tmp_path / "c"])


def test_answers_of_a_version_without_a_choice_of_decoding_are_compared(tmp_path):
    a, b = (benchmark(tmp_path / name, {0, 3}) for name in "ab")
    settings = json.loads((b / "gqa/settings.json").read_text())
    del settings["image_decoding"], settings["crc32"]
    (b / "gqa/settings.json").write_text(json.dumps(settings))
    assert compare([a, b])["notes"] == []


def test_one_folder_and_the_same_one_twice_are_refused(tmp_path):
    a = benchmark(tmp_path / "a", {0})
    with pytest.raises(UserError, match="a alone is nothing to compare with"):
        compare([a])
    with pytest.raises(UserError, match="is named twice"):
        compare([a, tmp_path / "x/../a"])


def test_what_has_no_scores_or_other_settings_is_said(tmp_path):
    a, b = (benchmark(tmp_path / name, {0, 3}) for name in "ab")
    benchmark(a, {0}, task="chartqa")
    path = b / "gqa"
    answers = [json.loads(line) for line in (path / "answers.jsonl").read_text().splitlines()]
    settings = {"task": "gqa", "model": "b", "visual_tokens": 1, **SETTINGS, "template": "plain"}
    write_record(path / "settings.json", settings)
    write_answers(path, answers, settings)
    assert compare([a, b])["notes"] == [
        "a alone, or not all others, answered chartqa; left out.",
        "gqa was asked with other settings of template (a: v1, b: plain).",
    ]


def test_folders_of_one_name_are_told_apart_by_those_above(tmp_path):
    a, b = (benchmark(tmp_path / name / "eval", {0}) for name in "ab")
    assert [model["name"] for model in compare([a, b])["models"]] == ["a/eval", "b/eval"]


def test_the_command_prints_tables_and_writes_a_page(tmp_path, capsys):
    a, b, full = (
        benchmark(tmp_path / name, set(range(count))) for name, count in (("a", 4), ("b", 8), ("full", 10))
    )
    out = tmp_path / "out"
    execute(
        "compare", [str(a), str(b), "--uncompressed", str(full), "--downsample", str(a), "--out", str(out)]
    )
    said = capsys.readouterr().out
    assert "points against a" in said and "score, % of full" in said and str(out / "compare.html") in said
    page = (out / "compare.html").read_text()
    for text in (
        "Against a",
        "What each keeps",
        "By what a shrunk image tells",
        "By kind of question",
        "+33.3",
    ):
        assert text in page
    assert json.loads((out / "compare.json").read_text())["tasks"]["gqa"]["questions"] == 12
    with pytest.raises(UserError, match="--resamples is 5; give at least 100"):
        execute("compare", [str(a), str(b), "--resamples", "5"])
    with pytest.raises(UserError):
        execute("compare", [])
