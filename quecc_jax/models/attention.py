"""Attention: the one place where masks are made, and the kernels that compute it per platform.

    kernel    `auto` takes it on   what it computes
    splash    TPU                  a pass over whole rows, causal within segments: training, prefill
    cudnn     NVIDIA GPU           the same without soft caps, in half precision, for even rows and heads of 8, ... 128
    xla       elsewhere            everything; also what the two do not take, on any platform

XLA it stays for ALiBi, for reading a cache token by token (bound by the cache's bytes, whatever computes it), and
for the vision tower, whose patches see one another without a mask. Where `auto` has a kernel for the platform and
the model or the installation is not made for it, a notice says why, once; the shapes of a call are no matter of it.

Splash attention's masks are constants of the program. A scanned layer whose window is one of two takes one of two
kernels, by a conditional.

JAX's own splash attention is used rather than tokamax 0.0.12, which has a later version of the same kernel:
its public function takes no segments, and it brings six more packages that training does not need.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.models.arrays import Array

Kernel = Literal["auto", "xla", "splash", "cudnn"]

LANES = 128
"""Places that a TPU vector register holds in its last dimension; blocks are multiples of it."""
BLOCK = 512
"""Largest block of queries and of keys that splash attention holds on the chip."""

SAVED = "attention"
"""Name of what splash attention's backward pass needs besides q, k and v, for remat policies."""


class MaskSpec(NamedTuple):
    """What attention may see: keys of the query's own segment whose positions are not later.

    Within a segment positions rise by one per token. A window limits how far back, and slopes make distance cost.
    All count in positions, so it does not matter where in a cache keys stand, and holes that padding leaves there have
    no width.
    Kept as vectors so that kernels which build masks on the fly can take them; only `dense_mask`
    and `dense_bias` make S x T matrices.

    Example, two conversations packed into a row of six with one position of padding:
      segments 1 1 1 2 2 0, positions 0 1 2 0 1 0
      the third sees the first three, within a window of 2 only two of them; the fifth sees the fourth and itself;
      padding sees padding, and is never used.
    """

    q_segments: jax.Array
    """int32 [B, S]"""
    q_positions: jax.Array
    """int32 [B, S]"""
    k_segments: jax.Array | None = None
    """int32 [B, T] of a cache's keys; None in one pass, where keys are the queries' own."""
    k_positions: jax.Array | None = None
    """int32 [B, T]; None with `k_segments`."""
    window: jax.Array | int | None = None
    """Tokens that a query sees, itself included; an int where it is a constant of the program."""
    slopes: jax.Array | None = None
    """float32 [H], taken off a head's logits per position of distance (ALiBi)."""
    windows: tuple[int, ...] = ()
    """The two values that an array `window` has."""


class Scores(NamedTuple):
    """How logits follow from the products of queries and keys."""

    scale: float | None = None
    """Their factor; None is head_dim^-1/2."""
    softcap: float = 0.0
    """Then they are c tanh(x / c) for this c, unless it is 0."""

    def factor(self, width: int) -> float:
        """`scale` for heads of this width."""
        return width**-0.5 if self.scale is None else self.scale


PLAIN = Scores()
NO_LIMIT = int(jnp.iinfo(jnp.int32).max)
"""A window that is none."""


def causal(segments: Int[Array, "B S"], positions: Int[Array, "B S"]) -> MaskSpec:
    """Causal attention within segments, both int32 [B, S], of one pass without a cache."""
    return MaskSpec(segments, positions)


def dense_mask(spec: MaskSpec) -> Bool[Array, "B 1 S T"]:
    """bool [B, 1, S, T], True where attention is allowed."""
    segments, positions = _keys(spec)
    same = spec.q_segments[:, :, None] == segments[:, None, :]
    seen = same & (positions[:, None, :] <= spec.q_positions[:, :, None])
    if spec.window is not None:
        seen &= _distance(spec) < spec.window
    return seen[:, None]


def dense_bias(spec: MaskSpec) -> Float[Array, "B H S T"] | None:
    """float32 [B, H, S, T] to be added to the logits; None without slopes."""
    if spec.slopes is None:
        return None
    return -spec.slopes[:, None, None] * _distance(spec)[:, None].astype(jnp.float32)


def _distance(spec: MaskSpec) -> jax.Array:
    return spec.q_positions[:, :, None] - _keys(spec)[1][:, None, :]


