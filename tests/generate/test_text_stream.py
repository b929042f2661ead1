"""Streamed text: whole characters only, nothing taken back, stop texts wherever token boundaries lie."""

import itertools
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.generate.text_stream import TextStream, certain, cut
from tests.golden_pack import unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
TEXTS = [
    "A red circle, and 2 blue ones.",
    "Où est la gare ? 駅はどこですか。 🙂🙂 done",
    "two\n\nlines  ",
    "",
]
CLEANED = ["a", "n", "n't", "'", "'m", "m", "s", "'s", "'v", "'ve", "re", ".", "?", "!", ",", "b."]


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


def cleaned_tokenizer(directory: Path) -> Path:
    """Words that transformers joins with blanks, some of which it takes back over the whole text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<eos>", "<unk>", *CLEANED])}
    backend = Backend(models.WordLevel(words, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=True
    ).save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module", params=["bytes", "sentencepiece", "words"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return made(request.param, tmp_path_factory.mktemp("tokenizer") / "files")


def made(kind: str, directory: Path) -> Tokenizer:
    if kind == "words":
        train_word_tokenizer(TEXTS, directory)
    elif kind == "cleaned":
        cleaned_tokenizer(directory)
    elif kind == "bytes":
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


@pytest.mark.parametrize(
    "stop, kept",
    [
        ("blue", "A red circle, and 2"),
        (" circle, a", "A red"),
        ("A", ""),
        ("zebra", TEXTS[0]),
        ("ones..", TEXTS[0]),
    ],
)
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


@pytest.mark.parametrize("stop", [["blue"], [" circle, a"], ["A"], ["c", ", a"]])
def test_the_tokens_behind_a_stop_text_are_not_the_answers_however_many_come_at_a_time(tokenizer, stop):
    ids, kept = tokenizer.encode(TEXTS[0]), list[list[int]]()
    for chunk in (1, 2, 3, 8, len(ids)):
        stream = TextStream(tokenizer, stop)
        pushed = (stream.push(ids[at : at + chunk]) for at in range(0, len(ids), chunk))
        said = next(piece for piece in itertools.accumulate(pushed) if stream.stopped)
        assert stream.finish() == "" and said == cut(TEXTS[0], stop)[0]
        kept.append(stream.ids)
    assert all(one == kept[0] for one in kept) and len(kept[0]) < len(ids)


def test_the_earliest_of_several_stop_texts_counts():
    assert cut("one two three", ("three", "two")) == ("one", "two")
    assert cut("one two  ", ()) == ("one two", None)


@settings(max_examples=100)
@given(st.text("ab#\n ", max_size=12), st.lists(st.text("ab#\n", min_size=1, max_size=3), max_size=2))
@example("a \n", ["a\n"])
def test_what_is_certain_never_changes(text, stop):
    """Against every continuation of up to three letters."""
    sure, which = certain(text, stop)
    for n in range(4):
        for more in itertools.product("ab#", repeat=n):
            whole, met = cut(text + "".join(more), stop)
            assert whole == sure if which else whole.startswith(sure)
            assert which is None or met is not None


def bytes_of(tokenizer: Tokenizer, *values: int) -> list[int]:
    """Tokens of single bytes in a vocabulary with byte fallback."""
    return tokenizer.hf.convert_tokens_to_ids([f"<0x{value:02X}>" for value in values])


KINDS = ["bytes", "sentencepiece", "words", "cleaned"]
BYTES = [0xF0, 0x9F, 0xA6, 0x9C, 0xC3, 0xA9, 0xE6, 0xFF, 0xED, 0xA0, 0x80, 0xEF, 0xBF, 0xBD, 0x0A, 0x20, 0x41]
STOPS = ["\n", "a", " a", "é", "###", "\ufffd", "A ", "it", "n'", " '", "🦜", "a b", "b"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, tuple[Tokenizer, list[int]]]:
    """Each with the tokens to draw from: broken bytes, special tokens, ids that are none, and words."""
    found = {}
    for kind in KINDS:
        one = made(kind, tmp_path_factory.mktemp(kind) / "files")
        ids = (
            list(range(len(one)))
            if kind != "sentencepiece"
            else [0, 1, 2, 32000, *bytes_of(one, *BYTES), *one.encode("it is a ### dog'\n\nA b, 🦜 é.  ")]
        )
        if kind == "bytes":
            raw = {byte: letter for letter, byte in zip(*byte_alphabet(), strict=True)}
            ids = [0, *one.hf.convert_tokens_to_ids([raw[byte] for byte in (*BYTES, *b"a#b 'ni")])]
        found[kind] = one, ids
    return found


def byte_alphabet() -> tuple[list[str], list[int]]:
    """The letters that stand for bytes in GPT-2's vocabulary, and the bytes."""
    from tokenizers import decoders, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    known = {chr(byte): byte for byte in plain}
    known |= {chr(256 + k): byte for k, byte in enumerate(b for b in range(256) if b not in plain)}
    assert set(known) == set(letters) and decoders.ByteLevel().decode(["Ġ"]) == " "
    return list(known), list(known.values())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_streams_lose_nothing(tokenizers, kind, data):
    """Any tokens, any chunks, any stop texts: the pieces join to the whole answer's text, and a stop text
    is met in the same place however the tokens come."""
    tokenizer, pool = tokenizers[kind]
    ids = data.draw(st.lists(st.sampled_from(pool), max_size=24))
    stop = data.draw(st.lists(st.sampled_from(STOPS), max_size=3))
    chunk = data.draw(st.integers(1, 4))
    stream, said, settled = TextStream(tokenizer, stop), "", None
    for at in range(0, len(ids), chunk):
        said += stream.push(ids[at : at + chunk])
        if stream.stopped is not None and settled is None:
            settled = stream.text
    said += stream.finish()
    whole, met = cut(tokenizer.decode(ids, strip=False).lstrip(), stop)
    assert said == stream.text == whole
    assert stream.stopped == met
    assert settled is None or settled == whole
    if not stop:
        assert said == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_stream_goes_on_behind_broken_bytes(tokenizers, kind):
    """Each word is there as soon as the next one begins, and so is each broken byte but the last three."""
    tokenizer = tokenizers[kind][0]
    broken = [0xFF, 0xF0, 0x9F, 0xA6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]
    letters = {byte: letter for letter, byte in zip(*byte_alphabet(), strict=True)}
    tokens = [f"<0x{b:02X}>" for b in broken] if kind == "sentencepiece" else [letters[b] for b in broken]
    stream = TextStream(tokenizer)
    stream.push(tokenizer.encode("The dog"))
    said = "".join(stream.push([token]) for token in tokenizer.hf.convert_tokens_to_ids(tokens))
    assert said.count("\ufffd") >= 5
    after = [stream.push([token]) for token in tokenizer.encode(" and the rest of it", after=5)]
    assert "".join(after).endswith("and the rest of it")
    assert sum(map(bool, after)) >= 5


