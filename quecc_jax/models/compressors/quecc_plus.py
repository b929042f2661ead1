"""QueCC with an instruction that has read the image: ours, and the rungs that were tried on the way.

At one token the decoder gets the image through a single vector, whatever the question. LLaVA-Mini lets
the instruction read all n patches in four decoder layers before the decoder does, which costs a good part
of what one token saves. Here the instruction reads a few region tokens that QueCC makes of the same towers,
in one layer, so that a 7B decoder has 1/32 more to do on a prompt of text alone.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import EPS, Features, MLPNorm, RegionAttention, image_grid, regions
from quecc_jax.models.compressors.base_config import Sizes, output_grid
from quecc_jax.models.compressors.quecc import DepthwiseConv, Prepared
from quecc_jax.models.compressors.quecc_plus_config import QueccPlusConfig
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, with_axes


def build(settings: QueccPlusConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return QueCCPlus(settings, sizes, dtype, name=name)


class QueCCPlus(nn.Module):
    """QueCC, and by the compressor's settings:

    - `memory` R > 0: R region tokens of the same towers, with a convolution and an attention of their own,
      which the instruction reads in `fusion_layers` decoder layers (`fusion.Fusion`);
    - `registers`: attention by learned queries, which looks the same way whatever is asked, added to the
      tokens;
    - `rounds`: further attention by queries that know what the rounds before have found.
    """

    settings: QueccPlusConfig
    sizes: Sizes
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c, width = self.settings, self.sizes.width
        self.text_projection = linear(width, ("mlp", "embed"), dtype=self.dtype)
        self.text_norm = LayerNorm(EPS)
        self.q_proj, self.k_proj, self.v_proj = (MLPNorm(width, self.dtype) for _ in range(3))
        self.q_downsample = DepthwiseConv(c.kernel, c.stride, self.dtype)
        self.clip_attn = RegionAttention(c.heads, self.dtype)
        if c.registers:
            init = with_axes(nn.initializers.normal(1.0), "embed")
            self.register = self.param("register", init, (width,))
            self.register_attn = RegionAttention(c.heads, self.dtype, shown=False)
        self.round_norms = [LayerNorm(EPS) for _ in range(c.rounds - 1)]
        self.round_attn = [RegionAttention(c.heads, self.dtype) for _ in range(c.rounds - 1)]
        if c.fusion_layers > 0:
            window = self.sizes.grid // round(c.memory**0.5)
            self.memory_downsample = DepthwiseConv(window, window, self.dtype)
            self.memory_attn = RegionAttention(c.heads, self.dtype, shown=False)

    def __call__(
        self, features: Features, query: Float[Array, "P 1 text_width"]
    ) -> Float[Array, "P V_and_memory D"]:
        """[P, V + R, D]: compressed tokens, and behind them the memory, of features X_s [P, N, D] and X_m
        [P, N, levels * D] and the questions' features t [P, 1, text_width].

        Raises:
          ValueError: as QueCC.
        """
        return self.finish(self.prepare(features), query)

    def prepare(self, features: Features) -> Prepared:
        """The image's part."""
        single, multi = (x.astype(self.dtype) for x in (features.single, features.multi))
        return Prepared(single, self.k_proj(multi), self.v_proj(multi))

    def finish(
        self, prepared: Prepared, query: Float[Array, "P 1 text_width"]
    ) -> Float[Array, "P V_and_memory D"]:
        """The question's part."""
        c, (single, k, v) = self.settings, prepared
        (p, _, width), grid = single.shape, image_grid(single)
        side = output_grid(grid, c.kernel, c.stride)
        text = self.text_projection(query.astype(self.dtype))
        text = constrain_batch(self.text_norm(constrain_batch(text)))
        q = self.q_proj(single + text).reshape(p, grid, grid, width)

        asked = constrain_batch(self.q_downsample(q)).reshape(p, side * side, width)
        keys, values = regions(k, side), regions(v, side)
        tokens = self.clip_attn(asked, keys, values)
        if c.registers:
            own = jnp.broadcast_to(self.register.astype(self.dtype), asked.shape)
            tokens = tokens + self.register_attn(own, keys, values)
        for norm, attend in zip(self.round_norms, self.round_attn, strict=True):
            tokens = tokens + attend(asked + norm(tokens), keys, values)
        if not c.fusion_layers > 0:
            return tokens
        fine = round(c.memory**0.5)
        asked = constrain_batch(self.memory_downsample(q)).reshape(p, fine * fine, width)
        memory = self.memory_attn(asked, regions(k, fine), regions(v, fine))
        return jnp.concatenate([tokens, memory], axis=1)
