"""Where the compressor looks: QueCC's attention weights for the questions of a data set."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.models.vlm import VLM


def attention_maps(
    model: ModelConfig, data: DataConfig, params: dict[str, Any], batch_size: int = 128
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Every row that has pictures, with the weights its visual tokens were averaged by.

    Yields:
      The LLaVA-format row, and float32 [I, V, H, g / h, g / h] for its I pictures: each of the V tokens
      attends to its own square of the g x g patches with H heads; a token's weights sum to one per head.

    Raises:
      UserError: a source cannot be read.
    """
    vlm, rows = VLM(model), rows_by_id(data)
    side = round(model.visual_tokens**0.5)
    region = model.vision.grid // side

    @jax.jit
    def weights(params: dict[str, Any], batch: Batch) -> jax.Array:
        _, sown = vlm.apply({"params": params}, batch, method="visual_tokens", mutable=["intermediates"])
        (found,) = jax.tree.leaves(sown["intermediates"])
        b, i = batch.queries.shape[:2]
        return found.reshape(b, i, side * side, -1, region, region)

    for batch in eval_batches(data, model, batch_size, prompts=True):
        assert batch.ids is not None
        found = np.asarray(weights(params, batch._replace(ids=None)))
        for identity, pictures, lengths in zip(batch.ids.tolist(), found, batch.query_lengths, strict=True):
            present = int(np.count_nonzero(lengths))
            if identity >= 0 and present:
                yield rows[identity], pictures[:present]
