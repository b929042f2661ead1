"""What must hold of a run's settings together, and what to say where it does not."""

from fnmatch import fnmatchcase

from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, RunConfig
from quecc_jax.config.ranges import check_ranges
from quecc_jax.config.shapes import (
    adapted_matrices,
    compressor_sizes,
    decoder_matrices,
    projector_depth,
    tiled_tokens,
)
from quecc_jax.config.tower_checks import tower_checks
from quecc_jax.errors import UserError


def validate(config: RunConfig) -> None:
    """Checks what can be known before any array is made.

    Raises:
      UserError: naming the setting and the numbers that do not fit.
    """
    check_ranges(config)
    vision, decoder, train = config.model.vision, config.model.decoder, config.train
    checks = [
        *tower_checks(config.model),
        *_decoder_checks(decoder),
        (
            decoder.depth % config.model.scan_unroll == 0,
            f"model.scan_unroll {config.model.scan_unroll} does not divide decoder.depth {decoder.depth}",
        ),
        (
            config.model.attention_kernel in ("auto", "xla") or decoder.positions == "rotary",
            f"model.attention_kernel {config.model.attention_kernel} does not take decoder.positions alibi",
        ),
        (
            config.model.attention_kernel != "cudnn" or not decoder.attention_softcap,
            f"model.attention_kernel cudnn does not take decoder.attention_softcap {decoder.attention_softcap:g}",
        ),
        *_lora_checks(config.model),
        *_part_checks(config),
        (
            not train.epochs or all(source.weight is None for source in config.data.sources),
            f"train.epochs {train.epochs:g} needs sources that are joined, but data.sources have weights, by which "
            "each is repeated on its own",
        ),
        *_distil_checks(config),
        *_held_out_checks(config),
        *_query_checks(config),
        (
            # What is counted from the data instead is made to split.
            train.conversations > 0 or train.batch_size % train.grad_accum_steps == 0,
            f"train.batch_size {train.batch_size} does not split into {train.grad_accum_steps} microbatches",
        ),
    ]
    for ok, message in checks:
        if not ok:
            raise UserError(f"{message}; change one of them")
    try:
        visual = config.model.visual_tokens
    except ValueError as error:
        raise UserError(f"model.compressor: {error}") from None
    try:
        depth = projector_depth(config.model.projector)
    except ValueError as error:
        raise UserError(f"model.projector: {error}") from None
    if depth == 0 and vision.feature_width != decoder.width:
        scales = f" x {len(vision.scales)} vision.scales" if len(vision.scales) > 1 else ""
        raise UserError(
            f"model.projector identity needs vision.width {vision.width}{scales} and decoder.width "
            f"{decoder.width} to be equal; change one of them or use linear"
        )
    weightless = {"projector"} if depth == 0 else set()
    weightless |= set() if _trainable(config.model) else {"compressor"}
    if not {*train.trained} - weightless:
        raise UserError(
            f"train.stage {train.stage} has nothing to train: {' and '.join(train.trained)} have no parameters here; "
            "choose stage 0 or 2, or name others in train.parts"
        )
    _check_data(config.data, vision.max_crops)
    _check_pools(config)
    if vision.tiles:
        _check_tiles(config)
        visual = tiled_tokens(config.model)
    if visual * config.data.images_per_row >= config.data.max_length:
        raise UserError(
            f"data.max_length {config.data.max_length} leaves no room for text beside "
            f"{config.data.images_per_row} x {visual} visual tokens; raise it"
        )


def _trainable(model: ModelConfig) -> bool:
    """Whether the compressor or its pre-fusion has weights."""
    return bool(model.memory_tokens or model.compressor.cost(compressor_sizes(model)).params)


