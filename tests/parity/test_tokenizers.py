"""Template `qwen` against the ChatML template that SmolLM2's publisher ships, on its real tokenizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import DataConfig
from quecc_jax.convert.formats.gguf import GgufFile
from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.text.templates import stops
from quecc_jax.data.text.tokenizer import load_tokenizer
from tests.laid_out import encode, prompt
from tests.parity.test_smollm2 import model_file

CHATML = DataConfig(template="qwen", max_length=4096, images_per_row=9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smollm2") / "tokenizer"
    gguf = GgufFile(model_file())
    write_tokenizer(gguf.metadata, gguf.path, directory)
    return load_tokenizer(directory)


def published(tokenizer, system, turns, **more):
    roles = [("system", system), *((("user", "assistant")[k % 2], turn) for k, turn in enumerate(turns))]
    messages = [{"role": role, "content": text} for role, text in roles]
    return tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False, **more)


def row(system, turns):
    return {
        "conversations": [
            {"from": "system", "value": system},
            *({"from": ("human", "gpt")[k % 2], "value": turn} for k, turn in enumerate(turns)),
        ]
    }


# White space at the edge of an answer would be one token with the template's own.
TEXT = st.text("abc 12\n.,?'é你😀-", min_size=1, max_size=20).map(str.strip).filter(bool)


@settings(max_examples=100, deadline=None)
@given(system=TEXT, turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_ids_and_labels_of_conversations(tokenizer, system, turns):
    said = [text for pair in turns for text in pair]
    made = encode(row(system, said), tokenizer, CHATML, 1)
    assert made.tokens.tolist() == published(tokenizer, system, said)
    learned = made.labels[made.labels != IGNORE].tolist()
    assert tokenizer.decode(learned, skip_special_tokens=False) == "".join(
        f"{answer}<|im_end|>" for answer in said[1::2]
    )


@settings(max_examples=50, deadline=None)
@given(system=TEXT, turns=st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
def test_prompts(tokenizer, system, turns):
    made = prompt(turns[-1], 0, tokenizer, CHATML, 1, history=turns[:-1], system=system)
    assert made.tokens.tolist() == published(tokenizer, system, turns, add_generation_prompt=True)
    # Answers of the history are labelled, for a pre-fusion leaves them out; what is asked now is not.
    assert (made.labels != IGNORE).any() == (len(turns) > 1) and made.labels[-1] == IGNORE


def test_a_image_stands_between_the_texts_of_its_turn(tokenizer):
    talk = row("Be brief.", ["<image>\nWhat is it?", "A circle."]) | {"image": "a"}
    made = encode(talk, tokenizer, CHATML, 3)
    image = np.flatnonzero(made.slots >= 0)
    before, after = made.tokens[: image[0]], made.tokens[image[-1] + 1 :]
    assert len(image) == 3
    assert tokenizer.decode(before, False) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
    assert tokenizer.decode(after, False) == (
        "What is it?<|im_end|>\n<|im_start|>assistant\nA circle.<|im_end|>"
    )
    assert tokenizer.hf.decode(before)[-1] == tokenizer.hf.decode(after)[0] == "\n"


def test_what_ends_an_answer_and_begins_a_text(tokenizer):
    assert tokenizer.bos_token_id is None
    assert [tokenizer.hf.convert_ids_to_tokens(k) for k in stops("qwen", tokenizer).ids] == ["<|im_end|>"]
