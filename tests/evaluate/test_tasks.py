"""Every benchmark on a stand-in: questions, hand-computed metrics, and the files that it sends."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quecc_jax.data.images import open_image
from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import evaluate
from quecc_jax.evaluate.task_answers import summary
from quecc_jax.evaluate.tasks import TASKS, chosen
from quecc_jax.evaluate.tasks.base import LETTER, SHORT, Judged, Sample, limited, llava_answers, missing_files
from quecc_jax.evaluate.tasks.mathvista import extract, query
from quecc_jax.evaluate.tasks.mmbench import LETTER_CN, infer_choice, infer_letter
from quecc_jax.evaluate.tasks.mmmu import parse_choice, parse_open
from tests.evaluate.standins import STANDINS, png


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for maker in STANDINS.values():
        maker(root)
    return root


def judged(name: str, data: Path, answers: list[str]) -> list[Judged]:
    """The benchmark's questions, in order, with these answers."""
    samples = TASKS[name].load(data)
    return [
        Judged(sample, answer, *TASKS[name].judge(sample, answer))
        for sample, answer in zip(samples, answers, strict=True)
    ]


def values(name: str, data: Path, answers: list[str]) -> dict[str, float]:
    """Metrics without their errors."""
    task = TASKS[name]
    tallies = [task.tally(unit) for unit in task.units(judged(name, data, answers))]
    return {key: value for key, (value, _) in evaluate(tallies, task.metrics, resamples=3).items()}


def written(name: str, data: Path, answers: list[str], folder: Path) -> Any:
    """What the benchmark's server gets: the one JSON file written."""
    TASKS[name].write(folder, judged(name, data, answers), data)
    (path,) = folder.glob("*.json*")
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(path.read_text())


def test_every_benchmark_has_a_stand_in_and_says_where_its_files_are():
    assert set(STANDINS) == set(TASKS)
    assert all(file.source and not file.path.startswith("/") for t in TASKS.values() for file in t.files)


@pytest.mark.parametrize("name", TASKS)
def test_questions_have_unique_ids_and_images_that_exist(name, data):
    samples = TASKS[name].load(data)
    assert not missing_files([TASKS[name]], data)
    assert len({sample.id for sample in samples}) == len(samples) > 0
    for sample in samples:
        json.dumps([sample.id, sample.prompt, sample.truth, sample.extra])
        assert sample.prompt and "<image>" not in sample.prompt
        assert sample.images or name == "scienceqa"
        for image in sample.images:
            assert isinstance(image, bytes) or Path(image).is_file()


@pytest.mark.parametrize("name", TASKS)
def test_files_with_byte_order_marks_and_windows_line_ends_are_the_same_benchmark(name, data, tmp_path):
    STANDINS[name](tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".txt", ".tsv", ".csv"):
            text = path.read_text(encoding="utf-8")
            text = text if path.suffix == ".tsv" else text.replace("\n", "\r\n") + "\r\n"
            path.write_text(text, encoding="utf-8-sig", newline="")
    found, wanted = (TASKS[name].load(root) for root in (tmp_path, data))
    assert [(s.id, s.prompt, s.truth) for s in found] == [(s.id, s.prompt, s.truth) for s in wanted]


def test_a_line_ends_at_no_separator_of_unicode(tmp_path):
    """Such characters may stand in JSON and in text."""
    for name in ("pope", "mme"):
        STANDINS[name](tmp_path)
    path = tmp_path / "pope/coco/coco_pope_popular.json"
    first, _, rest = path.read_text().partition("\n")
    path.write_text(f'{{"note": "one\u2028two\x85three", {first[1:]}\n{rest}', encoding="utf-8")
    assert len(TASKS["pope"].load(tmp_path)) == 12
    wanted = [sample.truth for sample in TASKS["mme"].load(tmp_path)]
    for path in (tmp_path / "MME").rglob("*.txt"):
        others = [line.replace("\t", "\tnot ") for line in path.read_text().splitlines()]
        path.write_text(path.read_text() + "".join(f"and\u2028{line}\n" for line in others), encoding="utf-8")
    assert [sample.truth for sample in TASKS["mme"].load(tmp_path)] == wanted


