"""Whole imports and exports: identity of every byte, strictness, and memory."""

import dataclasses
import errno
import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file, save_file

from quecc_jax.checksums import check_files
from quecc_jax.config import PixelConfig, RunConfig
from quecc_jax.config.io import load_config
from quecc_jax.config.model import CLIP_MEAN, CLIP_STD
from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.formats.gguf import GgufFile
from quecc_jax.convert.io.layer_store import SlabReader
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.plan import Source, plan_import
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.convert.targets import special_settings, with_positions
from quecc_jax.convert.template_match import recognise
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.errors import Note, UserError
from quecc_jax.train.checkpoint import load_params, named_leaves
from quecc_jax.train.loop import train
from tests.convert.names import load, random_tensors
from tests.convert.test_gguf import write as write_gguf
from tests.convert.test_llava import decoder_for_the_tiny_projector
from tests.convert.test_tensors import same_bits
from tests.tiny import change_config
from tests.train.runs import Batches, trainer_on

BF16 = np.dtype(ml_dtypes.bfloat16)
F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
CASES = [*FAMILIES, "gemma3", "clip_vision_model", "clip", "llava"]


def write_checkpoint(directory: Path, hf: dict[str, Any], shapes: dict[str, Any], dtype: Any) -> None:
    """A checkpoint of random bits in three shards, with an index, a tokenizer and a licence."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = random_tensors({k: tuple(v) for k, v in shapes.items()}, dtype)
    weight_map: dict[str, str] = {}
    for part in range(3):
        some = {name: arrays[name] for name in list(arrays)[part::3]}
        save_file(some, directory / f"model-{part}.safetensors")
        weight_map |= dict.fromkeys(some, f"model-{part}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(hf, indent=1))
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    (directory / "LICENSE").write_text("yours")


def small(case: str) -> dict[str, Any]:
    """A golden checkpoint's config and shapes with a vocabulary of 40 words, to be quick."""
    found = load(case)
    shapes = {k: [40 if d == 32000 else d for d in v] for k, v in found["tensors"].items()}
    return {"config": found["config"] | {"vocab_size": 40}, "tensors": shapes}


def write_tiny(directory: Path, dtype: Any = np.float16) -> None:
    """The original project's model, and its tower's directory inside its own."""
    tiny, tower = small("llava_tiny"), load("clip_tiny")
    write_checkpoint(directory, tiny["config"], tiny["tensors"], dtype)
    write_checkpoint(directory / "clip_tiny", tower["config"], tower["tensors"], np.float32)


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = open_tensors(one), open_tensors(other)
    assert first.shapes == second.shapes and first.dtypes == second.dtypes
    assert all(same_bits(first.read(k), second.read(k)) for k in first.shapes)


def assert_same_params(one: Path, other: Path) -> None:
    first, second = (named_leaves(load_params(run)[1]) for run in (one, other))
    assert first.keys() == second.keys()
    assert all(same_bits(first[k], second[k]) for k in first)


