"""The word-level tokenizer, and reading tokenizers from directories."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from quecc_jax.data.tokenizer import load_tokenizer, train_word_tokenizer
from quecc_jax.errors import UserError


def words(tokenizer, text):
    return tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(text))


def test_words_digits_and_punctuation_are_tokens(tokenizer):
    assert words(tokenizer, "USER: what  color\nis row 20, column 3?") == [
        "USER", ":", "what", "color", "is", "row", "2", "0", ",", "column", "3", "?"]
    assert words(tokenizer, "red Red") == ["red", "<unk>"]


def test_specials_come_first(tokenizer):
    assert [tokenizer.hf.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id,
            tokenizer.hf.unk_token_id] == [0, 1, 2, 3]
    assert len(tokenizer) == max(tokenizer.hf.get_vocab().values()) + 1


def test_transformers_reads_it_offline(tokenizer):
    other = AutoTokenizer.from_pretrained(tokenizer.directory, local_files_only=True)
    text = "how many red shapes are there?"
    assert tuple(other.encode(text, add_special_tokens=False)) == tokenizer.encode(text)
    assert other.decode(tokenizer.encode(text)) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["red", "circle", "USER", "4", "row"]), min_size=1, max_size=8))
def test_decoding_gives_the_text_back(tokenizer, said):
    text = " ".join(said)
    ids = tokenizer.encode(text)
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == text


def test_vocabulary_is_ordered_by_frequency_and_reproducible(tmp_path):
    texts = ["b b b a", "c c a"]
    sizes = [train_word_tokenizer(texts, tmp_path / name) for name in ("one", "two")]
    vocab = load_tokenizer(tmp_path / "one").hf.get_vocab()
    assert [vocab[word] for word in "bac"] == [4, 5, 6]
    assert sizes[0] == sizes[1] == len(vocab)
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_rare_words_become_unknown(tmp_path):
    train_word_tokenizer(["often often once"], tmp_path / "t", minimum=2)
    assert words(load_tokenizer(tmp_path / "t"), "often once") == ["often", "<unk>"]


def test_pickles_as_its_directory(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("red circle") == tokenizer.encode("red circle")


def test_missing_or_empty_directory(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_loading_prints_nothing(tokenizer):
    code = f"from quecc_jax.data.tokenizer import load_tokenizer; load_tokenizer({tokenizer.directory!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
