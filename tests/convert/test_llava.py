"""Plans for whole checkpoints: every format's names against our parameter tree, and refusals."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, QueccConfig, RunConfig, VisionConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.convert.plan import ImportPlan, Source, plan_export, plan_import
from quecc_jax.convert.rules import from_tree, leaf_shapes, to_tree
from quecc_jax.data.batch import batch_spec
from quecc_jax.errors import UserError
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import named_leaves
from quecc_jax.train.step import abstract_params
from tests.convert.names import load, random_tensors, source

FAMILIES = ["llama", "mistral", "qwen2", "phi3", "mpt"]
WHOLE = ["vision", "compressor", "projector", "decoder"]


def renamed(case: str, beginnings: dict[str, str]) -> Source:
    """A checkpoint whose names begin otherwise: old beginnings to new ones, the longest match first."""
    given = source(case)

    def rename(name: str) -> str:
        old = next((b for b in sorted(beginnings, key=len, reverse=True) if name.startswith(b)), "")
        return beginnings.get(old, "") + name.removeprefix(old)

    return dataclasses.replace(given, found={rename(k): v for k, v in given.found.items()})


def without(source: Source, part: str, but: bool = False) -> Source:
    """A checkpoint without the names that contain `part`, or with these alone."""
    return dataclasses.replace(source, found={k: v for k, v in source.found.items() if (part in k) == but})


def stage_one(**changes: Any) -> Source:
    return without(source("llava_tiny", **changes), "mm_projector", but=True)


def model_leaves(config: RunConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of all parameters of a run's model, by path."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    tree = abstract_params(config, mesh, batch_spec(config.model, config.data, 1))
    return {tuple(k.split("/")): tuple(v.shape) for k, v in named_leaves(tree).items()}


def decoder_for_the_tiny_projector() -> Source:
    """The golden's decoder as a language model of its own."""
    tiny = source("llava_tiny")
    hf = {k: v for k, v in tiny.hf.items() if not k.startswith("mm_")} | {"model_type": "llama"}
    found = {k: v for k, v in tiny.found.items() if "mm_projector" not in k and "vision_tower" not in k}
    return Source(hf, found, "llm")