@pytest.mark.parametrize("case, dtype", [*((c, BF16) for c in CASES), ("phi3", F16), ("mpt", F32)], ids=str)
def test_export_gives_back_every_byte_and_import_again_the_same_run(
    tmp_path: Path, case: str, dtype: np.dtype
) -> None:
    given, run, out, again = (tmp_path / name for name in ("given", "run", "out", "again"))
    write_checkpoint(given, load(case)["config"], load(case)["tensors"], dtype)
    import_weights(given, run)
    export_weights(run, out, shard_bytes=3000)
    assert_same_tensors(given, out)
    for name in ("config.json", "tokenizer_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (given / name).read_bytes()
    import_weights(out, again)
    assert_same_params(run, again)


def test_keys_of_config_json_that_nobody_knows_are_told(tmp_path: Path, capsys: Any) -> None:
    found = load("qwen3")
    hf = found["config"] | {"attn_scale": 2.0, "unsloth_fixed": True}
    write_checkpoint(tmp_path / "given", hf, found["tensors"], F32)
    import_weights(tmp_path / "given", tmp_path / "run")
    assert (
        "keys of config.json are not known and not read: attn_scale, unsloth_fixed" in capsys.readouterr().err
    )


def test_a_penalty_that_transformers_would_apply_to_greedy_answers_is_told(
    tmp_path: Path, capsys: Any
) -> None:
    found, given = load("qwen3"), tmp_path / "given"
    write_checkpoint(given, found["config"], found["tensors"], F32)
    for penalty in (1.0, 1.1):
        (given / "generation_config.json").write_text(json.dumps({"repetition_penalty": penalty}))
        import_weights(given, tmp_path / f"run{penalty}")
        assert ("give --repetition-penalty 1.1" in capsys.readouterr().err) is (penalty > 1)


ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As llava-hf's LLaVA-OneVision on the Hub has it, of images and text (transformers' tests of its processor)."""


def test_onevisions_published_chat_template_is_refused_and_its_own_named() -> None:
    tokenizer = Tokenizer(Path("examples/model/tokenizer"))
    with pytest.raises(UserError, match="LLaVA-OneVision's is not what it was trained with: that is qwen"):
        recognise(ONEVISION, tokenizer, Path("chat_template.json"))
    with pytest.raises(UserError, match="renders as none of the templates") as caught:
        recognise("{{ 'no such template' }}", tokenizer, Path("chat_template.json"))
    assert "OneVision" not in str(caught.value)


def test_a_run_in_front_of_a_decoder_that_the_original_lacks_goes_home_in_parts(tmp_path: Path) -> None:
    found, clip = load("qwen3"), load("clip")
    write_checkpoint(tmp_path / "llm", found["config"], found["tensors"], F32)
    write_checkpoint(tmp_path / "clip", clip["config"], clip["tensors"], F32)
    import_weights(tmp_path / "llm", tmp_path / "run", vision=tmp_path / "clip")
    with pytest.raises(
        UserError, match=r"no decoder of model_type qwen3; .*--only decoder and --only vision"
    ):
        export_weights(tmp_path / "run", tmp_path / "out", layout="llava")
    export_weights(tmp_path / "run", tmp_path / "out", only="decoder")
    assert_same_tensors(tmp_path / "llm", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_a_model_of_the_original_format_with_its_tower_beside(tmp_path: Path) -> None:
    write_tiny(tmp_path / "given")
    import_weights(tmp_path / "given", tmp_path / "run")
    files = export_weights(tmp_path / "run", tmp_path / "out")
    assert_same_tensors(tmp_path / "given", tmp_path / "out")
    # The tower's own directory is written from the model's tower, as the original would load it.
    held = load_file(tmp_path / "out" / "clip_tiny" / "model.safetensors")
    inside = load_file(tmp_path / "out" / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    assert held.keys() == load("clip_tiny")["tensors"].keys()
    assert all(same_bits(array, inside[prefix + name]) for name, array in held.items())
    assert all(file.is_file() for file in files)
    import_weights(tmp_path / "out", tmp_path / "again")
    assert_same_params(tmp_path / "run", tmp_path / "again")


def test_a_text_tower_encodes_the_questions_of_a_model_and_goes_home_beside_it(tmp_path: Path) -> None:
    given, run, out, only = (tmp_path / name for name in ("given", "run", "out", "only"))
    clip, language = load("clip"), small("llama")
    write_checkpoint(given / "clip", clip["config"], clip["tensors"], F32)
    write_checkpoint(given / "llm", language["config"], language["tensors"], F32)
    import_weights(given / "llm", run, vision=given / "clip", text=given / "clip")
    config = load_config(run / "config.json")
    text, theirs = config.model.query.text, clip["config"]["text_config"]
    assert config.model.query.encoder == "clip_text"
    assert (text.width, text.projection) == (theirs["hidden_size"], clip["config"]["projection_dim"])
    assert config.data.query_tokenizer == str(run / "query_tokenizer")
    assert set(load_params(run)[1]) == {"vision", "decoder", "text"}
    # What the tower has no part in is not kept a second time.
    assert (run / "source" / "vision" / "carried.safetensors").is_file()
    assert not (run / "source" / "text" / "carried.safetensors").exists()
    export_weights(run, only, only="text")
    found, whole = open_tensors(only), open_tensors(given / "clip")
    names = {n for n in whole.shapes if n.startswith("text_") and "position_ids" not in n}
    assert set(found.shapes) == names and all(same_bits(found.read(n), whole.read(n)) for n in names)
    assert (only / "tokenizer_config.json").is_file() and not (only / "preprocessor_config.json").exists()
    import_weights(given / "clip", tmp_path / "towers", text=only)
    towers, parts = load_params(tmp_path / "towers")
    assert set(parts) == {"vision", "text"} and towers.model.query.text == text
    jax.tree.map(np.testing.assert_array_equal, parts["text"], load_params(run)[1]["text"])
    export_weights(tmp_path / "towers", out)
    assert_same_tensors(given / "clip", out)
    assert_same_tensors(only, out / "text")
    with pytest.raises(UserError, match="'llama' is not a CLIP text tower"):
        import_weights(given / "llm", tmp_path / "none", text=given / "llm")


def test_a_tower_apart_comes_back_apart(tmp_path: Path) -> None:
    tiny, tower = small("llava_tiny"), load("clip_tiny")
    shapes = {k: v for k, v in tiny["tensors"].items() if "vision_tower" not in k}
    write_checkpoint(tmp_path / "given", tiny["config"] | {"mm_vision_tower": "/far/away/eye"}, shapes, F16)
    write_checkpoint(tmp_path / "tower", tower["config"], tower["tensors"], np.float32)
    import_weights(tmp_path / "given", tmp_path / "run", vision=tmp_path / "tower")
    export_weights(tmp_path / "run", tmp_path / "out")
    assert_same_tensors(tmp_path / "given", tmp_path / "out")
    assert_same_tensors(tmp_path / "tower", tmp_path / "out" / "eye")


def parts_of_a_model(folder: Path) -> tuple[Path, Path, Path]:
    """A bare language model, a tower, and a projector's file with the config.json beside it."""
    llm, tiny, tower = decoder_for_the_tiny_projector(), small("llava_tiny"), load("clip_tiny")
    shapes: dict[str, Any] = {k: v for k, v in tiny["tensors"].items() if k in llm.found}
    write_checkpoint(folder / "llm", llm.hf | {"vocab_size": 40}, shapes, BF16)
    (folder / "llm" / "tokenizer_config.json").unlink()  # reading one would be most of the test's time
    write_checkpoint(folder / "tower", tower["config"], tower["tensors"], np.float32)
    shapes = {k: tuple(v) for k, v in tiny["tensors"].items() if "mm_projector" in k}
    (folder / "stage1").mkdir()
    save_file(random_tensors(shapes, np.float32), folder / "stage1" / "mm_projector.safetensors")
    (folder / "stage1" / "config.json").write_text(json.dumps(tiny["config"]))
    return folder / "llm", folder / "tower", folder / "stage1" / "mm_projector.safetensors"


