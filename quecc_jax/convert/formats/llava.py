"""Whole vision-language models in the format of LLaVA's original project, and of those that build on its code."""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Sequence

from quecc_jax.config import ModelConfig, NoneConfig, RunConfig, VisionConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.shapes import projector_depth
from quecc_jax.convert.formats.compressors.project import Limit, Project
from quecc_jax.convert.formats.compressors.registry import PROJECTS, told
from quecc_jax.convert.formats.families import decoder_config, hf_decoder_config
from quecc_jax.convert.formats.family_keys import FAMILIES, Allowed, refuse
from quecc_jax.convert.formats.towers.clip import CLIP, KNOWN, LEVELS
from quecc_jax.convert.formats.towers.families import family_of
from quecc_jax.convert.rules import Rule, Scope, dense, same
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

_ONLY: Allowed = {
    "image_aspect_ratio": ("pad", "square", None),
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "mm_patch_merge_type": ("flat", None),
    "mm_vision_token_compression_type": ("quecc", None),
    "mm_use_im_start_end": (False, None),
    "mm_resampler_type": (None,),
    "use_mm_proj": (True, None),
}
"""Settings that change what the model computes, with the values that are implemented."""
_ANYRES = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}
"""What the original says of any-resolution images; both, or the values above."""
NEWLINE = "image_newline"
"""Name, in all formats, of the learned vector that ends each row of a map of tokens."""


def is_original(hf: JsonObject) -> bool:
    """Whether a config.json is of the original project's vision-language models."""
    return "text_config" not in hf and ("mm_projector_type" in hf or "mm_vision_tower" in hf)


def original_tower(hf: JsonObject) -> VisionConfig:
    """The tower that an original config.json names, if the name alone tells its settings.

    Raises:
      UserError: it does not.
    """
    name = hf.get("mm_vision_tower")
    if name not in KNOWN:
        raise UserError(
            f"config.json names the vision tower {name!r} without describing it; "
            "give the tower's directory with --vision"
        )
    return KNOWN[name]


def original_model(hf: JsonObject, tower: VisionConfig) -> ModelConfig:
    """The model that a config.json of the original project describes.

    Args:
      hf: config.json of a `llava_llama`, `llava_mistral`, `llava_mpt`, `llava_phi3`, `llava_qwen` or of one of
        `compressors.registry`.
      tower: the tower, which config.json only names; select layer and levels are set here.

    Raises:
      UserError: a setting that is not implemented or does not fit the tower, by name.
    """
    anyres = all(hf.get(name) == value for name, value in _ANYRES.items())
    only = {name: values for name, values in _ONLY.items() if not (anyres and name in _ANYRES)}
    project, compressor = told(hf)
    refuse(hf, {**only, **(project.only if project else {})}, explain=_meaning)
    projector = (project and project.projector) or str(hf.get("mm_projector_type") or "linear")
    try:
        projector_depth(projector)
    except ValueError as error:
        raise UserError(f"mm_projector_type in config.json: {error}") from None
    decoder = decoder_config(hf)
    keep_cls = hf.get("mm_vision_select_feature") == "cls_patch"
    if project:
        _check_features(hf, project, anyres, keep_cls)
    if anyres:
        # Widths come first here.
        turned = tiles_of(hf.get("image_grid_pinpoints") or (), tower)
        tower = dataclasses.replace(tower, tiles=tuple((rows, columns) for columns, rows in turned))
        if compressor and compressor.elastic:
            # The length of a row depends on V, of which one is answered with.
            compressor = exchanged(compressor, tokens=max(compressor.elastic))
    if hf.get("s2"):
        tower = dataclasses.replace(tower, scales=_scales(hf, tower))
    sizes = {"mm_hidden_size": tower.feature_width} | (project.sizes(decoder, tower) if project else {})
    for name, size in sizes.items():
        if hf.get(name) not in (None, size):
            raise UserError(
                f"{name} {hf[name]} in config.json does not fit the tower and the decoder, which "
                f"make it {size}; give the tower that belongs to the model"
            )
    if project and project.grid not in (0, tower.grid):
        raise UserError(
            f"the code of {project.code} is for {project.grid} x {project.grid} patches, but the tower has "
            f"{tower.grid} x {tower.grid}; give the tower that belongs to the model"
        )
    if compressor:
        try:
            compressor.num_tokens(tower.grid)
        except ValueError as error:
            raise UserError(f"the compressor in config.json: {error}") from None
    multi = bool(project and project.multi)
    if multi and tower.depth < max(LEVELS):
        assert compressor is not None
        raise UserError(
            f"{compressor.name} reads the tower's states {LEVELS}, but the tower has {tower.depth} layers; "
            "give the tower that belongs to the model"
        )
    select = hf.get("mm_vision_select_layer", -2)
    if not tower.cls and select != -2:
        raise UserError(
            f"mm_vision_select_layer {select} in config.json is not what LLaVA's code reads of SigLIP, which is the "
            "state before the last layer whatever this says; set it to -2"
        )
    levels = LEVELS if multi else (select,)
    return ModelConfig(
        vision=dataclasses.replace(tower, select_layer=select, levels=levels, keep_cls=keep_cls),
        compressor=compressor or NoneConfig(),
        projector=projector,
        decoder=decoder,
    )


