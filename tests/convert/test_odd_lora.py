"""Adapters that would come in as something else than PEFT or LLaVA make of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.errors import UserError
from tests.convert.test_lora import (
    PREFIX,
    Tensors,
    assert_close,
    pairs_of,
    put,
    put_adapter,
    put_llava,
    put_model,
    summed,
)

TABLE = f"{PREFIX}model.embed_tokens.weight"


def changed(given: Path, tensors: Tensors | None = None, without: str = "", **settings: Any) -> Path:
    """An adapter's directory with other tensors beside its own, and other settings."""
    if tensors is not None:
        file = given / "adapter_model.safetensors"
        save_file(load_file(file) | tensors, file)
    file = given / "adapter_config.json"
    told = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in told.items() if name != without}))
    return given


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no alpha": (
        lambda d: changed(d, without="lora_alpha"),
        "has lora_alpha None, which is no positive number",
    ),
    "alpha 0": (lambda d: changed(d, lora_alpha=0), "has lora_alpha 0, which is no positive number"),
    "a negative alpha": (lambda d: changed(d, lora_alpha=-6), "has lora_alpha -6, which is no positive"),
    "alpha NaN": (lambda d: changed(d, lora_alpha=float("nan")), "has lora_alpha nan, which is no positive"),
    "alpha true": (lambda d: changed(d, lora_alpha=True), "has lora_alpha True, which is no positive number"),
    "a huge alpha": (lambda d: changed(d, lora_alpha=10**400), "which is no positive number"),
    "a dropout of 1": (
        lambda d: changed(d, lora_dropout=1.0),
        "has lora_dropout 1.0, which is no share below 1",
    ),
    "no number": (
        lambda d: changed(d, lora_dropout=None),
        "has lora_dropout None, which is no share below 1",
    ),
    "rsLoRA 1": (lambda d: changed(d, use_rslora=1), "has use_rslora 1, which is neither true nor false"),
    "rsLoRA in words": (
        lambda d: changed(d, use_rslora="true"),
        "use_rslora 'true', which is neither true nor",
    ),
    "whole numbers": (
        lambda d: changed(
            d,
            {
                name: array.astype(np.int8)
                for name, array in load_file(d / "adapter_model.safetensors").items()
            },
        ),
        "lora_A.weight as int8; only adapters of floating-point numbers are read",
    ),
    "two for one": (
        lambda d: changed(
            d,
            {
                f"{PREFIX}lm_head{part}.weight": np.full((40, 16), value, np.float32)
                for value, part in enumerate(("", ".modules_to_save.default"))
            },
        ),
        "has both .*lm_head.* and .*lm_head.* for lm_head.weight",
    ),
    "a head that the base has not": (
        lambda d: changed(d, {f"{PREFIX}score.weight": np.ones((2, 16), np.float32)}),
        r"holds base_model\.model\.score\.weight, and .*base has no score\.weight; give the base",
    ),
}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("case", ODD)
def test_odd_adapters_are_refused_apart_and_merged(case, merge, tmp_path):
    make, says = ODD[case]
    given = put_adapter(tmp_path / "given", pairs_of(put_model(tmp_path / "base", "llama"), ("q_proj",)))
    make(given)
    with pytest.raises(UserError, match=says):
        import_weights(tmp_path / "base", tmp_path / "run", adapter=given, merge_adapter=merge)
    assert not (tmp_path / "run").exists()


def test_what_peft_keeps_below_an_adapter_stands_in_for_the_base_s(tmp_path):
    """`save_embedding_layers` writes the matrix too that an adapter is on."""
    weights = put_model(tmp_path / "base", "llama")
    given = put_adapter(tmp_path / "given", pairs := pairs_of(weights, ("lm_head",)))
    head = np.random.default_rng(5).normal(size=(40, 16)).astype(np.float32)
    changed(given, {f"{PREFIX}lm_head.base_layer.weight": head})
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given, merge_adapter=True)
    export_weights(tmp_path / "run", tmp_path / "out")
    assert_close(tmp_path / "out", summed(weights | {"lm_head.weight": head}, pairs, 2.0))


def tied(folder: Path, **settings: Any) -> tuple[Tensors, Path]:
    """A base with one matrix for both ends, and an adapter with a table of its own."""
    weights = put_model(folder / "base", "llama")
    hf = json.loads((folder / "base" / "config.json").read_text()) | {"tie_word_embeddings": True}
    del weights["lm_head.weight"]
    put(folder / "base", hf, weights)
    given = put_adapter(folder / "given", pairs_of(weights, ("q_proj",)))
    return weights, changed(given, {TABLE: weights["model.embed_tokens.weight"] + 1}, **settings)


def test_a_table_that_peft_does_not_tie_is_refused(tmp_path):
    """PEFT trains a copy of the embedding, and the output matrix stays the base's."""
    _, given = tied(tmp_path, modules_to_save=["embed_tokens"])
    with pytest.raises(
        UserError, match=r"trained a copy of model\.embed_tokens\.weight .*tie_word_embeddings"
    ):
        import_weights(tmp_path / "base", tmp_path / "run", adapter=given)


def test_an_output_matrix_of_its_own_is_refused_where_the_base_has_none(tmp_path):
    for number, part in enumerate((".lora_A.weight", ".weight")):
        folder = tmp_path / str(number)
        weights, given = tied(folder)
        more = pairs_of({"lm_head.weight": weights["model.embed_tokens.weight"]}, ("lm_head",))
        changed(given, more if "lora" in part else {f"{PREFIX}lm_head.weight": np.ones((40, 16), np.float32)})
        with pytest.raises(UserError, match=r"lm_head.* has no lm_head\.weight .*tie_word_embeddings"):
            import_weights(folder / "base", folder / "run", adapter=given, merge_adapter=True)


