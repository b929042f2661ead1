"""Adapters of other programs in and ours out: kept apart, merged, beside a projector; and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quecc_jax.config import LoraConfig
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.errors import UserError
from quecc_jax.train.checkpoint import load_params, named_leaves, save_params
from quecc_jax.train.state import stored_frozen
from tests.convert.names import load
from tests.convert.test_run import assert_same_tensors, small

PREFIX = "base_model.model."
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Tensors = dict[str, np.ndarray]


def normal(shapes: dict[str, Any], dtype: Any = np.float32, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def put_model(directory: Path, case: str, dtype: Any = np.float32) -> Tensors:
    """A golden checkpoint's config beside numbers that can be added up."""
    found = small(case) if case == "llava_tiny" else load(case)
    tensors = normal(found["tensors"], dtype)
    put(directory, found["config"], tensors)
    return tensors


def put(directory: Path, hf: dict[str, Any] | None, tensors: Tensors, name: str = "model") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / f"{name}.safetensors")
    if hf is not None:
        (directory / "config.json").write_text(json.dumps(hf))


def pairs_of(weights: Tensors, modules: tuple[str, ...], rank: int = 3, dtype: Any = np.float32) -> Tensors:
    """An adapter's tensors for all weights of some modules, under PEFT's names."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] in modules and weight.ndim == 2:
            shapes[f"{PREFIX}{stem}.lora_A.weight"] = (rank, weight.shape[1])
            shapes[f"{PREFIX}{stem}.lora_B.weight"] = (weight.shape[0], rank)
    return normal(shapes, dtype, seed=1)


def put_adapter(directory: Path, tensors: Tensors, **settings: Any) -> Path:
    given = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "bias": "none"} | settings
    put(directory, None, tensors, "adapter_model")
    (directory / "adapter_config.json").write_text(json.dumps(given))
    return directory


def summed(weights: Tensors, pairs: Tensors, scale: float) -> Tensors:
    """The weights with the adapter merged."""
    out = dict(weights)
    for name in weights:
        stem = PREFIX + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in pairs:
            delta = pairs[f"{stem}.lora_B.weight"].astype(np.float64) @ pairs[f"{stem}.lora_A.weight"]
            out[name] = weights[name] + scale * delta
    return out


def assert_close(directory: Path, expected: Tensors) -> None:
    found = open_tensors(directory)
    assert found.shapes.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(
            found.read(name).astype(np.float64), array.astype(np.float64), rtol=2e-3, atol=2e-3, err_msg=name
        )


@pytest.mark.parametrize(
    "case, modules, targets",
    [
        ("llama", LLAMA, ("*",)),
        ("llama", ("q_proj", "o_proj", "down_proj"), ("down", "out", "q")),
        ("qwen2", ("k_proj", "up_proj"), ("k", "up")),
        ("mpt", ("down_proj", "out_proj"), ("down", "out")),
        ("phi3", ("o_proj",), ("out",)),
    ],
)
def test_peft_s_directory_stays_apart_and_goes_back_bit_by_bit(case, modules, targets, tmp_path):
    weights = put_model(tmp_path / "base", case)
    pairs = pairs_of(weights, modules)
    given = put_adapter(tmp_path / "given", pairs, use_rslora=True, target_modules=list(modules))
    plan = import_weights(tmp_path / "base", tmp_path / "run", adapter=given)
    assert plan.config.model.lora == LoraConfig(3, 6.0, 0.1, targets, rank_stabilised=True)
    config, params = load_params(tmp_path / "run")
    assert config.model == plan.config.model and set(params) == {"decoder", "lora"}
    assert set(params["lora"]["layers"]) == set(targets) or targets == ("*",)
    files = export_weights(tmp_path / "run", tmp_path / "out", adapter="peft")
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors"}
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == pairs.keys()
    for name, array in pairs.items():
        np.testing.assert_array_equal(found[name], array)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(modules) and settings["use_rslora"]
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 6.0, 0.1)
    again = import_weights(tmp_path / "base", tmp_path / "again", adapter=tmp_path / "out")
    assert again.config.model == plan.config.model
    # Merged on the way out, from what stands apart.
    export_weights(tmp_path / "run", tmp_path / "merged")
    assert_close(tmp_path / "merged", summed(weights, pairs, 6 / 3**0.5))


def test_an_adapter_lies_in_our_axes_as_its_matrix_does(tmp_path):
    weights = put_model(tmp_path / "base", "llama")
    pairs = pairs_of(weights, ("k_proj", "o_proj"))
    import_weights(tmp_path / "base", tmp_path / "run", adapter=put_adapter(tmp_path / "given", pairs))
    layers = load_params(tmp_path / "run")[1]["lora"]["layers"]
    assert {k: v.shape for k, v in named_leaves(layers).items()} == {
        "k/lora_a": (2, 16, 3),
        "k/lora_b": (2, 3, 2, 4),
        "out/lora_a": (2, 4, 4, 3),
        "out/lora_b": (2, 3, 16),
    }
    name = f"{PREFIX}model.layers.1.self_attn."
    np.testing.assert_array_equal(
        layers["k"]["lora_b"][1], pairs[f"{name}k_proj.lora_B.weight"].T.reshape(3, 2, 4)
    )
    np.testing.assert_array_equal(
        layers["out"]["lora_a"][1], pairs[f"{name}o_proj.lora_A.weight"].T.reshape(4, 4, 3)
    )


@pytest.mark.parametrize(
    "case, modules",
    [("llama", LLAMA), ("phi3", ("qkv_proj", "gate_up_proj")), ("mpt", ("Wqkv",)), ("llama", ("lm_head",))],
)
def test_merged_on_the_way_in(case, modules, tmp_path):
    """Whatever it changes, fused matrices and the output matrix too; types are the base's."""
    weights = put_model(tmp_path / "base", case, np.float16)
    pairs = pairs_of(weights, modules, dtype=np.float32)
    given = put_adapter(tmp_path / "given", pairs)
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given, merge_adapter=True)
    config, params = load_params(tmp_path / "run")
    assert not config.model.lora.rank and set(params) == {"decoder"}
    export_weights(tmp_path / "run", tmp_path / "out")
    assert {str(dtype) for dtype in open_tensors(tmp_path / "out").dtypes.values()} == {"float16"}
    assert_close(tmp_path / "out", summed(weights, pairs, 2.0))


