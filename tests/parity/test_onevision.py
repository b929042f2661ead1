"""LLaVA-OneVision against transformers' on PyTorch: shrunk maps of tokens, pixels, and a whole model of its layout."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from quecc_jax.config import ModelConfig, QueccConfig, VisionConfig
from quecc_jax.config.io import load_config
from quecc_jax.config.presets import tower
from quecc_jax.config.shapes import tiled_tokens
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.data.batch import NEWLINE, Batch
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.data.tiles import arrange, maps_of
from quecc_jax.models.tile_maps import shrink_maps
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import load_params
from tests.conformance.test_llava_hf import letters
from tests.generator import build_generator
from tests.golden_check import TOLERANCE
from tests.parity.compare import randomise
from tests.parity.rows import row_of_tiles
from tests.parity.test_images import photo_directory

SIXES = tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7))
SIZES = st.integers(20, 3000)
IMAGE_TOKEN = 150
PUBLISHED: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 152000,
    },
    "tie_word_embeddings": True,
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
"""config.json of llava-onevision-qwen2-0.5b as transformers' script writes it, its grids those of the class."""
PROCESSOR: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "LlavaOnevisionProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}


def shrunken(squares: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files with small sizes: squares of 23 pixels, of which patches of 5 leave a border, in up to 6 x 6."""
    small: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = {
        **PUBLISHED["vision_config"],
        **small,
        "intermediate_size": 40,
        "image_size": 23,
        "patch_size": 5,
    }
    text = {**PUBLISHED["text_config"], **small, "intermediate_size": 32, "num_attention_heads": 4}
    text |= {"vocab_size": 160, "bos_token_id": 1, "eos_token_id": 2}
    maps = [[23 * rows, 23 * columns] for rows, columns in SIXES]
    hf = {**PUBLISHED, "vision_config": vision, "text_config": text, "image_grid_pinpoints": maps}
    hf |= {"image_token_index": IMAGE_TOKEN, "video_token_index": IMAGE_TOKEN + 1}
    size = {"size": {"height": 23, "width": 23}, "image_grid_pinpoints": maps}
    return hf | {"vision_aspect_ratio": f"anyres_max_{squares}"}, {**PROCESSOR, **size}


@settings(deadline=None, max_examples=120)
@given(SIZES, SIZES, st.sampled_from([1, 3, 9]), st.sampled_from([1, 2, 9]))
def test_maps_are_shrunk_alike(width, height, side, squares):
    """Random tokens of QueCC with side^2 of a square, and where a newline stands."""
    compressor = QueccConfig(kernel=27 // side, stride=27 // side)
    vision = VisionConfig(image_size=378, tiles=SIXES, max_squares=squares, width=64, heads=4, levels=(-1,))
    model = ModelConfig(vision=vision, compressor=compressor)
    ours = arrange(width, height, model)
    seen = types.SimpleNamespace(image_size=378, patch_size=378 // side)
    pinpoints = [[rows * 378, columns * 378] for rows, columns in SIXES]
    config = types.SimpleNamespace(vision_config=seen, image_grid_pinpoints=pinpoints)
    theirs: Any = types.SimpleNamespace(config=config)
    tokens = np.random.default_rng(0).standard_normal((ours.crops, side**2, 3), np.float32)
    try:
        packed, _ = LlavaOnevisionModel.pack_image_features(
            theirs,
            [torch.from_numpy(tokens)],
            [(height, width)],
            torch.full((3,), 7.0),
            f"anyres_max_{squares}",
        )
    except RuntimeError:
        # An image thinner than a token, which is left without one.
        assume(False)
    wanted = packed[0].numpy()
    assume(len(wanted) > side**2 and wanted[side**2, 0] != 7.0)
    maps = maps_of([ours])
    made = (
        tokens[None]
        if maps is None
        else np.asarray(shrink_maps(jnp.asarray(tokens[None]), jnp.asarray(maps[None])))
    )
    flat = made.reshape(-1, 3)
    got = np.where(
        (ours.slots == NEWLINE)[:, None], 7.0, flat[np.where(ours.slots == NEWLINE, 0, ours.slots)]
    )
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert len(got) <= tiled_tokens(model)


@pytest.mark.parametrize("size", [(900, 600), (300, 1200), (231, 230)])
def test_pixels_are_those_of_its_processor(size):
    """At its own size."""
    processor = LlavaOnevisionImageProcessorPil(**PROCESSOR, size={"height": 384, "width": 384})
    image = Image.open(photo_directory() / "franz-kafka.jpg").resize(size)
    wanted = processor(image, return_tensors="np")["pixel_values"][0].transpose(0, 2, 3, 1)
    vision = VisionConfig(image_size=384, tiles=SIXES, pixels=tower("siglip-so400m-14-384").pixels)
    np.testing.assert_allclose(
        normalise(load_pixels(image, vision), vision.pixels), wanted, rtol=0, atol=1e-6
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Any, Path]:
    """The model of transformers, and a directory with its files and what was imported of it."""
    hf, processor = shrunken()
    folder = tmp_path_factory.mktemp("onevision")
    config = transformers.AutoConfig.for_model(**hf)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model)
    model.save_pretrained(folder / "files")
    letters(folder / "letters").rename(folder / "tokenizer")
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / "files" / file.name)
    for name, content in (("config.json", hf), ("preprocessor_config.json", processor)):
        (folder / "files" / name).write_text(json.dumps(content))
    import_weights(folder / "files", folder / "run", template="qwen")
    return model, folder


@pytest.mark.parametrize(
    "size, shrunk",
    [((20, 20), False), ((40, 19), False), ((17, 90), True), ((25, 25), True), ((130, 120), True)],
)
def test_logits_and_greedy_answers_are_the_same(whole, size, shrunk):
    theirs, folder = whole
    width, height = size
    run = load_config(folder / "run" / "config.json")
    model = dataclasses.replace(run.model, dtype="float32", remat="none")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    pixels, stands = load_pixels(image, model.vision), arrange(width, height, model)
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder / "files")
    given = processor(image, return_tensors="pt")
    batch = row_of_tiles(5, stands, pixels, _maps(stands))
    ids = torch.from_numpy(np.where(batch.slots >= 0, IMAGE_TOKEN, batch.tokens)).long()
    with torch.no_grad():
        logits = theirs(input_ids=ids, **_only(given)).logits.numpy()
        answer = theirs.generate(
            input_ids=ids, **_only(given), max_new_tokens=5, do_sample=False, eos_token_id=-1
        )[0, ids.shape[1] :]
    params, vlm = load_params(folder / "run")[1], VLM(model)
    made: Any = jax.jit(lambda p, b: vlm.apply({"params": p}, b, method=_logits))(params, batch)
    assert float(np.abs(made - logits).max()) < TOLERANCE * float(np.abs(logits).max())
    got = np.asarray(build_generator(model, 5, eos=-1)(params, batch))
    np.testing.assert_array_equal(got[0], answer.numpy())
    assert bool(stands.shrunk) == shrunk


def _only(given: Any) -> dict[str, Any]:
    return {name: given[name] for name in ("pixel_values", "image_sizes")}


def _maps(stands: Any) -> np.ndarray:
    maps = maps_of([stands])
    return np.zeros((1, stands.crops, 8), np.int32) if maps is None else maps[None]


def _logits(model: VLM, batch: Batch) -> Any:
    return model.logits(model(batch))


def test_it_goes_home_byte_for_byte_and_anew(whole, tmp_path):
    theirs, folder = whole
    export_weights(folder / "run", tmp_path / "home")
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "home" / name).read_bytes() == (folder / "files" / name).read_bytes()
    given, home = (load_file(path / "model.safetensors") for path in (folder / "files", tmp_path / "home"))
    assert given.keys() == home.keys()
    assert all(given[name].tobytes() == home[name].tobytes() for name in given)
    export_weights(folder / "run", tmp_path / "anew", layout="llava_hf")
    kind: Any = transformers.AutoModelForImageTextToText
    model, report = kind.from_pretrained(tmp_path / "anew", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows[:160], theirs.get_input_embeddings().weight[: len(rows)])
    again = import_weights(tmp_path / "anew", tmp_path / "again", template="qwen").config.model.vision
    assert again == load_config(folder / "run" / "config.json").model.vision
