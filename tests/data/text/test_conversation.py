"""Ids, labels and slots of conversations against cases laid out by hand and random ones."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import DataConfig
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.text.templates import SYSTEM
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from tests.clip_words import write_clip_tokenizer
from tests.laid_out import encode, prompt

SHORT = DataConfig(template="short", max_length=64, query_length=16, images_per_row=2)


def row(*values, image=None):
    turns = [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(values)]
    return {"conversations": turns} | ({} if image is None else {"image": image})


def said(*turns):
    return {"conversations": [{"from": who, "value": value} for who, value in turns]}


def spell(made, tokenizer):
    """Every position as its word, or #k for slot k; a leading * marks a position with loss."""
    words = [
        f"#{slot}" if slot >= 0 else tokenizer.hf.convert_ids_to_tokens(int(token))
        for token, slot in zip(made.tokens, made.slots, strict=True)
    ]
    assert ((made.labels == IGNORE) | (made.labels == made.tokens)).all()
    return " ".join(
        "*" * bool(label != IGNORE) + word for word, label in zip(words, made.labels, strict=True)
    )


def test_image_question_answer(tokenizer):
    made = encode(row("<image>\none red?", "yes", image=7), tokenizer, SHORT, 2)
    assert spell(made, tokenizer) == "<bos> USER : #0 #1 one red ? ASSISTANT : *yes *<eos>"
    assert tokenizer.decode(made.queries) == "one red?"
    assert made.queries[0] == tokenizer.bos_token_id
    arrays = (made.codes, made.tokens, made.slots, made.labels, made.queries, made.query_ends)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)} and made.loss.dtype == bool


def test_two_turns_and_two_images(tokenizer):
    made = encode(
        row("one <image> two <image>", "red", "three?", "green", image=["a", "b"]), tokenizer, SHORT, 2
    )
    assert spell(made, tokenizer) == (
        "<bos> USER : one #0 #1 two #2 #3 ASSISTANT : *red *<eos> USER : three ? ASSISTANT : *green *<eos>"
    )
    assert tokenizer.decode(made.queries) == "one two"


def test_word_templates(tokenizer):
    question = row("<image>\nred?", "blue", image="a")
    v1 = encode(question, tokenizer, dataclasses.replace(SHORT, template="v1"), 1)
    system = " ".join(tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(SYSTEM)))
    assert "<unk>" not in system
    assert spell(v1, tokenizer) == f"<bos> {system} USER : #0 red ? ASSISTANT : *blue *<eos>"
    plain = encode(question, tokenizer, dataclasses.replace(SHORT, template="plain"), 1)
    assert spell(plain, tokenizer) == "<bos> #0 *blue"
    assert tokenizer.decode(plain.queries) == "red?"


def test_all_labels_leave_out_bos_and_images(tokenizer):
    made = encode(
        row("<image>\nred?", "blue", image="a"), tokenizer, dataclasses.replace(SHORT, labels="all"), 1
    )
    assert spell(made, tokenizer) == "<bos> *USER *: #0 *red *? *ASSISTANT *: *blue *<eos>"


def test_nothing_predicts_a_first_token_where_no_bos_stands_before_it(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "bos_token_id", None)
    made = encode(row("red?", "blue"), tokenizer, dataclasses.replace(SHORT, labels="all"), 1)
    assert spell(made, tokenizer) == "USER *: *red *? *ASSISTANT *: *blue *<eos>"


def test_one_image_comes_first_unless_it_shall_keep_its_place(tokenizer):
    talk = row("one <image> two", "red", "three <image>", "<image>", image=["a", "b", "c"])
    data = dataclasses.replace(SHORT, images_per_row=3)
    kept = encode(talk, tokenizer, dataclasses.replace(data, image_place="keep"), 1)
    assert spell(kept, tokenizer) == (
        "<bos> USER : one #0 two ASSISTANT : *red *<eos> USER : three #1 ASSISTANT : #2 *<eos>"
    )
    front = encode(talk, tokenizer, data, 1)
    assert spell(front, tokenizer) == (
        "<bos> USER : #0 one two ASSISTANT : *red *<eos> USER : #1 three ASSISTANT : #2 *<eos>"
    )
    assert np.array_equal(kept.queries, front.queries)


def test_speakers_go_by_several_names(tokenizer):
    one = encode(said(("user", "one?"), ("assistant", "red")), tokenizer, SHORT, 1)
    assert spell(one, tokenizer) == "<bos> USER : one ? ASSISTANT : *red *<eos>"


