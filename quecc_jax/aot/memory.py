"""Bytes of models and of their training, counted from shapes.

Norms, biases and small tables are left out, as in `quecc_jax.flops`; they are below one percent at the sizes of real
models. What a step holds beside its state is an estimate: a compiler decides it.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

from quecc_jax import flops
from quecc_jax.config import DecoderConfig, MeshConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import adapted_matrices, decoder_matrices, teacher_length
from quecc_jax.config.weights import BITS, Weights, matrix_bytes

SLOTS = 2
"""Numbers that Adam keeps for each that is trained."""


LOW, HIGH = 0.93, 1.2
"""Shares of what the compiler needs between which `TrainMemory.total` of a 7B or 13B model mostly lies: none is
lower."""


class TrainMemory(NamedTuple):
    """Bytes per device of one training step."""

    parameters: float
    """All, in the types and forms in which the run keeps them."""
    slots: float
    """Of the optimizer."""
    gradients: float
    """Of what is trained, in float32."""
    activations: float
    """Estimated: layers' inputs, what one layer and the loss work on, matrices that are whole for a while."""

    @property
    def state(self) -> float:
        """What stays from step to step."""
        return self.parameters + self.slots

    @property
    def total(self) -> float:
        """All of it at once."""
        return sum(self)


Verdict = Literal["fits", "close", "does not fit"]


def verdict(memory: TrainMemory, limit: float) -> Verdict:
    """Whether a step fits into so many bytes per device; `close` where the estimate is too rough to say, and only a
    compiler knows."""
    if max(memory.state, memory.total / HIGH) > limit:
        return "does not fit"
    return "fits" if memory.total <= LOW * limit else "close"


def layer_bytes(config: DecoderConfig, weights: Weights) -> float:
    """Of the matrices of all of a decoder's layers, and of their scales."""
    return config.depth * sum(_matrices(config, weights).values())


def _matrices(config: DecoderConfig, weights: Weights) -> dict[str, float]:
    # Blocks of scales are of the last input axis, which is a head's where heads are the input.
    inputs = {"out": (config.heads, config.head_dim)}
    shapes = {
        name: (*inputs.get(name, (ins,)), outs) for name, (ins, outs) in decoder_matrices(config).items()
    }
    return {name: matrix_bytes(shape, weights, len(shape) - 1) for name, shape in shapes.items()}


def table_params(config: DecoderConfig) -> int:
    """Numbers of the embedding, and of the output matrix where that is another."""
    return config.width * config.vocab_size * (1 if config.tie_embeddings else 2)


def text_tower_params(config: ModelConfig) -> int:
    """Numbers that a model holds to encode questions beside its decoder, tables included."""
    text = config.query.text
    if config.query.reads_decoder or not config.compressor.reads_question:
        return 0
    return flops.text_params(text) + (text.vocab_size + text.positions) * text.width


def train_memory(config: RunConfig, devices: int) -> TrainMemory:
    """What a training step holds on each of some devices, over which the run's mesh is laid.

    Args:
      config: with a mesh that divides over the devices; rows of a batch that do not are rounded up.
    """
    parts = _parts(config.mesh, devices)
    frozen, trained = _state(config, parts)
    return TrainMemory(frozen + trained, SLOTS * trained, trained, _activations(config, parts))


class _Parts(NamedTuple):
    """Of a mesh: into how many parts it cuts an axis."""

    rows: int
    width: int
    """Of matrices' sides that are the width of the residual stream."""
    other: int
    """Of their other sides."""


def _parts(mesh: MeshConfig, devices: int) -> _Parts:
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, devices // -math.prod(sizes))
    data, fsdp, tensor = sizes
    return _Parts(data * fsdp, fsdp, tensor)


def _state(config: RunConfig, parts: _Parts) -> tuple[float, float]:
    """(frozen, trained) bytes of parameters per device."""
    model, train, whole = config.model, config.train, parts.width * parts.other
    decoder, lora = model.decoder, model.lora.rank
    seen = {
        "text": text_tower_params(model),
        "vision": 0 if config.data.cached_features else flops.tower_params(model.tower),
        "compressor": flops.compressor_cost(model).params,
        "projector": flops.projector_params(model),
    }
    if not config.data.images_per_row:
        seen = {}
    trained = sum(4 * number / whole for part, number in seen.items() if part in train.trained)
    frozen = sum(4 * number / whole for part, number in seen.items() if part not in train.trained)
    kept: Weights = model.dtype if lora else "float32"
    form = kept if train.frozen_weights == "auto" else train.frozen_weights
    held = (layer_bytes(decoder, form) + BITS[kept] / 8 * table_params(decoder)) / whole
    if config.trains_whole_decoder:
        trained += held
    else:
        frozen += held
    if train.distil.weight:
        frozen += 4 * flops.projector_params(model) / whole
        if config.trains_whole_decoder:
            own = flops.decoder_params(decoder) + table_params(decoder)
            frozen += BITS[model.dtype] / 8 * own / whole
    # Of each pair one matrix has the width of the stream, over which fsdp goes; the other lies whole on its devices.
    for inputs, outputs in adapted_matrices(model).values():
        sides = decoder.width / parts.width + (inputs + outputs - decoder.width) / parts.other
        trained += 4 * decoder.depth * lora * sides
    return frozen, trained


