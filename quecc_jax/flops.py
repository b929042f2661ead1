"""Model FLOPs, counted from shapes: one multiply-add is two, attention scores are counted in full.

Norms, activations, softmax and embedding lookups are left out; they are below one percent at the
sizes of real models.
"""

import dataclasses

from quecc_jax.config import DecoderConfig, ModelConfig, RunConfig, VisionConfig
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.config.shapes import (
    adapted_matrices,
    at_visual_tokens,
    compressor_sizes,
    decoder_matrices,
    hidden_indices,
    projector_depth,
    query_layers,
    row_limit,
    teacher_length,
)
from quecc_jax.models.compressors.base_config import Cost


def decoder_params(config: DecoderConfig) -> int:
    """Weights of the decoder's layers (norms and biases left out), without embedding and output matrix."""
    return config.depth * sum(ins * outs for ins, outs in decoder_matrices(config).values())


def adapter_params(config: ModelConfig) -> int:
    """Weights of the decoder's adapters."""
    sides = sum(ins + outs for ins, outs in adapted_matrices(config).values())
    return config.decoder.depth * config.lora.rank * sides


def patch_params(config: VisionConfig) -> int:
    """Weights of the product that makes a position of a patch's pixels."""
    return 3 * config.patch_size**2 * config.width


def tower_params(config: VisionConfig) -> int:
    """Weights of the vision tower up to the last layer that is read, norms and biases left out."""
    return hidden_indices(config)[-1] * _tower_layer(config) + patch_params(config)


def _tower_layer(config: VisionConfig) -> int:
    """Weights of one layer of the vision tower."""
    d, matrices = config.width, 3 if config.activation == "swiglu" else 2
    return 4 * d * d + matrices * d * config.mlp_width


def text_params(config: ClipTextConfig) -> int:
    """Weights of CLIP's text tower without its tables, norms and biases left out."""
    d = config.width
    return config.depth * (4 * d * d + 2 * d * config.mlp_width) + d * config.projection


def query_params(config: ModelConfig) -> int:
    """Weights that a pass over a question reads, tables, norms and biases left out; 0 without a query."""
    if not config.compressor.reads_question or config.query.encoder == "embeddings":
        return 0
    if config.query.encoder == "clip_text":
        return text_params(config.query.text)
    return decoder_params(dataclasses.replace(config.decoder, depth=query_layers(config)))


def projector_params(config: ModelConfig) -> int:
    """Weights of the projector, biases left out."""
    depth, d, m = projector_depth(config.projector), config.vision.feature_width, config.decoder.width
    return d * m + (depth - 1) * m * m if depth else 0


def attention_flops(config: DecoderConfig, tokens: int, context: float) -> float:
    """Forward FLOPs of scores and averages of `tokens` positions that each attend to `context`."""
    return 4.0 * config.depth * tokens * context * config.heads * config.head_dim


def decoder_flops(config: DecoderConfig, tokens: int, context: float, logits: int) -> float:
    """Forward FLOPs of `tokens` positions that attend to `context` on average, `logits` of them scored."""
    weights = decoder_params(config) * tokens + logits * config.width * config.vocab_size
    return 2.0 * weights + attention_flops(config, tokens, context)


def tower_flops(config: VisionConfig) -> float:
    """Forward FLOPs of the vision tower for one image, at all scales, up to the last layer that is read."""
    n, d = config.positions, config.width
    layer = 2.0 * n * _tower_layer(config) + 4.0 * n * n * d
    square = hidden_indices(config)[-1] * layer + 2.0 * config.patches * patch_params(config)
    attention = 4.0 * n * d * d if config.keep_attention else 0.0
    return config.tiles_seen * square + attention


def compressor_cost(config: ModelConfig) -> Cost:
    """Weights and forward FLOPs of the compressor for one image. A pre-fusion's weights are among them; its
    FLOPs, which depend on the text, are `fusion_flops`."""
    cost = config.compressor.cost(compressor_sizes(config))
    fusion = decoder_params(config.fusion_layers) if config.memory_tokens else 0
    return cost._replace(params=cost.params + fusion)


def projector_flops(config: ModelConfig) -> float:
    """Forward FLOPs of the projector for one image."""
    tokens = config.vision.patches if config.compressor.projected else config.num_output_tokens
    tokens += config.vision.keep_cls
    return 2.0 * tokens * projector_params(config)


def fusion_flops(config: ModelConfig, images: int, text: int) -> float:
    """Forward FLOPs of the pre-fusion of `text` text positions with some images, whose memory is projected
    for it; 0 where there is none."""
    memory = config.memory_tokens
    if not memory or not images:
        return 0.0
    length = images * (memory + config.visual_tokens) + text
    layers = decoder_flops(config.fusion_layers, length, length, 0)
    return layers + 2.0 * images * memory * projector_params(config)


def query_flops(config: ModelConfig, tokens: int) -> float:
    """FLOPs of encoding a bare question of `tokens` tokens; 0 where the compressor reads none."""
    if not config.compressor.reads_question:
        return 0.0
    if config.query.encoder == "embeddings":
        return 1.0 * tokens * config.decoder.width
    if config.query.encoder == "clip_text":
        text = config.query.text
        # The end token's state alone is projected.
        projection, attention = text.width * text.projection, text.depth * tokens**2 * text.width
        return 2.0 * (tokens * (text_params(text) - projection) + projection) + 4.0 * attention
    layers = dataclasses.replace(config.decoder, depth=query_layers(config))
    adapters = adapter_params(dataclasses.replace(config, decoder=layers))
    return decoder_flops(layers, tokens, tokens, 0) + 2.0 * adapters * tokens


