"""The teacher of a distilled run: its starting weights with all the tower's tokens of every image, frozen.

Its rows are made on the device of those of the batch, so that data pipeline and checkpoints know nothing of it: each
image's V slots become as many as the tower has patches, and all else keeps its order.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.config import DataConfig, DistilConfig, LoraConfig, ModelConfig, NoneConfig, RunConfig
from quecc_jax.config.shapes import teacher_length
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.lora import Params
from quecc_jax.models.vlm import VLM, segment_positions

TEACHER = "teacher"
"""Top-level name of the parameters that a teacher has of its own."""


class Taught(NamedTuple):
    """What a teacher made of the same positions."""

    hidden: jax.Array
    """[B, S, M] final hidden states."""
    matrix: jax.Array
    """[M, vocab] output matrix."""
    weight: float
    """Share of the divergence in the loss."""
    temperature: float
    """Divides logits before it is taken."""


class Teacher(NamedTuple):
    """How a run's teacher reads its batches."""

    model: ModelConfig
    """The student's."""
    data: DataConfig
    distil: DistilConfig

    def read(self, params: Params, batch: Batch) -> Taught:
        """What the teacher makes of a batch, without gradient.

        Args:
          params: the run's, by top-level name, adapters apart.
          batch: with features, where it has images.
        """
        model = VLM(uncompressed(self.model))
        rows, places = full_rows(batch, self.model, self.data)
        # Adapters stand apart: the decoder alone is as it was.
        variables = {"params": {"decoder": params["decoder"], **params[TEACHER]}}
        hidden: PyTree = model.apply(variables, rows)
        matrix: PyTree = model.apply(variables, method=VLM.output_matrix)
        hidden = nn.with_logical_constraint(hidden, ("batch", None, None))
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        hidden, matrix = jax.lax.stop_gradient((hidden, matrix))
        return Taught(hidden, matrix, self.distil.weight, self.distil.temperature)


def teacher_of(config: RunConfig) -> Teacher | None:
    """A run's teacher, if it has one."""
    return Teacher(config.model, config.data, config.train.distil) if config.train.distil.weight else None


def uncompressed(model: ModelConfig) -> ModelConfig:
    """The model with all patches and without adapters, on the same states of the tower."""
    return dataclasses.replace(model, vision=model.tower, compressor=NoneConfig(), lora=LoraConfig())


def own_parts(config: RunConfig) -> tuple[str, ...]:
    """Top-level names of what the teacher has of its own, since training changes the run's; the rest is shared."""
    return ("projector", "decoder") if config.trains_whole_decoder else ("projector",)


def with_teacher(params: Params, config: RunConfig) -> Params:
    """Parameters, or what stands for them, with those of the run's teacher under `teacher`, if it has one: as they
    are there already, or else like the run's own."""
    if not config.train.distil.weight:
        return params
    there = params.get(TEACHER, {})
    own = {name: there.get(name, params.get(name)) for name in own_parts(config)}
    return {**params, TEACHER: {name: tree for name, tree in own.items() if tree is not None}}


def full_rows(batch: Batch, model: ModelConfig, data: DataConfig) -> tuple[Batch, jax.Array]:
    """A batch in which each image's slots are all the tower's tokens, and where its positions went.

    Args:
      batch: [B, S] of rows, packed or not, in which the slots of an image stand together.
      model: whose V tokens they are.
      data: how rows became batches.

    Returns:
      The batch, of [B, `teacher_length`], and int32 [B, S]: the place there of each position. An image's last slot
      becomes its last patch, so that what predicts a label still does. Padding may have no place, and gets any.
    """
    length = teacher_length(model, data, batch.tokens.shape[1], batch.query_ends.shape[1])
    whole = uncompressed(model).visual_tokens
    filled, index = batch.slots >= 0, jnp.arange(batch.slots.shape[1])
    image = jnp.where(filled, batch.slots // (model.num_output_tokens + model.vision.keep_cls), -1)
    none = jnp.full_like(image[:, :1], -1)
    begins = filled & (image != jnp.concatenate([none, image[:, :-1]], axis=1))
    ends = filled & (image != jnp.concatenate([image[:, 1:], none], axis=1))
    within = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    more = jnp.where(ends, whole - 1 - within, 0)
    places = index + jnp.cumsum(more, axis=1)
    first = places - more - within

    target = jnp.arange(length)
    source = jax.vmap(lambda row: jnp.searchsorted(row, target))(places)
    real = source < batch.slots.shape[1]
    source = jnp.minimum(source, batch.slots.shape[1] - 1)

    def take(x: jax.Array, otherwise: int) -> jax.Array:
        return jnp.where(real, jnp.take_along_axis(x, source, axis=1), otherwise)

    slots = take(image, 0) * whole + target - take(first, 0)
    segments = take(batch.segments, 0)
    rows = batch._replace(
        tokens=take(batch.tokens, 0),
        slots=jnp.where(take(image, -1) >= 0, slots, -1),
        labels=take(batch.labels, IGNORE),
        positions=segment_positions(segments),
        segments=segments,
    )
    return rows, jnp.minimum(places, length - 1)