def test_whole_characters_stay_beside_broken_ones(tokenizers):
    """SentencePiece's own decoding, with which LLaVA's tokenizers decode; transformers 5 would give up all
    seven bytes. A special token that is left out does not part a character."""
    tokenizer = tokenizers["sentencepiece"][0]
    parrot = bytes_of(tokenizer, 0xF0, 0x9F, 0xA6, 0x9C)
    assert tokenizer.decode([*parrot, *parrot[:3]]) == "🦜\ufffd\ufffd\ufffd"
    assert tokenizer.decode([*parrot[:2], 2, 40000, *parrot[2:]]) == "🦜"
    assert tokenizer.decode([*parrot[:2], 2, *parrot[2:]], False) == "\ufffd\ufffd</s>\ufffd\ufffd"


def test_a_stop_text_that_began_before_another_is_waited_for(tokenizers):
    """One word at a time and all at once end in the same place."""
    tokenizer = tokenizers["bytes"][0]
    for stop, text in ((["a#b!", "#"], "x a#b! y"), (["a#b!", "#"], "x a#b? y"), (["A "], "12 A ")):
        ids, said = tokenizer.encode(text), ""
        stream = TextStream(tokenizer, stop)
        for token in ids:
            said += stream.push([token])
        assert said + stream.finish() == cut(text, stop)[0]
        assert stream.stopped == cut(text, stop)[1] is not None


def test_a_decoder_that_takes_back_more_than_is_known_still_loses_nothing():
    class Turning:
        """Writes the newest token first."""

        def decode(self, ids, strip=True):
            return " ".join(map(str, reversed(ids)))

    stream = TextStream(Turning())  # type: ignore[arg-type]
    said = stream.push([1]) + stream.push([2]) + stream.push([3]) + stream.finish()
    assert said.endswith("3 2 1")
