"""tokenizer.json files against the SentencePiece model that they stand for: the golden model's."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from quecc_jax.convert.sentencepiece_json import write_tokenizer_json
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Backend]:
    folder = tmp_path_factory.mktemp("json")
    shutil.copy(GOLDEN / "tokenizer.model", folder)
    known = load_tokenizer(GOLDEN)
    write_tokenizer_json(folder, known, known.hf.added_tokens_decoder, legacy=True)
    return known, Backend.from_file(str(folder / "tokenizer.json"))


def test_runs_of_blanks_are_joined_from_the_left(pair: tuple[Tokenizer, Backend]) -> None:
    known, backend = pair
    for length in range(40):
        text = f"a{' ' * length}b"
        assert tuple(backend.encode(text, add_special_tokens=False).ids) == known.encode(text), length
    assert backend.encode("a").ids == [1, *known.encode("a")]


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from([*"  \n\tab.1=-<>é中🙂A\u0301", "</s>"]), max_size=40).map("".join))
def test_any_text_gets_the_same_ids(pair: tuple[Tokenizer, Backend], text: str) -> None:
    known, backend = pair
    ids = backend.encode(text, add_special_tokens=False).ids
    assert tuple(ids) == known.encode(text)
