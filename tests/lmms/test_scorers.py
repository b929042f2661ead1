"""Our scorers against those that lmms-eval carries over from the benchmarks' own scripts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms_eval.api.metrics import anls as their_anls
from lmms_eval.api.metrics import exact_match_fn
from lmms_eval.tasks._task_utils.mmmu_mcq_utils import parse_mmmu_multi_choice_response
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
from lmms_eval.tasks.chartqa.utils import relaxed_correctness
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mme.utils import mme_aggregate_results, parse_pred_ans
from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results

from quecc_jax.evaluate.bootstrap import evaluate
from quecc_jax.evaluate.metrics import anls, normalise_answer, relaxed_match, vqa_accuracy
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import Judged, Sample
from quecc_jax.evaluate.tasks.mmmu import parse_open

PIECES = (
    "a",
    "the",
    "A",
    "B",
    "C",
    "D",
    "(A)",
    "(B)",
    "C.",
    "D:",
    "yes",
    "no",
    "Yes.",
    "N",
    "two",
    "ten",
    "dont",
    "couldnt've",
    "it's",
    "1,200",
    "3.5",
    "5%",
    "-2e3",
    "=",
    "answer is",
    "so",
    "\n",
    ". ",
    "?",
    "/",
    "red-blue",
    "dog",
    "a cat",
    ",",
    "!",
    "\t",
)
WORDS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
    st.text(max_size=15),
)
CHOICES = ["a cat", "dog", "red-blue", "two"]
many = settings(max_examples=400, deadline=None)


@many
@given(WORDS)
def test_normalised_answers(text):
    assert normalise_answer(text) == EvalAIAnswerProcessor()(text)


def test_every_contraction_of_the_official_table():
    for word in EvalAIAnswerProcessor.CONTRACTIONS:
        assert normalise_answer(word) == EvalAIAnswerProcessor()(word)


@many
@given(WORDS, st.lists(WORDS, min_size=10, max_size=10))
def test_vqa_accuracy(answer, humans):
    humans = [*humans[:6], *[answer] * (len(humans[6]) % 5), *humans[6:]][:10]
    theirs = vizwiz_vqa_process_results({"answers": list(humans), "question_id": 1}, [answer])
    assert vqa_accuracy(answer, humans) == pytest.approx(theirs["exact_match"])


@many
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_anls(answer, truths):
    assert anls(answer, truths) == pytest.approx(their_anls(truths, [answer])["anls"])


NUMBERS = st.one_of(
    WORDS,
    st.floats(-200, 200).map("{:.2f}".format),
    st.integers(-50, 50).map(str),
    st.integers(0, 100).map("{}%".format),
)


@many
@given(NUMBERS, NUMBERS)
def test_relaxed_accuracy(answer, truth):
    assert relaxed_match(answer, truth) == relaxed_correctness(answer, truth)


@many
@given(WORDS)
def test_mme_reads_answers_alike(answer):
    sample = Sample("color/a#1", (), "?", "Yes", {})
    assert TASKS["mme"].scored_by("lmms_eval").judge(sample, answer)[0] == parse_pred_ans(answer)


@many
@given(WORDS, st.lists(WORDS, min_size=10, max_size=10))
def test_vqav2_accuracy(answer, humans):
    humans = [*humans[:6], *[answer] * (len(humans[6]) % 5), *humans[6:]][:10]
    rows = [{"answer": human, "answer_id": number} for number, human in enumerate(humans)]
    theirs = vqav2_process_results({"answers": rows, "question_id": 1}, [answer])
    ours = TASKS["vqav2_val"].scored_by("lmms_eval").judge(Sample("q", (), "?", humans, {}), answer)
    assert ours[1] == pytest.approx(float(theirs["exact_match"]))


@many
@given(WORDS)
def test_scienceqa_and_ai2d(answer):
    sample = Sample("q", (), "?", "B", {"choices": 4})
    theirs = sqa_process_results({"choices": CHOICES, "answer": 1}, [answer])["exact_match"]
    assert TASKS["scienceqa"].scored_by("lmms_eval").judge(sample, answer)[1] == theirs
    read = MultiChoiceRegexFilter().apply([[answer]], [{}])
    found = exact_match_fn(predictions=read, references=["B"], ignore_case=True, ignore_punctuation=True)
    assert TASKS["ai2d"].judge(sample, answer)[1] == found["exact_match"]


@many
@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_mme_scores(right):
    judged, theirs = [], []
    for number, hit in enumerate(right):
        category = ("color", "count")[number // 4]
        extra = {"image": f"{category}/{number // 2}", "category": category}
        judged.append(Judged(Sample(number, (), "?", "Yes", extra), "", "yes", float(hit)))
        theirs.append({"question_id": number // 2, "category": category, "score": float(hit)})
    task = TASKS["mme"]
    found = evaluate([task.tally(unit) for unit in task.units(judged)], task.metrics, resamples=2)
    assert found["perception"][0] == pytest.approx(mme_aggregate_results(theirs))


@many
@given(WORDS)
def test_mmbench_finds_the_same_option(answer):
    letters = dict(zip("ABCD", CHOICES, strict=True))
    sample = Sample("q", (), "?", "B", {"choices": CHOICES})
    ours = TASKS["mmbench"].scored_by("lmms_eval").judge(sample, answer)[0]
    assert ours == (MMBench_Evaluator().can_infer(answer, letters) or "")


@many
@given(WORDS)
def test_mmmu_choices(answer):
    letters = dict(zip("ABCD", CHOICES, strict=True))
    sample = Sample("q", (), "?", "B", {"choices": CHOICES})
    ours = TASKS["mmmu"].scored_by("lmms_eval").judge(sample, answer)[0]
    theirs = {parse_mmmu_multi_choice_response(answer, list(letters), letters) for _ in range(20)}
    # Where nothing is named both guess, which can only agree by chance.
    assert theirs == {ours} or (len(theirs) > 1 and ours.startswith("random "))


@many
@given(WORDS, st.lists(st.sampled_from(["1,200", "3.5", "dog", "-2000", "a", "200"]), min_size=1, max_size=2))
def test_mmmu_open_answers(answer, truths):
    assert set(parse_open(answer)) == set(parse_open_response(answer))
    sample = Sample("q", (), "?", truths, {"choices": []})
    assert TASKS["mmmu"].judge(sample, answer)[1] == float(eval_open(truths, parse_open_response(answer)))