def test_merging_on_the_way_in_and_out_is_the_same(tmp_path):
    pairs = pairs_of(put_model(tmp_path / "base", "llama", np.float16), LLAMA, dtype=np.float16)
    given = put_adapter(tmp_path / "given", pairs)
    for name, merge in (("apart", False), ("merged", True)):
        import_weights(tmp_path / "base", tmp_path / name, adapter=given, merge_adapter=merge)
        export_weights(tmp_path / name, tmp_path / f"{name}_out")
    assert_same_tensors(tmp_path / "apart_out", tmp_path / "merged_out")
    export_weights(tmp_path / "apart", tmp_path / "decoder", only="decoder")
    assert_same_tensors(tmp_path / "decoder", tmp_path / "merged_out")


def test_a_module_that_was_saved_whole_stands_in_for_the_base_s(tmp_path):
    weights = put_model(tmp_path / "base", "llama")
    head = normal({f"{PREFIX}lm_head.weight": (40, 16)}, seed=9)
    given = put_adapter(
        tmp_path / "given", pairs_of(weights, ("q_proj",)) | head, modules_to_save=["lm_head"]
    )
    import_weights(tmp_path / "base", tmp_path / "run", adapter=given)
    found = load_params(tmp_path / "run")[1]["decoder"]["head"]
    np.testing.assert_array_equal(found.T, head[f"{PREFIX}lm_head.weight"])