def test_missing_files_are_named_once(tmp_path):
    STANDINS["gqa"](tmp_path)
    (tmp_path / "gqa/llava_gqa_testdev_balanced.jsonl").unlink()
    missing = missing_files([TASKS["gqa"], TASKS["gqa"], TASKS["mmbench"]], tmp_path)
    assert [file.path for file in missing] == [
        "gqa/llava_gqa_testdev_balanced.jsonl",
        "mmbench/mmbench_dev_20230712.tsv",
    ]


def test_names_of_benchmarks():
    assert [task.name for task in chosen("pope, gqa,pope")] == ["pope", "gqa"]
    with pytest.raises(UserError, match=r"popr is not a benchmark; did you mean pope\?"):
        chosen("popr")
    with pytest.raises(UserError, match="no benchmark is named"):
        chosen(",")


def test_a_limit_takes_whole_units_spread_over_the_benchmark(data):
    task = TASKS["mme"]
    samples = task.load(data)
    kept = limited(task, samples, 4)
    assert len(samples) == 6 and [sample.id for sample in kept] == [
        "code_reasoning/0020#1",
        "code_reasoning/0020#2",
        "color/000000338560#1",
        "color/000000338560#2",
    ]
    # One and a half of three pairs are two.
    assert len(limited(task, samples, 3)) == 4
    assert limited(task, samples, 1) == samples[:2] and limited(task, samples, None) == samples
    assert len(limited(TASKS["pope"], TASKS["pope"].load(data), 3)) == 3


def test_pope_by_hand(data):
    samples = TASKS["pope"].load(data)
    assert [sample.extra["split"] for sample in samples[::4]] == ["random", "popular", "adversarial"]
    assert samples[0].prompt == f"Is there a snowboard in the image?\n{SHORT}"
    # random: all right; popular: always yes; adversarial: always no. Labels are yes yes no no.
    found = values("pope", data, ["Yes", "yes", "No", "no", *["Yes"] * 4, *["No, none."] * 4])
    assert found["accuracy/random"] == 100 and found["f1/random"] == 100
    assert (found["precision/popular"], found["recall/popular"]) == (50, 100)
    assert found["f1/popular"] == pytest.approx(200 / 3) and found["yes/popular"] == 100
    assert (found["precision/adversarial"], found["f1/adversarial"]) == (0, 0)
    assert found["accuracy/adversarial"] == 50
    assert found["f1"] == pytest.approx((100 + 200 / 3) / 3)


def test_pope_refuses_labels_of_other_questions(tmp_path):
    STANDINS["pope"](tmp_path)
    path = tmp_path / "pope/coco/coco_pope_popular.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]))
    with pytest.raises(UserError, match=r"popular\.json, line 1 is about another image"):
        TASKS["pope"].load(tmp_path)
    path.write_text("\n".join(lines[:3]))
    with pytest.raises(UserError, match=r"has 3 questions but llava_pope_test\.jsonl has 4"):
        TASKS["pope"].load(tmp_path)


def test_gqa_by_hand(data, tmp_path):
    answers = ["Chair.", "no", "Small"]
    found = values("gqa", data, answers)
    assert found == {"accuracy": pytest.approx(200 / 3), "accuracy/open": 50, "accuracy/binary": 100}
    assert written("gqa", data, answers, tmp_path)[0] == {"questionId": "201883195", "prediction": "chair"}


def test_vqav2_is_scored_on_val_and_sent_whole_for_test(data, tmp_path):
    samples = TASKS["vqav2_val"].load(data)
    assert str(samples[0].images[0]).endswith("val2014/COCO_val2014_000000000007.jpg")
    assert samples[0].prompt == f"What color?\n{SHORT}"
    found = values("vqav2_val", data, ["red", "two"])
    assert found == {
        k: pytest.approx(v) for k, v in {"accuracy": 80, "accuracy/other": 60, "accuracy/number": 100}.items()
    }
    assert written("vqav2", data, ["A dog.", "two"], tmp_path) == [
        {"question_id": 1, "answer": "dog"},
        {"question_id": 2, "answer": "2"},
        {"question_id": 3, "answer": ""},
    ]
    assert values("vqav2", data, ["a", "b"]) == {}