def _keys(spec: MaskSpec) -> tuple[Array, Array]:
    """Segments and positions of the keys, int32 [B, T]."""
    if spec.k_segments is None or spec.k_positions is None:
        return spec.q_segments, spec.q_positions
    return spec.k_segments, spec.k_positions


def attention(
    q: Float[Array, "B S H head_dim"],
    k: Float[Array, "B T kv_heads head_dim"],
    v: Float[Array, "B T kv_heads head_dim"],
    mask: MaskSpec | None,
    kernel: Kernel = "auto",
    scores: Scores = PLAIN,
) -> Float[Array, "B S H head_dim"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
      q: [B, S, H, head_dim].
      k, v: [B, T, kv_heads, head_dim] with kv_heads dividing H.
      mask: None lets every query see every key.
      kernel: what computes it; `auto` goes by the platform that the program is made for. A named kernel
        gives way to XLA where only the shapes or the cache of this call are in its way.
      scores: of the products.

    Returns:
      [B, S, H, head_dim] in q's type.

    Raises:
      UserError: cuDNN is asked for by name and does not take these arrays.
    """
    if mask is None or continues(q, mask):
        return xla_attention(q, k, v, mask, scores)
    target = platform()
    chosen = {"tpu": "splash", "gpu": "cudnn"}.get(target, "xla") if kernel == "auto" else kernel
    why = unfit(mask, scores, chosen)
    if chosen == "splash" and not why and not undivided(q, k, interpreted=target != "tpu"):
        return _by_window(mask, q, lambda one: splash_attention(q, k, v, one, scores, target != "tpu"))
    if chosen == "cudnn" and not why and q.shape[1] % 2 == 0:
        try:
            return cudnn_attention(q, k, v, mask, scores)
        except (NotImplementedError, RuntimeError) as error:
            if kernel == "cudnn":
                raise UserError(f"model.attention_kernel cudnn: {error}; use auto or xla") from None
            why = str(error).partition("\n")[0]
    if why and kernel == "auto" and chosen != "xla":
        _tell(chosen, why)
    return xla_attention(q, k, v, mask, scores)


@functools.cache
def _tell(kernel: str, why: str) -> None:
    notice(f"attention is XLA's, not {kernel}: {why}")


def _by_window(
    mask: MaskSpec, q: jax.Array, compute: Callable[[MaskSpec], jax.Array]
) -> Float[Array, "B S H head_dim"]:
    """What a function makes of a mask whose window is a constant of the program."""
    if not isinstance(mask.window, jax.Array):
        return compute(mask)
    # Beyond the row a window hides nothing.
    first, second = (window if window < q.shape[1] else None for window in mask.windows)
    if first == second:
        return compute(mask._replace(window=first))
    either: jax.Array = jax.lax.cond(
        mask.window == mask.windows[0],
        lambda: compute(mask._replace(window=first)),
        lambda: compute(mask._replace(window=second)),
    )
    return either


def platform() -> str:
    """`tpu`, `gpu` or `cpu`: of the mesh that the program is made for, which need not be here."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend()
    return mesh.abstract_device.platform


def continues(q: Array, mask: MaskSpec) -> bool:
    """Whether queries continue a cache, or are too few to gain from a kernel."""
    return mask.k_segments is not None or q.shape[1] == 1


def unfit(mask: MaskSpec, scores: Scores, kernel: str) -> str:
    """Why a kernel does not compute this attention; an empty text if it does."""
    if mask.slopes is not None:
        return "ALiBi adds to every logit"
    if kernel == "splash" and isinstance(mask.window, jax.Array) and not mask.windows:
        return "nothing says which windows layers have"
    return "it has no soft cap of logits" if kernel == "cudnn" and scores.softcap else ""


def undivided(q: Array, k: Array, interpreted: bool) -> str:
    """Why rows and heads cannot be handed out to the mesh's devices as Pallas needs it; else empty."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        # Arguments may lie on several devices, and the compiler does not cut Pallas kernels itself.
        several = not interpreted and jax.device_count() > 1
        return "no mesh says which device computes what" if several else ""
    spec = nn.logical_to_mesh_axes(("batch", None, "heads", None)) or 4 * (None,)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    try:
        sharding.shard_shape(q.shape), sharding.shard_shape(k.shape)
    except ValueError as error:
        return str(error)
    return ""


def xla_attention(
    q: Float[Array, "B S H head_dim"],
    k: Float[Array, "B T kv_heads head_dim"],
    v: Float[Array, "B T kv_heads head_dim"],
    mask: MaskSpec | None,
    scores: Scores = PLAIN,
) -> Float[Array, "B S H head_dim"]:
    """`attention` in matrix products and a softmax, with all logits in memory.

    Heads come before positions in every operand: on a CPU the backward pass of
    `jax.nn.dot_product_attention`, which does not order them so, takes longer.
    """
    rows, length, heads, width = q.shape
    groups = k.shape[2]
    q = q.reshape(rows, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    logits = jnp.einsum("bgnsd,bgtd->bgnst", q, k, preferred_element_type=jnp.float32) * scores.factor(width)
    if scores.softcap:
        logits = softcapped(logits, scores.softcap)
    if mask is not None:
        bias = dense_bias(mask)
        if bias is not None:
            logits = logits + bias.reshape(*bias.shape[:1], groups, heads // groups, *bias.shape[2:])
        logits = jnp.where(dense_mask(mask)[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgnst,bgtd->bgnsd", weights, v)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width)


def softcapped(logits: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """c tanh(x / c) of logits x."""
    return cap * jnp.tanh(logits / cap)


def cudnn_attention(
    q: Float[Array, "B S H head_dim"],
    k: Float[Array, "B T kv_heads head_dim"],
    v: Float[Array, "B T kv_heads head_dim"],
    mask: MaskSpec,
    scores: Scores = PLAIN,
) -> Float[Array, "B S H head_dim"]:
    """`attention` of one pass, without a soft cap, by cuDNN's fused kernel; the mask is a bias [B, 1, S, S].

    Raises:
      NotImplementedError: it does not take arrays of this type or head width.
      RuntimeError: there is no cuDNN.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"takes bfloat16 and float16, not {q.dtype}")
    # JAX checks the rest against the cuDNN that is installed.
    return jax.nn.dot_product_attention(
        q, k, v, mask=dense_mask(mask), scale=scores.scale, implementation="cudnn"
    )


