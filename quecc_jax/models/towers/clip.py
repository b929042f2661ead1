"""CLIP vision transformer: pixels to the hidden states that compressors read."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from quecc_jax.config import VisionConfig
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.models.arrays import Array
from quecc_jax.models.attention import MaskSpec, attention
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, recomputed, with_axes
from quecc_jax.models.multiscale import join_scales, split_scales


def split_features(states: Float[Array, "*P rows K D"], config: VisionConfig) -> Features:
    """What compressors read, from what the tower keeps, [..., rows, K, D] of `state_shape`.

    X_m holds the levels side by side in the order of the config (QueCC section 4, TokenPacker's
    multi-level input).
    """
    index = {k: i for i, k in enumerate(hidden_indices(config))}
    extra = config.rows - config.patches

    def state(k: int) -> jax.Array:
        return states[..., index[config.state_index(k)], :]

    single = state(config.select_layer)
    multi = jnp.concatenate([state(k)[..., extra:, :] for k in config.levels], axis=-1)
    features = Features(single[..., extra:, :], multi)
    if config.keep_cls:
        features = features._replace(cls=single[..., :1, :])
    if config.keep_attention:
        query, keys = states[..., 0, -2, :], states[..., -1, :]
        logits = jnp.einsum("...d,...nd->...n", query, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(config.width), axis=-1)
        features = features._replace(attention=weights[..., 1:], keys=keys[..., 1:, :])
    return features


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def sine_cosine_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """2-D sine-cosine positions [1 + g^2, D] with zeros for CLS; D is a multiple of 4.

    A tower trained from scratch finds its neighbours much sooner from these than from noise;
    converted CLIP weights overwrite them.
    """
    del key
    grid, width = math.isqrt(shape[0] - 1), shape[1]
    frequency = 100.0 ** (-jnp.arange(width // 4) / (width // 4))
    angle = jnp.arange(grid)[:, None] * frequency
    wave = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    down = jnp.broadcast_to(wave[:, None], (grid, grid, width // 2))
    across = jnp.broadcast_to(wave[None], (grid, grid, width // 2))
    patches = jnp.concatenate([down, across], axis=-1).reshape(grid * grid, width)
    return jnp.concatenate([jnp.zeros((1, width)), patches]).astype(dtype)


class ClipLayer(nn.Module):
    """Pre-norm transformer layer with biases everywhere, of the vision and of the text tower."""

    config: VisionConfig | ClipTextConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: MaskSpec | None
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
        """x [B, S, D] -> (new x, the same as a scan output); no mask lets all positions see one another."""
        c = self.config
        dense = functools.partial(linear, dtype=self.dtype)
        heads = (c.heads, c.width // c.heads)
        y = LayerNorm(c.norm_eps, name="norm1")(x)
        q, k, v = (dense(heads, ("embed", "heads", "head_dim"), name=name)(y) for name in "qkv")
        y = attention(q, k, v, mask)
        residual = functools.partial(dense, c.width, variance=0.5 / c.depth)
        x = x + residual(("heads", "head_dim", "embed"), inputs=2, name="out")(y)
        y = LayerNorm(c.norm_eps, name="norm2")(x)
        y = dense(c.mlp_width, ("embed", "mlp"), name="fc1")(y)
        y = quick_gelu(y) if c.activation == "quick_gelu" else jax.nn.gelu(y, approximate=False)
        x = constrain_batch(x + residual(("mlp", "embed"), name="fc2")(y))
        return x, x


class ClipTower(nn.Module):
    """The tower up to its hidden states. CLS is used inside, and dropped from the result unless the config
    keeps it."""

    config: VisionConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    """`ModelConfig.remat`, where the tower is trained."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "P height width channels"]) -> Float[Array, "P rows K D"]:
        """Hidden states [B, rows, K, D] of `state_shape`, listed by `hidden_indices`, from pixels
        [B, H, W, 3]; D is `feature_width`, that of all scales."""
        c = self.config
        if pixels.shape[1:] != (c.input_size, c.input_size, 3):
            raise ValueError(
                f"pixels are {pixels.shape[1:]}, the tower takes {(c.input_size, c.input_size, 3)}"
            )
        pixels = split_scales(pixels, c)
        b, g, p = pixels.shape[0], c.grid, c.patch_size
        patches = pixels.astype(self.dtype).reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, g * g, p * p * 3)
        x = linear(c.width, (None, "embed"), bias=False, dtype=self.dtype, name="patch_embedding")(patches)
        normal = nn.initializers.normal(0.02)
        cls = self.param("class_embedding", with_axes(normal, "embed"), (c.width,))
        position = self.param(
            "position_embedding", with_axes(sine_cosine_init, None, "embed"), (g * g + 1, c.width)
        )
        x = jnp.concatenate([jnp.broadcast_to(cls.astype(self.dtype), (b, 1, c.width)), x], axis=1)
        x = LayerNorm(c.norm_eps, name="pre_norm")(x + position.astype(self.dtype))
        x = constrain_batch(x)
        # Layers above the last state that is read have parameters, as checkpoints do, but never run.
        used = c.depth if self.is_initializing() else hidden_indices(c)[-1]
        stack = nn.scan(
            recomputed(ClipLayer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=used,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if used < c.depth:
            first = functools.partial(jax.tree.map, lambda leaf: leaf[:used])
            stack = nn.map_variables(stack, "params", trans_in_fn=first)
        last, states = stack(c, self.dtype, name="layers")(x, None)
        if c.post_norm:
            # Declared for its parameters alone: an imported tower must be able to leave complete.
            LayerNorm(c.norm_eps, name="post_norm")(last[:, 0])
        states = jnp.concatenate([x[None], states])
        kept = states[jnp.array(hidden_indices(c))]
        if c.keep_attention:
            kept = jnp.concatenate([kept, self._queries_and_keys(states[c.select_index])])
        return join_scales(kept[:, :, c.patches + 1 - c.rows :].transpose(1, 2, 0, 3), c)

    def _queries_and_keys(self, x: Array) -> jax.Array:
        """[2, B, 1 + N, D] of the layer that reads the select layer's states x [B, 1 + N, D]."""
        c = self.config
        if self.is_initializing():
            return jnp.stack([x, x])
        layers = nn.meta.unbox(self.variables["params"]["layers"])
        p = jax.tree.map(lambda leaf: leaf[c.select_index], layers)
        y = LayerNorm(c.norm_eps, parent=None).apply({"params": p["norm1"]}, x)
        dense = linear(
            (c.heads, c.width // c.heads), ("embed", "heads", "head_dim"), dtype=self.dtype, parent=None
        )
        made: list[Any] = [dense.apply({"params": p[name]}, y) for name in "qk"]
        return jnp.stack(made).reshape(2, *x.shape)
