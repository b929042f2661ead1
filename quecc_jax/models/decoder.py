"""The causal decoder, whose families are values of DecoderConfig."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float, Int, PyTree

from quecc_jax.config import DecoderConfig, LoraConfig
from quecc_jax.models.arrays import Array
from quecc_jax.models.attention import NO_LIMIT, Kernel, MaskSpec, Scores, attention, causal, softcapped
from quecc_jax.models.layers import (
    LayerNorm,
    RMSNorm,
    constrain_batch,
    linear,
    matrix_init,
    recomputed,
    with_axes,
)
from quecc_jax.models.rope import Angles, alibi_slopes, angle_numbers, layer_angles, rotate

CACHE_AXES = ("batch", "kv_heads", "sequence", "head_dim")
"""Logical axes of a layer's keys, or values, in a cache."""


class Cache(NamedTuple):
    """Keys and values of T positions, filled from the front; an array per layer, so that a loop over tokens
    writes them in place. Heads come before positions, as the products of attention want them: the other way round, XLA
    copies the whole cache for every token."""

    keys: tuple[jax.Array, ...]
    """A layer at a time, [B, kv_heads, T, head_dim]"""
    values: tuple[jax.Array, ...]
    """A layer at a time, [B, kv_heads, T, head_dim]"""
    segments: jax.Array
    """int32 [B, T]; 0 where a position is empty or padding."""
    positions: jax.Array
    """int32 [B, T]"""
    length: jax.Array
    """int32 [], where the next positions are written."""