def test_parts_combine_into_a_whole_model_of_the_original_format(tmp_path: Path) -> None:
    llm, tower, projector = parts_of_a_model(tmp_path)
    import_weights(llm, tmp_path / "run", vision=tower, projector=projector)
    export_weights(tmp_path / "run", tmp_path / "out")
    whole, apart = open_tensors(tmp_path / "out"), [open_tensors(p) for p in (llm, projector)]
    assert whole.shapes == {k: tuple(v) for k, v in small("llava_tiny")["tensors"].items()}
    for part in apart:
        assert all(same_bits(whole.read(k), part.read(k)) for k in part.shapes)
    import_weights(tmp_path / "out", tmp_path / "again")
    assert_same_params(tmp_path / "run", tmp_path / "again")
    export_weights(tmp_path / "run", tmp_path / "bare", only="projector")
    assert_same_tensors(tmp_path / "bare" / "mm_projector.safetensors", projector)
    export_weights(tmp_path / "run", tmp_path / "llm-out", only="decoder")
    assert_same_tensors(tmp_path / "llm-out", llm)


def test_a_new_config_names_the_tokenizers_special_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Path(__file__).parents[1] / "golden" / "llava_tiny"
    ids, ends = special_settings(tokenizer, RunConfig())
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert ends == ids | {"eos_token_id": [2]}
    assert special_settings(tokenizer / "nowhere", RunConfig()) == ({}, {})
    assert special_settings(Path(__file__).parent, RunConfig()) == ({}, {})
    assert "names no special tokens" in capsys.readouterr().err


