"""GGUF files, written by package gguf the way llama.cpp converts a model, read back as Hugging Face's."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config
from quecc_jax.convert.formats.gguf import GgufFile, halves, hf_config
from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer
from quecc_jax.convert.rules import check
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError

WIDTH, HEADS, KV_HEADS, MLP, DEPTH = 64, 4, 2, 96, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
Q8, F16, F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.F32


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it is visible, a letter from 256 on where it is not."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


BLANK, LINE = byte_letters()[ord(" ")], byte_letters()[ord("\n")]
MERGES = [(BLANK, BLANK), (LINE, LINE), ("a", "b"), (BLANK, "ab"), ("1", "2")]
TOKENS = [*SPECIALS, *byte_letters(), *(a + b for a, b in MERGES), "<mark>"]


def gguf_weights():
    """Random tensors under GGUF's names, as [out, in]."""
    rng = np.random.default_rng(0)
    head = WIDTH // HEADS
    layer = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_HEADS * head, WIDTH),
        "attn_v": (KV_HEADS * head, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (MLP, WIDTH),
        "ffn_up": (MLP, WIDTH),
        "ffn_down": (WIDTH, MLP),
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(DEPTH) for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(path, *, arch="llama", kind=F32, extra=None, pre="smollm", tensors=None):
    """A whole tiny model at `path`; returns its tensors under GGUF's names."""
    writer = GGUFWriter(path, arch)
    writer.add_block_count(DEPTH)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS) - 1) + [4])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}<|im_end|>")
    for key, value in (extra or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    weights = gguf_weights() | (tensors or {})
    for name, array in weights.items():
        chosen = F32 if array.ndim == 1 else kind
        writer.add_tensor(name, quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_the_source_satisfies_the_rules_of_its_own_config(tmp_path):
    write(tmp_path / "m.gguf")
    gguf = GgufFile(tmp_path / "m.gguf")
    config = decoder_config(hf_config(gguf))
    check(decoder_rules(config, "llama"), gguf.shapes)
    assert (config.width, config.depth, config.heads, config.kv_heads) == (WIDTH, DEPTH, HEADS, KV_HEADS)
    assert (config.mlp_width, config.vocab_size, config.tie_embeddings) == (MLP, len(TOKENS), True)
    assert (config.rope_theta, config.norm_eps) == (1e5, 1e-5)


@pytest.mark.parametrize("kind, atol", [(F32, 0), (F16, 2e-3), (Q8, 2e-2)])
def test_tensors_have_hugging_faces_names_and_values(kind, atol, tmp_path):
    weights = write(tmp_path / "m.gguf", kind=kind)
    gguf = GgufFile(tmp_path / "m.gguf")
    pairs = {
        "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.embed_tokens.weight": "token_embd.weight",
    }
    for theirs, name in pairs.items():
        array = gguf.read(theirs)
        assert array.dtype == gguf.dtypes[theirs] == np.float32 and array.shape == gguf.shapes[theirs]
        np.testing.assert_allclose(array, weights[name], rtol=0, atol=atol)
    gguf.close()


def turn(x, angles, interleaved):
    """Rotates pairs of the last axis: neighbours, or elements half the width apart."""
    pairs = x.reshape(-1, 2).T if interleaved else x.reshape(2, -1)
    turned = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=1 if interleaved else 0).reshape(-1)


def test_scores_of_q_and_k_survive_the_other_rotary_layout(tmp_path):
    weights = write(tmp_path / "m.gguf")
    gguf = GgufFile(tmp_path / "m.gguf")
    x, y = np.random.default_rng(1).standard_normal((2, WIDTH), np.float32)
    head, angles = WIDTH // HEADS, np.arange(WIDTH // HEADS // 2) * 0.3

    def scores(query, key, interleaved):
        return [
            np.dot(turn(q, 5 * angles, interleaved), turn(k, 2 * angles, interleaved))
            for q in (query @ x).reshape(HEADS, head)
            for k in (key @ y).reshape(KV_HEADS, head)
        ]

    theirs = scores(weights["blk.0.attn_q.weight"], weights["blk.0.attn_k.weight"], True)
    layer = "model.layers.0.self_attn."
    ours = scores(gguf.read(f"{layer}q_proj.weight"), gguf.read(f"{layer}k_proj.weight"), False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_halves_puts_even_rows_before_odd_ones_in_each_head():
    rows = np.arange(12)[:, None]
    assert halves(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_an_own_output_matrix_unties(tmp_path):
    write(tmp_path / "m.gguf", tensors={"output.weight": np.ones((len(TOKENS), WIDTH), np.float32)})
    gguf = GgufFile(tmp_path / "m.gguf")
    assert not hf_config(gguf)["tie_word_embeddings"]
    check(decoder_rules(decoder_config(hf_config(gguf)), "llama"), gguf.shapes)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"arch": "gemma"}, "architecture 'gemma'"),
        (
            {"tensors": {"rope_freqs.weight": np.ones(7, np.float32)}},
            r"rope_freqs\.weight .*has 7 numbers for 8",
        ),
        (
            {"tensors": {"rope_freqs.weight": np.arange(8, 0, -1).astype(np.float32)}},
            "rope_freqs.* no scaling",
        ),
        ({"tensors": {"rope_factors_long.weight": np.ones(8, np.float32)}}, r"rope_factors_long\.weight"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(WIDTH, np.float32)}}, r"blk\.0\.attn_q\.bias"),
        ({"tensors": {"blk.0.ffn_gate_exps.weight": np.ones((2, 4, 4), np.float32)}}, "ffn_gate_exps"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.type 'yarn'"),
        ({"extra": {"llama.rope.scaling.type": "linear"}}, "rope.scaling.type 'linear' with factor None"),
        ({"extra": {"llama.attention.sliding_window": 64}}, "attention.sliding_window 64"),
        ({"extra": {"llama.expert_count": 8}}, "expert_count 8"),
        ({"extra": {"llama.rope.dimension_count": 8}}, "rope.dimension_count 8 beside heads of 16"),
        ({"extra": {"llama.attention.value_length": 8}}, "attention.value_length 8 beside heads of 16"),
        ({"extra": {"llama.residual_scale": 0.5}}, "residual_scale 0.5"),
        ({"extra": {"general.type": "adapter"}}, "no model but something of type 'adapter'"),
        ({"extra": {"split.count": 2}}, "one of 2 parts"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(change, says, tmp_path):
    write(tmp_path / "m.gguf", **change)
    with pytest.raises(UserError, match=says):
        hf_config(GgufFile(tmp_path / "m.gguf"))


def test_broken_files_are_refused_by_name(tmp_path):
    write(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for share in (0.0, 0.02, 0.3, 0.999):
        (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"cut\.gguf is truncated"):
            GgufFile(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("this is no model at all, only text")
    with pytest.raises(UserError, match=r"text\.gguf is truncated or not a GGUF file"):
        GgufFile(tmp_path / "text.gguf")
    with pytest.raises(UserError, match=r"none\.gguf is not a file"):
        GgufFile(tmp_path / "none.gguf")


def tokenizer_of(root: Path) -> None:
    """Writes root/tokenizer of root/m.gguf."""
    write_tokenizer(GgufFile(root / "m.gguf").metadata, root / "m.gguf", root / "tokenizer")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The tiny tokenizer, written."""
    root = tmp_path_factory.mktemp("gguf")
    write(root / "m.gguf")
    tokenizer_of(root)
    return root / "tokenizer"


def words(directory: Path, text: str) -> list[str]:
    return [TOKENS[number] for number in load_tokenizer(directory).encode(text)]


def test_text_is_split_merged_and_marked_as_the_file_says(directory):
    assert words(directory, "ab ab") == ["ab", BLANK + "ab"]
    marked = ["<|im_start|>", "ab", "<|im_end|>", "<mark>"]
    assert words(directory, "".join(marked)) == marked
    # Digits stand alone although there is a merge, and blanks before them stay together.
    assert words(directory, "ab  12\n\n1") == ["ab", BLANK * 2, "1", "2", LINE * 2, "1"]
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.hf.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, len(TOKENS))
    assert tokenizer.hf.chat_template == "{{ messages[0].content }}<|im_end|>"


@pytest.mark.parametrize("wanted", [True, False])
def test_bos_stands_in_front_where_the_file_says_so(wanted, tmp_path):
    write(tmp_path / "m.gguf", extra={"tokenizer.ggml.add_bos_token": wanted})
    tokenizer_of(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.hf("ab")["input_ids"] == [1] * wanted + [TOKENS.index("ab")]
    assert tokenizer.bos_token_id == (1 if wanted else None)


@given(text=st.text())
def test_any_text_comes_back(directory, text):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.hf.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_gpt2s_own_splitting_keeps_digits_together(tmp_path):
    write(tmp_path / "m.gguf", pre="gpt-2")
    tokenizer_of(tmp_path)
    assert words(tmp_path / "tokenizer", "12  12") == ["12", BLANK, BLANK, "12"]


def test_another_kind_of_tokenizer_is_refused_and_writes_nothing(tmp_path):
    write(tmp_path / "m.gguf", pre="tekken")
    with pytest.raises(UserError, match="splits text as 'tekken' does"):
        tokenizer_of(tmp_path)
    assert not (tmp_path / "tokenizer").exists()


def test_the_config_is_json(tmp_path):
    write(tmp_path / "m.gguf")
    config = hf_config(GgufFile(tmp_path / "m.gguf"))
    assert json.loads(json.dumps(config)) == config
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