def answer_flops(
    config: ModelConfig,
    question: int,
    prompt: int,
    answer: int,
    include_tower: bool = True,
    squares: int = 1,
    visual: int = 0,
) -> dict[str, float]:
    """FLOPs of answering one question about one image, by part.

    Args:
      config: an elastic model answers with its largest V unless `shapes.at_visual_tokens` chose another.
        Adapters count as apart; `load_vlm` merges them, and its config has none.
      question: tokens of the bare question (query pass).
      prompt: text tokens of the decoder's prompt; the V visual tokens come on top.
      answer: generated tokens.
      squares: that the tower sees of the image: one more than it has tiles.
      visual: its tokens where they are not squares x V, as `data.tiles.arrange` says.
    """
    config = at_visual_tokens(config)
    length, steps = prompt + (visual or squares * config.visual_tokens), max(answer - 1, 0)
    # The first token comes from the prefill; the k-th step after it attends to length + k positions.
    context, adapters = length + (steps + 1) / 2, 2.0 * adapter_params(config)
    return {
        "tower": squares * tower_flops(config.tower) if include_tower else 0.0,
        "query": query_flops(config, question),
        "compressor": squares * (compressor_cost(config).flops + projector_flops(config))
        + fusion_flops(config, squares, prompt),
        "prefill": decoder_flops(config.decoder, length, length, 1) + adapters * length,
        "decode": decoder_flops(config.decoder, steps, context, steps) + adapters * steps,
    }


def train_flops(
    config: RunConfig, length: int | None = None, images: int | None = None, query: int | None = None
) -> float:
    """Model FLOPs of one optimizer step: forward, and backward of what is trained.

    A matrix product costs twice its forward again in the backward pass: once for the gradient of
    each factor. Frozen weights save theirs, and so do the states of a frozen tower, on which the key and value
    towers' first products act (or the projector's, without a compressor), and the pixels of one that is trained. What
    is recomputed is not counted, and under adapters the first layer's gradients of text embeddings are. Rows count at
    their padded length.

    Args:
      config: the run.
      length: tokens of a row of this step's batch; None is data.max_length. Grouped batches differ.
      images: image slots of a row of it, or of a pool of rows; None is the most that the config gives one.
      query: tokens of the questions of a row or pool, padding included; None is the most that it may have.
    """
    model, data = config.model, config.data
    length = data.max_length if length is None else length
    images = data.row_images(model.visual_tokens, model.vision.max_crops) if images is None else images
    decoder = decoder_flops(model.decoder, length, length, length)
    total = 3.0 * (decoder + 2.0 * adapter_params(model) * length)
    if not config.trains_whole_decoder:
        total -= decoder - attention_flops(model.decoder, length, length)
    if images:
        query = row_limit(data, images) if query is None else query
        asked = 0.0 if data.cached_queries else query_flops(model, query)
        image = _image_train_flops(config)
        total += (asked + images * image) / data.rows_per_pool + _fusion_train_flops(config, length, images)
    total += teacher_flops(config, length, images)
    return total * config.train.batch_size


def _image_train_flops(config: RunConfig) -> float:
    """What is done for one image: tower, compressor and projector, forward, and backward where they are trained."""
    model, trained = config.model, config.train.trained
    tower, compressor = tower_flops(model.tower), compressor_cost(model)
    projector, first = projector_flops(model), compressor.first
    if config.trains_tower:
        pixels = 2.0 * model.tower.tiles_seen * patch_params(model.tower) * model.vision.patches
        return 3.0 * (tower + compressor.flops + projector) - pixels
    linear = (
        projector_flops(dataclasses.replace(model, projector="linear")) if projector_params(model) else 0.0
    )
    if not compressor.params:
        # What has no weights acts on the tower's states, too.
        first = 2.0 * compressor.flops + linear
    seen = 0.0 if config.data.cached_features else tower
    if {"compressor", "projector"} <= {*trained}:
        return seen + 3.0 * (compressor.flops + projector) - first
    if "compressor" in trained:
        return (
            seen + 3.0 * compressor.flops - first + (1.0 if model.compressor.projected else 2.0) * projector
        )
    if "projector" in trained:
        below = 3.0 * compressor.flops if model.compressor.projected else compressor.flops
        return seen + below + 3.0 * projector - linear
    return seen + compressor.flops + projector


def teacher_flops(config: RunConfig, length: int, images: int) -> float:
    """Forward FLOPs of the teacher for a row of `length` positions, room for so many images included; 0 without one."""
    if not config.train.distil.weight:
        return 0.0
    model, whole = config.model, teacher_length(config.model, config.data, length, images)
    projected = images * (model.vision.patches + model.vision.keep_cls)
    return decoder_flops(model.decoder, whole, whole, length) + 2.0 * projected * projector_params(model)


def _fusion_train_flops(config: RunConfig, length: int, images: int) -> float:
    """The pre-fusion's part of a row; its text has a gradient in every stage."""
    model = config.model
    forward = fusion_flops(model, images, length)
    if not forward:
        return 0.0
    projected, trained = 2.0 * images * model.memory_tokens, config.train.trained
    total = 3.0 * forward
    if "compressor" not in trained:
        positions = length + images * (model.memory_tokens + model.visual_tokens)
        total -= 2.0 * positions * decoder_params(model.fusion_layers)
    if "projector" not in trained:
        return total - 2.0 * projected * projector_params(model)
    if config.trains_tower or not model.compressor.reads_all_patches or not projector_params(model):
        return total
    # The projector acts on the states of a frozen tower there.
    return total - projected * projector_params(dataclasses.replace(model, projector="linear"))
