"""What is refused of vision towers of other families, in one sentence that names it, and files that go home;
tests/parity/test_towers.py has the numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from quecc_jax.config import ModelConfig, NoneConfig, RunConfig, VisionConfig
from quecc_jax.config.presets import TOWERS, tower
from quecc_jax.convert.formats.towers.families import at_size, family_of, hf_vision_config, vision_config
from quecc_jax.convert.image_processor import processor_settings
from quecc_jax.convert.plan import Source, plan_export, plan_import
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.convert.sidecar_files import open_checkpoint
from quecc_jax.data.sources.array_record import Recipe, check_recipe
from quecc_jax.errors import UserError
from tests.convert.published_towers import PUBLISHED, shrunken
from tests.convert.test_run import assert_same_tensors

SMALL: dict[str, Any] = {"width": 24, "depth": 3, "heads": 3, "mlp_width": 96, "levels": (-2,)}


def source(config: VisionConfig, **changes: Any) -> Source:
    """A small tower's directory, with some settings of its config.json changed."""
    export = plan_export(RunConfig(model=ModelConfig(vision=config)), "tower")
    found = {name: shape for r in export.rules for name, shape in zip(r.theirs, r.shapes, strict=True)}
    return Source(export.hf | changes, found, "there", processor_settings(config))


def processed(name: str, **changes: Any) -> Source:
    """A small tower's directory, with some settings of its image processor changed."""
    made = source(small(name))
    return dataclasses.replace(made, image_processor=made.image_processor | changes)


def small(name: str) -> VisionConfig:
    """A published tower with small sizes."""
    return dataclasses.replace(tower(name), **SMALL)


