"""Generated ids become answers: what ends them, and where their text stops."""

import pytest

from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.generate.reply import until_end
from quecc_jax.generate.text_stream import answer_text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words") / "tokenizer"
    train_word_tokenizer(["a red circle stop here"], directory)
    return load_tokenizer(directory)


def test_an_answer_ends_at_its_end_token(tokenizer):
    eos = tokenizer.eos_token_id
    said = list(tokenizer.encode("a red circle"))
    ids = [*said, eos, *tokenizer.encode("red")]
    assert until_end(ids, (eos,)) == (said, True) and answer_text(tokenizer, said) == "a red circle"
    assert until_end([eos], (eos,)) == ([], True) and answer_text(tokenizer, []) == ""
    assert until_end(ids[:2], (eos,)) == (ids[:2], False) and answer_text(tokenizer, ids[:2]) == "a red"


def test_an_answer_ends_at_a_text_where_no_token_does(tokenizer):
    ids = tokenizer.encode("a red circle stop here")
    assert answer_text(tokenizer, ids, ("stop here",)) == "a red circle"
    assert answer_text(tokenizer, ids, ("end",)) == "a red circle stop here"