def test_system_turn_comes_first_and_a_greeting_is_left_out(tokenizer):
    talk = said(("system", "Look at <image>"), ("gpt", "red"), ("human", "one?"), ("gpt", "two"))
    talk["image"] = 1
    assert spell(encode(talk, tokenizer, SHORT, 2), tokenizer) == (
        "<bos> Look at #0 #1 USER : one ? ASSISTANT : *two *<eos>"
    )
    assert tokenizer.decode(encode(talk, tokenizer, SHORT, 2).queries) == "one?"
    plain = dataclasses.replace(SHORT, template="plain")
    with pytest.raises(UserError, match="system sentence"):
        encode(talk, tokenizer, plain, 2)


@pytest.mark.parametrize("text", ["Which one?", "", "a  much longer QUESTION, with 3 blanks & a café"])
def test_a_query_in_clip_s_tokens_is_what_its_own_tokenizer_makes_of_the_text(text, tokenizer, tmp_path):
    write_clip_tokenizer(tmp_path / "clip")
    both = pickle.loads(pickle.dumps(load_tokenizer(tokenizer.directory, tmp_path / "clip")))
    data = dataclasses.replace(SHORT, query_tokenizer=str(tmp_path / "clip"), query_length=16)
    made = encode(row(f"<image>{text}", "red", image=1), both, data, 1)
    wanted = both.questions.hf(text, truncation=True, max_length=16)["input_ids"]
    assert made.queries.tolist() == wanted
    alone = encode(row(f"<image>{text}", "red", image=1), tokenizer, SHORT, 1)
    assert np.array_equal(made.tokens, alone.tokens)


WORDS = st.lists(st.sampled_from(["red", "one", "two", "3", "?", "Look", "<image>"]), max_size=6).map(
    " ".join
)


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    visual=st.integers(1, 5),
    template=st.sampled_from(["v1", "short"]),
    labels=st.sampled_from(["answers", "all"]),
)
def test_slots_and_labels_of_any_conversation(tokenizer, turns, visual, template, labels):
    values = [value for turn in turns for value in turn]
    images = sum(value.count("<image>") for value in values)
    data = DataConfig(template=template, labels=labels, max_length=4096, images_per_row=99)
    made = encode(row(*values, image=list(range(images))), tokenizer, data, visual)
    tokens, slots, learned = made.tokens, made.slots, made.labels != IGNORE
    assert slots[slots >= 0].tolist() == list(range(images * visual))
    assert not tokens[slots >= 0].any() and not learned[slots >= 0].any()
    starts = np.flatnonzero((slots >= 0) & (slots % visual == 0))
    for start in starts:
        assert np.array_equal(np.diff(slots[start : start + visual]), np.ones(visual - 1))
    assert np.array_equal(made.labels[learned], tokens[learned])
    if labels == "all":
        assert np.array_equal(learned, (slots < 0) & (np.arange(len(tokens)) > 0))
    else:
        answers = " <eos> ".join(value.replace("<image>", "") for value in values[1::2]) + " <eos>"
        said = tokenizer.hf.convert_ids_to_tokens(tokens[learned].tolist())
        assert said == answers.split()
    whole = tokenizer.decode(tokens[slots < 0])
    text = " ".join(f"USER: {q} ASSISTANT: {a}" for q, a in turns).replace("<image>", "")
    assert whole.replace(" ", "").endswith(text.replace(" ", ""))


@settings(max_examples=50, deadline=None)
@given(
    question=WORDS.filter(lambda text: "<image>" not in text),
    images=st.integers(0, 2),
    template=st.sampled_from(["v1", "short", "plain"]),
)
def test_prompt_is_what_precedes_the_answer(tokenizer, question, images, template):
    data = dataclasses.replace(SHORT, template=template)
    asked = prompt(question, images, tokenizer, data, 3)
    value = "<image>\n" * images + question
    taught = encode(row(value, "red", image=list(range(images))), tokenizer, data, 3)
    length = len(asked.tokens)
    for key in ("tokens", "slots"):
        assert np.array_equal(getattr(asked, key), getattr(taught, key)[:length])
    assert (asked.labels == IGNORE).all()
    assert taught.labels[length] == tokenizer.encode("red")[0]
    assert (taught.labels[:length] == IGNORE).all()
    assert np.array_equal(asked.queries, taught.queries)


def test_prompt_with_a_history(tokenizer):
    asked = prompt("two?", 1, tokenizer, SHORT, 2, history=["one?", "red"], system="Look")
    assert spell(asked, tokenizer) == (
        "<bos> Look USER : #0 #1 one ? ASSISTANT : *red *<eos> USER : two ? ASSISTANT :"
    )
    assert tokenizer.decode(asked.queries) == "one?"
    before = prompt("one?", 1, tokenizer, SHORT, 2, system="Look")
    assert np.array_equal(before.tokens, asked.tokens[: len(before.tokens)])
    late = prompt("two <image>?", 1, tokenizer, SHORT, 1, history=["one?", "red"])
    assert spell(late, tokenizer).endswith("<eos> USER : #0 two ? ASSISTANT :")
    with pytest.raises(UserError, match="history ends with a question"):
        prompt("two?", 0, tokenizer, SHORT, 1, history=["one?"])