def put_llava(folder: Path) -> tuple[Tensors, Tensors, Path]:
    """Names are finetune_lora.sh's: a bare language model, its tower, and beside the adapter the projector."""
    tiny, tower = small("llava_tiny"), load("clip_tiny")
    weights = normal(tiny["tensors"])
    own = {k: v for k, v in weights.items() if "mm_projector" not in k and "vision_tower" not in k}
    hf = {k: v for k, v in tiny["config"].items() if not k.startswith("mm_")} | {"model_type": "llama"}
    put(folder / "llm", hf, own)
    put(folder / "clip", tower["config"], normal(tower["tensors"]))
    pairs = pairs_of(own, LLAMA)
    given = put_adapter(folder / "lora", pairs)
    others = {PREFIX + k: v for k, v in weights.items() if "mm_projector" in k}
    put(given, tiny["config"], others, "non_lora_trainables")
    return weights, pairs, given


@pytest.mark.parametrize("merge", [False, True])
def test_llava_s_directory_brings_the_projector_and_goes_back(merge, tmp_path):
    weights, pairs, given = put_llava(tmp_path)
    run, out = tmp_path / "run", tmp_path / "out"
    import_weights(tmp_path / "llm", run, vision=tmp_path / "clip", adapter=given, merge_adapter=merge)
    config, params = load_params(run)
    whole = {"vision", "compressor", "projector", "decoder"}
    assert set(params) == (whole if merge else whole | {"lora"})
    assert config.model.compressor.name == "quecc"
    export_weights(run, tmp_path / "whole", layout="llava")
    merged = summed(weights, pairs, 2.0)
    expected = {k: v for k, v in merged.items() if "vision_tower" not in k}
    found = open_tensors(tmp_path / "whole")
    for name, array in expected.items():
        np.testing.assert_allclose(found.read(name), array, rtol=1e-5, atol=1e-5)
    if merge:
        return
    export_weights(run, out, adapter="llava")
    assert {file.name for file in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "non_lora_trainables.bin",
        "non_lora_trainables.safetensors",
    }
    assert_same_tensors(given / "non_lora_trainables.safetensors", out / "non_lora_trainables.safetensors")
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava_llama"
    import_weights(tmp_path / "llm", tmp_path / "again", vision=tmp_path / "clip", adapter=out)
    again = load_params(tmp_path / "again")[1]
    for name, leaf in named_leaves(params).items():
        np.testing.assert_array_equal(named_leaves(again)[name], leaf)


def test_a_projector_that_the_base_has_is_the_adapter_s(tmp_path):
    """liuhaotian/llava-v1.5-7b as the base of a further LoRA."""
    weights, pairs, given = put_llava(tmp_path)
    tiny = small("llava_tiny")
    put(tmp_path / "whole", tiny["config"], weights)
    other = {k: v + 1 for k, v in load_file(given / "non_lora_trainables.safetensors").items()}
    put(given, None, other, "non_lora_trainables")
    import_weights(
        tmp_path / "whole", tmp_path / "run", vision=tmp_path / "clip", adapter=given, merge_adapter=True
    )
    export_weights(tmp_path / "run", tmp_path / "out")
    expected = summed(weights, pairs, 2.0) | {k.removeprefix(PREFIX): v for k, v in other.items()}
    found = open_tensors(tmp_path / "out")
    for name, array in expected.items():
        np.testing.assert_allclose(found.read(name), array, rtol=1e-5, atol=1e-5)