def empty_cache(config: DecoderConfig, rows: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """A cache for `rows` rows of at most `length` positions."""

    def layers() -> tuple[jax.Array, ...]:
        shape = (rows, config.kv_heads, length, config.head_dim)
        return tuple(
            nn.with_logical_constraint(jnp.zeros(shape, dtype), CACHE_AXES) for _ in range(config.depth)
        )

    empty = constrain_batch(jnp.zeros((rows, length), jnp.int32))
    return Cache(layers(), layers(), empty, empty, jnp.zeros((), jnp.int32))


def unstack(decoder: dict[str, PyTree]) -> dict[str, PyTree]:
    """A decoder's parameters as an unrolled `Decoder` has them: `layers_0`, `layers_1`, ... in place of the
    stacked `layers`, whose slices XLA would copy for every token. Those that are so already stay."""
    if "layers" not in decoder:
        return decoder
    out = {name: value for name, value in decoder.items() if name != "layers"}
    depth = jax.tree.leaves(decoder["layers"])[0].shape[0]
    for number in range(depth):
        out[f"layers_{number}"] = jax.tree.map(lambda leaf, n=number: _layer(leaf, n), decoder["layers"])
    return out


def _layer(leaf: PyTree, number: int) -> PyTree:
    """One layer's part of an array of all, or of a stand-in."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf[number]
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        sharding = sharding.update(spec=PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


def embedding_variance(config: DecoderConfig) -> float:
    """Variance at initialisation of what enters the layers: a tied table must give logits of order
    one, an own table, and one that is scaled on the way, is of order one itself."""
    return 1.0 / config.width if config.tie_embeddings and not config.scale_embeddings else 1.0


def make_norm(config: DecoderConfig, name: str | None = None, start: float = 1.0) -> RMSNorm | LayerNorm:
    """The norm that a config names; RMS norms begin with scales `start`."""
    if config.norm == "rms":
        return RMSNorm(config.norm_eps, zero_centred=config.zero_centred_norm, start=start, name=name)
    return LayerNorm(config.norm_eps, bias=False, name=name)


class LayerKind(NamedTuple):
    """In what a layer differs from others: constants of a program, or arrays where layers are scanned; None where
    all are alike."""

    window: Array | int | None = None
    """int32 [], tokens that a position sees."""
    angles: Array | int | None = None
    """int32 [], which of several angles turn it."""


class DecoderLayer(nn.Module):
    """Attention with grouped heads, then an MLP, with norms before, behind or around them."""

    config: DecoderConfig
    dtype: DTypeLike
    kernel: Kernel
    gradients: DTypeLike
    added: float = 1.0
    """Variance that the layers add to the stream at initialisation, in parts of the embedding's."""
    lora: LoraConfig = LoraConfig()
    """Adapters of the layer's matrices."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S M"],
        cached: tuple[Float[Array, "B kv_heads T head_dim"], Float[Array, "B kv_heads T head_dim"]] | None,
        kind: LayerKind,
        angles: tuple[Angles, ...],
        mask: MaskSpec,
        start: Int[Array, ""] | None,
    ) -> tuple[
        Float[Array, "B S M"],
        tuple[Float[Array, "B kv_heads T head_dim"], Float[Array, "B kv_heads T head_dim"]] | None,
    ]:
        """x [B, S, M], this layer's cache [B, kv_heads, T, head_dim] and kind -> (x, updated cache)."""
        c = self.config
        dense = functools.partial(linear, dtype=self.dtype, gradients=self.gradients, lora=self.lora)
        # Where the stream's sequence is split, products want whole rows and split heads and columns
        # instead; left alone, the partitioner splits rows there too and exchanges every weight twice.
        split = nn.with_logical_constraint
        y = constrain_batch(self._before("norm1", x))
        q = dense((c.heads, c.head_dim), ("embed", "heads", "head_dim"), bias=c.qkv_bias, name="q")(y)
        kv = functools.partial(
            dense, (c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), bias=c.qkv_bias
        )
        k, v = kv(name="k")(y), kv(name="v")(y)
        q, k = self._head_norm("q_norm", "heads", q), self._head_norm("k_norm", "kv_heads", k)
        if angles:
            turn = _chosen(angles, kind.angles)
            q, k = rotate(q, turn), rotate(k, turn)
        if cached is not None and start is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=2)
            keys, values = (
                write(held, new.astype(held.dtype).swapaxes(1, 2))
                for held, new in zip(cached, (k, v), strict=True)
            )
            cached = keys, values
            if mask.k_segments is not None:
                k, v = (x.astype(self.dtype).swapaxes(1, 2) for x in cached)
        scores = Scores(c.query_scalar**-0.5 if c.query_scalar else None, c.attention_softcap)
        y = attention(q, k, v, _with_window(mask, c, kind.window), self.kernel, scores)
        # What 2 L blocks add to the stream together starts as large as the embedding: by their last matrices, or
        # by the norms behind them.
        variance = 0.5 * self.added * embedding_variance(c) / c.depth
        behind = c.norm_sites != "before"
        residual = functools.partial(dense, c.width, variance=1.0 if behind else variance)
        y = residual(("heads", "head_dim", "embed"), inputs=2, bias=c.out_bias, name="out")(y)
        x = x + (make_norm(c, "post_norm1", variance**0.5)(y) if behind else y)
        x = split(x, ("batch", "sequence", None))
        y = constrain_batch(self._before("norm2", x))
        up = functools.partial(dense, c.mlp_width, ("embed", "mlp"), bias=False)
        if c.mlp == "gelu":
            y = jax.nn.gelu(up(name="up")(y), approximate=False)
        else:
            gate = jax.nn.silu if c.mlp == "swiglu" else jax.nn.gelu
            y = gate(up(name="gate")(y)) * up(name="up")(y)
        y = split(y, ("batch", None, "mlp"))
        y = residual(("mlp", "embed"), bias=False, name="down")(y)
        x = x + (make_norm(c, "post_norm2", variance**0.5)(y) if behind else y)
        return split(x, ("batch", "sequence", None)), cached

    def _before(self, name: str, x: Array) -> Array:
        """What a block reads of the stream."""
        return x if self.config.norm_sites == "after" else make_norm(self.config, name)(x)

    def _head_norm(self, name: str, heads: str, x: Array) -> Array:
        """Queries or keys [B, S, heads, head_dim] after their norm, if they have one."""
        c = self.config
        if c.qk_norm == "none":
            return x
        axes = (None,) if c.qk_norm == "head" else (heads, "head_dim")
        return RMSNorm(c.norm_eps, axes, c.zero_centred_norm, name=name)(x)