def test_vizwiz_knows_unanswerable(data, tmp_path):
    samples = TASKS["vizwiz_val"].load(data)
    assert samples[0].prompt == (
        f"What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    )
    found = values("vizwiz_val", data, ["Unanswerable", "Unanswerable"])
    # Nine of ten agree: at least eight others always do.
    assert found == {"accuracy": 50, "accuracy/other": 0, "accuracy/unanswerable": 100}
    assert written("vizwiz", data, ["The can"], tmp_path) == [
        {"image": "VizWiz_test_00000001.jpg", "answer": "can"}
    ]


def test_textvqa_finds_the_truth_by_image_and_question(data):
    samples = TASKS["textvqa"].load(data)
    assert [sample.id for sample in samples] == ["01b3265b22d23b50/1", "07788c82bbbd1887/2"]
    assert "Reference OCR token" in samples[0].prompt
    assert values("textvqa", data, ["1:26.", "8"]) == {"accuracy": 50}
    assert [a["question_id"] for a in llava_answers(judged("textvqa", data, ["a", "b"]), "m")] == [
        "01b3265b22d23b50",
        "07788c82bbbd1887",
    ]


def test_scienceqa_by_hand(data, tmp_path):
    answers = ["A", "B. a poem"]
    assert values("scienceqa", data, answers) == {"accuracy": 50, "accuracy/image": 100, "accuracy/text": 0}
    assert values("scienceqa", data, ["E", "C"])["accuracy"] == 0  # Letters of choices that are not there.
    sent = written("scienceqa", data, answers, tmp_path)
    assert sent["results"] == {"445": 0, "1044": 1} and sent["acc"] == 50
    assert written("scienceqa", data, ["E", "none"], tmp_path)["results"] == {"445": -1, "1044": -1}
    records = llava_answers(judged("scienceqa", data, answers), "model")
    assert [record["prompt"].startswith("<image>\n") for record in records] == [True, False]


def test_scienceqa_counts_what_it_could_not_read(data):
    found = summary(TASKS["scienceqa"], judged("scienceqa", data, ["A", "It is a poem"]), resamples=3)
    assert found["unread"] == 1 and found["scorer"]["name"] == "llava"
    assert "eval_science_qa.py" in found["scorer"]["follows"] and found["scorer"]["others"] == ["lmms_eval"]


@pytest.mark.parametrize(
    "answer, ours, lmms_eval",
    [
        ("A", "A", "A"),
        ("A. a poem", "A", "A"),
        ("A poem", "FAILED", "FAILED"),
        ("x. A", "FAILED", "FAILED"),
        ("F. none", "FAILED", "F"),
        ("a. a poem", "FAILED", "FAILED"),
        ("Ax", "FAILED", "FAILED"),
        ("The answer is B.", "B", "FAILED"),
        ("The answer is B. The answer is C.", "FAILED", "FAILED"),
    ],
)
def test_scienceqa_reads_a_letter_by_either_rule(data, answer, ours, lmms_eval):
    sample = TASKS["scienceqa"].load(data)[0]
    (other,) = chosen("scienceqa", "scienceqa=lmms_eval")
    assert TASKS["scienceqa"].judge(sample, answer)[0] == ours
    assert other.judge(sample, answer)[0] == lmms_eval


def test_scienceqa_numbers_its_records_from_one(tmp_path):
    STANDINS["scienceqa"](tmp_path)
    (tmp_path / "scienceqa/pid_splits.json").write_text('{"test": []}')
    with pytest.raises(UserError, match="record 1: problem"):
        TASKS["scienceqa"].load(tmp_path)


@pytest.mark.parametrize(
    "answer, letter", [("B", "B"), ("so (C).", "C"), ("F", ""), ("A b c d", ""), ("A b c", "A"), ("A B", "")]
)
def test_mmbench_by_lmms_eval_s_rule_takes_one_letter_of_five_alone(data, answer, letter):
    (task,) = chosen("mmbench", "mmbench=lmms_eval")
    assert task.judge(task.load(data)[0], answer)[0] == letter


@pytest.mark.parametrize("answer, letter", [("b", "B"), ("B. cat", "B"), ("(c)", "C"), ("a cat", "")])
def test_ai2d_says_which_letter_it_read(data, answer, letter):
    assert TASKS["ai2d"].judge(TASKS["ai2d"].load(data)[0], answer)[0] == letter


def test_another_scorer_is_named_and_used(data):
    (task,) = chosen("scienceqa", "scienceqa=lmms_eval")
    sample = task.load(data)[1]
    assert task.judge(sample, "a") == ("A", 1) and TASKS["scienceqa"].judge(sample, "a") == ("FAILED", 0)
    assert task.scorer.name == "lmms_eval" and [s.name for s in task.scorers[1:]] == ["llava"]
    assert [t.scorer.name for t in chosen("mme,mmmu", "mmmu=lmms_eval")] == ["mme", "lmms_eval"]


@pytest.mark.parametrize(
    "scorers, message",
    [
        ("mme=official", "mme has no scorer official; choose from mme, lmms_eval"),
        (
            "gqa=llava",
            r"gqa=llava is not TASK=SCORER, once, for one of the benchmarks mme, mmmu; write for "
            "example mme=mme",
        ),
        ("lmms_eval", "is not TASK=SCORER"),
        ("mme=mme,mme=lmms_eval", "once"),
    ],
)
def test_scorers_that_are_none(scorers, message):
    with pytest.raises(UserError, match=message):
        chosen("mme,mmmu", scorers)


def test_mme_adds_accuracy_and_accuracy_plus(data, tmp_path):
    assert values("mme", data, ["no", "No", "Yes", "No", "Yes", "Yes"]) == {
        "perception": pytest.approx(75 + 50),
        "perception/color": pytest.approx(125),
        "cognition": pytest.approx(50),
        "cognition/code_reasoning": pytest.approx(50),
    }
    TASKS["mme"].write(tmp_path, judged("mme", data, ["Yes"] * 6), data)
    first = (tmp_path / "results/color.txt").read_text().splitlines()[0]
    assert first == (
        "000000338560.jpg\tIs there a blue and yellow fire hydrant in the image? Please answer "
        "yes or no.\tYes\tYes"
    )


@pytest.mark.parametrize(
    "answer, parsed",
    [
        ("Yes.", "yes"),
        ("n", "other"),
        ("y", "other"),
        ("x", "other"),
        ("", "other"),
        ("It is no", "other"),
        ("Noon", "no"),
        ("Yes, no", "yes"),
        (" yes", "yes"),
        ("  yes", "other"),
        ("y.es", "other"),
    ],
)
def test_mme_reads_yes_or_no_in_four_letters(data, answer, parsed):
    sample = TASKS["mme"].load(data)[0]
    assert TASKS["mme"].judge(sample, answer) == (parsed, float(parsed == "yes"))


def test_mme_refuses_an_image_with_one_question(tmp_path):
    STANDINS["mme"](tmp_path)
    path = tmp_path / "MME/llava_mme.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:5]))
    with pytest.raises(UserError, match="asks 1 questions about color/000000047112"):
        TASKS["mme"].load(tmp_path)


def test_mmbench_counts_a_question_only_if_all_rotations_are_right(data, tmp_path):
    samples = TASKS["mmbench"].load(data)
    assert [sample.images for sample in samples] == [(png(1),)] * 3
    assert samples[0].prompt == (
        "This diagram shows the life cycle of an apple tree.\nWhich part of an apple tree might grow into a "
        f"new tree?\nA. a seed\nB. a leaf\n{LETTER}"
    )
    assert TASKS["mmbench_cn"].load(data)[1].prompt.endswith(f"\nC. flexible\n{LETTER_CN}")
    half = {"circular": 50, "vanilla": 100, "circular/color": 50}
    assert values("mmbench", data, ["A", "B", "A"]) == half  # The rotation is wrong.
    assert values("mmbench", data, ["A", "smooth", "B. a seed"])["circular"] == 100
    assert values("mmbench", data, ["B", "(B)", "B"]) == {"circular": 50, "vanilla": 50, "circular/color": 50}
    record = llava_answers(judged("mmbench", data, ["A", "B", "C"]), "m")[1]
    assert record["options"] == ["blue", "smooth", "flexible"] and record["option_char"] == ["A", "B", "C"]


def test_mmbench_takes_the_fields_for_missing_that_pandas_does(tmp_path):
    STANDINS["mmbench"](tmp_path)
    path = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("Select the best answer.", "nan").replace("flexible", "N/A"))
    sample = TASKS["mmbench"].load(tmp_path)[1]
    assert sample.prompt == (
        f"Which property do these three objects have in common?\nA. blue\nB. smooth\n{LETTER}"
    )


