"""The vision-language model: encode the question, encode and compress the image, splice, decode."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Num, PyTree

from quecc_jax.config import ModelConfig
from quecc_jax.config.shapes import query_width
from quecc_jax.data.batch import NEWLINE, Batch
from quecc_jax.data.images import normalise
from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import finish, prepare
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.compressors.fusion import FusingCompressor
from quecc_jax.models.decoder import Cache, Decoder, embedding_variance
from quecc_jax.models.layers import constrain_batch
from quecc_jax.models.projector import Projector
from quecc_jax.models.tile_maps import shrink_maps
from quecc_jax.models.towers.clip_text import ClipText
from quecc_jax.models.towers.vit import VisionTower, split_features


class Visual(NamedTuple):
    """What the decoder's input takes of a batch's images."""

    tokens: jax.Array
    """[L, I, V, M] visual tokens of the images of each row, or pool of rows."""
    memory: jax.Array | None = None
    """[B, I, R, M] what the compressor's pre-fusion reads of the images."""


class Prepared(NamedTuple):
    """What visual tokens that depend on a question take of P images, or of a batch's [B, I]."""

    features: PyTree
    """As the compressor's `finish` takes them."""
    cls: jax.Array | None
    """[P, 1, M] projected, where the tower keeps CLS for the decoder."""


