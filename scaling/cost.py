"""What answering one question about one image costs, part by part: FLOPs, bytes, seconds, dollars.

FLOPs are those of `quecc_jax.flops`, the project's one counter. Added are the bytes that a chip must move:
weights once per batch and pass, caches once per query and step; activations are taken to stay on the chip. Matrices
of the decoder's layers are in the form that is asked for, all else is in bfloat16. A part takes the longer of its
FLOPs at the chip's peak and its bytes at the chip's bandwidth (the roofline model), over the efficiency of that part
where an engine was measured.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from quecc_jax import flops
from quecc_jax.aot.chips import CHIPS
from quecc_jax.aot.memory import layer_bytes, table_params, text_tower_params
from quecc_jax.config import (
    CompressorConfig,
    DecoderConfig,
    ModelConfig,
    NoneConfig,
    QueryConfig,
    VisionConfig,
    presets,
)
from quecc_jax.config.compressors import MqtConfig, config_class, named, names
from quecc_jax.config.shapes import query_layers
from quecc_jax.errors import UserError
from scaling.efficiency.measured import Measured, Part
from scaling.formatting import Kind

PARTS: tuple[Part, ...] = get_args(Part)
PAPERS_COMPRESSOR = "quecc"
Amount = Any
"""A number, or an array of them where the lengths are arrays."""
BYTES = 2
"""Of a number in bfloat16."""
Kept = Literal["bfloat16", "int8", "int4", "nf4"]
"""How the matrices of the decoder's layers are kept; chips' peaks are those of bfloat16, so float32 is none."""
_VISION, _PAPERS = VisionConfig(), QueryConfig()
_NEAR = 2.0
"""Largest factor between a size without a preset and the preset whose shape is scaled to it."""


class Llm(NamedTuple):
    """A language model: N in billions as the law counts it, and the decoder that is counted."""

    params_b: float
    name: str
    decoder: DecoderConfig


class Lengths(NamedTuple):
    """Tokens of one query; the counts may be arrays, which broadcast."""

    text: Amount
    """Q, the decoder's text tokens."""
    answer: int
    """G, generated tokens; the prefill gives the first."""
    question: Amount
    """Tokens of the bare question, which its encoder reads."""


class EncoderCost(NamedTuple):
    """What one encoder of the question takes of one choice."""

    query: QueryConfig
    layers: int
    """That run one after the other before the compressor can."""
    flops: float
    share: float
    """Of all FLOPs of a query."""
    seconds: float | None
    """Per batch; None without a machine."""
    seconds_share: float | None


class Work(NamedTuple):
    """One part of a query: FLOPs, bytes moved once per batch, and bytes moved for each query."""

    flops: Amount
    shared: Amount
    own: Amount


