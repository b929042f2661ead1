"""Which numbers each setting of a run takes, one by one; `validation` says what must hold of several."""

import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

from quecc_jax.config.run import RunConfig
from quecc_jax.errors import UserError


class Range(NamedTuple):
    """An interval of numbers; `lowest` and `highest` themselves are in it where they are `closed`."""

    lowest: float
    highest: float = math.inf
    closed: tuple[bool, bool] = (True, True)

    def __contains__(self, value: object) -> bool:
        # Beyond floats are whole numbers that mean nothing either.
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return False
        above = value >= self.lowest if self.closed[0] else value > self.lowest
        return above and (value <= self.highest if self.closed[1] else value < self.highest)

    def __str__(self) -> str:
        lowest = f"{'at least' if self.closed[0] else 'above'} {self.lowest:g}"
        if self.highest == math.inf:
            return lowest
        return f"{lowest} and {'at most' if self.closed[1] else 'below'} {self.highest:g}"


ANY, COUNT, SIZE = Range(-math.inf), Range(0), Range(1)
POSITIVE, SHARE = Range(0, closed=(False, True)), Range(0, 1)
MEMORY = Range(0, 1, (True, False))
"""Of a running mean, or a share that is dropped: at 1 nothing would ever be learned."""

RANGES = {
    "model.vision.image_size": Range(1, 1 << 16),
    "model.vision.patch_size": SIZE,
    "model.vision.width": SIZE,
    "model.vision.depth": SIZE,
    "model.vision.heads": SIZE,
    "model.vision.mlp_width": SIZE,
    "model.vision.norm_eps": COUNT,
    "model.vision.registers": COUNT,
    "model.vision.position_grid": COUNT,
    "model.vision.pixels.mean": SHARE,
    "model.vision.pixels.std": POSITIVE,
    "model.vision.pixels.resized": Range(0, 1 << 16),
    "model.vision.select_layer": ANY,
    "model.vision.levels": ANY,
    "model.vision.scales": SIZE,
    "model.vision.tiles": ANY,
    "model.vision.max_squares": COUNT,
    "model.compressor.kernel": COUNT,
    "model.compressor.stride": COUNT,
    "model.compressor.tokens": COUNT,
    "model.compressor.elastic": SIZE,
    "model.compressor.heads": SIZE,
    "model.compressor.queries": SIZE,
    "model.compressor.fusion_layers": COUNT,
    "model.compressor.memory": COUNT,
    "model.compressor.rounds": SIZE,
    "model.compressor.seed": COUNT,
    "model.query.layer": COUNT,
    "model.query.text.vocab_size": SIZE,
    "model.query.text.positions": SIZE,
    "model.query.text.width": SIZE,
    "model.query.text.depth": SIZE,
    "model.query.text.heads": SIZE,
    "model.query.text.mlp_width": SIZE,
    "model.query.text.norm_eps": COUNT,
    "model.query.text.projection": SIZE,
    "model.decoder.vocab_size": SIZE,
    "model.decoder.width": SIZE,
    "model.decoder.depth": SIZE,
    "model.decoder.heads": SIZE,
    "model.decoder.kv_heads": SIZE,
    "model.decoder.head_width": COUNT,
    "model.decoder.mlp_width": SIZE,
    "model.decoder.norm_eps": COUNT,
    "model.decoder.rope_theta": POSITIVE,
    "model.decoder.rope_fraction": Range(0, 1, (False, True)),
    "model.decoder.rope_scaling.factor": POSITIVE,
    "model.decoder.rope_scaling.slow_turns": COUNT,
    "model.decoder.rope_scaling.fast_turns": COUNT,
    "model.decoder.rope_scaling.original_length": COUNT,
    "model.decoder.rope_scaling.short_factors": POSITIVE,
    "model.decoder.rope_scaling.long_factors": POSITIVE,
    "model.decoder.rope_scaling.attention_factor": POSITIVE,
    "model.decoder.local_rope_theta": COUNT,
    "model.decoder.unrotated_every": COUNT,
    "model.decoder.alibi_bias_max": SIZE,
    "model.decoder.window": COUNT,
    "model.decoder.full_layers": COUNT,
    "model.decoder.full_every": COUNT,
    "model.decoder.query_scalar": COUNT,
    "model.decoder.attention_softcap": COUNT,
    "model.decoder.logit_softcap": COUNT,
    "model.decoder.max_positions": COUNT,
    "model.lora.rank": COUNT,
    "model.lora.alpha": POSITIVE,
    "model.lora.dropout": MEMORY,
    "model.scan_unroll": SIZE,
    "data.sources.weight": POSITIVE,
    "data.max_length": SIZE,
    "data.query_length": COUNT,
    "data.images_per_row": COUNT,
    "data.lookahead_rows": SIZE,
    "data.num_length_buckets": SIZE,
    "data.packed_images": COUNT,
    "data.pooled_rows": SIZE,
    "data.text_per_image": COUNT,
    "data.max_bad_share": SHARE,
    "data.held_out": COUNT,
    "data.workers": COUNT,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.projector_learning_rate": COUNT,
    "optimizer.vision_learning_rate": COUNT,
    "optimizer.warmup_ratio": SHARE,
    "optimizer.weight_decay": COUNT,
    "optimizer.b1": MEMORY,
    "optimizer.b2": MEMORY,
    "optimizer.eps": POSITIVE,
    "optimizer.clip_norm": POSITIVE,
    "train.stage": COUNT,
    "train.steps": COUNT,
    "train.epochs": COUNT,
    "train.batch_size": SIZE,
    "train.conversations": COUNT,
    "train.grad_accum_steps": SIZE,
    "train.loss_chunk": SIZE,
    "train.distil.weight": SHARE,
    "train.distil.temperature": POSITIVE,
    "train.max_bad_steps": COUNT,
    "train.seed": COUNT,
    "train.log_every": SIZE,
    "train.eval_every": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep": SIZE,
    "mesh.data": Range(-1),
    "mesh.fsdp": Range(-1),
    "mesh.tensor": Range(-1),
}
"""By the setting's name, of the numbers in a list each."""


def numbers(config: object, where: str = "") -> Iterator[tuple[str, float]]:
    """Every number among the settings of a config with its name, those of lists under the list's name."""
    if isinstance(config, bool | str) or config is None:
        return
    if isinstance(config, int | float):
        yield where, config
    elif isinstance(config, tuple):
        for one in config:
            yield from numbers(one, where)
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from numbers(getattr(config, field.name), f"{where}.{field.name}" if where else field.name)


def check_ranges(config: RunConfig) -> None:
    """Raises UserError for the first setting whose number means nothing, naming what it takes."""
    for name, value in numbers(config):
        # A compressor that is added from outside has settings of its own, which its `num_tokens` checks.
        allowed = RANGES.get(name, ANY)
        if value not in allowed:
            finite = "" if abs(value) <= sys.float_info.max else "finite and "
            raise UserError(f"{name} is {_short(value)} but must be {finite}{allowed}; change it")


def _short(value: float) -> str:
    """A number for a message."""
    try:
        return f"{value:g}"
    except OverflowError:
        return f"a number of {len(str(abs(value)))} digits"