def blocks(length: int) -> tuple[int, int]:
    """(block, padded length) for rows of `length`: equal blocks of at most BLOCK, in whole lanes."""
    count = -(-length // BLOCK)
    block = -(-length // (count * LANES)) * LANES
    return block, count * block


def splash_attention(
    q: Float[Array, "B S H head_dim"],
    k: Float[Array, "B T kv_heads head_dim"],
    v: Float[Array, "B T kv_heads head_dim"],
    mask: MaskSpec,
    scores: Scores = PLAIN,
    interpret: bool = False,
) -> Float[Array, "B S H head_dim"]:
    """`attention` of one pass by the Pallas TPU kernel, which never holds more than blocks of logits.

    Rows and heads are split over the mesh as the sharding rules say. Rows are padded to whole blocks;
    blocks that the causal mask or the window hides are skipped, forward and backward.
    """
    length, width = q.shape[1], q.shape[-1]
    block, padded = blocks(length)
    fill = ((0, 0), (0, padded - length))
    # What fills a row up is a segment of its own, so that no real position attends to it.
    segments = jnp.pad(mask.q_segments, fill, constant_values=-1)
    q = (q.astype(jnp.float32) * scores.factor(width)).astype(q.dtype)
    q, k, v = (jnp.pad(x, (*fill, (0, 0), (0, 0))) for x in (q, k, v))
    window = mask.window if mask.window is not None and int(mask.window) < length else None

    run = functools.partial(
        _splash_local, block=block, window=window, softcap=scores.softcap, interpret=interpret
    )
    if not jax.sharding.get_abstract_mesh().empty:
        spec = nn.logical_to_mesh_axes(("batch", None, "heads", None)) or 4 * (None,)
        heads, rows = jax.sharding.PartitionSpec(*spec), jax.sharding.PartitionSpec(spec[0])
        run = jax.shard_map(run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return run(q, k, v, segments)[:, :length]


def _splash_local(
    q: Array,
    k: Array,
    v: Array,
    segments: jax.Array,
    *,
    block: int,
    window: int | jax.Array | None,
    softcap: float,
    interpret: bool,
) -> jax.Array:
    """The kernel on one device's rows and heads."""
    # Pallas takes a second to import, which programs for other platforms are spared.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (q.shape[1], q.shape[1])
    one = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (int(window) - 1, 0), 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([one] * q.shape[2]),
        block_sizes=splash.BlockSizes(*(8 * (block,))),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    each = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))
    return each(q, k, v, segments).swapaxes(1, 2)
