"""The names, shapes and configs in tests/golden/names.json against what transformers writes today.

    python -m tests.parity.test_names

writes the file anew.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from quecc_jax.convert.formats.families import decoder_config, hf_decoder_config
from quecc_jax.convert.formats.family_keys import FAMILIES, unknown_keys
from quecc_jax.convert.plan import plan_export, plan_import
from quecc_jax.convert.rules import from_tree, to_tree
from tests.convert.names import NAMES, load, source

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOWER = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "projection_dim": 6,
}
TEXT = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "projection_dim": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}
GEMMA_LAYERS = ["sliding_attention", "full_attention"]
AUTO: Any = transformers.AutoConfig
IDS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}


def models() -> dict[str, Any]:
    """Small models by the name of their case, with transformers' initial weights."""
    t: Any = transformers
    text = t.LlamaConfig(**SMALL)
    vision = t.CLIPVisionConfig(**TOWER)
    torch.manual_seed(0)
    return {
        "llama": t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
        "mistral": t.MistralForCausalLM(t.MistralConfig(**SMALL, head_dim=6, sliding_window=8)),
        "qwen2": t.Qwen2ForCausalLM(t.Qwen2Config(**SMALL, tie_word_embeddings=True)),
        "phi3": t.Phi3ForCausalLM(
            t.Phi3Config(**SMALL, **IDS, rope_parameters=LONGROPE, original_max_position_embeddings=32)
        ),
        "mpt": t.MptForCausalLM(
            t.MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=40, max_seq_len=64)
        ),
        "qwen3": t.Qwen3ForCausalLM(t.Qwen3Config(**SMALL, head_dim=6, tie_word_embeddings=True)),
        "smollm3": t.SmolLM3ForCausalLM(t.SmolLM3Config(**SMALL, **IDS, no_rope_layer_interval=2)),
        "olmo2": t.Olmo2ForCausalLM(t.Olmo2Config(**SMALL, **IDS)),
        "gemma2": t.Gemma2ForCausalLM(t.Gemma2Config(**SMALL, **IDS, head_dim=6, sliding_window=8)),
        "gemma3_text": t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 7}, **IDS, head_dim=6, sliding_window=8)
        ),
        "gemma3": t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(
                text_config=t.Gemma3TextConfig(
                    **SMALL, head_dim=6, sliding_window=8, layer_types=GEMMA_LAYERS
                ),
                vision_config=t.SiglipVisionConfig(
                    **{k: v for k, v in TOWER.items() if k != "projection_dim"}
                ),
                mm_tokens_per_image=9,
                image_token_index=39,
            )
        ),
        "clip_vision_model": t.CLIPVisionModel(vision),
        "clip": t.CLIPModel(t.CLIPConfig(text_config=TEXT, vision_config=TOWER, projection_dim=6)),
        "llava": t.LlavaForConditionalGeneration(
            t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
        ),
        "llava_next": t.LlavaNextForConditionalGeneration(
            t.LlavaNextConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=39,
                image_grid_pinpoints=[[12, 24], [24, 24], [36, 12]],
            )
        ),
    }


def written(model: Any) -> dict[str, Any]:
    """config.json and shapes by name, as a model's own save_pretrained writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            tensors = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        config = json.loads((Path(folder) / "config.json").read_text())
    for key in ("transformers_version", "dtype"):
        config.pop(key, None)
    return {"config": config, "tensors": tensors}


@pytest.fixture(scope="module")
def live() -> dict[str, Any]:
    return models()


@pytest.mark.parametrize("case", [*FAMILIES, "gemma3", "clip_vision_model", "clip", "llava", "llava_next"])
def test_the_stored_names_and_configs_are_those_that_transformers_writes(live, case):
    assert written(live[case]) == load(case)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_key_that_transformers_knows_is_known(family):
    kind = AUTO.for_model(family)
    fields = {field.name for field in dataclasses.fields(kind)} | kind.to_dict().keys()
    assert unknown_keys(dict.fromkeys(fields), family) == []
    assert not {"hidden_size", "rms_norm_eps"} - fields or family == "mpt"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_keys_left_out_mean_what_they_mean_to_transformers(family):
    theirs = AUTO.for_model(family).to_dict()
    assert decoder_config(theirs) == decoder_config({"model_type": family})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_transformers_reads_the_configs_we_write_as_we_do(family):
    config = decoder_config(load(family)["config"])
    hf = hf_decoder_config(config, family, max_length=64)
    theirs = AUTO.for_model(**hf).to_dict()
    assert decoder_config(theirs) == config


@pytest.mark.parametrize(
    "case, layout, kind",
    [
        ("llava", "llava_hf", "LlavaForConditionalGeneration"),
        ("llava_next", "llava_hf", "LlavaNextForConditionalGeneration"),
        ("clip_vision_model", "tower", "CLIPVisionModel"),
    ]
    + [(f, "decoder", "AutoModelForCausalLM") for f in FAMILIES],
)
def test_transformers_loads_what_we_write_without_a_name_to_spare(live, case, layout, kind, tmp_path):
    plan = plan_import(source(case))
    live[case].save_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    export = plan_export(plan.config, layout, plan.family)
    tensors = from_tree(export.rules, to_tree(plan.rules, state))
    save_file({k: v.copy() for k, v in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(export.hf))
    model, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in live[case].state_dict().items():
        got = model.state_dict()[name]
        # The image's token has the last row of the vocabulary's tables.
        assert torch.equal(got[:-1] if got.shape != value.shape else got, value), name


if __name__ == "__main__":
    stored = json.loads(NAMES.read_text()) if NAMES.exists() else {}
    stored |= {case: written(model) for case, model in models().items()}
    NAMES.write_text(json.dumps(stored, separators=(",", ":")) + "\n")
