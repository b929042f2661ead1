"""What must hold of a vision tower's settings, and of what the model reads of it."""

from quecc_jax.config import ModelConfig, VisionConfig

Checks = list[tuple[bool, str]]
"""(holds, what to say if it does not)."""


def tower_checks(model: ModelConfig) -> Checks:
    """Every rule about the tower."""
    vision = model.vision
    return [
        (
            vision.image_size % vision.patch_size == 0 or (vision.drop_border and vision.grid > 0),
            f"vision.image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}",
        ),
        (
            vision.width % vision.heads == 0,
            f"vision.width {vision.width} is not a multiple of its {vision.heads} heads",
        ),
        (
            bool(vision.scales) and tuple(sorted({*vision.scales})) == vision.scales,
            f"vision.scales {vision.scales} are not ascending whole numbers from 1 on",
        ),
        (
            all(-vision.depth - 1 <= k <= vision.depth for k in (*vision.levels, vision.select_layer)),
            f"vision.levels {vision.levels} or select_layer {vision.select_layer} is outside "
            f"the {vision.depth + 1} hidden states",
        ),
        (
            vision.position_grid != vision.grid,
            f"vision.position_grid {vision.position_grid} is the image's own grid, for which nothing is interpolated; "
            "leave it at 0",
        ),
        (
            not vision.antialias_positions or vision.position_grid > 0,
            "vision.antialias_positions is of positions that are interpolated, but vision.position_grid is 0",
        ),
        (
            not vision.max_squares or bool(vision.tiles),
            f"vision.max_squares {vision.max_squares} shrinks the map of an image's tiles, but vision.tiles are none",
        ),
        (
            not vision.max_squares or (model.has_newline and not model.memory_tokens),
            f"vision.max_squares {vision.max_squares} shrinks maps of tokens, but compressor {model.compressor.name} "
            f"{'fuses them with the text' if model.memory_tokens else 'makes tokens that lie on none'}",
        ),
        *_pixel_checks(vision),
        *_cls_checks(model),
    ]


def _pixel_checks(vision: VisionConfig) -> Checks:
    """Rules about how the tower's pixels are made."""
    how, side = vision.pixels, vision.image_size
    return [
        (
            len(how.mean) == len(how.std) == 3,
            f"vision.pixels.mean {how.mean} and std {how.std} are not three numbers each, of red, green and blue",
        ),
        (
            not how.resized or how.resized >= side,
            f"vision.pixels.resized {how.resized} is less than the {side} pixels of vision.image_size that are cut "
            "out of it",
        ),
        (
            not how.resized or (vision.scales == (1,) and not vision.tiles),
            f"vision.pixels.resized {how.resized} is of one square, but vision.scales {vision.scales} and tiles "
            f"{vision.tiles} read several of an image",
        ),
    ]


def _cls_checks(model: ModelConfig) -> Checks:
    """Rules about CLS, kept or read by PruMerge."""
    vision = model.tower
    who = "vision.keep_attention" if model.vision.keep_attention else f"compressor {model.compressor.name}"
    return [
        (
            not vision.keep_attention or vision.cls,
            f"{who} reads the attention of CLS, which a tower with vision.cls {vision.cls} has not",
        ),
        (
            not vision.keep_attention or not vision.registers,
            f"{who} reads CLS' attention to the patches alone, but vision.registers {vision.registers} have a share "
            "of it",
        ),
        (
            not vision.keep_attention or vision.select_index < vision.depth,
            f"{who} reads the layer behind vision.select_layer {vision.select_layer}, which is the last",
        ),
        (
            not vision.keep_attention or vision.scales == (1,),
            f"{who} reads the attention of one CLS, but vision.scales {vision.scales} have several",
        ),
        (
            not vision.keep_cls or vision.cls,
            f"vision.keep_cls keeps CLS, which a tower with vision.cls {vision.cls} has not",
        ),
        (
            not vision.keep_cls or vision.scales == (1,),
            f"vision.keep_cls keeps one CLS, but vision.scales {vision.scales} have several",
        ),
        (
            not (vision.keep_cls and model.has_newline),
            f"vision.keep_cls has no place on the one map that {model.compressor.name} makes of vision.tiles",
        ),
        (
            not vision.keep_cls or not model.compressor.elastic,
            f"vision.keep_cls stands in front of one V, but compressor.elastic has {model.compressor.elastic}",
        ),
    ]
