"""Whose words condition the compressor, and all of them: against the original code.

expected/queries.json holds what locuslab/llava-token-compression (commit bdedebd) gives: conversations
through its `preprocess_multimodal` and `preprocess` (template v1), the text that its
`prepare_inputs_labels_for_multimodal` hands to the tower, and that text's ids by the tokenizer of
tests/golden/llava_tiny (transformers 4.37.2, its Python class). Rows called ScienceQA are of LLaVA's own
evaluation.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from quecc_jax.config import DataConfig
from quecc_jax.data.text.queries import question_ids, question_segments
from quecc_jax.data.text.tokenizer import load_tokenizer
from tests.laid_out import encode

CASES = json.loads((Path(__file__).parent / "expected/queries.json").read_text(encoding="utf-8"))
IMAGE = -200
"""Stands for an image in the original's ids."""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(__file__).parents[1] / "golden/llava_tiny")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_query_and_row(conforms, tokenizer, case):
    turns = [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(case["turns"])]
    images = sum(text.count("<image>") for text in case["turns"])
    row = {"conversations": turns} | ({"image": ["a.png"] * images} if images else {})
    made = encode(row, tokenizer, DataConfig(template="v1", images_per_row=2), 1)
    # The original's query for rows without an image is a word that no token depends on.
    expected = case["query_ids"] if images else []
    obtained = made.queries.tolist()
    if images > 1:
        segments = question_segments(made.query_ends, len(obtained))
        obtained = question_ids(made.queries, segments, made.query_ends[-1]).tolist()
    conforms("query", case["name"], expected, obtained)
    ids = np.where(made.slots >= 0, IMAGE, made.tokens)
    conforms("row v1", case["name"], case["input_ids"], ids.tolist())


def test_each_image_has_its_own_turn_where_the_original_takes_the_last_for_all(conforms, tokenizer):
    case = next(case for case in CASES if case["name"] == "two pictures in two turns")
    turns = [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(case["turns"])]
    made = encode({"image": ["a", "b"], "conversations": turns}, tokenizer, DataConfig(images_per_row=2), 1)
    segments = question_segments(made.query_ends, len(made.queries))
    texts = [tokenizer.decode(question_ids(made.queries, segments, end)) for end in made.query_ends]
    conforms("query", "two images, each of its turn", ["What is it?", "And what is this?"], texts)