PLANS: dict[str, tuple[Callable[[], ImportPlan], list[str]]] = {
    **{family: (functools.partial(plan_import, source(family)), ["decoder"]) for family in FAMILIES},
    "clip_vision_model": (lambda: plan_import(source("clip_vision_model")), ["vision"]),
    "clip": (lambda: plan_import(source("clip")), ["vision"]),
    "llava": (lambda: plan_import(source("llava")), ["vision", "projector", "decoder"]),
    "llava_next": (lambda: plan_import(source("llava_next")), ["vision", "projector", "decoder"]),
    "llava_next with an inner model": (
        lambda: plan_import(
            renamed(
                "llava_next",
                {
                    "vision_tower": "model.vision_tower",
                    "multi_modal_projector": "model.multi_modal_projector",
                    "image_newline": "model.image_newline",
                    "language_model.lm_head": "lm_head",
                    "language_model.model.": "model.language_model.",
                },
            )
        ),
        ["vision", "projector", "decoder"],
    ),
    "llava of older transformers": (
        lambda: plan_import(renamed("llava", {"vision_tower.": "vision_tower.vision_model."})),
        ["vision", "projector", "decoder"],
    ),
    "llava with an inner model": (
        lambda: plan_import(
            renamed(
                "llava",
                {
                    "vision_tower": "model.vision_tower",
                    "multi_modal_projector": "model.multi_modal_projector",
                    "language_model.lm_head": "lm_head",
                    "language_model.model.": "model.language_model.",
                },
            )
        ),
        ["vision", "projector", "decoder"],
    ),
    "llava_tiny": (lambda: plan_import(source("llava_tiny"), source("clip_tiny")), WHOLE),
    "llava_tiny without its tower": (
        lambda: plan_import(without(source("llava_tiny"), "vision_tower"), source("clip_tiny")),
        WHOLE,
    ),
    "stage 1 alone": (lambda: plan_import(stage_one(), source("clip_tiny")), ["compressor", "projector"]),
    "parts put together": (
        lambda: plan_import(decoder_for_the_tiny_projector(), source("clip_tiny"), stage_one()),
        WHOLE,
    ),
    "a language model and a tower": (
        lambda: plan_import(decoder_for_the_tiny_projector(), source("clip_tiny")),
        ["vision", "decoder"],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_rules_fill_every_parameter_of_the_parts_once_and_no_other(name):
    make, parts = PLANS[name]
    plan = make()
    leaves = model_leaves(plan.config)
    assert leaf_shapes(plan.rules) == {path: s for path, s in leaves.items() if path[0] in parts}
    assert {path[0] for path in leaves} >= set(parts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "case", [*FAMILIES, "clip_vision_model", "clip", "llava", "llava_next", "llava_tiny"]
)
def test_reading_and_writing_a_checkpoint_changes_no_bit(case, dtype):
    given = source(case)
    plan = plan_import(given, source("clip_tiny") if case == "llava_tiny" else None)
    ignored = plan.parts["model"].ignored
    theirs = random_tensors({k: s for k, s in given.found.items() if k not in ignored}, dtype)
    back = from_tree(plan.rules, to_tree(plan.rules, theirs))
    assert back.keys() == theirs.keys()
    for name, array in theirs.items():
        assert back[name].dtype == dtype and back[name].shape == array.shape
        assert np.ascontiguousarray(back[name]).tobytes() == array.tobytes(), name


def test_the_tiny_model_is_written_under_exactly_the_originals_names_and_settings():
    given = source("llava_tiny")
    export = plan_export(plan_import(given, source("clip_tiny")).config, "llava")
    assert {n: s for r in export.rules for n, s in zip(r.theirs, r.shapes, strict=True)} == given.found
    different = {k for k, v in export.hf.items() if given.hf.get(k) != v}
    # The tower's directory has a name of its own there.
    assert different == {"mm_vision_tower"} and export.hf["mm_vision_tower"] == "clip"
    assert (
        plan_import(Source(export.hf, given.found), source("clip_tiny")).config.model
        == plan_import(given, source("clip_tiny")).config.model
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_leaves_in_the_originals_format_and_returns(family):
    tiny = plan_import(source("llava_tiny"), source("clip_tiny")).config
    decoder = plan_import(source(family)).config.model.decoder
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, decoder=decoder))
    for layout in ("llava", "projector"):
        export = plan_export(config, layout, family)
        shapes = {n: s for r in export.rules for n, s in zip(r.theirs, r.shapes, strict=True)}
        back = plan_import(Source(export.hf, shapes), source("clip_tiny"))
        assert (back.config.model, back.layout, back.family) == (config.model, layout, family)
    body = "transformer." if family == "mpt" else "model."
    assert all(name.startswith(f"{body}mm_projector.") for name in shapes)


def test_settings_of_the_tiny_checkpoint():
    plan = plan_import(source("llava_tiny"), source("clip_tiny"))
    assert plan.config.model.compressor == QueccConfig(kernel=4, stride=4, heads=8)
    assert plan.config.model.visual_tokens == 9
    data = plan.config.data
    assert (data.template, data.image_aspect, data.max_length) == ("v1", "pad", 512)
    assert plan.parts.keys() == {"model"}
    assert plan.config.model.vision.levels == (12, 16, 22, 23) and plan.config.model.vision.post_norm


def test_a_published_tower_needs_no_directory_and_is_named_again():
    hf = load("llava_tiny")["config"] | {
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 1024,
        "mm_vision_output_token_count": 576,
    }
    tiny = plan_import(source("llava_tiny"), source("clip_tiny")).config
    tower = VisionConfig(post_norm=True)
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vision=tower))
    export = plan_export(config, "llava")
    shapes = {n: s for r in export.rules for n, s in zip(r.theirs, r.shapes, strict=True)}
    plan = plan_import(Source(hf, shapes))
    assert plan.config.model.vision == tower
    assert export.hf["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"


@pytest.mark.parametrize("select, tokens", [("patch", 144), ("cls_patch", 145)])
def test_llava_without_a_compressor_passes_all_patches_and_its_projector_moves_up(select, tokens):
    changes = {"mm_vision_token_compression_type": None, "mm_vision_select_feature": select}
    given = without(source("llava_tiny", **changes), "mm_projector.0")
    found = {
        k.replace("projector.1", "projector.0").replace("projector.3", "projector.2"): s
        for k, s in given.found.items()
    }
    plan = plan_import(dataclasses.replace(given, found=found), source("clip_tiny"))
    assert plan.config.model.compressor.name == "none" and plan.config.model.visual_tokens == tokens
    assert leaf_shapes(plan.rules) == model_leaves(plan.config)
    hf = plan_export(plan.config, "llava_hf")
    shapes = {n: s for r in hf.rules for n, s in zip(r.theirs, r.shapes, strict=True)}
    # The image's own token makes the vocabulary one longer.
    decoder = dataclasses.replace(plan.config.model.decoder, vocab_size=32001)
    assert plan.config.model.decoder.vocab_size == hf.hf["image_token_index"] == 32000
    back = plan_import(Source(hf.hf, shapes)).config.model
    assert back == dataclasses.replace(plan.config.model, decoder=decoder)
    assert plan_export(plan.config, "llava").hf["mm_vision_select_feature"] == select


def test_any_resolution_goes_out_and_in_by_either_format():
    plan = plan_import(source("llava_next"))
    assert plan.config.model.vision.tiles == ((1, 2), (2, 2), (3, 1))
    for layout in ("llava", "llava_hf", "projector"):
        export = plan_export(plan.config, layout)
        shapes = {n: s for r in export.rules for n, s in zip(r.theirs, r.shapes, strict=True)}
        assert [name for name in shapes if name.endswith("image_newline")]
        # The original's format says nothing of the tower.
        tower = None if layout == "llava_hf" else source("clip_vision_model")
        again = plan_import(Source(export.hf, shapes), tower)
        assert again.config.model.vision.tiles == plan.config.model.vision.tiles
        assert leaf_shapes(again.rules).keys() >= {("projector", "newline")}
    assert plan_export(plan.config, "llava").hf["image_grid_pinpoints"] == [[24, 12], [24, 24], [12, 36]]
    with_tiles = tiny()
    vision = dataclasses.replace(with_tiles.model.vision, tiles=((2, 2),))
    with pytest.raises(UserError, match=r"model\.vision\.tiles"):
        plan_export(
            dataclasses.replace(with_tiles, model=dataclasses.replace(with_tiles.model, vision=vision)),
            "llava",
        )
    with pytest.raises(UserError, match=r"image_grid_pinpoints .* multiples of the tower's 12"):
        plan_import(source("llava_next", image_grid_pinpoints=[[12, 20]]))
    with pytest.raises(UserError, match="no list of pairs"):
        plan_import(source("llava_next", image_grid_pinpoints=[12, 24]))


def test_maps_that_the_image_processor_cuts_otherwise_are_refused():
    """transformers cuts by the processor's and puts together by the config's."""
    given = source("llava_next")
    maps = given.hf["image_grid_pinpoints"]
    same = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": maps[::-1]}
    same |= {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    plan_import(dataclasses.replace(given, image_processor=same))
    other = same | {"image_grid_pinpoints": maps[1:]}
    with pytest.raises(UserError, match=r"image_grid_pinpoints .* but its config"):
        plan_import(dataclasses.replace(given, image_processor=other))


@pytest.mark.parametrize("layer", [-2, [-2], [-1]])
def test_a_list_of_one_layer_is_that_layer(layer):
    plan = plan_import(source("llava", vision_feature_layer=layer))
    assert plan.config.model.vision.select_layer == (layer if isinstance(layer, int) else layer[0])


def test_what_is_knowingly_left_out_is_reported_and_nothing_else():
    clip = plan_import(source("clip"))
    left = clip.parts["model"].ignored
    assert "logit_scale" in left and "visual_projection.weight" in left
    assert not any(name.startswith("vision_model") for name in left)
    old = source("llama")
    found = dict(old.found) | {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}
    plan = plan_import(dataclasses.replace(old, found=found))
    assert plan.parts["model"].ignored == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_a_tower_without_its_final_norm_is_a_tower_without_it():
    given = without(source("clip_tiny"), "post_layernorm")
    plan = plan_import(given)
    assert not plan.config.model.vision.post_norm
    assert {n for r in plan_export(plan.config, "tower").rules for n in r.theirs} == set(given.found)


def broken(case: str, **tensors: Any) -> Source:
    """A checkpoint with tensors of other shapes; None takes one away."""
    given = source(case)
    changed = {k.replace("__", "."): v for k, v in tensors.items()}
    return dataclasses.replace(given, found={k: v for k, v in {**given.found, **changed}.items() if v})


REFUSALS = [
    (lambda: plan_import(broken("llama", lm_head__weight=None)), r"1 missing: lm_head.weight \[40, 16\]"),
    (lambda: plan_import(broken("llama", lm_head__weight=(41, 16))), r"\[41, 16\] instead of \[40, 16\]"),
    (lambda: plan_import(broken("llama", model__extra=(1,))), r"1 unknown: model.extra \[1\]"),
    (lambda: plan_import(source("llama", num_hidden_layers=3)), "9 missing: model.layers.2"),
    (lambda: plan_import(source("llama", model_type="bert")), "model_type 'bert'"),
    (
        lambda: plan_import(source("llama", rms_norm_eps="1e-5")),
        "rms_norm_eps '1e-5' in config.json is not a number",
    ),
    (lambda: plan_import(source("llama", num_key_value_heads=3)), "decoder.heads 4 .* kv_heads 3"),
    (lambda: plan_import(source("clip_tiny", hidden_act="relu")), "hidden_act 'relu'"),
    (lambda: plan_import(source("llava_tiny")), "'clip_tiny' without describing it; .* --vision"),
    (
        lambda: plan_import(source("llava_tiny", mm_vision_select_feature="cls_patch"), source("clip_tiny")),
        "mm_vision_select_feature 'cls_patch'",
    ),
    (
        lambda: plan_import(source("llava_tiny", mm_patch_merge_type="spatial_unpad"), source("clip_tiny")),
        "mm_patch_merge_type 'spatial_unpad'",
    ),
    (
        lambda: plan_import(source("llava_tiny", mm_vision_token_compression_type="x"), source("clip_tiny")),
        "mm_vision_token_compression_type 'x'",
    ),
    (
        lambda: plan_import(source("llava_tiny", mm_vision_token_compression_stride=2), source("clip_tiny")),
        "stride 2",
    ),
    (
        lambda: plan_import(
            source("llava_tiny", mm_vision_output_text_embedding_size=64), source("clip_tiny")
        ),
        "mm_vision_output_text_embedding_size 64 .* make it 48",
    ),
    (lambda: plan_import(source("llava_tiny"), source("clip_vision_model")), "mm_hidden_size 32"),
    (
        lambda: plan_import(source("llava_tiny", mm_projector_type="resnet"), source("clip_tiny")),
        "mm_projector_type .*'resnet'",
    ),
    (
        lambda: plan_import(source("llava_tiny", image_aspect_ratio="anyres"), source("clip_tiny")),
        "image_aspect_ratio 'anyres'",
    ),
    *(
        (functools.partial(plan_import, source("llava_tiny", **{name: value}), source("clip_tiny")), named)
        for name, value, named in (
            (
                "image_aspect_ratio",
                "anyres_max_9",
                r"anyres_max_9' .*\(tiles' tokens interpolated to at most",
            ),
            ("image_aspect_ratio", "highres", r"image_aspect_ratio 'highres' .*\(fixed tiles"),
            ("mm_patch_merge_type", "spatial", r"mm_patch_merge_type 'spatial' .*\(tiles' tokens in one map"),
            ("mm_patch_merge_type", "spatial_maxpool2x2", r"maxpool2x2' .*\(tiles' tokens pooled"),
            ("mm_vision_select_feature", "slicefour_patch", r"slicefour_patch' .*\(several layers"),
            ("mm_use_im_start_end", True, r"mm_use_im_start_end True .*\(tokens of its own"),
            ("mm_resampler_type", "perceiver", r"mm_resampler_type 'perceiver' .*\(a module between"),
            ("mm_projector_type", "mlp2x_res2x_gelu", "mm_projector_type .*'mlp2x_res2x_gelu'"),
            ("mm_projector_type", "pooler", "mm_projector_type .*'pooler'"),
        )
    ),
    (
        lambda: plan_import(
            source("llava_tiny", image_aspect_ratio="anyres_max_9", mm_patch_merge_type="spatial_unpad"),
            source("clip_tiny"),
        ),
        "image_aspect_ratio 'anyres_max_9'",
    ),
    *(
        (
            functools.partial(
                plan_import, dataclasses.replace(source("llava"), image_processor={name: value})
            ),
            name,
        )
        for name, value in (
            ("size", {"height": 12, "width": 12}),
            ("size", {"shortest_edge": 13}),
            ("crop_size", 224),
            ("do_center_crop", False),
            ("resample", 1),
        )
    ),
    (lambda: plan_import(source("llava_next", use_image_newline_parameter=False)), "newline_parameter False"),
    (lambda: plan_import(source("llava"), source("clip_tiny")), "no room for clip_tiny"),
    (lambda: plan_import(source("llava", vision_feature_layer=[-2, -5])), r"vision_feature_layer \[-2, -5\]"),
    (lambda: plan_import(source("llava", vision_feature_select_strategy="cls")), "'cls'"),
    (lambda: plan_import(decoder_for_the_tiny_projector(), None, stage_one()), "no vision tower"),
    (
        lambda: plan_import(decoder_for_the_tiny_projector(), source("clip_tiny"), source("llama")),
        "which projector",
    ),
    (lambda: plan_import(source("llama"), source("clip_tiny"), stage_one()), "text_embedding_size 48 .* 16"),
    (lambda: plan_export(tiny(heads=4), "llava"), "model.compressor.heads 4"),
    (lambda: plan_export(tiny(query="zero"), "llava"), "model.compressor.query 'zero'"),
    (lambda: plan_export(tiny(), "llava_hf"), "model.compressor.name 'quecc'"),
    (lambda: plan_export(tiny(), "decoder", "mpt"), "mpt cannot express"),
]


def tiny(**compressor: Any) -> RunConfig:
    config = plan_import(source("llava_tiny"), source("clip_tiny")).config
    changed = exchanged(config.model.compressor, **compressor)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, compressor=changed))


@pytest.mark.parametrize("attempt, named", REFUSALS, ids=[named for _, named in REFUSALS])
def test_what_does_not_fit_is_refused_with_its_name(attempt, named):
    with pytest.raises(UserError, match=named):
        attempt()


def test_the_decoder_that_is_given_counts_when_parts_are_put_together():
    plan = PLANS["parts put together"][0]()
    assert plan.parts.keys() == {"model", "vision", "projector"} and plan.config.train.stage == 1
    assert plan.config.model == plan_import(source("llava_tiny"), source("clip_tiny")).config.model