TIED = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
"""What PEFT is told so that it trains one table for both ends."""


@pytest.mark.parametrize("settings", [{}, TIED])
def test_a_table_that_both_ends_read_is_taken(settings, tmp_path):
    weights, given = tied(tmp_path, **settings)
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given)
    export_weights(tmp_path / "run", tmp_path / "out")
    found = open_tensors(tmp_path / "out").read("model.embed_tokens.weight")
    np.testing.assert_array_equal(found, weights["model.embed_tokens.weight"] + 1)


@pytest.mark.parametrize("merge", [False, True])
def test_an_output_matrix_that_repeats_a_tied_table_is_the_table(merge, tmp_path):
    """PEFT saves both where it keeps them tied."""
    weights, given = tied(tmp_path, **TIED)
    table = weights["model.embed_tokens.weight"] + 1
    changed(given, {f"{PREFIX}lm_head.weight": table})
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given, merge_adapter=merge)
    export_weights(tmp_path / "run", tmp_path / "out")
    np.testing.assert_array_equal(open_tensors(tmp_path / "out").read("model.embed_tokens.weight"), table)
    changed(given, {f"{PREFIX}lm_head.weight": table + 1})
    with pytest.raises(UserError, match=r"lm_head.* has no lm_head\.weight"):
        import_weights(tmp_path / "base", tmp_path / "again", adapter=given, merge_adapter=merge)


def test_an_adapter_that_lies_in_its_base_s_directory(tmp_path, capsys):
    weights = put_model(tmp_path / "base", "llama")
    given = put_adapter(tmp_path / "base" / "lora", pairs := pairs_of(weights, ("q_proj",)))
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given, merge_adapter=True)
    assert "not read" not in capsys.readouterr().err
    export_weights(tmp_path / "run", tmp_path / "out")
    assert_close(tmp_path / "out", summed(weights, pairs, 2.0))
    other = put_adapter(tmp_path / "base" / "other", pairs)
    with pytest.raises(UserError, match=r"holds an adapter \(other/adapter_config\.json"):
        import_weights(tmp_path / "base", tmp_path / "again", adapter=given)
    for file in other.iterdir():
        file.rename(tmp_path / "base" / file.name)
    with pytest.raises(UserError, match=r"may be merged already; .* a folder of its own"):
        import_weights(tmp_path / "base", tmp_path / "again", adapter=tmp_path / "base")


@pytest.mark.parametrize("change", [{"rope_theta": 5e5}, {"rope_scaling": {"type": "linear", "factor": 4.0}}])
def test_a_base_that_computes_otherwise_than_the_adapter_s_is_refused(change, tmp_path):
    """LLaVA builds the model by the adapter's config.json, which is of the base that it was trained on."""
    _, _, given = put_llava(tmp_path)
    file = given / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"--adapter .* has model\.decoder\.rope_"):
        import_weights(tmp_path / "llm", tmp_path / "run", vision=tmp_path / "clip", adapter=given)


def test_a_projector_that_was_left_behind_is_missed(tmp_path):
    """LLaVA's own base has none, and its code looks for the file elsewhere."""
    _, _, given = put_llava(tmp_path)
    beside = given / "non_lora_trainables.safetensors"
    beside.rename(tmp_path / "mm_projector.safetensors")
    with pytest.raises(UserError, match=r"lora has no non_lora_trainables, in which .* keeps the projector"):
        import_weights(tmp_path / "llm", tmp_path / "run", vision=tmp_path / "clip", adapter=given)


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"mm_vision_token_compression_stride": 6},
            r"than those of .*whole \(model\.compressor\.stride: 6 -> ",
        ),
        ({"mm_vision_token_compression_type": None}, r"model\.compressor\.name: none -> quecc"),
        ({"mm_vision_select_layer": -1}, r"\(model\.vision\.select_layer: -1 -> -2\)"),
        ({"image_aspect_ratio": "square"}, r"\(data\.image_aspect: square -> pad\)"),
    ],
)
def test_a_whole_base_that_reads_images_otherwise_is_refused(change, says, tmp_path):
    weights, _, given = put_llava(tmp_path)
    file = given / "config.json"
    hf = json.loads(file.read_text()) | {"image_aspect_ratio": "pad"}
    put(tmp_path / "whole", hf, weights)
    file.write_text(json.dumps(hf | change))
    with pytest.raises(UserError, match=says):
        import_weights(tmp_path / "whole", tmp_path / "run", vision=tmp_path / "clip", adapter=given)


def test_an_adapter_that_was_trained_in_another_chat_asks_for_the_template(tmp_path):
    given = put_adapter(tmp_path / "given", pairs_of(put_model(tmp_path / "base", "llama"), ("q_proj",)))
    (given / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with pytest.raises(
        UserError, match=r"given/tokenizer_config\.json has a chat template that is not that of .*base"
    ):
        import_weights(tmp_path / "base", tmp_path / "run", adapter=given)
    plan = import_weights(tmp_path / "base", tmp_path / "run", adapter=given, template="chatml")
    assert plan.config.data.template == "chatml"
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}\n")
    same = import_weights(tmp_path / "base", tmp_path / "again", adapter=given)
    assert same.config.data.template == "v1"