def test_dropped_rows_are_empty_and_say_what_they_lacked(tokenizer):
    talk = row("one", "red", "<image>", "blue", image=1)
    whole = encode(talk, tokenizer, SHORT, 2)
    length = len(whole.tokens)
    fits = encode(talk, tokenizer, dataclasses.replace(SHORT, max_length=length, too_long="drop"), 2)
    assert fits.cut == 0 and np.array_equal(fits.tokens, whole.tokens)
    gone = encode(talk, tokenizer, dataclasses.replace(SHORT, max_length=length - 1, too_long="drop"), 2)
    assert gone.cut == length
    assert all(getattr(gone, key).shape == (0,) for key in ("tokens", "slots", "labels"))
    with pytest.raises(UserError, match="max_length"):
        prompt("one two", 0, tokenizer, dataclasses.replace(SHORT, max_length=4, too_long="drop"), 2)


def test_truncation_cuts_text_and_counts(tokenizer):
    talk = row("<image> one", "red green blue", "two", "one two three", image=1)
    whole = encode(talk, tokenizer, SHORT, 2)
    for length in range(len(whole.tokens), 0, -1):
        data = dataclasses.replace(SHORT, max_length=length)
        before_answer = int(np.argmax(whole.labels != IGNORE))
        if length <= before_answer:
            with pytest.raises(UserError, match="truncation would"):
                encode(talk, tokenizer, data, 2)
            continue
        made = encode(talk, tokenizer, data, 2)
        assert np.array_equal(made.tokens, whole.tokens[:length])
        assert made.cut == len(whole.tokens) - length
    with pytest.raises(UserError, match="max_length"):
        encode(talk, tokenizer, dataclasses.replace(SHORT, max_length=12, too_long="error"), 2)


@pytest.mark.parametrize("length", range(9, 14))
def test_truncation_never_splits_a_late_image(tokenizer, length):
    talk = row("one", "red", "<image>", "blue", image=1)
    # <bos> USER : one ASSISTANT : red <eos> USER : #0 #1 ASSISTANT : blue <eos>
    data = dataclasses.replace(SHORT, max_length=length)
    if length < 12:
        with pytest.raises(UserError, match="cut an image"):
            encode(talk, tokenizer, data, 2)
    else:
        assert (encode(talk, tokenizer, data, 2).slots >= 0).sum() == 2


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({}, "no list of conversations"),
        ({"conversations": []}, "no list of conversations"),
        ({"conversations": "hello"}, "no list of conversations"),
        (said(("gpt", "red")), "no turn of the human"),
        (said(("system", "red")), "no turn of the human"),
        (said(("human", "red"), ("human", "red")), "turn 2 is of human, not of gpt"),
        (said(("gpt", "hi"), ("human", "red"), ("human", "red")), "turn 3 is of human, not of gpt"),
        (said(("human", "red"), ("system", "be brief"), ("gpt", "red")), "turn 2 is of system"),
        (said(("human", 3), ("gpt", "red")), "turn 1"),
        (said(("human", "red"), ("robot", "red")), "turn 2"),
        (said(("human", "red"), (["gpt"], "red")), "turn 2"),
        ({"conversations": ["red", "blue"]}, "turn 1"),
        ({"conversations": [{"from": "human", "value": "red"}]}, "no answer"),
        (row("red", "blue", image="a"), "1 images but 0"),
        (row("<image> <image>", "blue", image="a"), "1 images but 2"),
        (row("<image>" * 3, "blue", image=["a", "b", "c"]), "images_per_row"),
        ("text", "not an object"),
        (row("<image>", "blue", image={"path": "a"}), "not the path of a file"),
        (row("<image>", "blue", image=[True]), "not the path of a file"),
        (row("<image>", "blue", image=""), "not the path of a file"),
        (row("half a \ud83d smile", "blue"), "not UTF-8"),
    ],
)
def test_malformed_rows_say_what_is_wrong(tokenizer, bad, says):
    with pytest.raises(UserError, match=says):
        encode(bad, tokenizer, SHORT, 1)


def test_plain_takes_one_caption(tokenizer):
    with pytest.raises(UserError, match="plain"):
        encode(row("a", "b", "c", "d"), tokenizer, dataclasses.replace(SHORT, template="plain"), 1)
