"""Exports for vLLM: a plain language model, and an encoder that makes the embeddings that the whole run makes."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from quecc_jax.commands.cli import execute
from quecc_jax.config import LoraConfig
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config
from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.convert.vllm import NOT_THERE, export_for_vllm
from quecc_jax.errors import UserError
from quecc_jax.generate.embeddings import prompt_embeddings
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_encoder, load_engine
from tests.convert.names import load
from tests.convert.test_run import assert_same_tensors, write_checkpoint
from tests.vllm.runs import QUESTIONS, put_run


def embedded(engine: Engine) -> list[np.ndarray]:
    image = engine.image(Image.new("RGB", (24, 24), "red"))
    asked = Question(QUESTIONS[0], (image,)), Question(QUESTIONS[1], (image, image))
    return prompt_embeddings(engine, [engine.prompt(one) for one in asked])


@pytest.mark.parametrize("compressor", ["quecc", "avgpool", "quecc_plus"])
def test_the_encoder_makes_what_the_run_makes_with_no_more_than_it_needs(compressor, tmp_path):
    run = put_run(tmp_path, compressor)
    export_for_vllm(run, tmp_path / "out")
    encoder = load_encoder(tmp_path / "out" / "encoder")
    assert encoder.config.data.tokenizer == str(tmp_path / "out" / "encoder" / "tokenizer")
    expected = embedded(load_engine(run))
    for one in (encoder, load_encoder(run)):
        names = one.params["decoder"].keys() & {"layers_0", "layers_1", "norm"}
        assert len(names) == (0 if compressor == "avgpool" else 3)
        for made, same in zip(embedded(one), expected, strict=True):
            np.testing.assert_array_equal(made, same)
    if compressor == "avgpool":
        # What lacks the layers cannot be taken for a model that answers.
        with pytest.raises(UserError, match=r"decoder/layers/.* is missing"):
            load_engine(tmp_path / "out" / "encoder")


def test_the_decoder_is_a_plain_language_model_with_its_tokenizer(tmp_path):
    run = put_run(tmp_path)
    names = {str(file.relative_to(tmp_path / "out")) for file in export_for_vllm(run, tmp_path / "out")}
    assert {"decoder/config.json", "decoder/model.safetensors", "decoder/tokenizer.json"} <= names
    export_weights(run, tmp_path / "plain", only="decoder")
    assert_same_tensors(tmp_path / "plain", tmp_path / "out" / "decoder")
    config = json.loads((tmp_path / "out" / "decoder" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "mm_vision_tower" not in config
    ends = json.loads((tmp_path / "out" / "decoder" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == list(load_engine(run).ends.ids)


def test_adapters_are_merged_or_lie_apart_and_the_encoder_has_them(tmp_path):
    run = put_run(tmp_path, lora=LoraConfig(rank=2, alpha=8.0, targets=("q", "up")))
    export_for_vllm(run, tmp_path / "merged")
    export_for_vllm(run, tmp_path / "apart", adapter="peft")
    assert not (tmp_path / "merged" / "adapter").exists()
    q = "model.layers.1.self_attn.q_proj"
    whole, base, pair = (
        open_tensors(tmp_path / part) for part in ("merged/decoder", "apart/decoder", "apart/adapter")
    )
    a, b = (pair.read(f"base_model.model.{q}.lora_{one}.weight") for one in "AB")
    changed = whole.read(f"{q}.weight") - base.read(f"{q}.weight")
    assert np.abs(changed).max() > 0.1
    np.testing.assert_allclose(changed, 4.0 * b @ a, atol=1e-5)
    assert json.loads((tmp_path / "apart/adapter/adapter_config.json").read_text())["r"] == 2
    expected = embedded(load_engine(run))
    for name in ("merged", "apart"):
        encoder = load_encoder(tmp_path / name / "encoder")
        assert encoder.config.model.lora.rank == 0
        for made, same in zip(embedded(encoder), expected, strict=True):
            np.testing.assert_allclose(made, same, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="--adapter peft"):
        export_for_vllm(run, tmp_path / "out", adapter="llava")


def test_halves_are_halves_on_both_sides(tmp_path):
    export_for_vllm(put_run(tmp_path, "avgpool"), tmp_path / "out", dtype="bfloat16")
    assert set(open_tensors(tmp_path / "out" / "decoder").dtypes.values()) == {np.dtype(ml_dtypes.bfloat16)}
    table = open_tensors(tmp_path / "out" / "decoder").read("model.embed_tokens.weight")
    encoder = load_encoder(tmp_path / "out" / "encoder")
    np.testing.assert_array_equal(encoder.params["decoder"]["embedding"], table.astype(np.float32))


def test_text_alone_needs_no_tower(tmp_path):
    found = load("qwen3")
    hf = found["config"] | {"head_dim": 32, "vocab_size": 40}
    import_run(tmp_path, hf)
    export_for_vllm(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/decoder/config.json").read_text())["model_type"] == "qwen3"
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"decoder", "encoder"}


def import_run(folder: Path, hf: dict) -> None:
    """A language model of random bits as a run."""
    rules = decoder_rules(decoder_config(hf), hf["model_type"])
    shapes = {name: shape for rule in rules for name, shape in zip(rule.theirs, rule.shapes, strict=True)}
    write_checkpoint(folder / "given", hf, shapes, np.float32)
    import_weights(folder / "given", folder / "run")


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_that_vllm_cannot_run_are_refused(family, tmp_path):
    """All golden ones, since their heads are small."""
    import_run(tmp_path, load(family)["config"])
    why = "no architecture" if family in NOT_THERE else r"no attention for heads of \d+ numbers"
    with pytest.raises(UserError, match=why) as told:
        export_for_vllm(tmp_path / "run", tmp_path / "out")
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    run = put_run(tmp_path)
    execute(
        "convert", ["export", "--checkpoint", str(run), "--to", str(tmp_path / "out"), "--format", "vllm"]
    )
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: ")
    asked = Question(QUESTIONS[2])
    answers = [load_engine(one).answers([asked], Limits(4)) for one in (run, tmp_path / "out" / "encoder")]
    assert answers[0] == answers[1]
    with pytest.raises(UserError, match="--only is part of no export for vLLM"):
        execute(
            "convert",
            ["export", "--checkpoint", str(run), "--to", "x", "--format", "vllm", "--only", "decoder"],
        )