class VLM(nn.Module):
    """Tower, compressor, projector and decoder; parameters live under `vision`, the three other names, and
    `text` where CLIP's text tower encodes the questions."""

    config: ModelConfig
    unrolled: bool = False
    """The decoder's layers have parameters of their own, as generation needs; see `decoder.unstack`."""

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.vision = VisionTower(c.tower, dtype, c.remat)
        self.compressor: Any = FusingCompressor(c, dtype) if c.memory_tokens else make_compressor(c, dtype)
        # Visual tokens start on the scale of the text embeddings that they stand among.
        self.projector = Projector(
            c.projector, c.decoder.width, dtype, embedding_variance(c.decoder), c.has_newline
        )
        if not c.query.reads_decoder:
            self.text = ClipText(c.query.text, dtype)
        self.decoder = Decoder(
            c.decoder,
            dtype,
            c.remat,
            c.attention_kernel,
            self.unrolled,
            c.scan_unroll,
            jnp.dtype(c.grad_reduce_dtype),
            c.lora,
        )

    def encode_query(
        self, queries: Int[Array, "B Q"], segments: Int[Array, "B Q"], ends: Int[Array, "B I"]
    ) -> Float[Array, "B I text_width"]:
        """Query features [B, I, H] by the encoder that `model.query` names, without gradient.

        The paper's is the decoder's final hidden state at each query's last token, after a pass over the
        bare question. An early exit runs the first layers and the final norm; `embeddings` is the float32
        mean of the real tokens' embeddings; `clip_text` is CLIP's text tower.

        Args:
          queries: int32 [B, Q] token ids of a row's questions, of the encoder's own vocabulary.
          segments: int32 [B, Q] 1, 2, ... for the questions, each of which sees itself alone; 0 is padding.
          ends: int32 [B, I] the last token of the question about each image; -1 gives an unused vector.
        """
        query, index = self.config.query, jnp.arange(queries.shape[1])
        last, positions = jnp.maximum(ends, 0), segment_positions(segments)
        if query.encoder == "clip_text":
            feature = constrain_batch(self.text(queries, positions, segments, last))
        elif query.encoder == "embeddings":
            own = jnp.take_along_axis(segments, last, axis=1)[..., None] == segments[:, None]
            own = (own & (index <= last[..., None])).astype(jnp.float32)
            embedded = self.decoder.embed(queries)
            total = jnp.einsum("biq,bqh->bih", own, embedded.astype(jnp.float32))
            feature = constrain_batch(total / jnp.sum(own, axis=-1, keepdims=True)).astype(embedded.dtype)
        else:
            layers = query.layer if query.encoder == "early_exit" else None
            # However many stand in a row: a question alone is a short text.
            hidden, _ = self.decoder(
                self.decoder.embed(queries), positions, segments, layers=layers, rope_length=1
            )
            feature = constrain_batch(jnp.take_along_axis(hidden, last[..., None], axis=1))
        return jax.lax.stop_gradient(feature)

    def encode_image(self, pixels: Num[Array, "B I side side 3"]) -> Float[Array, "B I rows K D"]:
        """Tower states [B, I, N, K, D] of pixels [B, I, H, W, 3].

        Args:
          pixels: uint8, as the data pipeline delivers them; floats are taken as normalised already.
        """
        b, i = pixels.shape[:2]
        if pixels.dtype == jnp.uint8:
            pixels = normalise(pixels, self.config.vision.pixels)
        states = self.vision(pixels.reshape(b * i, *pixels.shape[2:]))
        return states.reshape(b, i, *states.shape[1:])

    def prepare(self, states: Float[Array, "B I rows K D"]) -> PyTree:
        """What visual tokens take of images alone, from tower states [B, I, N, K, D]: a tree of arrays [B, I, ...]
        for `finish`. Where the compressor reads no question it is the `Visual` at this V, else `Prepared`, the same
        at every V."""
        c, (b, i) = self.config, states.shape[:2]
        flat = states.reshape(b * i, *states.shape[2:])
        features = jax.tree.map(constrain_batch, split_features(flat, c.tower))
        cls = None
        if features.cls is not None:
            cls = constrain_batch(self.projector(features.cls.astype(c.dtype)))
        if c.compressor.projected:
            features = features._replace(single=constrain_batch(self.projector(features.single)))
        prepared: PyTree = Prepared(prepare(self.compressor, features), cls)
        if not c.compressor.reads_question:
            prepared = self._visual(prepared, jnp.zeros((b * i, 1, query_width(c)), c.dtype))
        return jax.tree.map(lambda x: x.reshape(b, i, *x.shape[1:]), prepared)

    def finish(self, prepared: PyTree, query: Float[Array, "B I text_width"] | None) -> Visual:
        """Visual tokens of what `prepare` gives and the questions' features [B, I, text_width], which are not read
        where the compressor reads no question."""
        if isinstance(prepared, Visual):
            return prepared
        assert query is not None
        b, i = query.shape[:2]
        flat = jax.tree.map(lambda x: x.reshape(b * i, *x.shape[2:]), prepared)
        visual = self._visual(flat, query.reshape(b * i, 1, -1))
        return jax.tree.map(lambda x: x.reshape(b, i, *x.shape[1:]), visual)

    def compress(
        self, states: Float[Array, "B I rows K D"], query: Float[Array, "B I text_width"] | None
    ) -> Visual:
        """Visual tokens from tower states [B, I, N, K, D] and queries [B, I, text_width] of a batch, as `finish`."""
        return self.finish(self.prepare(states), query)

    def _visual(self, prepared: Prepared, query: Float[Array, "P 1 text_width"]) -> Visual:
        """`Visual` with arrays [P, ...] of P images."""
        made = finish(self.compressor, prepared.features, query)
        tokens = constrain_batch(made if self.config.compressor.projected else self.projector(made))
        if prepared.cls is not None:
            tokens = jnp.concatenate([prepared.cls, tokens], axis=1)
        if not self.config.memory_tokens:
            return Visual(tokens)
        # The memory of a pre-fusion stands behind the tokens.
        v = self.config.visual_tokens
        return Visual(tokens[:, :v], tokens[:, v:])

    def encode_visual(self, batch: Batch) -> Visual:
        """`Visual` of a batch, from its pixels and questions or what is cached of them."""
        states = batch.features if batch.features is not None else self.encode_image(batch.pixels)
        if not self.config.compressor.reads_question:
            query = None
        elif batch.query_features is not None:
            query = batch.query_features.astype(self.config.dtype)
        else:
            query = self.encode_query(batch.queries, batch.query_segments, batch.query_ends)
        return self.compress(states, query)

    def visual_tokens(self, batch: Batch) -> Float[Array, "B I V M"]:
        """Visual tokens [B, I, V, M] of a batch."""
        return self.encode_visual(batch).tokens

    def splice(self, batch: Batch, visual: Visual | None = None) -> Float[Array, "B S M"]:
        """Decoder inputs [B, S, M]: token embeddings, those of instructions after the pre-fusion if there
        is one, with visual tokens in their slots.

        Args:
          visual: the batch's, where it is known already.
        """
        text = self.decoder.embed(batch.tokens)
        if batch.query_ends.shape[1] == 0:
            return text
        visual = self.encode_visual(batch) if visual is None else visual
        made = visual.tokens
        if visual.memory is not None:
            text, made = self.compressor.fuse(text, visual.memory, made, batch)
        # Rows of a pool read the tokens of all its images.
        tokens = made if batch.maps is None else shrink_maps(made, batch.maps)
        tokens = tokens.reshape(len(tokens), -1, text.shape[-1])
        slots = jnp.clip(batch.slots, 0, tokens.shape[1] - 1).reshape(len(tokens), -1, 1)
        here = jnp.take_along_axis(tokens, slots, axis=1).reshape(text.shape)
        if self.config.has_newline:
            newline = self.projector.newline.astype(here.dtype)
            here = jnp.where(batch.slots[..., None] == NEWLINE, newline, here)
        return jnp.where(batch.slots[..., None] >= 0, here.astype(text.dtype), text)

    def __call__(self, batch: Batch, visual: Visual | None = None) -> Float[Array, "B S M"]:
        """Final hidden states [B, S, M]; `visual` is the batch's, where it is known already."""
        hidden, _ = self.decoder(self.splice(batch, visual), batch.positions, batch.segments)
        return hidden

    def prefill(
        self, batch: Batch, cache: Cache, visual: Visual | None = None
    ) -> tuple[Float[Array, "B S M"], Cache]:
        """Hidden states [B, S, M] of a batch of prompts, and the cache, empty before, that holds them."""
        x = self.splice(batch, visual)
        return self.append(x, batch.positions, batch.segments, cache, first=True)

    def extend(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        cache: Cache,
    ) -> tuple[Float[Array, "B S M"], Cache]:
        """Hidden states [B, S, M] of further text tokens [B, S] after what the cache holds."""
        return self.append(self.decoder.embed(tokens), positions, segments, cache)

    def append(
        self,
        x: Float[Array, "B S M"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        cache: Cache,
        first: bool = False,
    ) -> tuple[Float[Array, "B S M"], Cache]:
        """Hidden states [B, S, M] of decoder inputs [B, S, M] after what the cache holds, which is nothing if
        they are the `first`."""
        hidden, extended = self.decoder(x, positions, segments, cache, first)
        assert extended is not None
        return hidden, extended

    def output_matrix(self) -> Float[Array, "M vocab"]:
        """The matrix [M, vocab] behind the logits."""
        return self.decoder.output_matrix()

    def logits(self, hidden: Float[Array, "*rows M"]) -> Float[Array, "*rows vocab"]:
        """float32 logits [..., vocab]."""
        return self.decoder.logits(hidden)


def segment_positions(segments: Int[Array, "B Q"]) -> Int[Array, "B Q"]:
    """int32 [B, Q]: each position's number within its segment, of int32 [B, Q] segments that lie together."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.concatenate([jnp.zeros_like(segments[:, :1]), segments[:, :-1]], axis=1) != segments
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