def test_a_decoder_of_unknown_length_is_noted() -> None:
    with pytest.warns(Note, match="nothing says how many positions"):
        assert with_positions(RunConfig()).model.decoder.max_positions == 0


def trained(tmp_path: Path) -> tuple[Path, Path]:
    """An import, and a run as stage 1 of training leaves it: float32, frozen parts apart."""
    write_tiny(tmp_path / "given")
    import_weights(tmp_path / "given", tmp_path / "import")
    config, params = load_params(tmp_path / "import")
    params = jax_float32(params)
    run = tmp_path / "run"
    ocp.save(run / "frozen", {k: params[k] for k in ("vision", "decoder")})
    slots = {"step": np.ones((), np.int32)}
    trainable = {k: params[k] for k in ("compressor", "projector")}
    for step in (3, 12):
        ocp.save_checkpointables(run / "checkpoints" / str(step), {"params": trainable, "optimizer": slots})
        trainable["projector"]["fc1"]["bias"] = trainable["projector"]["fc1"]["bias"] + 1
    change_config(run, dataclasses.replace(config, out=str(run)))
    return tmp_path / "import", run


@pytest.mark.slow
def test_training_continues_an_import_and_its_run_is_exported(tmp_path: Path) -> None:
    given = tmp_path / "given"
    write_tiny(given)
    rng = np.random.default_rng(0)
    for file in given.glob("*.safetensors"):  # random bits are no numbers to train from
        arrays = {k: rng.normal(0, 0.1, v.shape).astype(F16) for k, v in load_file(file).items()}
        save_file(arrays, file)
    import_weights(given, tmp_path / "import")
    config = load_config(tmp_path / "import" / "config.json")
    config = dataclasses.replace(
        config,
        out=str(tmp_path / "run"),
        init_from=str(tmp_path / "import"),
        model=dataclasses.replace(config.model, dtype="float32"),
        data=dataclasses.replace(config.data, tokenizer="", max_length=64, query_length=8),
        train=dataclasses.replace(config.train, stage=1, steps=2, batch_size=4, loss_chunk=64),
    )
    batches: Any = Batches(config)
    train(config, progress=lambda _: None, trainer=trainer_on(config, (1, 2, 2)), iterator=batches)
    export_weights(tmp_path / "run", tmp_path / "out")
    before, after = open_tensors(given), open_tensors(tmp_path / "out")
    assert after.shapes == before.shapes and set(after.dtypes.values()) == {F32}
    moved = {k for k in after.shapes if not np.array_equal(after.read(k), before.read(k).astype(np.float32))}
    assert moved and all(name.startswith("model.mm_projector.") for name in moved)


def jax_float32(tree: Any) -> Any:
    """Random half-precision bits as numbers of training."""
    if isinstance(tree, dict):
        return {k: jax_float32(v) for k, v in tree.items()}
    return np.nan_to_num(np.asarray(tree).astype(np.float32), nan=0.5, posinf=1, neginf=-1)


