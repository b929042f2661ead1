"""Next-token cross-entropy that never holds [B, S, vocab] logits and computes each logit once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.data.batch import IGNORE


def shifted_targets(labels: jax.Array) -> jax.Array:
    """The label each position predicts, [B, S]: labels moved left by one, IGNORE at the end.

    A conversation's first token never carries a label, so nothing is predicted across segments.
    """
    return jnp.concatenate([labels[:, 1:], jnp.full_like(labels[:, :1], IGNORE)], axis=1)


def cross_entropy_sum(
    hidden: jax.Array, matrix: jax.Array, labels: jax.Array, chunk: int, parts: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Summed loss in nats over all labelled tokens, and their number.

    Logits exist for `chunk` positions of every row at a time, in float32. Under differentiation their
    gradient is taken while they are there: the forward pass leaves the gradients of `hidden` and, if it
    is differentiated, of `matrix`, and the backward pass only scales them.

    Args:
      hidden: [B, S, M] final hidden states.
      matrix: [M, vocab] output matrix.
      labels: int32 [B, S], unshifted, IGNORE where there is no loss.
      chunk: positions per piece; the last piece is padded.
      parts: parts of the batch on different devices, a divisor of B. Each adds up a gradient of `matrix`
        of its own, and these are added up over devices once, not once per piece.

    Returns:
      float32 scalars (sum of losses, count of labelled tokens).
    """
    targets = shifted_targets(labels)
    rows, length, width = hidden.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    hidden = nn.with_logical_constraint(hidden, ("batch", None, None))
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    padded = jnp.pad(targets, ((0, 0), (0, pad)), constant_values=IGNORE)
    # Gathered once, in the type that it is used in.
    matrix = nn.with_logical_constraint(matrix.astype(hidden.dtype), (None, "vocab"))

    pieces = (length + pad) // chunk

    def split(x: jax.Array) -> jax.Array:
        """[B, S, ...] -> [pieces, parts, B / parts, chunk, ...]"""
        return jnp.moveaxis(x.reshape(parts, rows // parts, pieces, chunk, *x.shape[2:]), 2, 0)

    @jax.custom_vjp
    def total(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> jax.Array:
        def add(loss: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return loss + _losses(piece[0], matrix, piece[1])[0], None

        return jax.lax.scan(add, jnp.zeros((), jnp.float32), (split(hidden), split(targets)))[0]

    def forward(
        hidden: PyTree, matrix: PyTree, targets: PyTree
    ) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        weights, trained = matrix.value, matrix.perturbed

        def add(carry: PyTree, piece: tuple[jax.Array, jax.Array]) -> tuple[PyTree, jax.Array]:
            (h, t), (loss, gradient) = piece, carry
            more, slope = _losses(h, weights, t)
            if trained:
                gradient = gradient + jnp.einsum(
                    "nbsd,nbsv->ndv", h, slope, preferred_element_type=jnp.float32
                )
                gradient = nn.with_logical_constraint(gradient, ("batch", None, "vocab"))
            return (loss + more, gradient), jnp.einsum("nbsv,dv->nbsd", slope, weights)

        own = jnp.zeros((parts, *weights.shape), jnp.float32) if trained else None
        (loss, own), slopes = jax.lax.scan(
            add, (jnp.zeros((), jnp.float32), own), (split(hidden.value), split(targets.value))
        )
        slopes = jnp.moveaxis(slopes, 0, 2).reshape(rows, length + pad, width)
        if own is not None:
            own = jnp.sum(own.astype(weights.dtype), axis=0, dtype=weights.dtype)
            own = nn.with_logical_constraint(own, ("embed", "vocab"))
        return loss, (slopes, own)

    def backward(saved: tuple[jax.Array, PyTree], scale: jax.Array) -> tuple[PyTree, PyTree, None]:
        hidden, matrix = (None if x is None else scale.astype(x.dtype) * x for x in saved)
        return hidden, matrix, None

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total(hidden, matrix, padded), jnp.sum(targets != IGNORE).astype(jnp.float32)


def _losses(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The summed loss of positions [..., M], and its derivative by their logits [..., vocab] in hidden's
    type."""
    logits = jnp.einsum("...d,dv->...v", hidden, matrix, preferred_element_type=jnp.float32)
    norm = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not an index: it needs no collective where the vocabulary is split.
    hit = jnp.arange(matrix.shape[1]) == targets[..., None]
    counts = targets != IGNORE
    losses = jnp.where(counts, norm - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), 0.0)
    slope = jnp.where(counts[..., None], jnp.exp(logits - norm[..., None]) - hit, 0.0)
    return jnp.sum(losses), slope.astype(hidden.dtype)
