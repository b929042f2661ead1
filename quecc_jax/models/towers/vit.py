"""Vision transformer: pixels to the hidden states that compressors read. CLIP, SigLIP and DINOv2 are values of its
config."""

import functools
import math
from collections.abc import Callable
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
from quecc_jax.models.bicubic import resized_square
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
    """2-D sine-cosine positions [g^2, D], or [1 + g^2, D] with zeros for CLS; D is a multiple of 4.

    A tower trained from scratch finds its neighbours much sooner from these than from noise;
    converted weights overwrite them.
    """
    del key
    grid, width = math.isqrt(shape[0]), shape[1]
    frequency = 100.0 ** (-jnp.arange(width // 4) / (width // 4))
    angle = jnp.arange(grid)[:, None] * frequency
    wave = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    down = jnp.broadcast_to(wave[:, None], (grid, grid, width // 2))
    across = jnp.broadcast_to(wave[None], (grid, grid, width // 2))
    patches = jnp.concatenate([down, across], axis=-1).reshape(grid * grid, width)
    return jnp.concatenate([jnp.zeros((shape[0] - grid**2, width)), patches]).astype(dtype)


ACTIVATIONS: dict[str, Callable[[Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""Those of MLPs of two matrices."""


class TowerLayer(nn.Module):
    """Pre-norm transformer layer with biases everywhere, of the vision and of CLIP's text tower."""

    config: VisionConfig | ClipTextConfig
    dtype: Any
    layer_scale: bool = False

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
        y = residual(("heads", "head_dim", "embed"), inputs=2, name="out")(y)
        x = x + self._scaled(y, "scale1")
        y = LayerNorm(c.norm_eps, name="norm2")(x)
        inner = dense(c.mlp_width, ("embed", "mlp"), name="fc1")(y)
        if c.activation == "swiglu":
            inner = jax.nn.silu(dense(c.mlp_width, ("embed", "mlp"), name="gate")(y)) * inner
        else:
            inner = ACTIVATIONS[c.activation](inner)
        y = residual(("mlp", "embed"), name="fc2")(inner)
        x = constrain_batch(x + self._scaled(y, "scale2"))
        return x, x

    def _scaled(self, y: Float[Array, "B S D"], name: str) -> Float[Array, "B S D"]:
        """What is added to the stream, each channel times its factor where there are such."""
        if not self.layer_scale:
            return y
        factor = self.param(name, with_axes(nn.initializers.ones, None), (y.shape[-1],))
        return y * factor.astype(y.dtype)


class VisionTower(nn.Module):
    """The tower up to its hidden states. CLS and registers are used inside; of the result they are no part, but
    for CLS where the config keeps it."""

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
        x = self._embedded(split_scales(pixels, c))
        # Layers above the last state that is read have parameters, as checkpoints do, but never run.
        used = c.depth if self.is_initializing() else hidden_indices(c)[-1]
        stack = nn.scan(
            recomputed(TowerLayer, self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=used,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if used < c.depth:
            first = functools.partial(jax.tree.map, lambda leaf: leaf[:used])
            stack = nn.map_variables(stack, "params", trans_in_fn=first)
        last, states = stack(c, self.dtype, c.layer_scale, name="layers")(x, None)
        if c.post_norm:
            # Declared for its parameters alone: an imported tower must be able to leave complete.
            LayerNorm(c.norm_eps, name="post_norm")(last[:, 0])
        states = jnp.concatenate([x[None], states])
        kept = states[jnp.array(hidden_indices(c))]
        if c.keep_attention:
            kept = jnp.concatenate([kept, self._queries_and_keys(states[c.select_index])])
        patches = kept[:, :, c.positions - c.patches :]
        if c.rows > c.patches:
            patches = jnp.concatenate([kept[:, :, :1], patches], axis=2)
        return join_scales(patches.transpose(1, 2, 0, 3), c)

    def _embedded(self, pixels: Float[Array, "P side side 3"]) -> Float[Array, "P S D"]:
        """What the first layer reads [B, S, D]: CLS, registers and patches, S = `positions`."""
        c = self.config
        b, g, p = pixels.shape[0], c.grid, c.patch_size
        patches = pixels[:, : g * p, : g * p].astype(self.dtype)
        patches = patches.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, g * g, p * p * 3)
        embedding = linear(
            c.width, (None, "embed"), bias=c.patch_bias, dtype=self.dtype, name="patch_embedding"
        )
        x = embedding(patches)
        normal = nn.initializers.normal(0.02)
        if c.cls:
            cls = self.param("class_embedding", with_axes(normal, "embed"), (c.width,))
            x = jnp.concatenate([jnp.broadcast_to(cls.astype(self.dtype), (b, 1, c.width)), x], axis=1)
        x = x + self._positions().astype(self.dtype)
        if c.registers:
            registers = self.param("registers", with_axes(normal, None, "embed"), (c.registers, c.width))
            registers = jnp.broadcast_to(registers.astype(self.dtype), (b, *registers.shape))
            x = jnp.concatenate([x[:, : c.cls], registers, x[:, c.cls :]], axis=1)
        if c.pre_norm:
            x = LayerNorm(c.norm_eps, name="pre_norm")(x)
        return constrain_batch(x)

    def _positions(self) -> Float[Array, "S D"]:
        """float32 [cls + N, D], what is added to CLS and patches, interpolated where the image has another grid than
        the learned positions."""
        c = self.config
        stored = c.position_grid or c.grid
        table = self.param(
            "position_embedding", with_axes(sine_cosine_init, None, "embed"), (c.cls + stored**2, c.width)
        )
        if stored == c.grid:
            return table
        patches = resized_square(table[c.cls :], c.grid, c.antialias_positions)
        return jnp.concatenate([table[: c.cls].astype(jnp.float32), patches])

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