def _lora_checks(model: ModelConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about adapters."""
    lora = model.lora
    if not lora.rank:
        return []
    names, adapted = decoder_matrices(model.decoder), adapted_matrices(model)
    idle = [pattern for pattern in lora.targets if not any(fnmatchcase(name, pattern) for name in names)]
    narrow = min(adapted, key=lambda name: min(adapted[name]), default="")
    return [
        (
            bool(lora.targets) and not idle,
            f"model.lora.targets {idle[0] if idle else ()!r} matches none of the decoder's matrices "
            f"{', '.join(names)}",
        ),
        (
            not narrow or lora.rank <= min(adapted[narrow]),
            f"model.lora.rank {lora.rank} is above the smaller side of the decoder's matrix {narrow}, "
            f"which has {' x '.join(map(str, adapted.get(narrow, ())))} numbers",
        ),
    ]


def _part_checks(config: RunConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about what is trained."""
    train, data, rates = config.train, config.data, config.optimizer
    who, seen = f"train.parts {', '.join(train.parts)}", {"vision", "compressor", "projector"}
    return [
        (
            bool(train.trained),
            f"train.stage {train.stage} is past 2 and has to say what it trains, but train.parts is empty",
        ),
        (len(set(train.parts)) == len(train.parts), f"{who} repeats itself"),
        (
            not config.trains_tower or {"compressor", "projector"} <= {*train.parts},
            f"{who} trains the tower below a frozen part; compressor and projector are named with vision",
        ),
        (
            not config.trains_tower or not data.cached_features,
            f"{who} trains the tower, but data.cached_features are of one that stays as it was",
        ),
        (
            not config.trains_tower or not train.distil.weight,
            f"{who} trains the tower, but the teacher of train.distil.weight {train.distil.weight:g} sees through it",
        ),
        (
            rates.vision_learning_rate is None or config.trains_tower,
            f"optimizer.vision_learning_rate {rates.vision_learning_rate or 0:g} is of a tower that is trained, but "
            "train.parts does not name vision",
        ),
        (
            data.images_per_row > 0 or not seen & {*train.parts},
            f"{who} trains what images pass through, but data.images_per_row is 0",
        ),
        (
            not train.parts or "decoder" in train.parts or not config.model.lora.rank,
            f"{who} leaves out the decoder, but model.lora.rank {config.model.lora.rank} trains adapters of it",
        ),
        (
            train.frozen_weights == "auto" or not config.trains_whole_decoder,
            f"train.frozen_weights {train.frozen_weights} is for a decoder that is frozen, but train.stage "
            f"{train.stage} trains all of it where model.lora.rank is 0",
        ),
    ]


def _distil_checks(config: RunConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about a teacher."""
    weight, train, vision = config.train.distil.weight, config.train, config.model.vision
    if not weight:
        return []
    who = f"train.distil.weight {weight:g} asks for a teacher"
    return [
        (
            bool(config.init_from),
            f"{who}, but init_from names no run with all visual tokens that it could be",
        ),
        (
            config.model.compressor.name != "none",
            f"{who} with all visual tokens, but compressor none makes the student one, too",
        ),
        (
            bool({"compressor", "projector"} & {*train.trained}),
            f"{who}, but train.stage {train.stage} trains neither compressor nor projector",
        ),
        (config.data.images_per_row > 0, f"{who} with all visual tokens, but data.images_per_row is 0"),
        (not vision.tiles, f"{who}, which sees squares, but model.vision.tiles cut images into crops"),
    ]


def _held_out_checks(config: RunConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about looks at the loss on held-out rows."""
    every, held_out, saves = config.train.eval_every, config.data.held_out, config.checkpoint
    return [
        (
            not every or held_out > 0,
            f"train.eval_every {every} takes the loss on held-out rows, but data.held_out is 0",
        ),
        (
            not saves.keep_best or (every > 0 and saves.every % every == 0),
            f"checkpoint.keep_best needs the loss of every checkpoint, but train.eval_every {every} does not divide "
            f"checkpoint.every {saves.every}",
        ),
    ]


def _query_checks(config: RunConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about the question's encoder."""
    query, depth, stage = config.model.query, config.model.decoder.depth, config.train.stage
    frozen = "decoder" not in config.train.trained
    early, own, data = query.encoder == "early_exit", not query.reads_decoder, config.data
    scaling, lora = config.model.decoder.rope_scaling, config.model.lora.rank
    # Nobody asks where there is no image, or a compressor that does not listen; weights alone have no text.
    idle = not (config.model.compressor.reads_question and data.images_per_row and data.tokenizer)
    return [
        (
            1 <= query.layer <= depth if early else not query.layer,
            f"model.query.layer {query.layer} is not between 1 and the {depth} layers of the decoder"
            if early
            else f"model.query.layer {query.layer} belongs to early_exit, but model.query.encoder is "
            f"{query.encoder}",
        ),
        (
            not data.cached_queries or (stage > 0 and own) or (frozen and not lora),
            f"data.cached_queries needs a frozen encoder of the question, but train.stage is {stage}, "
            f"model.query.encoder {query.encoder} and model.lora.rank {lora}",
        ),
        (
            not data.cached_queries or own or config.train.frozen_weights == "auto",
            f"data.cached_queries are of a decoder as it was stored, but train.frozen_weights is "
            f"{config.train.frozen_weights}",
        ),
        (
            own == bool(data.query_tokenizer) or idle,
            "model.query.encoder clip_text needs data.query_tokenizer, the directory of CLIP's tokenizer"
            if own
            else f"data.query_tokenizer {data.query_tokenizer} is for the questions of clip_text, but "
            f"model.query.encoder is {query.encoder}",
        ),
        (
            not own or idle or 3 <= data.query_length <= query.text.positions,
            f"data.query_length {data.query_length} is not between 3 and the {query.text.positions} positions "
            f"of CLIP's text tower, which cannot read a longer question; set it to {query.text.positions}",
        ),
        (
            scaling.kind != "longrope" or own or idle or data.query_limit <= scaling.original_length,
            f"questions of up to {data.query_limit} tokens are more than the {scaling.original_length} within "
            "which the decoder reads a short text (rope_scaling longrope); set data.query_length to that",
        ),
        (
            query.text.width % query.text.heads == 0,
            f"model.query.text.width {query.text.width} is not a multiple of its {query.text.heads} heads",
        ),
    ]


def _check_tiles(config: RunConfig) -> None:
    """Checks that images of any resolution can be had."""
    vision, data = config.model.vision, config.data
    if not all(len(grid) == 2 and min(grid) > 0 for grid in vision.tiles):
        raise UserError(
            f"model.vision.tiles {vision.tiles} are not all numbers of rows and columns; give "
            "pairs such as (2, 1)"
        )
    if vision.scales != (1,):
        raise UserError(
            f"model.vision.tiles and vision.scales {vision.scales} both cut an image into "
            "tiles; leave one of them out"
        )
    if config.model.elastic_choices:
        raise UserError(
            "model.vision.tiles need one V, for the length of a row depends on it, but "
            f"compressor.elastic draws from {config.model.elastic_choices}; leave one of them out"
        )
    if data.images_per_row and (data.cached_features or any(s.kind == "pool" for s in data.sources)):
        raise UserError(
            "model.vision.tiles need the images themselves, but a pool or data.cached_features "
            "holds squares of them; name their files, or leave vision.tiles out"
        )


def _check_data(data: DataConfig, crops: int) -> None:
    """Checks the numbers that say how batches are formed."""
    if 0 < data.packed_images < data.images_per_row * crops:
        each = f" x {crops} with its tiles" if crops > 1 else ""
        raise UserError(
            f"data.packed_images {data.packed_images} is less than the data.images_per_row "
            f"{data.images_per_row}{each} that one conversation may have; raise it"
        )


def _check_pools(config: RunConfig) -> None:
    """Checks that rows can share room for images."""
    data, rows = config.data, f"data.pooled_rows {config.data.pooled_rows}"
    if data.rows_per_pool == 1:
        return
    for name, given in (
        ("train.distil", config.train.distil.weight),
        ("a compressor with pre-fusion", config.model.memory_tokens),
    ):
        if given:
            raise UserError(
                f"{rows} shares out images among rows, but {name} reads those of each row; set it to 1"
            )


def _decoder_checks(decoder: DecoderConfig) -> list[tuple[bool, str]]:
    """(holds, what to say if it does not) for every rule about a decoder."""
    scaling, pairs = decoder.rope_scaling, decoder.rotated_dim // 2
    rotary, where = decoder.positions == "rotary", "decoder.rope_scaling"
    return [
        (
            decoder.head_width > 0 or decoder.width % decoder.heads == 0,
            f"decoder.width {decoder.width} is not a multiple of its {decoder.heads} heads",
        ),
        (
            decoder.heads % decoder.kv_heads == 0,
            f"decoder.heads {decoder.heads} is not a multiple of kv_heads {decoder.kv_heads}",
        ),
        (
            not rotary or (0 < decoder.rotated_dim <= decoder.head_dim and decoder.rotated_dim % 2 == 0),
            f"decoder.rope_fraction {decoder.rope_fraction} rotates {decoder.rotated_dim} of a head's "
            f"{decoder.head_dim} channels, which is not a number of pairs",
        ),
        (
            rotary or scaling.kind == "none",
            f"{where}.kind {scaling.kind} needs decoder.positions rotary, not {decoder.positions}",
        ),
        (
            scaling.kind in ("none", "linear") or scaling.original_length > 0,
            f"{where}.original_length {scaling.original_length} is not positive, as kind {scaling.kind} needs",
        ),
        (
            scaling.kind != "llama3" or 0 < scaling.slow_turns < scaling.fast_turns,
            f"{where}.slow_turns {scaling.slow_turns} is not between 0 and fast_turns {scaling.fast_turns}",
        ),
        (
            scaling.kind != "longrope" or len(scaling.short_factors) == len(scaling.long_factors) == pairs,
            f"{where} has {len(scaling.short_factors)} short_factors and {len(scaling.long_factors)} "
            f"long_factors for the {pairs} rotated pairs of a head",
        ),
        *(
            (
                getattr(decoder, name) <= decoder.depth,
                f"decoder.{name} {getattr(decoder, name)} is above depth {decoder.depth}",
            )
            for name in ("full_layers", "full_every", "unrotated_every")
        ),
        *(
            (
                not getattr(decoder, name) or decoder.window > 0,
                f"decoder.{name} {getattr(decoder, name):g} is of a window, but decoder.window is 0",
            )
            for name in ("full_every", "local_rope_theta")
        ),
        (
            rotary or not (decoder.unrotated_every or decoder.local_rope_theta),
            f"decoder.unrotated_every {decoder.unrotated_every} and local_rope_theta {decoder.local_rope_theta:g} "
            f"need decoder.positions rotary, not {decoder.positions}",
        ),
        (
            decoder.norm == "rms" or not (decoder.zero_centred_norm or decoder.norm_sites != "before"),
            f"decoder.zero_centred_norm {decoder.zero_centred_norm} and norm_sites {decoder.norm_sites} need "
            f"decoder.norm rms, not {decoder.norm}",
        ),
    ]