def test_what_training_kept_in_halves_is_merged_and_written_apart(tmp_path, capsys):
    """A run's own checkpoint: a base in bfloat16 beside adapters in float32."""
    weights, _, given = put_llava(tmp_path)
    import_weights(tmp_path / "llm", tmp_path / "run", vision=tmp_path / "clip", adapter=given)
    config, params = load_params(tmp_path / "run")
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    half = stored_frozen(params, narrow)
    assert half["decoder"]["layers"]["up"]["kernel"].dtype == jnp.bfloat16
    save_params(dataclasses.replace(config, out=str(tmp_path / "trained")), half)
    export_weights(tmp_path / "trained", tmp_path / "out", only="decoder", dtype="float32")
    found = open_tensors(tmp_path / "out")
    pairs = load_file(given / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    rounded = {name: weights[name].astype(jnp.bfloat16).astype(np.float64)}
    np.testing.assert_allclose(found.read(name), summed(rounded, pairs, 2.0)[name], rtol=1e-5, atol=1e-5)
    export_weights(tmp_path / "trained", tmp_path / "peft", adapter="peft")
    assert "PEFT's form has no place for compressor and projector" in capsys.readouterr().err


Change = Callable[[Path, Tensors], Any]


def settings(**changes: Any) -> Change:
    return lambda d, pairs: put_adapter(d, pairs, **changes)


def with_tensors(change: Callable[[Tensors], Tensors]) -> Change:
    return lambda d, pairs: put_adapter(d, change(dict(pairs)))


def dropped(tensors: Tensors, part: str) -> Tensors:
    return {name: array for name, array in tensors.items() if part not in name}


Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[Change, str]] = {
    "DoRA": (settings(use_dora=True), "use_dora True, which is not implemented"),
    "another method": (settings(peft_type="IA3"), "peft_type 'IA3', and only LORA is read"),
    "biases": (settings(bias="lora_only"), "bias 'lora_only'"),
    "a rank of its own for some": (settings(rank_pattern={"q_proj": 8}), "rank_pattern"),
    "an alpha of its own for some": (settings(alpha_pattern={"q_proj": 8}), "alpha_pattern"),
    "PiSSA": (
        settings(init_lora_weights="pissa"),
        "init_lora_weights 'pissa', whose training changed the base",
    ),
    "transposed": (settings(fan_in_fan_out=True), "fan_in_fan_out True"),
    "a setting of tomorrow": (settings(use_new=True), "use_new True"),
    "no rank": (settings(r=0), "r 0, which is no rank"),
    "another rank": (settings(r=4), "of rank 3, .* of 3 and r 4"),
    "of more layers": (
        with_tensors(
            lambda t: (
                t
                | {
                    f"{PREFIX}model.layers.7.self_attn.q_proj.lora_{k}.weight": t[f"{Q}.lora_{k}.weight"]
                    for k in "AB"
                }
            )
        ),
        "layers.7.self_attn.q_proj.lora_A.weight, and .*base has no model.layers.7.self_attn.q_proj.weight; give the "
        r"base that the adapter was trained on \(vicuna\)",
    ),
    "of other shapes": (
        with_tensors(lambda t: t | {f"{Q}.lora_A.weight": np.ones((3, 20), np.float32)}),
        "changes a model.layers.0.self_attn.q_proj.weight of 16 x 20 numbers, and that of .*base has 16 x 16",
    ),
    "half of a pair": (
        with_tensors(lambda t: dropped(t, "layers.0.self_attn.q_proj.lora_B")),
        "only one of lora_A and lora_B of model.layers.0.self_attn.q_proj.weight",
    ),
    "DoRA's vector": (
        with_tensors(lambda t: t | {f"{Q}.lora_magnitude_vector": np.ones(16, np.float32)}),
        "lora_magnitude_vector, which is no part of a plain LoRA",
    ),
    "some layers": (
        with_tensors(lambda t: dropped(t, "layers.1.")),
        "has adapters in 1 of 2 layers, which cannot stand apart .*--merge-adapter",
    ),
    "of the output matrix": (
        with_tensors(
            lambda t: (
                t
                | {
                    f"{PREFIX}lm_head.lora_{k}.weight": np.ones(s, np.float32)
                    for k, s in (("A", (3, 16)), ("B", (40, 3)))
                }
            )
        ),
        "of lm_head.weight, which cannot stand apart .*--merge-adapter",
    ),
    "a rank above a side": (
        lambda d, pairs: put_adapter(
            d,
            {
                k: np.ones(((9, v.shape[1]) if "lora_A" in k else (v.shape[0], 9)), np.float32)
                for k, v in pairs.items()
            },
            r=9,
        ),
        "model.lora.rank 9 is above the smaller side of the decoder's matrix k, which has 16 x 8",
    ),
    "nothing": (with_tensors(lambda t: {"x": np.ones(2, np.float32)}), "holds no lora_A and lora_B"),
    "no settings": (lambda d, pairs: put(d, None, pairs, "adapter_model"), "has no adapter_config.json"),
    "no tensors": (
        lambda d, pairs: put_adapter(d, pairs).joinpath("adapter_model.safetensors").unlink(),
        "neither adapter_model.safetensors nor .bin",
    ),
    "a head of another vocabulary": (
        with_tensors(lambda t: t | {f"{PREFIX}lm_head.weight": np.ones((41, 16), np.float32)}),
        "lm_head.weight of 41 x 16 numbers, and that of .*base has 40 x 16",
    ),
    "a projector that nothing describes": (
        with_tensors(lambda t: t | {f"{PREFIX}model.mm_projector.0.weight": np.ones((2, 2), np.float32)}),
        "holds model.mm_projector.0.weight and no config.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(case, tmp_path):
    make, says = REFUSED[case]
    pairs = pairs_of(put_model(tmp_path / "base", "llama"), ("q_proj", "k_proj"))
    make(tmp_path / "given", pairs)
    file = tmp_path / "given" / "adapter_config.json"
    if file.exists():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "vicuna"}))
    with pytest.raises(UserError, match=says) as told:
        import_weights(tmp_path / "base", tmp_path / "run", adapter=tmp_path / "given")
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()


