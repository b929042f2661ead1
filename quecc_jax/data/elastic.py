"""Batches for an elastic compressor: the number of a batch decides which V it has.

A row is laid out once, for the largest V. For a smaller one its images lose slots and its text stays.
"""

import sys
from collections.abc import Sequence

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import first_token, rounded_length
from quecc_jax.data.batch import NEWLINE
from quecc_jax.data.plans.packing import BatchPlan
from quecc_jax.data.sampler import permutation


def drawn(values: Sequence[int], seed: int, number: int) -> int:
    """V of the number-th batch: every len(values) batches in a row have each V once, in random order."""
    turn, index = divmod(number, len(values))
    return values[permutation(len(values), seed, turn, 3)[index]]


def row_length(data: DataConfig, largest: int, visual_tokens: int) -> int:
    """Tokens S of a padded row where an image takes V of the `largest` number of slots.

    It holds every row with an image that data.max_length holds at the largest V.
    """
    return rounded_length(data.max_length - (largest - visual_tokens), data.max_length)


def choices(data: DataConfig, model: ModelConfig) -> tuple[int, ...]:
    """Values V that the batches of a run draw from; empty where V is fixed, or there are no images."""
    return model.elastic_choices if data.images_per_row else ()


def padded_lengths(data: DataConfig, model: ModelConfig) -> tuple[int, ...]:
    """Lengths S that the padded rows of a run may have."""
    drawn_from = choices(data, model) if data.batching == "pad" else ()
    return tuple(row_length(data, max(drawn_from), v) for v in drawn_from) or (data.max_length,)


def text_length(data: DataConfig, model: ModelConfig) -> int:
    """Tokens that a row without images may have: data.max_length, or less where padded rows of a batch
    are as short as their V makes them, so that it is the same row at every V."""
    return min(padded_lengths(data, model))


class Elastic(Sequence[BatchPlan]):
    """Batches laid out for a V that is drawn for each, the same in every process.

    Padded batches get the length that their V needs; those of other kinds keep theirs.
    """

    def __init__(self, plans: Sequence[BatchPlan], data: DataConfig, model: ModelConfig, seed: int):
        self.plans, self.data, self.values, self.seed = plans, data, choices(data, model), seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> BatchPlan:  # type: ignore[override]
        plan, v = self.plans[number], drawn(self.values, self.seed, number)
        padded = self.data.batching == "pad"
        length = row_length(self.data, max(self.values), v) if padded else plan.length
        return plan._replace(length=length, visual_tokens=v)


class Slots:
    """Counts slots through all visual tokens that a model makes of a row's images, T of each."""

    def __init__(self, model: ModelConfig):
        self.model, self.laid_out, self.stride = model, model.visual_tokens, model.num_output_tokens
        self.stride += model.vision.keep_cls

    def __call__(
        self, codes: np.ndarray, loss: np.ndarray, image: int, visual_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A conversation's codes and loss mask (`Encoded`), laid out for the largest V, at this V.

        Args:
          codes: int32 [L], slots counted from the conversation's first image.
          loss: bool [L]
          image: the conversation's first among the images of its row.
          visual_tokens: V; 0 is that of the layout, the largest.

        Returns:
          The same for a row: int32 [L'] and bool [L'], slots counted through the row's [I * T] tokens.
        """
        visual_tokens = visual_tokens or self.laid_out
        number, index = np.divmod(-1 - codes, self.laid_out)
        text = codes >= 0
        kept = text | (index < visual_tokens)
        slots = (image + number) * self.stride + first_token(self.model, visual_tokens) + index
        slots = np.where(codes == -1 - NEWLINE, NEWLINE, slots)
        return np.where(text, codes, -1 - slots)[kept].astype(np.int32), loss[kept]