def test_mmbench_sends_a_spreadsheet(data, tmp_path):
    from openpyxl import load_workbook

    TASKS["mmbench"].write(tmp_path, judged("mmbench", data, ["A", "B", "C"]), data)
    rows = list(load_workbook(tmp_path / "mmbench_upload.xlsx").active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1][:3] == (267, "Which part of an apple tree might grow into a new tree?", "a seed")
    assert [row[6] for row in rows[1:]] == ["A", "B", "C"]
    assert [path.name for path in tmp_path.iterdir()] == ["mmbench_upload.xlsx"]
    # What a spreadsheet cannot hold.
    TASKS["mmbench"].write(tmp_path, judged("mmbench", data, ["A\x00\x08\x0b\x1f", "\tB\n", "C"]), data)
    rows = list(load_workbook(tmp_path / "mmbench_upload.xlsx").active.values)
    assert [row[6] for row in rows[1:]] == ["A", "\tB\n", "C"]


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("A cat sits there", "A"),
        ("A or B", ""),
        ("Option A: it is so", "A"),
        ("it is b", ""),
        ("", ""),
        ("E", ""),
        ("I can't process this file.", "Z"),
    ],
)
def test_mmbench_finds_one_letter(answer, letter):
    assert infer_letter(answer, 4) == letter
    assert infer_letter(f"B, as everybody here can see {answer}", 4, last=4) == ("" if letter != "Z" else "Z")