REFUSALS = {
    "any resolution": (
        lambda: source(small("siglip2-base-16-224"), model_type="siglip2_vision_model"),
        r"'siglip2_vision_model' in config.json is SigLIP 2 of any resolution \(NaFlex\)",
    ),
    "whole SigLIP 2 of any resolution": (
        lambda: source(small("siglip2-base-16-224"), model_type="siglip2"),
        r"'siglip2' in config.json is SigLIP 2 of any resolution",
    ),
    "no processor": (
        lambda: dataclasses.replace(source(small("siglip-base-16-224")), image_processor={}),
        "there has no preprocessor_config.json, and siglip towers differ",
    ),
    "constants left out": (
        lambda: dataclasses.replace(
            source(small("siglip-base-16-224")),
            image_processor={
                "size": {"height": 224, "width": 224},
                "image_processor_type": "SiglipImageProcessor",
            },
        ),
        "has image_mean None",
    ),
    "a processor that sees any resolution": (
        lambda: processed("siglip-base-16-224", image_processor_type="Siglip2ImageProcessor"),
        "is a Siglip2ImageProcessor, which is not implemented",
    ),
    "a processor that crops in its own way": (
        lambda: processed("dinov2-large", image_processor_type="ConvNextImageProcessor"),
        "is a ConvNextImageProcessor, which is not implemented",
    ),
    "null for the crop": (lambda: processed("dinov2-base", do_center_crop=None), "has do_center_crop None"),
    "null for the scale": (lambda: processed("dinov2-base", do_rescale=None), "has do_rescale None"),
    "a black frame": (
        lambda: processed("siglip-base-16-224", do_pad=True, pad_size={"height": 512, "width": 512}),
        "has pad_size",
    ),
    "SigLIP's activation": (
        lambda: source(small("siglip-base-16-224"), hidden_act="relu"),
        "SigLIP config's hidden_act 'relu'",
    ),
    "another size than its positions'": (
        lambda: source(small("siglip-base-16-224"), image_size=256),
        "size {'height': 224, 'width': 224}, which is not implemented for a tower of 256 pixels",
    ),
    "DINOv2's biases": (lambda: source(small("dinov2-base"), qkv_bias=False), "qkv_bias False"),
    "DINOv2's activation": (lambda: source(small("dinov2-base"), hidden_act="relu"), "hidden_act 'relu'"),
    "DINOv2 otherwise interpolated": (
        lambda: source(small("dinov2-large-registers"), interpolate_antialias=False),
        "interpolate_antialias False",
    ),
    "patches that are not square": (
        lambda: source(small("dinov2-base"), patch_size=[14, 16]),
        "DINOv2 config's images or patches are not square RGB",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_implemented_is_refused_by_name(case):
    make, message = REFUSALS[case]
    with pytest.raises(UserError, match=message) as caught:
        plan_import(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left_out", [("crop_size",), ("size", "crop_size")], ids=str)
def test_sizes_that_a_dinov2_leaves_out_are_its_processor_s_own(left_out):
    made = processed("dinov2-base")
    held = {name: value for name, value in made.image_processor.items() if name not in left_out}
    tower = plan_import(dataclasses.replace(made, image_processor=held)).config.model.vision
    assert (tower.image_size, tower.pixels.resized) == (224, 0 if "size" in left_out else 256)


def test_two_files_that_disagree_on_images_are_asked_about(tmp_path):
    """transformers 5 reads the one, 4 the other."""
    config = small("clip-l-14-336")
    settings = processor_settings(config)
    (tmp_path / "config.json").write_text(json.dumps(source(config).hf))
    shapes = source(config).found
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    both: Any = {"image_processor": settings | {"processor_class": "X"}, "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(both))
    open_checkpoint(tmp_path)
    both["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (tmp_path / "processor_config.json").write_text(json.dumps(both))
    with pytest.raises(
        UserError, match=r"processor_config.json has image_mean \[0.1, 0.2, 0.3\], and prepro"
    ):
        open_checkpoint(tmp_path)


def test_the_original_s_format_has_clip_alone():
    config = RunConfig(model=ModelConfig(vision=small("siglip-base-16-224"), compressor=NoneConfig()))
    with pytest.raises(UserError, match=r"no vision tower of the family 'siglip', only 'clip'"):
        plan_export(config, "llava")


def test_a_llava_hf_model_takes_all_patches_of_a_tower_without_cls():
    config = RunConfig(
        model=ModelConfig(vision=small("siglip-base-16-224"), compressor=NoneConfig(), projector="mlp2x_gelu")
    )
    hf = plan_export(config, "llava_hf", "llama").hf
    assert hf["vision_feature_select_strategy"] == "full"
    with pytest.raises(UserError, match=r"'default' in config.json leaves the first patch out"):
        plan_import(Source(hf | {"vision_feature_select_strategy": "default"}, {}))
    registers = dataclasses.replace(config.model, vision=small("dinov2-large-registers"))
    with pytest.raises(UserError, match=r"llava-hf has no model\.vision\.registers 4"):
        plan_export(dataclasses.replace(config, model=registers), "llava_hf", "llama")


def test_squares_that_were_prepared_as_clip_s_are_refused_for_another_tower():
    recipe = Recipe(size=224, aspect="square")
    data = dataclasses.replace(RunConfig().data, image_aspect="square")
    check_recipe("data", recipe, VisionConfig(image_size=224), data)
    for name in ("siglip-base-16-224", "siglip2-base-16-224", "dinov2-base"):
        with pytest.raises(
            UserError, match=r"data holds squares of 224 pixels as CLIP's .* without --resize"
        ):
            check_recipe("data", recipe, tower(name), data)
    # Padded ones differ in their colour alone.
    padded = dataclasses.replace(data, image_aspect="pad")
    with pytest.raises(UserError, match="without --resize"):
        check_recipe("data", Recipe(size=224), tower("siglip-base-16-224"), padded)


@given(st.sampled_from(sorted(TOWERS)), st.integers(2, 40), st.integers(0, 13))
def test_a_tower_is_read_as_it_is_written(name, grid, more):
    """At sizes that its positions are not learned for, too, where it has such."""
    config = tower(name)
    if config.position_grid:
        config = at_size(config, grid * config.patch_size + more)
        assert config.grid == grid and config.position_grid != grid
    described = at_size(vision_config(hf_vision_config(config)), config.image_size)
    assert described == dataclasses.replace(config, pixels=described.pixels)
    assert family_of(config).name == name.split("-")[0].removesuffix("2" if "siglip" in name else "")


def test_a_tower_that_no_family_has_is_kept_from_leaving():
    config = dataclasses.replace(small("siglip-base-16-224"), layer_scale=True)
    with pytest.raises(UserError, match="no family of clip, siglip, dinov2 can express"):
        plan_export(RunConfig(model=ModelConfig(vision=config)), "tower")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tower_goes_home_byte_for_byte(name, tmp_path: Path):
    """With whatever of it is no part of ours; here it is a stand-in of random bits."""
    hf, settings = shrunken(name)
    config = vision_config(hf)
    export = plan_export(RunConfig(model=ModelConfig(vision=config)), "tower")
    shapes = {name: shape for r in export.rules for name, shape in zip(r.theirs, r.shapes, strict=True)}
    if "vision_config" in hf:
        shapes |= {
            "vision_model.head.probe": (1, 1, 24),
            "text_model.head.weight": (4, 4),
            "logit_bias": (1,),
        }
    else:
        shapes |= {"embeddings.mask_token": (1, 24)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    (tmp_path / "given").mkdir()
    save_file(tensors, tmp_path / "given" / "model.safetensors", {"format": "pt"})
    for file, content in (("config.json", hf), ("preprocessor_config.json", settings)):
        (tmp_path / "given" / file).write_text(json.dumps(content))
    import_weights(tmp_path / "given", tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "out")
    for file in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "given" / file).read_bytes(), file
    assert_same_tensors(tmp_path / "given", tmp_path / "out")
