"""Generated ids become answers: what ends them, and where their text stops."""

import pytest

from quecc_jax.data.text.templates import Stops
from quecc_jax.data.text.tokenizer import load_tokenizer, train_word_tokenizer
from quecc_jax.evaluate.predict import read_answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words") / "tokenizer"
    train_word_tokenizer(["a red circle stop here"], directory)
    return load_tokenizer(directory)


def test_an_answer_ends_at_its_end_token(tokenizer):
    eos = tokenizer.eos_token_id
    ids = [*tokenizer.encode("a red circle"), eos, *tokenizer.encode("red")]
    assert read_answer(ids, tokenizer, Stops((eos,), None)) == "a red circle"
    assert read_answer([eos], tokenizer, Stops((eos,), None)) == ""
    assert read_answer(ids[:2], tokenizer, Stops((eos,), None)) == "a red"


def test_an_answer_ends_at_a_text_where_no_token_does(tokenizer):
    eos = tokenizer.eos_token_id
    ids = list(tokenizer.encode("a red circle stop here"))
    assert read_answer(ids, tokenizer, Stops((eos,), "stop here")) == "a red circle"
    assert read_answer(ids, tokenizer, Stops((eos,), "end")) == "a red circle stop here"