def test_options_that_do_not_go_together(tmp_path):
    _, _, given = put_llava(tmp_path)
    with pytest.raises(UserError, match="--merge-adapter needs an adapter"):
        import_weights(tmp_path / "llm", tmp_path / "run", merge_adapter=True)
    with pytest.raises(UserError, match="leave --projector out"):
        import_weights(
            tmp_path / "llm",
            tmp_path / "run",
            vision=tmp_path / "clip",
            adapter=given,
            projector=tmp_path / "clip",
        )
    import_weights(tmp_path / "llm", tmp_path / "run")
    with pytest.raises(UserError, match="has no adapters"):
        export_weights(tmp_path / "run", tmp_path / "out", adapter="peft")
    with pytest.raises(UserError, match="--adapter llava writes adapters alone"):
        export_weights(tmp_path / "run", tmp_path / "out", adapter="llava", only="decoder")


def test_fused_matrices_neither_stand_apart_nor_go_out_apart(tmp_path):
    weights = put_model(tmp_path / "base", "phi3")
    fused = put_adapter(tmp_path / "fused", pairs_of(weights, ("qkv_proj",)))
    with pytest.raises(UserError, match=r"qkv_proj\.weight, which cannot stand apart"):
        import_weights(tmp_path / "base", tmp_path / "run", adapter=fused)
    plain = put_adapter(tmp_path / "plain", pairs_of(weights, ("o_proj",)))
    import_weights(tmp_path / "base", tmp_path / "run", adapter=plain)
    config, params = load_params(tmp_path / "run")
    lora = dataclasses.replace(config.model.lora, targets=("q",))
    shape = {"lora_a": np.zeros((2, 16, 3), np.float32), "lora_b": np.zeros((2, 3, 4, 4), np.float32)}
    own = dataclasses.replace(
        config, out=str(tmp_path / "own"), model=dataclasses.replace(config.model, lora=lora)
    )
    save_params(own, params | {"lora": {"layers": {"q": shape}}})
    shutil.copytree(tmp_path / "run" / "source", tmp_path / "own" / "source")
    with pytest.raises(UserError, match=r"phi3 keeps 3 of our matrices in .*qkv_proj.weight"):
        export_weights(tmp_path / "own", tmp_path / "out", adapter="peft")
    export_weights(tmp_path / "own", tmp_path / "out")
