"""SigLIP's, SigLIP 2's and DINOv2's towers against those of transformers with the same random weights, from published
config.json files with small sizes."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from quecc_jax.config import ModelConfig, RunConfig, VisionConfig
from quecc_jax.config.io import load_config
from quecc_jax.config.presets import tower
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.convert.formats.towers.families import hf_vision_config, tower_family, vision_config
from quecc_jax.convert.image_processor import processor_settings, with_pixels
from quecc_jax.convert.plan import plan_export
from quecc_jax.convert.rules import from_tree
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.models.towers.vit import split_features
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.run_dir import list_run
from tests.convert.published_towers import PRESETS, PUBLISHED, shrunken
from tests.golden_check import TOLERANCE
from tests.parity.compare import errors, gradients, randomise
from tests.parity.rows import gradients_and_states
from tests.parity.test_images import photo_directory

AUTO: Any = transformers.AutoModel


class Pair(NamedTuple):
    """The same tower twice."""

    hf: dict[str, Any]
    """Its config.json."""
    theirs: Any
    """The vision model alone."""
    config: VisionConfig
    files: Path
    """What transformers saved, with the processor beside it."""
    run: Path
    """What was imported of it."""
    processor: Any


@pytest.fixture(scope="module", params=PUBLISHED)
def pair(request, tmp_path_factory) -> Pair:
    hf, settings = shrunken(request.param)
    folder = tmp_path_factory.mktemp("tower")
    whole = AUTO.from_config(transformers.AutoConfig.for_model(**hf), dtype=torch.float32).eval()
    randomise(whole)
    whole.save_pretrained(folder / "files")
    (folder / "files" / "config.json").write_text(json.dumps(hf))
    (folder / "files" / "preprocessor_config.json").write_text(json.dumps(settings))
    import_weights(folder / "files", folder / "run")
    kind: Any = SiglipImageProcessorPil if "vision_config" in hf else BitImageProcessorPil
    return Pair(
        hf,
        getattr(whole, "vision_model", whole),
        load_config(folder / "run" / "config.json").model.vision,
        folder / "files",
        folder / "run",
        kind.from_pretrained(folder / "files"),
    )


def test_features_at_every_level_and_all_gradients_agree(pair):
    depth, side = pair.config.depth, pair.config.image_size
    config = VisionConfig(**{**vars(pair.config), "levels": tuple(range(depth + 1)), "select_layer": -2})
    assert hidden_indices(config) == tuple(range(depth + 1))
    params = load_params(pair.run, ["vision"])[1]
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    cotangent = rng.normal(size=(2, config.patches, depth + 1, config.width)).astype(np.float32)

    grads, states = gradients_and_states(config, params, pixels, cotangent)
    pair.theirs.zero_grad()
    out = pair.theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    wanted = [h[:, -config.patches :] for h in out.hidden_states]
    (torch.stack(wanted, dim=2) * torch.from_numpy(cotangent)).sum().backward()

    assert len(wanted) == depth + 1
    levels = {str(i): one.detach().numpy() for i, one in enumerate(wanted)}
    found = errors({str(i): states[:, :, i] for i in range(depth + 1)}, levels, False)
    features = split_features(states, config)
    found |= errors({"select": features.single}, {"select": levels[str(depth - 1)]}, False)
    found |= errors({"all": features.multi}, {"all": np.concatenate(list(levels.values()), -1)}, False)

    theirs = gradients(pair.theirs)
    ours = _named_as_in_memory(config, jax.device_get(grads))
    assert not any(ours.pop(name).any() for name in [n for n in ours if n not in theirs])
    # Softmax ignores what a key's bias adds to all logits alike: its gradient is round-off.
    largest = max(float(np.abs(gradient).max()) for gradient in theirs.values())
    for name in [name for name in theirs if name.endswith(("k_proj.bias", "key.bias"))]:
        assert max(np.abs(ours.pop(name)).max(), np.abs(theirs.pop(name)).max()) < 1e-6 * largest
    found |= errors(ours, theirs, True)
    assert len(found) > 40 and max(found.values()) < TOLERANCE, found


def _named_as_in_memory(config: VisionConfig, grads: Any) -> dict[str, np.ndarray]:
    """Gradients under the names that the module has; files of DINOv2 have others."""
    named = {}
    for name, value in from_tree(plan_export(_run(config), "tower").rules, grads).items():
        name = name.removeprefix("vision_model.")
        for old, new in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("mlp.weights_out", "mlp.down_proj"),
        ):
            name = name.replace(old, new)
        if "weights_in" in name:
            for part, half in zip(("gate_proj", "up_proj"), np.split(value, 2), strict=True):
                named[name.replace("weights_in", part)] = half
        else:
            named[name] = value
    return named


def _run(config: VisionConfig) -> RunConfig:
    return RunConfig(model=ModelConfig(vision=config))


def test_exports_are_the_files_byte_for_byte(pair, tmp_path):
    """What no feature passes through goes home too: pooling heads, text encoders, mask tokens."""
    export_weights(pair.run, tmp_path / "out")
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pair.files / name).read_bytes()
    theirs = load_file(pair.files / "model.safetensors")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_transformers_loads_a_tower_that_is_exported_anew(pair, tmp_path):
    """As of a run that was trained: nothing is kept of the files, and what is no parameter of ours is not there."""
    shutil.copytree(pair.run, tmp_path / "run", ignore=shutil.ignore_patterns("source", "checksums.json"))
    list_run(tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "out")
    model, report = AUTO.from_pretrained(tmp_path / "out", output_loading_info=True)
    # transformers has a mask token beside registers whatever config.json says.
    assert {*report["missing_keys"]} <= {"embeddings.mask_token"} and not report["unexpected_keys"]
    assert pair.config.registers or not report["missing_keys"]
    side = pair.config.image_size
    pixels = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 3, side, side)).astype(np.float32))
    with torch.no_grad():
        for a, b in zip(
            *(m(pixels, output_hidden_states=True).hidden_states for m in (model, pair.theirs)), strict=True
        ):
            assert torch.equal(a, b)
    again = import_weights(tmp_path / "out", tmp_path / "again").config.model.vision
    assert again == pair.config


@pytest.mark.parametrize("size", [(900, 600), (500, 731), (31, 30), (400, 400)])
def test_pixels_are_those_of_its_own_processor(pair, size):
    """At the published files' own sizes, of a real photo."""
    name = next(name for name in PUBLISHED if pair.hf == shrunken(name)[0])
    hf, settings = PUBLISHED[name]
    config = with_pixels(vision_config(hf), tower_family(hf), settings, name)
    processor = type(pair.processor)(**settings)
    image = Image.open(photo_directory() / "franz-kafka.jpg").resize(size)
    side = max(image.size)
    mean = tuple(int(255 * part) for part in processor.image_mean)
    square = Image.new("RGB", (side, side), mean)
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    for aspect, given in (("square", image), ("pad", square)):
        wanted = processor(given, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = normalise(load_pixels(image, config, aspect), config.pixels)  # type: ignore[arg-type]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_published_files(name):
    hf, settings = PUBLISHED[PRESETS[name]]
    described = with_pixels(vision_config(hf), tower_family(hf), settings, name)
    assert tower(name) == described
    # At full size, too: an own processor and config.json say what the published ones do.
    kind = tower_family(hf)
    again = with_pixels(vision_config(hf_vision_config(described)), kind, processor_settings(described), name)
    assert again == described