@dataclasses.dataclass(frozen=True)
class Machine:
    """One or several chips that act as one, without cost of communication.

    flops (bfloat16 FLOP/s) and bandwidth (bytes/s) are already times count and efficiency.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    """Bytes of main memory of all chips."""
    count: int = 1
    efficiency: float = 1.0
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Setup:
    """In which unit a query is paid for, and what that takes: a machine, a batch, a price."""

    kind: Kind = "flops"
    machine: Machine | None = None
    batch: int = 1
    usd_per_hour: float | None = None
    """Of one chip."""
    query: QueryConfig = QueryConfig()  # noqa: RUF009 (frozen)
    """What encodes the question, where a compressor reads it."""
    compressor: str = PAPERS_COMPRESSOR
    """What makes V visual tokens of an image."""
    weights: Kept = "bfloat16"
    measured: Measured | None = None
    """Efficiencies of an engine; the machine is at its peaks then."""


def find_llm(text: str) -> Llm:
    """The model of a preset's name such as `qwen1.5-4b`, or of a size in billions.

    A size means the Qwen-1.5 model of that size, else another preset of that size, else the nearest
    preset within a factor of 2 with its widths scaled to the size.

    Raises:
      UserError: no such name, or no preset near that size.
    """
    try:
        size = float(text)
    except ValueError:
        try:
            return Llm(presets.SIZES_B[text], text, presets.decoder(text))
        except (UserError, KeyError):
            raise UserError(
                f"The language model {text!r} is not known; give a size in billions or one of "
                f"{', '.join(presets.DECODERS)}."
            ) from None
    if not (math.isfinite(size) and size > 0):
        raise UserError(f"A size must be a positive number of billions, not {text!r}.")
    ranked = sorted(
        presets.BY_SIZE, key=lambda name: (abs(math.log(size / presets.SIZES_B[name])), "qwen" not in name)
    )
    name = ranked[0]
    known, base = presets.SIZES_B[name], presets.decoder(name)
    if known == size:
        return Llm(size, name, base)
    if not 1 / _NEAR <= size / known <= _NEAR:
        raise UserError(
            f"No decoder's shape is known near {size:g}B (the nearest is {name}); name one of "
            f"{', '.join(presets.DECODERS)}, or count with --cost published."
        )
    ratio = math.sqrt(size / known)
    head = max(1, round(base.head_dim * ratio))
    scaled = dataclasses.replace(
        base, width=base.heads * head, head_width=head, mlp_width=round(base.mlp_width * ratio)
    )
    return Llm(size, f"{name} scaled to {size:g}B", scaled)


def find_machine(text: str, count: int = 1, efficiency: float = 1.0) -> Machine:
    """Chips of a name such as `h100`, or of "TFLOP/s,GB/s,GB" such as `989,3350,80`.

    Args:
      count: chips that share one query, taken to act as one.
      efficiency: share of peak FLOP/s and bandwidth that is reached.

    Raises:
      UserError: no such chip, or numbers that make no sense.
    """
    if count < 1 or not 0 < efficiency <= 1:
        raise UserError("There must be at least one chip, and an efficiency above 0 and up to 1.")
    known = {chip.name: chip for chip in CHIPS}
    if text.lower() in known:
        chip = known[text.lower()]
        figures, source = (chip.flops, chip.hbm_bytes, chip.hbm_gib * 2.0**30), chip.source
    else:
        try:
            tera, giga, memory = (float(figure) for figure in text.split(","))
        except ValueError:
            raise UserError(
                f"The chip {text!r} is not known; name one of {', '.join(known)}, or give "
                "TFLOP/s,GB/s,GB such as 989,3350,80."
            ) from None
        figures, source = (tera * 1e12, giga * 1e9, memory * 1e9), "as given"
        if not all(0 < figure < math.inf for figure in figures):
            raise UserError(f"A chip's figures must be positive numbers; they are {text!r}.")
    return _together(text, figures, count, efficiency, source)


def measured_machine(measured: Measured, count: int = 1) -> Machine:
    """The chip that an engine was measured on, at its peaks; or so many of them.

    Raises:
      UserError: there is less than one.
    """
    if count < 1:
        raise UserError("There must be at least one chip.")
    chip = measured.chip
    return _together(chip.name, (chip.flops, chip.bandwidth, chip.memory), count, 1.0, chip.source)


def _together(
    name: str, figures: tuple[float, float, float], count: int, efficiency: float, source: str
) -> Machine:
    """Chips of FLOP/s, bytes/s and bytes as one machine."""
    speed, name = count * efficiency, name if count == 1 else f"{count} x {name}"
    return Machine(
        name, figures[0] * speed, figures[1] * speed, figures[2] * count, count, efficiency, source
    )


def compressor_config(name: str, visual_tokens: float) -> CompressorConfig:
    """The compressor of that name that makes so many tokens of CLIP-L/14's patches at 336 pixels; all patches
    mean none, but for those that read CLS' attention all the same.

    Raises:
      UserError: there is no such compressor, or it cannot make that many tokens.
    """
    if name not in names():
        raise UserError(f"The compressor {name!r} is not known; name one of {', '.join(names())}.")
    kind, grid, count = config_class(name), _VISION.grid, int(visual_tokens)
    if visual_tokens == grid * grid and not kind.reads_attention:
        return NoneConfig()
    sides = [side for side in range(1, grid + 1) if grid % side == 0]
    if kind.shape == "grid":
        if count == visual_tokens and (side := math.isqrt(count)) in sides and side * side == count:
            return named(name, kernel=grid // side, stride=grid // side)
        possible = ", ".join(str(side * side) for side in sides)
    elif kind.shape == "all":
        possible = f"{grid * grid}"
    else:
        made = named(name, tokens=count)
        with contextlib.suppress(ValueError):
            if count == visual_tokens == made.num_tokens(grid):
                return made
        top = made.queries if isinstance(made, MqtConfig) else grid * grid
        possible = f"square numbers up to {top}" if name == "llava_mini" else f"1 to {top}"
        possible += "" if top == grid * grid else f", and {grid * grid}"
    # Only those that can are named, by what they can make at most.
    tops = {"mqt": 256, "prumerge": grid * grid}
    others = [other for other, top in tops.items() if other != name and 1 <= count == visual_tokens <= top]
    instead = f"--compressor {others[0]} can; " if others else ""
    raise UserError(
        f"V = {visual_tokens:g} visual tokens cannot be made of {grid} x {grid} patches by {name}; possible "
        f"are {possible} ({instead}--cost published, without --compressor, counts any number)."
    )


def model_config(
    llm: Llm, visual_tokens: float, query: QueryConfig = _PAPERS, compressor: str = PAPERS_COMPRESSOR
) -> ModelConfig:
    """CLIP-L/14 at 336 pixels, a compressor and a decoder.

    Raises:
      UserError: as `compressor_config`; or the compressor rewrites the instruction, which is not counted
        here; or the decoder has not the layers that `query` wants to run.
    """
    if query.layer > llm.decoder.depth:
        raise UserError(
            f"{llm.name} has {llm.decoder.depth} layers, too few for an exit after {query.layer}; give a "
            "smaller --exit-layer."
        )
    made = compressor_config(compressor, visual_tokens)
    if config_class(compressor)().fusion_layers:
        raise UserError(
            f"The pre-fusion of {compressor} with the instruction is not counted here; count with --cost "
            "published and without --compressor."
        )
    # MQT's projector is one matrix; the others have LLaVA-1.5's.
    projector = "matrix" if made.name == "mqt" else ModelConfig.projector
    return ModelConfig(vision=_VISION, compressor=made, query=query, projector=projector, decoder=llm.decoder)


def cache_bytes(decoder: DecoderConfig) -> float:
    """Keys and values of one position in all layers."""
    return 2.0 * BYTES * decoder.depth * decoder.kv_heads * decoder.head_dim


def work_of_query(config: ModelConfig, lengths: Lengths, weights: Kept = "bfloat16") -> dict[str, Work]:
    """FLOPs and bytes of one query, by part in the order of PARTS; fields broadcast like `lengths`.

    A text tower reads a question up to its number of positions. The mean of embeddings reads the question's
    rows of the table and no other weights.
    """
    text, answer, question = lengths
    decoder, encoder = config.decoder, config.query.encoder
    if encoder == "clip_text":
        question = np.minimum(question, config.query.text.positions)
    counted = flops.answer_flops(config, question, text, answer)
    all_weights = layer_bytes(decoder, weights) + BYTES * decoder.width * decoder.vocab_size
    length, steps = text + config.visual_tokens, max(answer - 1, 0)
    cache = cache_bytes(decoder)
    shared = {
        "tower": BYTES * flops.tower_params(config.vision),
        "query": _encoder_bytes(config, weights) * (question > 0),
        "compressor": BYTES * (flops.compressor_cost(config).params + flops.projector_params(config)),
        "prefill": all_weights,
        "decode": steps * all_weights,
    }
    looked_up = config.compressor.reads_question and encoder == "embeddings"
    rows = BYTES * decoder.width * question if looked_up else 0.0
    own = {"query": rows, "prefill": cache * length, "decode": cache * steps * (length + (steps + 1) / 2)}
    return {part: Work(counted[part], 1.0 * shared[part], own.get(part, 0.0)) for part in PARTS}


def _encoder_bytes(config: ModelConfig, weights: Kept) -> float:
    """Of the matrices that a pass over a question reads."""
    read = flops.query_params(config)
    if not read or not config.query.reads_decoder:
        return BYTES * read
    return layer_bytes(dataclasses.replace(config.decoder, depth=query_layers(config)), weights)


def seconds_of(work: Work, machine: Machine, batch: int) -> Amount:
    """Seconds of one part for a batch that is answered together, at the machine's figures."""
    compute = batch * work.flops / machine.flops
    memory = (work.shared + batch * work.own) / machine.bandwidth
    return (compute + memory + abs(compute - memory)) / 2