def test_a_trained_run_is_written_in_the_originals_format(tmp_path: Path) -> None:
    _, run = trained(tmp_path)
    export_weights(run, tmp_path / "out")
    found = open_tensors(tmp_path / "out")
    assert found.shapes == {k: tuple(v) for k, v in small("llava_tiny")["tensors"].items()}
    assert set(found.dtypes.values()) == {F32}
    before = open_tensors(tmp_path / "given")
    moved = "model.mm_projector.1.bias"
    for name in found.shapes:
        want = np.nan_to_num(before.read(name).astype(np.float32), nan=0.5, posinf=1, neginf=-1)
        np.testing.assert_array_equal(found.read(name), want + (name == moved))
    # What was written describes the very model that was trained, in the program's own terms.
    import_weights(tmp_path / "out", tmp_path / "again")
    assert load_config(tmp_path / "again" / "config.json").model == load_config(run / "config.json").model
    export_weights(run, tmp_path / "bare", only="projector", dtype="bfloat16")
    bare = open_tensors(tmp_path / "bare" / "mm_projector.safetensors")
    assert same_bits(bare.read(moved), found.read(moved).astype(BF16))


def test_what_the_original_cannot_express_goes_out_in_parts(tmp_path: Path) -> None:
    """As the demo's models, whose towers have other levels."""
    _, run = trained(tmp_path)
    config = load_config(run / "config.json")
    vision = dataclasses.replace(config.model.vision, levels=(1, 2, 3, 4))
    decoder = dataclasses.replace(config.model.decoder, max_positions=0)
    model = dataclasses.replace(config.model, vision=vision, decoder=decoder)
    change_config(run, dataclasses.replace(config, model=model))
    with pytest.warns(Note), pytest.raises(UserError, match=r"levels .*--only decoder and --only vision"):
        export_weights(run, tmp_path / "out")
    with pytest.warns(Note, match="nothing says how many positions"):
        export_weights(run, tmp_path / "decoder", only="decoder")
    with warnings.catch_warnings():
        # A tower's config.json says nothing of the decoder.
        warnings.simplefilter("error", Note)
        export_weights(run, tmp_path / "tower", only="vision")
    assert "max_position_embeddings" not in json.loads((tmp_path / "tower" / "config.json").read_text())