def _activations(config: RunConfig, parts: _Parts) -> float:
    """What compiled steps were seen to hold at once beside state and gradients (docs/pods.json)."""
    model, data, train = config.model, config.data, config.train
    decoder, number, gathers = model.decoder, BITS[model.dtype] // 8, parts.width > 1
    rows = math.ceil(train.batch_size / train.grad_accum_steps / parts.rows)
    width = decoder.width / (parts.other if config.mesh.sequence_parallel else 1)
    hidden, table = decoder.mlp_width / parts.other, decoder.width * decoder.vocab_size / parts.other
    positions, one = rows * data.max_length, dataclasses.replace(decoder, depth=1)
    whole = config.trains_whole_decoder
    # Of each layer its input is kept, or without remat what its backward pass reads; dots and attention keep less.
    kept, work = number * width, number * (3 * hidden + 6 * width)
    if model.remat != "full":
        kept = (
            number / 2 * (10 * hidden + 36 * width if "decoder" in train.trained else 8 * hidden + 22 * width)
        )
        if decoder.qk_norm != "none":
            # Their norms keep float32 queries and keys.
            kept += 4 * (decoder.heads + decoder.kv_heads) * decoder.head_dim / parts.other
    tables = table * 2 * number * gathers
    if not model.lora.rank and number < 4 and train.frozen_weights == "auto":
        tables += number * (flops.decoder_params(decoder) + table_params(decoder)) / parts.width / parts.other
    logits = 2 * 4 * rows * min(train.loss_chunk, data.max_length) * decoder.vocab_size / parts.other
    form: Weights = model.dtype if train.frozen_weights == "auto" else train.frozen_weights
    layer = layer_bytes(one, form) / parts.other * gathers + positions * work
    if train.frozen_weights != "auto":
        layer += (layer_bytes(one, "float32") + layer_bytes(one, model.dtype)) / parts.other
    elif model.lora.rank and not gathers:
        # What is stored as it is multiplied is laid out anew for the products that make heads, all layers at once.
        tables += decoder.depth * sum(_matrices(decoder, form)[name] for name in "qkv") / parts.other
    tables += number * flops.adapter_params(model) / parts.other
    if train.distil.weight:
        images = data.row_images(model.visual_tokens, model.vision.max_crops)
        # The teacher's rows keep nothing of a layer, and its logits stand beside the student's.
        layer = max(layer, rows * teacher_length(model, data, data.max_length, images) * work)
        logits *= 2
    # The output matrix' gradient, float32, is gone before the layers' backward pass begins.
    logits += 4 * table * whole
    return decoder.depth * positions * kept + tables + max(logits, layer) + _images(config, parts, rows)


def _images(config: RunConfig, parts: _Parts, rows: int) -> float:
    """A batch's pixels and their copy, the tower's weights in the type of its products, twice, and what the
    tower makes of the images of some rows."""
    model, data = config.model, config.data
    images = data.row_images(model.visual_tokens, model.vision.max_crops)
    if not images or data.cached_features:
        return 0.0
    tower, number = model.tower, BITS[model.dtype] // 8
    positions = tower.positions
    weights = 2.0 * number * flops.tower_params(tower) / parts.width / parts.other
    pixels = 3.0 * tower.tiles_seen * tower.image_size**2 * config.train.batch_size / parts.rows
    states = number * tower.depth * positions * tower.width + 4 * tower.heads * positions**2
    if config.trains_tower:
        # What one layer's backward pass reads beside the layers' inputs.
        states += (
            number * positions * (2 * tower.mlp_width + 8 * tower.width) + 8 * tower.heads * positions**2
        )
    return weights + images / data.rows_per_pool * (2 * pixels + rows * tower.tiles_seen * states)