def test_mmbench_finds_one_choice():
    assert infer_choice("I see a Dog", ["cat", "dog"]) == "B"
    assert infer_choice("cat or dog", ["cat", "dog"]) == infer_choice("bird", ["cat", "dog"]) == ""


def test_seed_compares_whole_answers(data, tmp_path):
    found = values("seed", data, ["B", "A."])
    assert (found["accuracy"], found["accuracy/image"], found["accuracy/video"]) == (50, 100, 0)
    assert found["accuracy/Scene Understanding"] == 100
    assert written("seed", data, ["B", "A"], tmp_path) == [
        {"question_id": "101", "prediction": "B"},
        {"question_id": "v_1", "prediction": "A"},
    ]


def test_mmmu_by_hand(data):
    samples = {sample.id: sample for sample in TASKS["mmmu"].load(data)}
    assert len(samples) == 30
    art, math = samples["validation_Art_1"], samples["validation_Math_1"]
    assert len(art.images) == 2 and art.prompt == f"Which?\n(A) <image 1>\n(B) <image 2>\n\n{LETTER}"
    assert math.prompt == f"What is in <image 1>?\n{SHORT}" and math.truth == ["1,024", "2^10"]
    judge = TASKS["mmmu"].judge
    assert judge(math, "So the result is 1024.")[1] == judge(math, "It equals 2^10")[1] == 1
    assert judge(math, "24")[1] == 0
    found = values("mmmu", data, ["1024" if sample.truth != "B" else "B" for sample in samples.values()])
    assert found["accuracy"] == 100 and found["accuracy/Science/Math"] == 100
    answers = ["1024" if "Math" in str(sample.id) else "C" for sample in samples.values()]
    assert values("mmmu", data, answers)["accuracy"] <= 100 * 2 / 30  # Art has no C: a seeded guess.
    said = summary(TASKS["mmmu"], judged("mmmu", data, answers), resamples=3)
    assert said["unread"] == 1 and "random" in said["note"]


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) neither", "C"),
        ("not (A) but (B)", "B"),
        ("A then B", "B"),
        ("I think that it must be neither", "C"),
        ("C.it", ""),
        ("B. dog", ""),
    ],
)
def test_mmmu_takes_the_last_letter(answer, letter):
    assert parse_choice(answer, ["a cat", "$5", "neither"]) == letter