def encoder_costs(
    name: str, params_b: float, visual_tokens: float, lengths: Lengths, setup: Setup
) -> list[EncoderCost]:
    """Every encoder of the question with one language model, by its name (else its size) in billions.

    The early exit is the one of `setup`, or after a quarter of the layers.
    """
    llm = find_llm(name if name in presets.SIZES_B else f"{params_b:.12g}")
    layer = setup.query.layer or max(1, llm.decoder.depth // 4)
    found = []
    others = QueryConfig("early_exit", layer), QueryConfig("embeddings"), QueryConfig("clip_text")
    for query in (_PAPERS, *others):
        config = model_config(llm, visual_tokens, query, setup.compressor)
        work = work_of_query(config, lengths, setup.weights)
        seconds = share = None
        if setup.machine is not None:
            times = seconds_of_parts(work, setup, lengths.text + visual_tokens)
            seconds, share = times["query"], times["query"] / sum(times.values())
        own, total = work["query"].flops, sum(part.flops for part in work.values())
        found.append(EncoderCost(query, query_layers(config), own, own / total, seconds, share))
    return found


def seconds_of_parts(work: Mapping[str, Work], setup: Setup, length: Amount) -> dict[str, Amount]:
    """Seconds of each part for a batch, by the setup's machine and what was measured.

    Args:
      length: positions of the prompt, visual tokens included.

    Raises:
      UserError: a part that takes time was not measured.
    """
    machine, measured = setup.machine, setup.measured
    assert machine is not None
    times = {part: seconds_of(one, machine, setup.batch) for part, one in work.items()}
    if measured is None:
        return times
    return {
        part: seconds / measured.at(part, setup.batch, length) if np.any(seconds) else seconds
        for part, seconds in times.items()
    }


def query_cost(work: Mapping[str, Work], setup: Setup, length: Amount) -> Amount:
    """What one query costs in the unit of `setup.kind`; `length` as in `seconds_of_parts`."""
    if setup.kind == "flops":
        return sum(part.flops for part in work.values())
    seconds = sum(seconds_of_parts(work, setup, length).values())
    if setup.kind == "seconds":
        return seconds
    return seconds / setup.batch * usd_per_million_seconds(setup)


def usd_per_million_seconds(setup: Setup) -> float:
    """Dollars for a million seconds of the machine."""
    assert setup.machine is not None and setup.usd_per_hour is not None
    return setup.usd_per_hour * setup.machine.count * 1e6 / 3600


def memory_of(config: ModelConfig, lengths: Lengths, batch: int, weights: Kept = "bfloat16") -> Amount:
    """Bytes of all weights and of the caches of a batch, at the end of its answers."""
    decoder = config.decoder
    others = table_params(decoder) + flops.tower_params(config.vision)
    others += flops.compressor_cost(config).params + flops.projector_params(config)
    others += text_tower_params(config)
    context = lengths.text + config.visual_tokens + lengths.answer
    return layer_bytes(decoder, weights) + BYTES * others + batch * context * cache_bytes(decoder)