def _chosen(angles: tuple[Angles, ...], number: Array | int | None) -> Angles:
    """The angles of a number, the first without one."""
    if number is None or isinstance(number, int):
        return angles[number or 0]
    cos, sin = (jax.lax.select_n(number, *parts) for parts in zip(*angles, strict=True))
    return cos, sin


def _with_window(mask: MaskSpec, config: DecoderConfig, window: Array | int | None) -> MaskSpec:
    """The mask with a layer's window; one that all layers share is no array, but a constant that kernels can use."""
    if window is None:
        return mask._replace(window=config.window or None)
    if isinstance(window, int):
        return mask._replace(window=None if window == NO_LIMIT else window)
    return mask._replace(window=window, windows=(config.window, NO_LIMIT))


def scanned(layer: Any, depth: int, unroll: int = 1) -> Any:
    """A class of `depth` layers, made like one and scanned, `unroll` of them per turn."""
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=depth,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def layer_kinds(config: DecoderConfig) -> list[LayerKind]:
    """Each layer's kind, of constants; what all share is None."""
    windows, angles = [window or NO_LIMIT for window in config.layer_windows], angle_numbers(config)
    no_windows, no_angles = len({*windows}) == 1, len({*angles}) == 1
    return [
        LayerKind(None if no_windows else window, None if no_angles else number)
        for window, number in zip(windows, angles, strict=True)
    ]


def _stacked(kinds: Sequence[LayerKind]) -> LayerKind:
    """Kinds as a scan takes them: int32 [layers]."""
    columns = zip(*kinds, strict=True)
    return LayerKind(*(None if one[0] is None else jnp.array(one, jnp.int32) for one in columns))