@pytest.mark.parametrize("scorer", ["mmmu", "lmms_eval"])
def test_mmmu_guesses_where_nothing_is_named_by_the_question_alone(scorer):
    judge = TASKS["mmmu"].scored_by(scorer).judge
    extra = {"choices": ["x", "y", "z"]}
    guesses = [judge(Sample(f"q{n}", (), "", "B", extra), "what?") for n in range(30)]
    assert {guess for guess, _ in guesses} == {"random A", "random B", "random C"}
    assert all(score == (guess == "random B") for guess, score in guesses)
    assert judge(Sample("q7", (), "", "B", extra), "else") == guesses[7]


def test_mmmu_sends_the_letter_that_was_guessed(data, tmp_path):
    sent = written("mmmu", data, ["what?"] * 30, tmp_path)
    assert sent["validation_Math_1"] == "what?" and set(sent.values()) <= {"A", "B", "C", "what?"}


@pytest.mark.parametrize(
    "answer, found",
    [
        ("The answer is 3.14159.", [3.14]),
        ("x = 1,200", [1200.0, 200.0]),  # The official pattern too finds 200 behind the comma.
        ("so it is a dog", ["a dog"]),
        ("b", [" b", "b "]),
        ("Red\nit is so = -2e3 m", ["-2e3 m", -2000.0, 3.0]),  # And the 3 of e3.
        ("is ?", ["is ?"]),
    ],
)
def test_mmmu_candidates_of_open_answers(answer, found):
    assert parse_open(answer) == found


def test_ai2d_asks_about_the_test_images(data):
    samples = TASKS["ai2d"].load(data)
    assert [sample.id for sample in samples] == ["1.png-0", "1.png-1"]
    assert TASKS["ai2d"].max_new_tokens == TASKS["chartqa"].max_new_tokens == 16
    assert samples[0].prompt == f"What is X?\nA. ear\nB. nose\nC. eye\nD. leg\n{LETTER}"
    # The first is about a letter, which covers the label in its image; the other image is as it was.
    lettered, plain = (image for sample in samples for image in sample.images)
    assert isinstance(lettered, bytes) and isinstance(plain, str)
    before, after = (np.asarray(open_image(x)) for x in (plain, io.BytesIO(lettered)))
    box = after[7:30, 5:24]
    assert (before[:6] == after[:6]).all() and (before[:, 26:] == after[:, 26:]).all()
    assert 0.5 < (box == 255).all(axis=-1).mean() < 1 and (box < 100).all(axis=-1).any()
    assert values("ai2d", data, ["A.", "B. nose"]) == {"accuracy": 100}
    assert values("ai2d", data, ["ear", "E"]) == {"accuracy": 0}


def test_chartqa_and_docvqa_by_hand(data, tmp_path):
    assert TASKS["chartqa"].load(data)[0].prompt.endswith("?\nAnswer the question with a single word.")
    assert values("chartqa", data, ["21", "yes"]) == {
        "accuracy": 100,
        "accuracy/human": 100,
        "accuracy/augmented": 100,
    }
    assert values("chartqa", data, ["22", "yes"])["accuracy/human"] == 0
    found = values("docvqa", data, ["May 2", "Jones"])
    assert found["accuracy/form"] == pytest.approx(80) and found["accuracy"] == pytest.approx(40)
    assert written("docvqa", data, ["x", "y"], tmp_path)[0] == {"questionId": 5, "answer": "x"}