def test_the_tower_of_a_run_on_cached_features_comes_from_where_it_lies(tmp_path: Path) -> None:
    imported, run = trained(tmp_path)
    _, params = load_params(run)
    ocp.save(run / "frozen", {"decoder": params["decoder"]}, overwrite=True)
    with pytest.raises(UserError, match="compressor and decoder and projector, which is no whole model"):
        export_weights(run, tmp_path / "out")
    config = dataclasses.replace(load_config(run / "config.json"), tower_from=str(imported))
    change_config(run, config)
    export_weights(run, tmp_path / "out", dtype="float16")
    whole = {k: tuple(v) for k, v in small("llava_tiny")["tensors"].items()}
    assert open_tensors(tmp_path / "out").shapes == whole
    # Weights of another activation fit as well, and would leave under this run's description.
    other = load_config(imported / "config.json")
    vision = dataclasses.replace(other.model.vision, activation="gelu")
    model = dataclasses.replace(other.model, vision=vision)
    change_config(imported, dataclasses.replace(other, model=model))
    with pytest.raises(
        UserError, match=r"tower_from .* has model\.vision\.activation gelu, and this run quick"
    ):
        export_weights(run, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_nothing_is_written_of_a_checkpoint_that_is_not_what_it_says(tmp_path: Path) -> None:
    shapes = dict(load("llama")["tensors"])
    lost = "model.layers.1.mlp.up_proj.weight"
    del shapes[lost]
    shapes |= {"surplus": [3], "model.norm.weight": [5]}
    write_checkpoint(tmp_path / "given", load("llama")["config"], shapes, F16)
    with pytest.raises(UserError) as error:
        import_weights(tmp_path / "given", tmp_path / "run")
    assert all(part in str(error.value) for part in (lost, "surplus [3]", "model.norm.weight [5]"))
    assert [p.name for p in tmp_path.iterdir()] == ["given"]


def test_nothing_is_written_of_a_run_that_is_not_what_it_says(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], F16)
    import_weights(tmp_path / "given", tmp_path / "run")
    with pytest.raises(UserError, match=r"run lacks \d+ parameters: compressor/"):
        export_weights(tmp_path / "run", tmp_path / "out", layout="llava")
    _, params = load_params(tmp_path / "run")
    extra = params | {"vision": {"x": np.zeros(2)}}
    ocp.save_checkpointables(tmp_path / "run" / "checkpoints" / "5", {"params": extra})
    with pytest.raises(UserError, match="beyond what the format can hold 1 parameters: vision/x"):
        export_weights(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_weights(tmp_path / "run", tmp_path / "out", only="decoder")
    assert_same_tensors(tmp_path / "given", tmp_path / "out")


def test_places_are_named_as_people_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where the program was started, with `..` in them too."""
    write_tiny(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    import_weights(Path("given"), Path("runs/here"))
    export_weights(Path("runs/here"), Path("runs/out"))
    import_weights(Path("runs/../runs/out"), Path("runs/../runs/again"))
    export_weights(Path("runs/../runs/again"), Path("runs/../runs/back"))
    assert_same_tensors(tmp_path / "runs/out", tmp_path / "runs/back")
    assert check_files("runs/again", "") == check_files(tmp_path / "runs/again", "") != ""


def test_what_exists_is_not_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], F16)
    with pytest.raises(UserError, match=r"--out .*given exists already"):
        import_weights(tmp_path / "given", tmp_path / "given")
    (tmp_path / "empty").mkdir()
    import_weights(tmp_path / "given", tmp_path / "empty")
    with pytest.raises(UserError, match=r"--to .*given exists already"):
        export_weights(tmp_path / "empty", tmp_path / "given")


def test_types_change_only_when_asked(tmp_path: Path) -> None:
    arrays = {k: np.full(v, 0.1, np.float32) for k, v in load("llama")["tensors"].items()}
    arrays["model.layers.0.mlp.up_proj.weight"] = arrays["model.layers.0.mlp.up_proj.weight"].astype(F16)
    (tmp_path / "given").mkdir()
    save_file(arrays, tmp_path / "given" / "model.safetensors")
    (tmp_path / "given" / "config.json").write_text(json.dumps(load("llama")["config"]))
    with pytest.raises(UserError, match=r"up_proj.weight is float(16|32) and others .* --dtype"):
        import_weights(tmp_path / "given", tmp_path / "run")
    import_weights(tmp_path / "given", tmp_path / "run", dtype="bfloat16")
    for leaf in named_leaves(load_params(tmp_path / "run")[1]).values():
        assert leaf.dtype == BF16 and np.all(leaf == BF16.type(0.1))
    export_weights(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert set(open_tensors(tmp_path / "out").dtypes.values()) == {F32}


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], np.int8)
    with pytest.raises(UserError, match="stored as int8; quantised weights are not read"):
        import_weights(tmp_path / "given", tmp_path / "run")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "given", load("llama")["config"], load("llama")["tensors"], F16)
    import_weights(tmp_path / "given", tmp_path / "run")
    left, whole = [3], os.pwrite

    def filling(file: int, data: Any, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(file, data, at)

    monkeypatch.setattr(os, "pwrite", filling)
    with pytest.raises(UserError, match="No space left"):
        export_weights(tmp_path / "run", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given", "run"]


def test_an_imported_run_says_what_it_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "given", load("mistral")["config"], load("mistral")["tensors"], F16)
    import_weights(tmp_path / "given", tmp_path / "run")
    config = load_config(tmp_path / "run" / "config.json")
    plan = plan_import(Source(load("mistral")["config"], open_tensors(tmp_path / "given").shapes))
    assert config == dataclasses.replace(
        plan.config,
        out=str(tmp_path / "run"),
        data=dataclasses.replace(
            plan.config.data, template="mistral_instruct", tokenizer=str(tmp_path / "run" / "tokenizer")
        ),
    )
    assert isinstance(config, RunConfig) and set(SlabReader(tmp_path / "run").dtypes.values()) == {F16}
    files = {p.name: p.read_text() for p in (tmp_path / "run" / "tokenizer").iterdir()}
    assert files.keys() == {"model_config.json", "tokenizer_config.json"}
    assert json.loads(files["model_config.json"])["model_type"] == "mistral"


def test_a_gguf_file_comes_back_as_a_directory_of_hugging_faces(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    import_weights(tmp_path / "m.gguf", tmp_path / "run", template="chatml")
    export_weights(tmp_path / "run", tmp_path / "out")
    found, gguf = open_tensors(tmp_path / "out"), GgufFile(tmp_path / "m.gguf")
    assert found.shapes.keys() == gguf.shapes.keys()
    assert all(same_bits(found.read(k), gguf.read(k)) for k in gguf.shapes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    tokenizer = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert tokenizer == (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    import_weights(tmp_path / "out", tmp_path / "again", template="chatml")
    assert_same_params(tmp_path / "run", tmp_path / "again")


def test_other_directories_are_explained(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has no config.json, which says what the weights are of"):
        import_weights(tmp_path, tmp_path / "run")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json is not an object"):
        import_weights(tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match=r"config.json does not exist; is this the directory of a run"):
        export_weights(tmp_path / "given", tmp_path / "out")


@pytest.mark.parametrize(
    "settings, wanted",
    [
        ({"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}, {}),
        ({"image_mean": [0.5, 0.5, 0.25]}, {"mean": (0.5, 0.5, 0.25)}),
        ({"image_std": [0.25, 0.5, 0.5]}, {"std": (0.25, 0.5, 0.5)}),
        ({"resample": 2}, {"resample": "bilinear"}),
        ({"size": {"shortest_edge": 16}, "crop_size": 12}, {"resized": 16}),
        ({"size": {"height": 16, "width": 16}, "crop_size": 12}, {"fit": "stretch", "resized": 16}),
        (
            {"size": {"height": 12, "width": 12}, "image_processor_type": "SiglipImageProcessor"},
            {"fit": "stretch"},
        ),
        ({"size": {"height": 12, "width": 12}, "do_center_crop": False}, {"fit": "stretch"}),
    ],
    ids=str,
)
def test_images_are_made_as_the_processor_beside_a_tower_says(
    tmp_path: Path, settings: dict[str, Any], wanted: dict[str, Any]
) -> None:
    case = small("clip_vision_model")
    write_checkpoint(tmp_path / "clip", case["config"], case["tensors"], np.float32)
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    import_weights(tmp_path / "clip", tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.json").model.vision.pixels == PixelConfig(**wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 1},
        {"do_center_crop": False},
        {"size": {"shortest_edge": 32}},
        {"size": {"shortest_edge": 48, "longest_edge": 96}},
        {"size": {"height": 48, "width": 32}},
        {"crop_size": 32},
        {"image_mean": 0.5},
    ],
    ids=str,
)
def test_a_tower_for_images_that_are_prepared_otherwise_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The original prepares images with the processor beside the tower, wherever its weights are."""
    write_tiny(tmp_path / "given")
    published = {"size": 48, "crop_size": 48, "resample": 3, "rescale_factor": 0.00392156862745098}
    beside = tmp_path / "given" / "clip_tiny" / "preprocessor_config.json"
    beside.write_text(json.dumps(published | settings))
    for source in (tmp_path / "given", beside.parent):
        with pytest.raises(UserError, match=f"image processor of .*clip_tiny has {next(iter(settings))} "):
            import_weights(source, tmp_path / "run")
    beside.write_text(json.dumps(published))
    import_weights(tmp_path / "given", tmp_path / "run")
