"""Next-token cross-entropy that never holds [B, S, vocab] logits and computes each logit once."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.data.batch import IGNORE
from quecc_jax.models.attention import softcapped
from quecc_jax.models.teacher import Taught


def shifted_targets(labels: jax.Array) -> jax.Array:
    """The label each position predicts, [B, S]: labels moved left by one, IGNORE at the end.

    A conversation's first token never carries a label, so nothing is predicted across segments.
    """
    return jnp.concatenate([labels[:, 1:], jnp.full_like(labels[:, :1], IGNORE)], axis=1)


def cross_entropy_sum(
    hidden: jax.Array,
    matrix: jax.Array,
    labels: jax.Array,
    chunk: int,
    parts: int = 1,
    taught: Taught | None = None,
    softcap: float = 0.0,
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
      taught: a teacher's states, which get no gradient; with them the loss is the mean, by its weight, of
        cross-entropy and temperature^2 times the Kullback-Leibler divergence of the student from the teacher over
        the vocabulary.
      softcap: of all logits, the decoder's `logit_softcap`.

    Returns:
      float32 scalars (sum of losses, count of labelled tokens).
    """
    targets = shifted_targets(labels)
    rows, length, width = hidden.shape
    chunk = min(chunk, length)
    pad = -length % chunk

    def padded(hidden: jax.Array) -> jax.Array:
        hidden = nn.with_logical_constraint(hidden, ("batch", None, None))
        return jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))

    def gathered(matrix: jax.Array) -> jax.Array:
        """Once, in the type that it is used in."""
        return nn.with_logical_constraint(matrix.astype(hidden.dtype), (None, "vocab"))

    pieces = (length + pad) // chunk

    def split(x: jax.Array) -> jax.Array:
        """[B, S, ...] -> [pieces, parts, B / parts, chunk, ...]"""
        return jnp.moveaxis(x.reshape(parts, rows // parts, pieces, chunk, *x.shape[2:]), 2, 0)

    def pieces_of(hidden: jax.Array, targets: jax.Array, taught: Taught | None) -> tuple[jax.Array, ...]:
        return tuple(map(split, (hidden, targets) if taught is None else (hidden, targets, taught.hidden)))

    @jax.custom_vjp
    def total(hidden: jax.Array, matrix: jax.Array, targets: jax.Array, taught: PyTree) -> jax.Array:
        def add(loss: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            h, t, *states = piece
            return loss + _losses(h, matrix, t, _of_piece(taught, states), softcap)[0], None

        return jax.lax.scan(add, jnp.zeros((), jnp.float32), pieces_of(hidden, targets, taught))[0]

    def forward(
        hidden: PyTree, matrix: PyTree, targets: PyTree, taught: PyTree
    ) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        weights, trained = matrix.value, matrix.perturbed
        taught = jax.tree.map(lambda x: x.value, taught)

        def add(carry: PyTree, piece: tuple[jax.Array, ...]) -> tuple[PyTree, jax.Array]:
            (h, t, *states), (loss, gradient) = piece, carry
            more, slope = _losses(h, weights, t, _of_piece(taught, states), softcap)
            if trained:
                gradient = gradient + jnp.einsum(
                    "nbsd,nbsv->ndv", h, slope, preferred_element_type=jnp.float32
                )
                gradient = nn.with_logical_constraint(gradient, ("batch", None, "vocab"))
            return (loss + more, gradient), jnp.einsum("nbsv,dv->nbsd", slope, weights)

        own = jnp.zeros((parts, *weights.shape), jnp.float32) if trained else None
        (loss, own), slopes = jax.lax.scan(
            add, (jnp.zeros((), jnp.float32), own), pieces_of(hidden.value, targets.value, taught)
        )
        slopes = jnp.moveaxis(slopes, 0, 2).reshape(rows, length + pad, width)
        if own is not None:
            own = jnp.sum(own.astype(weights.dtype), axis=0, dtype=weights.dtype)
            own = nn.with_logical_constraint(own, ("embed", "vocab"))
            # Added up over devices before the backward pass goes on, which would hold it whole.
            slopes, own = jax.lax.optimization_barrier((slopes, own))
        return loss, (slopes, own)

    def backward(saved: tuple[jax.Array, PyTree], scale: jax.Array) -> tuple[PyTree, PyTree, None, None]:
        hidden, matrix = (None if x is None else scale.astype(x.dtype) * x for x in saved)
        return hidden, matrix, None, None

    total.defvjp(forward, backward, symbolic_zeros=True)
    if taught is not None:
        taught = taught._replace(hidden=padded(taught.hidden), matrix=gathered(taught.matrix))
    ids = jnp.pad(targets, ((0, 0), (0, pad)), constant_values=IGNORE)
    loss = total(padded(hidden), gathered(matrix), ids, taught)
    return loss, jnp.sum(targets != IGNORE).astype(jnp.float32)


def _of_piece(taught: Taught | None, states: Sequence[jax.Array]) -> Taught | None:
    return None if taught is None else taught._replace(hidden=states[0])


def _losses(
    hidden: jax.Array, matrix: jax.Array, targets: jax.Array, taught: Taught | None, softcap: float
) -> tuple[jax.Array, jax.Array]:
    """The summed loss of positions [..., M], and its derivative by the products [..., vocab] of which their logits
    are made, in hidden's type."""
    logits = _logits(hidden, matrix, softcap)
    norm = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not an index: it needs no collective where the vocabulary is split.
    hit = jnp.arange(matrix.shape[1]) == targets[..., None]
    losses = norm - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    slope = jnp.exp(logits - norm[..., None]) - hit
    if taught is not None:
        weight, heat = taught.weight, taught.temperature
        wanted = jax.nn.log_softmax(_logits(taught.hidden, taught.matrix, softcap) / heat)
        found = jax.nn.log_softmax(logits / heat)
        divergence = jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1)
        losses = (1 - weight) * losses + weight * heat**2 * divergence
        slope = (1 - weight) * slope + weight * heat * (jnp.exp(found) - jnp.exp(wanted))
    if softcap:
        slope = slope * (1 - (logits / softcap) ** 2)
    counts = targets != IGNORE
    slope = jnp.where(counts[..., None], slope, 0.0)
    return jnp.sum(jnp.where(counts, losses, 0.0)), slope.astype(hidden.dtype)


def _logits(hidden: jax.Array, matrix: jax.Array, softcap: float) -> jax.Array:
    raw = jnp.einsum("...d,dv->...v", hidden, matrix, preferred_element_type=jnp.float32)
    return softcapped(raw, softcap) if softcap else raw
