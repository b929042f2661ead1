"""Published models with compressors, in their projects' own layouts, against what their own code computes of them.

`tests/golden/published/README.md` says which code that is, and how the arrays were made.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from quecc_jax.config.compressors import exchanged
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.convert.formats.compressors.mqt import DRAWN, MQT
from quecc_jax.convert.formats.compressors.registry import KEYS
from quecc_jax.convert.plan import Source, plan_export, plan_import
from quecc_jax.convert.rules import leaf_shapes
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.images import load_pixels
from quecc_jax.data.tiles import arrange
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import decoding_params
from quecc_jax.load import load_vlm
from quecc_jax.models.vlm import VLM
from quecc_jax.train.run_dir import load_run_config
from tests.convert.test_lora import LLAMA, PREFIX, pairs_of, put_adapter
from tests.generator import build_generator
from tests.golden.published import drawn
from tests.measure import error

ROOT = Path(__file__).parents[1] / "golden" / "published"
PROJECTS = ("tokenpacker", "mqt", "m3", "m3_tiles", "llava_mini")
IMAGE = -200
TOLERANCE = 2e-6
DECODER = re.compile(r"model\.(layers|embed_tokens|norm)\.|lm_head\.")


def told(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"{name}.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / f"{name}.npz") as file:
        return dict(file)


def tensors(name: str) -> dict[str, np.ndarray]:
    stored = {k.removeprefix("stored/"): v for k, v in arrays(name).items() if k.startswith("stored/")}
    drawn_ones = {k: drawn.weights(k, *shape) for k, shape in told(name)["shapes"].items() if k not in stored}
    return drawn_ones | {k: v.astype(np.float32) for k, v in stored.items()}


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A checkpoint as a project's code saves it."""
    (folder / "clip").mkdir(parents=True)
    files = told(name)
    (folder / "config.json").write_text(json.dumps(files["config.json"] | changes))
    (folder / "clip" / "config.json").write_text(json.dumps(files["clip/config.json"]))
    held = tensors(name)
    save_file(held, folder / "model.safetensors")
    within = "model.vision_tower.vision_tower."
    tower = {k.removeprefix(within): v for k, v in held.items() if k.startswith(within)}
    save_file(tower, folder / "clip" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Any:
    """Runs by project, each imported once."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            import_weights(write(folder / "given", name), folder / "run")
            made[name] = folder / "run"
        return made[name]

    return run


def batch_of(name: str, ids: np.ndarray, config: Any, scratch: Path) -> Batch:
    """The rows that the arrays were computed from, with slots where the original puts an image."""
    model, v, rows = config.model, config.model.visual_tokens, []
    if model.vision.tiles:
        file = scratch / "image.png"
        Image.fromarray(drawn.pixels(1, 100)[0, :60]).save(file)
        pixels = load_pixels(file, model.vision, "pad")[None]
        slots = arrange(100, 60, model).slots
    else:
        pixels, slots = drawn.pixels(2, model.vision.image_size)[:, None], np.arange(v)
    for row in ids:
        at = int(np.flatnonzero(row == IMAGE)[0])
        rows.append((np.insert(np.delete(row, at), at, np.zeros_like(slots)), at))
    tokens = np.stack([row for row, _ in rows]).astype(np.int32)
    where = np.full(tokens.shape, -1, np.int32)
    for number, (_, at) in enumerate(rows):
        where[number, at : at + len(slots)] = slots
    b, length = tokens.shape
    return Batch(
        tokens=tokens,
        slots=where,
        labels=np.full((b, length), IGNORE, np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (b, length)).copy(),
        segments=np.ones((b, length), np.int32),
        queries=np.ones((b, 1), np.int32),
        query_segments=np.ones((b, 1), np.int32),
        query_ends=np.zeros((b, pixels.shape[1]), np.int32),
        pixels=pixels,
    )


@pytest.mark.parametrize("name", PROJECTS)
def test_inputs_of_the_decoder_and_logits_are_those_of_the_projects_own_code(name, imported, tmp_path):
    expected = arrays(name)
    run, params = load_vlm(imported(name), weights="float32")
    for v in sorted({int(key.split("/")[0]) for key in expected if key[0].isdigit()}):
        model = dataclasses.replace(at_visual_tokens(run.model, v), dtype="float32", remat="none")
        batch = batch_of(name, expected["ids"], dataclasses.replace(run, model=model), tmp_path)
        vlm: Any = VLM(model)

        def forward(batch: Batch, vlm: Any = vlm) -> Any:
            hidden = vlm.apply({"params": params}, batch)
            return (
                vlm.apply({"params": params}, batch, method=VLM.splice),
                vlm.apply({"params": params}, hidden, method=VLM.logits),
            )

        with jax.default_matmul_precision("highest"):
            embeds, logits = jax.device_get(jax.jit(forward)(batch))
        print(
            "NUM",
            name,
            v,
            error(embeds, expected[f"{v}/inputs_embeds"]),
            error(logits, expected[f"{v}/logits"]),
        )
        assert error(embeds, expected[f"{v}/inputs_embeds"]) < TOLERANCE, v
        assert error(logits, expected[f"{v}/logits"]) < TOLERANCE, v
        if (answers := expected.get(f"{v}/greedy")) is not None:
            generate = build_generator(model, answers.shape[1], eos=-1)
            np.testing.assert_array_equal(generate(decoding_params(params, model), batch), answers)


@pytest.mark.parametrize("name", PROJECTS)
def test_an_import_goes_out_with_the_names_types_and_bytes_that_it_came_with(name, imported, tmp_path):
    export_weights(imported(name), tmp_path / "back")
    back, given = load_file(tmp_path / "back" / "model.safetensors"), tensors(name)
    assert back.keys() == given.keys()
    assert all(np.array_equal(back[k], v) and back[k].dtype == v.dtype for k, v in given.items())
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {**written, **told(name)["config.json"]} == written


@pytest.mark.parametrize("name", PROJECTS)
def test_a_run_of_ours_is_written_as_its_project_writes_it_and_read_as_the_same_model(name, imported):
    """From settings alone, as a run that was trained here has no files of its project."""
    run = load_run_config(imported(name))
    plan = plan_export(run, "llava", "llama")
    shapes = {k: s for rule in plan.rules for k, s in zip(rule.theirs, rule.shapes, strict=True)}
    assert shapes == {k: tuple(shape) for k, shape in told(name)["shapes"].items()}
    theirs = told(name)["config.json"]
    for key, value in plan.hf.items():
        if key in theirs and key not in ("mm_vision_tower", "_name_or_path"):
            assert theirs[key] == value or key == "num_visual_tokens", key
    tower = plan_export(run, "tower")
    again = plan_import(Source(plan.hf, shapes), Source(tower.hf, dict.fromkeys(shapes, ())))
    assert again.config.model == run.model


def stage_one(folder: Path, name: str, file: str) -> tuple[Path, Path]:
    """A language model and a stage 1 output."""
    held, files = tensors(name), told(name)
    beside = {k: v for k, v in held.items() if "vision_tower" not in k and not DECODER.match(k)}
    config = files["config.json"]
    plain = {k: v for k, v in config.items() if not k.startswith("mm_")} | {"model_type": "llama"}
    for folder_name, weights, hf in (
        (
            "llm",
            {k: v for k, v in held.items() if DECODER.match(k)},
            {k: v for k, v in plain.items() if k not in KEYS},
        ),
        ("one", beside, config),
    ):
        (folder / folder_name).mkdir()
        (folder / folder_name / "config.json").write_text(json.dumps(hf))
        save_file(weights, folder / folder_name / (file if folder_name == "one" else "model.safetensors"))
    return folder / "llm", folder / "one"


@pytest.mark.parametrize(
    "name, file",
    [
        ("tokenpacker", "mm_projector"),
        ("mqt", "query_abstractor"),
        ("llava_mini", "mm_projector"),
        ("m3", "mm_projector"),
    ],
)
def test_a_stage_1_output_comes_in_alone_and_in_front_of_a_language_model(name, file, imported, tmp_path):
    llm, one = stage_one(tmp_path, name, f"{file}.safetensors")
    whole = write(tmp_path / "whole", name)
    (one / "clip").symlink_to(whole / "clip")
    import_weights(one, tmp_path / "alone", vision=whole / "clip")
    plan = import_weights(llm, tmp_path / "before", vision=whole / "clip", projector=one)
    run = load_run_config(imported(name))
    assert plan.config.model == dataclasses.replace(run.model, vision=plan.config.model.vision)
    _, ours = load_vlm(tmp_path / "before", weights="float32")
    _, wanted = load_vlm(imported(name), weights="float32")
    jax.tree.map(np.testing.assert_array_equal, ours.get("compressor"), wanted.get("compressor"))
    jax.tree.map(np.testing.assert_array_equal, ours["decoder"], wanted["decoder"])
    export_weights(tmp_path / "alone", tmp_path / "back")
    assert {f.name for f in (tmp_path / "back").glob(f"{file}.*")} == {f"{file}.safetensors", f"{file}.bin"}
    assert (
        load_file(tmp_path / "back" / f"{file}.safetensors").keys()
        == load_file(one / f"{file}.safetensors").keys()
    )


REFUSED = [
    ("tokenpacker", {"image_aspect_ratio": "slice"}, r"image_aspect_ratio 'slice' .*TokenPacker-HD"),
    ("tokenpacker", {"scale_factor": None}, "scale_factor None"),
    ("tokenpacker", {"scale_factor": 5}, "scale_factor 5"),
    ("tokenpacker", {"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch' beside"),
    ("tokenpacker", {"s2": True, "s2_scales": "48,96"}, "s2 True beside"),
    ("tokenpacker", {"compressor_size": 1}, "keys of tokenpacker and llava_mini"),
    ("mqt", {"num_visual_tokens": None}, "num_visual_tokens None"),
    ("mqt", {"num_visual_tokens": "257"}, "num_visual_tokens '257'"),
    ("mqt", {"query_abstractor_type": "qformer"}, "query_abstractor_type 'qformer'"),
    ("mqt", {"query_abstractor_type": None}, "query_abstractor.attn.in_proj_bias"),
    (
        "mqt",
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
        "image_aspect_ratio 'anyres' beside",
    ),
    ("m3", {"matryoshka_vis_token_scale": [1, 10]}, r"\(1, 10\) tile"),
    ("m3", {"matryoshka_vis_token_scale": "1,9"}, "matryoshka_vis_token_scale '1,9'"),
    ("llava_mini", {"resolution_ratio": 2}, r"resolution_ratio 2 .*pieces of an image"),
    ("llava_mini", {"compressor_size": None}, "compressor_size None"),
    ("llava_mini", {"prefusion_layer_num": 3}, "missing: model.prefusion_layers.2"),
]


@pytest.mark.parametrize("name, changes, said", REFUSED)
def test_what_is_not_implemented_or_not_told_is_refused_by_its_key(name, changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        import_weights(write(tmp_path / "given", name, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "told_v, elastic, answered",
    [("second_stage", DRAWN, 256), ("first_stage", (), 256), ("36", (), 36), (36, (), 36)],
)
def test_mqt_has_the_numbers_of_visual_tokens_that_its_config_says(told_v, elastic, answered):
    hf = told("mqt")["config.json"] | {"num_visual_tokens": told_v}
    compressor = MQT.settings(hf)
    assert compressor is not None
    assert (compressor.elastic, compressor.num_tokens(24)) == (elastic, answered)


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("tokenpacker", "heads", 4),
        ("tokenpacker", "elastic", (1, 4)),
        ("mqt", "heads", 8),
        ("mqt", "elastic", (1, 4)),
        ("mqt", "stored_positions", False),
        ("llava_mini", "heads", 4),
        ("llava_mini", "published", False),
        ("llava_mini", "fusion_layers", 0),
    ],
)
def test_what_a_projects_code_cannot_have_is_not_written_as_its_own(name, setting, value, imported):
    run = load_run_config(imported(name))
    compressor = exchanged(run.model.compressor, **{setting: value})
    changed = dataclasses.replace(run, model=dataclasses.replace(run.model, compressor=compressor))
    with pytest.raises(UserError, match=f"the original project has no model.compressor.{setting} "):
        plan_export(changed, "llava", "llama")


@pytest.mark.parametrize("name", ["tokenpacker", "mqt", "llava_mini"])
def test_a_lora_brings_compressor_pre_fusion_and_projector_beside_it(name, imported, tmp_path):
    """LLaVA-Mini's train.py keeps them in non_lora_trainables.bin, as LLaVA's does its projector."""
    llm, one = stage_one(tmp_path, name, "non_lora_trainables.safetensors")
    beside = {PREFIX + k: v for k, v in load_file(one / "non_lora_trainables.safetensors").items()}
    save_file(beside, one / "non_lora_trainables.safetensors")
    put_adapter(one, pairs_of(load_file(llm / "model.safetensors"), LLAMA))
    whole = write(tmp_path / "whole", name)
    import_weights(llm, tmp_path / "run", vision=whole / "clip", adapter=one)
    _, ours = load_vlm(tmp_path / "run", weights="float32", merge=False)
    _, wanted = load_vlm(imported(name), weights="float32")
    mine, theirs = (load_run_config(run).model.compressor for run in (tmp_path / "run", imported(name)))
    assert mine == theirs
    for part in ("compressor", "projector"):
        jax.tree.map(np.testing.assert_array_equal, ours[part], wanted[part])
    export_weights(tmp_path / "run", tmp_path / "back", adapter="llava")
    back = load_file(tmp_path / "back" / "non_lora_trainables.safetensors")
    assert back.keys() == beside.keys()
    assert all(np.array_equal(back[k], v) for k, v in beside.items())


@given(
    name=st.sampled_from(PROJECTS),
    key=st.sampled_from(
        sorted({*KEYS, "mm_projector_type", "mm_vision_select_feature", "image_aspect_ratio"})
    ),
    value=st.one_of(
        st.none(), st.booleans(), st.integers(-2, 600), st.text(max_size=3), st.lists(st.integers(0, 600))
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_key_says_the_model_is_the_same_or_is_refused_in_a_sentence(name, key, value):
    """The tensors are those of the unchanged config.json, which a key may contradict, or not speak of."""
    files = told(name)
    found = {k: tuple(shape) for k, shape in files["shapes"].items()}
    within = "model.vision_tower.vision_tower."
    tower = Source(
        files["clip/config.json"],
        {k.removeprefix(within): v for k, v in found.items() if k.startswith(within)},
    )
    usual = plan_import(Source(files["config.json"], found), tower)
    try:
        plan = plan_import(Source(files["config.json"] | {key: value}, found), tower)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert leaf_shapes(plan.rules) == leaf_shapes(usual.rules)
    made, wanted = plan.config.model.compressor, usual.config.model.compressor
    # Without its list, M3 is LLaVA's own model in every file.
    assert type(made) is type(wanted) or (key, value) == ("matryoshka_vis_token_scale", None)