class Decoder(nn.Module):
    """Token embedding, layers, final norm and output matrix."""

    config: DecoderConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    kernel: Kernel = "auto"
    """What computes attention."""
    unrolled: bool = False
    """Layers have parameters of their own (`unstack`) instead of being scanned; caches need this."""
    scan_unroll: int = 1
    """Layers per turn of the scan."""
    gradients: DTypeLike = jnp.bfloat16
    """Type of the layers' matrix gradients up to their sum over devices, at least `dtype`."""
    lora: LoraConfig = LoraConfig()
    """Adapters of the layers' matrices, which drop inputs where there is a random key `dropout`."""

    def setup(self) -> None:
        c = self.config
        scaled = c.width if c.scale_embeddings else 1
        table = nn.initializers.normal((embedding_variance(c) / scaled) ** 0.5)
        self.embedding = self.param("embedding", with_axes(table, "vocab", "embed"), (c.vocab_size, c.width))
        if not c.tie_embeddings:
            head = with_axes(matrix_init(1), "embed", "vocab")
            self.head = self.param("head", head, (c.width, c.vocab_size))
        # An unrolled decoder's layers have constants that recomputation would make arrays of.
        layer = DecoderLayer if self.unrolled else recomputed(DecoderLayer, self.remat)
        self.norm = make_norm(c)
        if self.unrolled:
            self.layers = [
                layer(c, self.dtype, self.kernel, self.gradients, lora=self.lora) for _ in range(c.depth)
            ]
        else:
            self.layers = self._stack(layer, c.depth)

    def _stack(self, layer: Any, depth: int, **settings: Any) -> Any:
        """`depth` layers, scanned."""
        stack = scanned(layer, depth, self.scan_unroll)
        return stack(self.config, self.dtype, self.kernel, self.gradients, lora=self.lora, **settings)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S M"]:
        """What enters the layers [B, S, M] for token ids [B, S]."""
        # Whole rows of the table must be at hand before the lookup, or the partitioner replicates
        # the result over the mesh.
        table = nn.with_logical_constraint(self.embedding.astype(self.dtype), ("vocab", None))
        rows = jnp.take(table, tokens, axis=0)
        if self.config.scale_embeddings:
            rows = rows * jnp.asarray(self.config.width**0.5, rows.dtype)
        return nn.with_logical_constraint(rows, ("batch", "sequence", None))

    def __call__(
        self,
        x: Float[Array, "B S M"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        cache: Cache | None = None,
        first: bool = False,
        layers: int | None = None,
        rope_length: int | None = None,
    ) -> tuple[Float[Array, "B S M"], Cache | None]:
        """Final hidden states, after the last norm.

        Args:
          x: embeddings [B, S, M].
          positions: int32 [B, S], rising by one per token within a segment.
          segments: int32 [B, S]; positions see earlier ones of their own segment, 0 is padding.
          cache: earlier positions to attend to; the new ones are written at its `length`. The caller keeps
            length + S within its room.
          first: nothing is in the cache yet, so the new positions attend to one another alone.
          layers: how many layers run, from the first, where it is not all of them: an early exit, which
            the final norm follows as it does all of them. It takes no cache and gives no gradient.
          rope_length: the length that decides the frequencies of `longrope`, where it is not that of the row
            or the cache.

        Returns:
          Hidden states [B, S, M] and the extended cache (None without one).
        """
        c = self.config
        x = x.astype(self.dtype)
        rope_room = rope_length or (x.shape[1] if cache is None else cache.segments.shape[1])
        angles = layer_angles(positions, c, rope_room)
        slopes = alibi_slopes(c.heads, c.alibi_bias_max) if c.positions == "alibi" else None
        if cache is None:
            mask = causal(segments, positions)._replace(slopes=slopes)
            run = self._run if layers is None or layers == c.depth else functools.partial(self._lead, layers)
            return self.norm(run(x, None, angles, mask, None)[0]), None
        start = jnp.zeros_like(cache.length) if first else cache.length
        append = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        held = append(cache.segments, segments), append(cache.positions, positions)
        if first:
            mask = causal(segments, positions)._replace(slopes=slopes)
        else:
            mask = MaskSpec(segments, positions, *held, slopes=slopes)
        x, (keys, values) = self._run(x, (cache.keys, cache.values), angles, mask, start)
        return self.norm(x), Cache(keys, values, *held, start + x.shape[1])

    def _run(self, x: Array, cached: Any, *rest: Any) -> tuple[jax.Array, Any]:
        """All layers; `cached` and what becomes of it are the cache's keys and values, or None."""
        layers: Any = self.layers
        kinds = layer_kinds(self.config)
        if not self.unrolled:
            if cached is not None:
                raise ValueError("a cache needs an unrolled decoder")
            return layers(x, None, _stacked(kinds), *rest)
        filled = []
        for number, layer in enumerate(layers):
            held = None if cached is None else (cached[0][number], cached[1][number])
            x, held = layer(x, held, kinds[number], *rest)
            filled.append(held)
        return x, None if cached is None else tuple(zip(*filled, strict=True))

    def _lead(self, count: int, x: Array, cached: None, *rest: Any) -> tuple[jax.Array, None]:
        """The first `count` layers, without gradient."""
        layers: Any = self.layers
        kinds = layer_kinds(self.config)[:count]
        if self.unrolled:
            for kind, layer in zip(kinds, layers[:count], strict=True):
                x, _ = layer(x, None, kind, *rest)
            return jax.lax.stop_gradient(x), None
        if self.is_initializing():
            # The stack is whole or not there: its parameters are those of all layers.
            return self._run(x, cached, *rest)
        held = jax.lax.stop_gradient(nn.meta.unbox(self.variables["params"]["layers"]))
        first = jax.tree.map(lambda leaf: leaf[:count], held)
        lead = self._stack(DecoderLayer, count, parent=None)
        return lead.apply({"params": first}, jax.lax.stop_gradient(x), None, _stacked(kinds), *rest)

    def output_matrix(self) -> Float[Array, "M vocab"]:
        """The matrix [M, vocab] that turns hidden states into logits."""
        return self.embedding.T if self.config.tie_embeddings else self.head

    def logits(self, hidden: Float[Array, "*rows M"]) -> Float[Array, "*rows vocab"]:
        """float32 logits [..., vocab] of hidden states [..., M]."""
        matrix = self.output_matrix().astype(self.dtype)
        raw = jnp.einsum("...d,dv->...v", hidden, matrix, preferred_element_type=jnp.float32)
        return softcapped(raw, self.config.logit_softcap) if self.config.logit_softcap else raw
