"""The word-level tokenizer, and reading tokenizers from directories."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden" / "llava_tiny"


def words(tokenizer, text):
    return tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(text))


def test_words_digits_and_punctuation_are_tokens(tokenizer):
    assert words(tokenizer, "USER: what  color\nis row 20, column 3?") == [
        "USER",
        ":",
        "what",
        "color",
        "is",
        "row",
        "2",
        "0",
        ",",
        "column",
        "3",
        "?",
    ]
    assert words(tokenizer, "red Red") == ["red", "<unk>"]


def test_specials_come_first(tokenizer):
    assert [
        tokenizer.hf.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.hf.unk_token_id,
    ] == [0, 1, 2, 3]
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
    code = (
        f"from quecc_jax.data.text.tokenizer import load_tokenizer; load_tokenizer({tokenizer.directory!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@pytest.fixture(scope="module")
def processor():
    return SentencePieceProcessor(model_file=str(GOLDEN / "tokenizer.model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Makes the real SentencePiece tokenizer with other settings; each is read once."""
    made = {}

    def make(**more):
        key = json.dumps(more)
        if key not in made:
            directory = tmp_path_factory.mktemp("llama") / "tokenizer"
            shutil.copytree(GOLDEN, directory, ignore=lambda _, names: set(names) - {"tokenizer.model"})
            told = json.loads((GOLDEN / "tokenizer_config.json").read_text()) | more
            (directory / "tokenizer_config.json").write_text(json.dumps(told))
            made[key] = load_tokenizer(directory)
        return made[key]

    return make


TEXTS = st.lists(
    st.sampled_from([*"ab .:,Tеé你😀`=#<\n\t", "  ", "   ", "The", "</s>", "<s>", "<unk>"])
    | st.characters(codec="utf-8"),
    max_size=20,
).map("".join)
SPECIAL = re.compile("(<s>|</s>|<unk>)")


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_legacy_sentencepiece_encodes_every_part_on_its_own(llama, processor, text):
    wanted: list[int] = []
    for part in SPECIAL.split(text):
        wanted += [processor.piece_to_id(part)] if SPECIAL.fullmatch(part) else processor.encode(part)
    assert llama().encode(text) == tuple(wanted)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_newer_sentencepiece_puts_a_blank_before_the_first_part_only(llama, processor, text):
    wanted, anchor = [], len(processor.encode("\n"))
    for number, part in enumerate(SPECIAL.split(text)):
        if SPECIAL.fullmatch(part):
            wanted.append(processor.piece_to_id(part))
        elif number:
            wanted += processor.encode("\n" + part)[anchor:]
        else:
            wanted += processor.encode(part)
    assert llama(legacy=False).encode(text) == tuple(wanted)


@settings(max_examples=200, deadline=None)
@given(
    first=TEXTS.filter(bool),
    word=st.sampled_from([" a", " T. b", "\n", "\nThe", "你 好"]),
    legacy=st.booleans(),
)
def test_a_text_cut_before_a_word_keeps_its_ids(llama, first, word, legacy):
    tokenizer = llama() if legacy else llama(legacy=False)
    ids = tokenizer.encode(first)
    whole = tokenizer.encode(first + word)
    assert (*ids, *tokenizer.encode(word, after=ids[-1])) == whole


def test_where_a_blank_is_written(llama):
    old, new = llama(), llama(legacy=False)
    assert words(old, "USER") == words(new, "USER") == ["\u2581US", "ER"]
    behind = [t.hf.convert_ids_to_tokens(t.encode("USER", after=2)) for t in (old, new)]
    assert behind == [["\u2581US", "ER"], ["USER"]]
    assert old.encode("USER", after=330) == new.encode("USER", after=330) == new.encode("USER", after=2)
    assert words(old, "a</s>USER") == ["\u2581a", "</s>", "\u2581US", "ER"]
    assert words(new, "a</s>USER") == ["\u2581a", "</s>", "USER"]


def test_a_special_token_may_take_the_white_space_behind_it(llama):
    added = {
        str(32000 + k): {
            "content": name,
            "rstrip": True,
            "lstrip": False,
            "normalized": False,
            "single_word": False,
            "special": False,
        }
        for k, name in enumerate(["<|user|>", "<|user|>x", "<|end|>"])
    }
    tokenizer = llama(added_tokens_decoder=added)
    assert len(tokenizer) == 32003
    user, end = 32000, 32002
    hi = tokenizer.encode("Hi")
    assert tokenizer.encode("<|user|>\n Hi<|end|>\n") == (user, *hi, end)
    assert tokenizer.encode("\n Hi", after=end) == hi
    assert tokenizer.encode("<|user|>xHi") == (32001, *hi)
    assert tokenizer.encode("\n", after=end) == ()
    assert tokenizer.encode("\n", after=hi[-1]) == (13,)


def test_pickles_sentencepiece_as_its_directory(llama):
    again = pickle.loads(pickle.dumps(llama()))
    assert again.encode("a  b </s> c") == llama().encode("a  b </s> c")


def test_bos_is_what_the_tokenizer_puts_in_front(llama, tmp_path):
    assert llama().bos_token_id == 1
    assert llama(add_bos_token=False).bos_token_id is None
    backend = Backend(models.BPE({"a": 0, "<x>": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, more, bos in (("without", {}, None), ("with", {"add_bos_token": True}, 1)):
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<x>", eos_token="<x>", **more
        ).save_pretrained(tmp_path / name)
        assert load_tokenizer(tmp_path / name).bos_token_id == bos


def test_loading_beside_an_unknown_model_prints_nothing(tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama", "rope_scaling": null}')
    code = f"from quecc_jax.data.text.tokenizer import load_tokenizer; load_tokenizer({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
