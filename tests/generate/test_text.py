"""Streamed text: whole characters only, nothing taken back, stop texts wherever token boundaries lie."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.data.tokenizer import Tokenizer, load_tokenizer, train_word_tokenizer
from quecc_jax.generate.text import TextStream, certain, cut
from tests.golden_pack import unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
TEXTS = ["A red circle, and 2 blue ones.", "Où est la gare ? 駅はどこですか。 🙂🙂 done",
         "two\n\nlines  ", ""]


def byte_tokenizer(directory: Path) -> Path:
    """Every byte is a token, so that a character of several bytes is several tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({"<eos>": 0, **{c: i for i, c in enumerate(alphabet, 1)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", "words"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer") / "files"
    if request.param == "words":
        train_word_tokenizer(TEXTS, directory)
    elif request.param == "bytes":
        byte_tokenizer(directory)
    else:
        unpack(GOLDEN / "arrays.xz", directory)
    return load_tokenizer(directory)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("chunk", [1, 3])
def test_pieces_join_to_the_text_of_all_tokens(tokenizer, text, chunk):
    ids = tokenizer.encode(text)
    stream, said = TextStream(tokenizer), ""
    for at in range(0, len(ids), chunk):
        piece = stream.push(ids[at : at + chunk])
        said += piece
        assert "\ufffd" not in said
        assert tokenizer.decode(ids).startswith(said)
    said += stream.finish()
    assert said == stream.text == tokenizer.decode(ids)
    assert len(ids) < 3 * chunk or tokenizer.decode(ids[:chunk])  # pieces came before the end


def test_most_text_does_not_wait_for_the_end(tokenizer):
    ids = tokenizer.encode(TEXTS[0])
    stream = TextStream(tokenizer, ["###"])
    pieces = [stream.push([token]) for token in ids]
    assert sum(map(len, pieces)) >= len(tokenizer.decode(ids)) - 3
    assert sum(map(bool, pieces)) >= 4


@pytest.mark.parametrize("stop, kept", [
    ("blue", "A red circle, and 2"), (" circle, a", "A red"), ("A", ""), ("zebra", TEXTS[0]),
    ("ones..", TEXTS[0]),
])  # fmt: skip
def test_a_stop_text_ends_the_answer_wherever_its_tokens_begin(tokenizer, stop, kept):
    ids = tokenizer.encode(TEXTS[0])
    stream, said = TextStream(tokenizer, [stop, "never said"]), ""
    for token in ids:
        said += stream.push([token])
        assert kept.startswith(said)
        if stream.stopped:
            break
    said += stream.finish()
    assert said == stream.text == kept
    assert stream.stopped == (stop if kept != TEXTS[0] else None)


def test_the_earliest_of_several_stop_texts_counts():
    assert cut("one two three", ("three", "two")) == ("one", "two")
    assert cut("one two  ", ()) == ("one two", None)


@settings(max_examples=100)
@given(st.text("ab#\n ", max_size=12), st.lists(st.text("ab#\n", min_size=1, max_size=3), max_size=2))
def test_what_is_certain_never_changes(text, stop):
    """Against every continuation of up to three letters."""
    sure = certain(cut(text, stop)[0], stop) if cut(text, stop)[1] else certain(text, stop)
    for n in range(4):
        for more in itertools.product("ab#", repeat=n):
            assert cut(text + "".join(more), stop)[0].startswith(sure)
