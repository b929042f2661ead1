"""Next-token cross-entropy that never holds [B, S, vocab] logits."""

import jax
import jax.numpy as jnp

from quecc_jax.data.batch import IGNORE


def shifted_targets(labels: jax.Array) -> jax.Array:
    """The label each position predicts, [B, S]: labels moved left by one, IGNORE at the end.

    A conversation's first token never carries a label, so nothing is predicted across segments.
    """
    return jnp.concatenate([labels[:, 1:], jnp.full_like(labels[:, :1], IGNORE)], axis=1)


def cross_entropy_sum(
    hidden: jax.Array, matrix: jax.Array, labels: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Summed loss in nats over all labelled tokens, and their number.

    Logits exist for `chunk` positions of every row at a time, in float32, and are recomputed in
    the backward pass.

    Args:
      hidden: [B, S, D] final hidden states.
      matrix: [D, vocab] output matrix.
      labels: int32 [B, S], unshifted, IGNORE where there is no loss.
      chunk: positions per slice; the last slice is padded.

    Returns:
      float32 scalars (sum of losses, count of labelled tokens).
    """
    targets = shifted_targets(labels)
    length = hidden.shape[1]
    chunk = min(chunk, length)
    pad = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)), constant_values=IGNORE)
    matrix = matrix.astype(hidden.dtype)

    @jax.checkpoint
    def one(h: jax.Array, t: jax.Array) -> jax.Array:
        logits = jnp.einsum("bsd,dv->bsv", h, matrix, preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(logits, jnp.maximum(t, 0)[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - picked
        return jnp.sum(jnp.where(t == IGNORE, 0.0, losses))

    pieces = hidden.shape[1] // chunk
    if pieces == 1:
        total = one(hidden, targets)
    else:
        split = [x.reshape(x.shape[0], pieces, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (hidden, targets)]
        total, _ = jax.lax.scan(lambda s, ht: (s + one(*ht), None), jnp.zeros((), jnp.float32), tuple(split))
    return total, jnp.sum(targets != IGNORE).astype(jnp.float32)