def test_mathvista_by_hand(data, tmp_path):
    samples = TASKS["mathvista"].load(data)
    assert samples[0].prompt == "Hint: so.\nWhich?"
    assert samples[1].prompt == (
        "Hint: Please answer the question requiring a floating-point number with one decimal place and "
        "provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How long? (Unit: m)"
    )
    answers = ["(B) equal to", "It is 1.23 m", "1,014", "between [2007, 2008]"]
    found = values("mathvista", data, answers)
    assert found["accuracy"] == 75 and found["accuracy/multi_choice"] == 100
    assert values("mathvista", data, ["equals to", "1.2", "14.0", "2007"])["accuracy"] == 75
    sent = written("mathvista", data, answers, tmp_path)
    assert sent["3"]["extraction"] == "1014" and sent["1"]["response"] == "(B) equal to"
    asked = query(
        {"question": "Q?", "question_type": "multi_choice", "answer_type": "text", "choices": ["x", "y"]}
    )
    assert asked.endswith("Question: Q?\nChoices:\n(A) x\n(B) y") and "option letter" in asked


@pytest.mark.parametrize(
    "kind, answer, found",
    [
        ("integer", "2019-2020", "2020"),
        ("integer", "from 3-5 to 4", "4"),
        ("integer", "x = -5", "-5"),
        ("integer", "it fell by \N{MINUS SIGN}7", "-7"),
        ("integer", "$1,450 a week", "1450"),
        ("integer", "3-2=1", "1"),
        ("integer", "about 2e3 m", "2e3"),
        ("float", "it is 1/2", "1/2"),
        ("list", "between 2007 and 2008", "[2007, 2008]"),
        ("list", "2019-2020", "[2019, 2020]"),
        ("list", "[1, 2], no: [2, 3]", "[2, 3]"),
    ],
)
def test_mathvista_takes_no_hyphen_for_a_minus(kind, answer, found):
    facts = {"question_type": "free_form", "answer_type": kind, "choices": None, "precision": 1}
    assert extract(answer, facts) == found


def test_mathvista_takes_the_only_choice_that_is_named():
    facts = {"question_type": "multi_choice", "answer_type": "text", "choices": ["May", "June"]}
    assert extract("the wettest month is May.", facts) == "May"
    assert extract("not May, but June", facts) == "not May, but June"
    assert extract("Maybe", facts) == "Maybe"


def test_mathvista_takes_no_number_for_an_answer_without_one(data):
    assert TASKS["mathvista"].judge(TASKS["mathvista"].load(data)[2], "many") == ("", 0)


def test_graded_elsewhere_means_no_score_but_files(data, tmp_path):
    for name in ("llava_bench", "mmvet"):
        assert judged(name, data, ["It is a cat."])[0].score is None and values(name, data, ["x"]) == {}
        assert TASKS[name].submit
    assert written("mmvet", data, ["It is x."], tmp_path) == {"v1_0": "It is x."}
    (record,) = llava_answers(judged("llava_bench", data, ["A cat."]), "tiny")
    assert set(record) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert (record["question_id"], record["prompt"], record["text"]) == (0, "What is this?", "A cat.")


@pytest.mark.parametrize(
    "name, file, text, message",
    [
        (
            "gqa",
            "gqa/data/testdev_balanced_questions.json",
            "{}",
            "has no question 201883195; take the testdev",
        ),
        ("scienceqa", "scienceqa/problems.json", "{}", "problem 445 is not of the test split"),
        (
            "seed",
            "seed_bench/SEED-Bench.json",
            '{"question_type": {}, "questions": []}',
            "has no question 101",
        ),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json", '{"data": []}', "line 1 asks what"),
        ("seed", "seed_bench/llava-seed-bench.jsonl", '{"text": "Q?"}', "record 1 has no question_id"),
        ("vizwiz", "vizwiz/llava_test.jsonl", '{"question_id": 1}', "record 1 has no image"),
        ("vizwiz_val", "vizwiz/val.json", "[3]", "record 1 has no answers"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "index\tquestion\n1\tx\n", "has no column A"),
        ("mmmu", "mmmu/Art/validation-00000-of-00001.parquet", "x", "is not a Parquet file"),
        ("docvqa", "docvqa/val_v1.0_withQT.json", '{"data": [{}]}', "record 1 has no image"),
        (
            "vqav2_val",
            "vqav2/v2_mscoco_val2014_annotations.json",
            '{"annotations": []}',
            "has no question 70",
        ),
    ],
)
def test_files_of_another_form_are_named(tmp_path, name, file, text, message):
    STANDINS[name](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        TASKS[name].load(tmp_path)