def _check_features(hf: JsonObject, project: Project, anyres: bool, keep_cls: bool) -> None:
    """Raises UserError where a config.json asks for features that a compressor's own code cannot read."""
    asked = [
        ("mm_vision_select_feature", keep_cls, False),
        ("image_aspect_ratio", anyres, project.tiles),
        ("s2", bool(hf.get("s2")), project.scales),
    ]
    for name, wanted, has in asked:
        if wanted and not has:
            raise UserError(
                f"config.json has {name} {hf[name]!r} beside a compressor that the code of {project.code} has for "
                "squares of patches alone; use a model without it"
            )


def hf_original(config: RunConfig, family: str) -> JsonObject:
    """The config.json of the original project for a run's model.

    `mm_vision_tower` is the published name of the tower where there is one with its sizes, else
    "clip": a directory of that name beside the file must then hold the tower.

    Raises:
      UserError: the original's code cannot express the model, by setting.
    """
    model, select = config.model, config.model.vision.select_layer
    vision, compressor = model.vision, model.compressor
    project = PROJECTS.get(compressor.name)
    kind = (
        FAMILIES[family].original if not (project and project.decoders) or family in project.decoders else ""
    )
    if not kind:
        whose = f"of {compressor.name} " if project and project.decoders else ""
        raise UserError(
            f"the original project {whose}has no decoder of model_type {family}; this run cannot be written in its "
            "format, but its parts can: --only decoder and --only vision"
        )
    wanted: list[Limit] = [("model.compressor.name", compressor.name, (*PROJECTS, "none"))]
    if project:
        wanted += [*project.limits(model), ("model.vision.keep_cls", vision.keep_cls, (False,))]
        wanted += [("model.vision.grid", vision.grid, (project.grid or vision.grid,))]
        wanted += [("model.projector", model.projector, (project.projector or model.projector,))]
        wanted += [("model.vision.levels", vision.levels, (LEVELS if project.multi else vision.levels,))]
        wanted += [] if project.scales else [("model.vision.scales", vision.scales, ((1,),))]
        wanted += [] if project.tiles else [("model.vision.tiles", vision.tiles, ((),))]
    wanted += [("vision tower of the family", family_of(vision).name, (CLIP.name,))]
    wanted += [("model.vision.scales[0]", vision.scales[0], (1,))]
    wanted += [("model.vision.max_squares", vision.max_squares, (0,))]
    for name, value, allowed in wanted:
        if value not in allowed:
            raise UserError(
                f"the original project has no {name} {reprlib.repr(value)}, only "
                f"{' or '.join(map(reprlib.repr, allowed))}; "
                "this run cannot be written in its format, but its parts can: --only decoder and --only vision"
            )
    tower = dataclasses.replace(
        vision,
        select_layer=-2,
        levels=LEVELS,
        post_norm=True,
        scales=(1,),
        tiles=(),
        max_squares=0,
        keep_cls=False,
        keep_attention=False,
    )
    names = [name for name, known in KNOWN.items() if known == tower]
    hf = hf_decoder_config(model.decoder, family, config.data.max_length) | {
        "architectures": [
            (project and project.architecture) or f"{kind.title().replace('_', '')}ForCausalLM"
        ],
        "model_type": (project and project.model_type) or kind,
        "hidden_size": model.decoder.width,
        "use_mm_proj": True,
        "mm_vision_tower": names[0] if names else "clip",
        "mm_projector_type": model.projector,
        "mm_hidden_size": vision.feature_width,
        "mm_vision_select_layer": select,
        "mm_vision_select_feature": "cls_patch" if vision.keep_cls else "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.data.image_aspect,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": config.data.max_length,
    }
    if vision.tiles:
        hf |= _ANYRES | {"image_grid_pinpoints": [[width, height] for height, width in pinpoints(vision)]}
    if len(vision.scales) > 1:
        hf |= {"s2": True, "s2_scales": ",".join(str(scale * vision.image_size) for scale in vision.scales)}
    return hf | (project.keys(model) if project else {})


