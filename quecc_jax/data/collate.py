"""Makes the arrays of a planned batch: lays rows out, reads their images, and reports rows that are left out."""

from collections.abc import Sequence

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import query_width, state_shape
from quecc_jax.data.bad_rows import DROPPED, LeftOut, Read
from quecc_jax.data.batch import MAP, Batch, batch_of
from quecc_jax.data.elastic import Slots
from quecc_jax.data.plans.packing import BatchPlan
from quecc_jax.data.sampler import source_and_row
from quecc_jax.data.sources.source import Source
from quecc_jax.data.text.conversation import Encoded
from quecc_jax.data.text.queries import bucket, query_buckets, question_segments
from quecc_jax.errors import BadRow


class Collate:
    """Makes the batch of a plan; pickles into grain's worker processes."""

    def __init__(self, sources: Sequence[Source], data: DataConfig, model: ModelConfig):
        self.sources, self.data = sources, data
        self.slots, self.width = Slots(model), query_width(model)
        vision = model.vision
        self.pixels = (vision.input_size, vision.input_size, 3)
        self.features = state_shape(model.tower)
        self.buckets, self.shrinks = query_buckets(data, model), vision.max_squares > 0

    def __call__(self, plan: BatchPlan) -> tuple[Batch, Read]:
        """The batch of a plan, and what came of its samples.

        The samples of a row follow each other. One that is left out takes no room: those behind it move
        up, and a row that held nothing else is empty, without text and images. Images of a pool follow each other
        row by row.
        """
        ids = plan.ids if plan.ids.ndim == 2 else plan.ids[:, None]
        b, s, i = len(ids), plan.length, plan.images
        pools = b // plan.pooled
        codes, loss = np.zeros((b, s), np.int32), np.zeros((b, s), bool)
        positions, segments = np.zeros((2, b, s), np.int32)
        asked, query_ends = [list[np.ndarray]() for _ in range(pools)], np.full((pools, i), -1, np.int32)
        cached = self.data.cached_features
        inputs: np.ndarray | None = None
        if i:
            inputs = np.zeros(
                (pools, i, *(self.features if cached else self.pixels)), np.float16 if cached else np.uint8
            )
        query_features: np.ndarray | None = None
        if i and self.data.cached_queries:
            query_features = np.zeros((pools, i, self.width), np.float16)
        maps = np.zeros((pools, i, MAP), np.int32) if i and self.shrinks else None
        truncated, cut_questions, left_out = list[int](), list[int](), list[LeftOut]()
        for index, row in enumerate(ids.tolist()):
            pool, first = divmod(index, plan.pooled)
            start, segment = 0, 0
            if not first:
                image, question = 0, 0
            for identity in row:
                if identity < 0:
                    continue
                try:
                    encoded, query = self._sample(identity, None if inputs is None else inputs[pool, image:])
                except BadRow as bad:
                    left_out.append(LeftOut(identity, bad.fault, str(bad)))
                    continue
                if not len(encoded.codes):
                    left_out.append(self._dropped(identity))
                    continue
                laid = self.slots(encoded.codes, encoded.loss, image, plan.visual_tokens)
                length, images = len(laid[0]), encoded.crops
                here, segment = slice(start, start + length), segment + 1
                codes[index, here], loss[index, here] = laid
                segments[index, here] = segment
                positions[index, here] = np.arange(length)
                asked[pool].append(encoded.queries)
                query_ends[pool, image : image + images] = question + encoded.query_ends
                if maps is not None and encoded.maps is not None:
                    maps[pool, image : image + images] = encoded.maps
                question += len(encoded.queries)
                if query is not None and query_features is not None:
                    query_features[pool, image : image + images] = query
                start, image = start + length, image + images
                if encoded.cut:
                    truncated.append(identity)
                if encoded.query_cut:
                    cut_questions.append(identity)
        q = (plan.query_length or bucket(max(sum(map(len, row)) for row in asked), self.buckets)) if i else 0
        queries, query_segments = np.zeros((2, pools, q), np.int32)
        for pool, pool_asked in enumerate(asked):
            flat = np.concatenate([np.zeros(0, np.int32), *pool_asked])
            queries[pool, : len(flat)] = flat
            query_segments[pool] = question_segments(query_ends[pool][query_ends[pool] >= 0], q)
        batch = batch_of(
            codes,
            loss,
            positions,
            segments,
            queries,
            query_segments,
            query_ends,
            pixels=None if cached else inputs,
            features=inputs if cached else None,
            query_features=query_features,
            maps=maps,
            ids=plan.ids,
        )
        rows = int((ids >= 0).sum())
        return batch, Read(rows, tuple(truncated), tuple(cut_questions), tuple(left_out))

    def _dropped(self, identity: int) -> LeftOut:
        number, row = source_and_row(identity)
        why = f"it is longer than data.max_length {self.data.max_length}"
        return LeftOut(identity, DROPPED, f"{self.sources[number].where(row)}: {why}")

    def _sample(self, identity: int, inputs: np.ndarray | None) -> tuple[Encoded, np.ndarray | None]:
        """A sample laid out, and its stored query feature if queries are stored.

        Its images are written to the front of `inputs` [.., ...].

        Raises:
          BadRow: `inputs` is then as it was, zeros.
        """
        number, row = source_and_row(identity)
        source = self.sources[number]
        encoded = source.encoded(row)
        if not len(encoded.codes) or not encoded.crops or inputs is None:
            return encoded, None
        query = source.query(row) if self.data.cached_queries else None
        try:
            source.write_images(row, inputs)
        except BadRow:
            inputs[: encoded.crops] = 0
            raise
        return encoded, query