def adapter_rules(model: ModelConfig, family: str, prefix: str) -> list[Rule]:
    """Rules of compressor and projector, whose names begin with `prefix`, e.g. "model."; LLaVA keeps both in one
    Sequential, `mm_projector`."""
    project = PROJECTS.get(model.compressor.name)
    rules = project.rules(model, family, prefix) if project else []
    if project and project.projector:
        return rules
    first = project.first if project else 0
    # GELUs stand between the linear layers and take numbers too.
    name, newline = f"{prefix}mm_projector.", f"{prefix}{NEWLINE}"
    return rules + projector_rules(model, lambda i: f"{name}{first + 2 * i}", newline)


def projector_rules(model: ModelConfig, name: Callable[[int], str], newline: str) -> list[Rule]:
    """Rules of the projector, whose linear layer i = 0, 1, ... they call name(i), and of the newline."""
    rules: list[Rule] = []
    scope, wide = Scope(("projector",)), (model.decoder.width,)
    for i in range(projector_depth(model.projector)):
        ins = wide if i else (model.vision.feature_width,)
        rules += dense(name(i), scope, f"fc{i + 1}", ins, wide, bias=True)
    return [*rules, same(newline, scope.slab("newline", *wide))] if model.has_newline else rules


def tiles_of(sizes: Sequence[Sequence[int]], tower: VisionConfig) -> tuple[tuple[int, int], ...]:
    """Tile grids (rows, columns) of maps whose heights and widths are given in pixels."""
    side = tower.image_size
    pairs = all(
        isinstance(size, list | tuple) and [type(part) for part in size] == [int, int] for size in sizes
    )
    if not pairs:
        raise UserError(
            "image_grid_pinpoints in config.json are no list of pairs of pixels; repair config.json"
        )
    if not sizes or any(height % side or width % side for height, width in sizes):
        raise UserError(
            "image_grid_pinpoints in config.json are not multiples of the tower's "
            f"{side} pixels; give the model's own tower"
        )
    return tuple((height // side, width // side) for height, width in sizes)


def pinpoints(vision: VisionConfig) -> list[list[int]]:
    """Heights and widths, in pixels, of the maps of any-resolution images."""
    return [[rows * vision.image_size, columns * vision.image_size] for rows, columns in vision.tiles]


def _scales(hf: JsonObject, tower: VisionConfig) -> tuple[int, ...]:
    """S2's scales in units of the tower's input, from their sizes in pixels."""
    sizes = sorted(int(size) for size in str(hf.get("s2_scales") or "336,672,1008").split(","))
    if sizes[0] != tower.image_size or any(size % tower.image_size for size in sizes):
        raise UserError(
            f"s2_scales {hf.get('s2_scales')!r} in config.json are not multiples of the tower's "
            f"{tower.image_size} pixels, that size first; give the model's own tower"
        )
    return tuple(size // tower.image_size for size in sizes)


_MEANINGS = (
    ("image_aspect_ratio", r"anyres_max_\d+", "tiles' tokens interpolated to at most so many squares' worth"),
    ("image_aspect_ratio", r"anyres", "tiles, which need mm_patch_merge_type 'spatial_unpad'"),
    ("image_aspect_ratio", r"highres|crop_split", "fixed tiles of a larger image"),
    ("image_aspect_ratio", r"slice", "TokenPacker-HD's tiles, which commas and line breaks separate"),
    ("resolution_ratio", r"\d+", "so many times so many pieces of an image beside the whole"),
    ("mm_patch_merge_type", r"spatial", "tiles' tokens in one map with its padding, without newlines"),
    ("mm_patch_merge_type", r"spatial_unpad", "tiles' tokens in one map, which need 'anyres'"),
    ("mm_patch_merge_type", r".*maxpool.*", "tiles' tokens pooled by twos"),
    ("mm_vision_select_feature", r"slicefour.*|slice_m.*", "several layers' states side by side"),
    ("mm_use_im_start_end", r"True", "tokens of its own around every image"),
    ("mm_resampler_type", r".*", "a module between tower and projector"),
)
"""What settings of the original, and of LLaVA-NeXT's code, mean that are refused."""


def _meaning(name: str, value: object) -> str:
    """What a refused setting means, in brackets; "" where that is not known."""
    said = [what for key, form, what in _MEANINGS if key == name and re.fullmatch(form, str(value))]
    return f" ({said[0]})" if said else ""
