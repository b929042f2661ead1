"""The chunked loss against one over full logits, and what it computes for whom."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.aot import hlo
from quecc_jax.data.batch import IGNORE
from quecc_jax.models.teacher import Taught
from quecc_jax.train.loss import cross_entropy_sum, shifted_targets

ROWS, LENGTH, WIDTH, VOCAB = 4, 11, 8, 23


def arrays(seed: int = 0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    matrix = rng.normal(size=(WIDTH, VOCAB)).astype(np.float32)
    labels = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    labels[rng.random((ROWS, LENGTH)) < 0.4] = IGNORE
    return hidden, matrix, labels


def spoken(hidden, matrix, cap=0.0):
    """Logits, capped or not."""
    return cap * jnp.tanh(hidden @ matrix / cap) if cap else hidden @ matrix


def reference(hidden, matrix, labels, cap=0.0):
    targets = shifted_targets(labels)
    logits = spoken(hidden, matrix, cap)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(jnp.where(targets == IGNORE, 0.0, losses))


reference_gradients = jax.jit(jax.value_and_grad(reference, (0, 1)), static_argnums=3)


@settings(max_examples=5, deadline=None)
@given(chunk=st.integers(1, LENGTH + 3), parts=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@pytest.mark.parametrize("cap", [0.0, 2.5])
def test_loss_and_gradients_are_those_of_full_logits(cap, chunk, parts, seed):
    hidden, matrix, labels = arrays(seed)

    def chunked(hidden, matrix):
        # Scaled, as a caller that divides by the count would.
        return 0.5 * cross_entropy_sum(hidden, matrix, labels, chunk, parts, softcap=cap)[0]

    loss, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, matrix)
    expected, wanted = reference_gradients(hidden, matrix, labels, cap)
    np.testing.assert_allclose(loss, 0.5 * expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(chunked)(hidden, matrix), loss, rtol=1e-6)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, 0.5 * other, rtol=1e-4, atol=1e-5)


def test_the_count_is_of_labels_that_are_predicted():
    hidden, matrix, labels = arrays()
    _, count = cross_entropy_sum(hidden, matrix, labels, 4)
    assert count == np.count_nonzero(labels[:, 1:] != IGNORE)


@pytest.mark.parametrize("trained, products", [(True, 3), (False, 2)])
def test_each_logit_is_computed_once_and_a_frozen_matrix_gets_no_gradient(trained, products):
    hidden, matrix, labels = arrays()

    def loss(hidden, matrix):
        return cross_entropy_sum(hidden, matrix, labels, LENGTH)[0]

    step = jax.jit(jax.grad(loss, (0, 1) if trained else 0))
    program = hlo.parse(step.lower(hidden, matrix).compile().as_text() or "")
    assert hlo.flops(program) == products * 2 * ROWS * LENGTH * WIDTH * VOCAB


def test_bfloat16_gradients_stay_close():
    hidden, matrix, labels = arrays()
    half = (hidden.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16))
    rough = jax.jit(jax.grad(lambda h, m: cross_entropy_sum(h, m, labels, 4)[0], (0, 1)))(*half)
    _, exact = reference_gradients(hidden, matrix, labels)
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(np.float32), other, atol=0.03 * np.abs(other).max())


def test_any_number_of_rows_is_one_part():
    hidden, matrix, labels = arrays()
    loss, count = cross_entropy_sum(hidden[:3], matrix, labels[:3], LENGTH)
    np.testing.assert_allclose(loss, reference(hidden[:3], matrix, labels[:3]), rtol=1e-5)
    assert count == np.sum(labels[:3, 1:] != IGNORE)


@pytest.mark.parametrize("weight, temperature", [(1.0, 1.0), (0.3, 1.0), (0.5, 2.5)])
@pytest.mark.parametrize("chunk, parts, cap", [(4, 1, 0.0), (LENGTH, 2, 2.5)])
def test_a_teacher_s_share_is_the_divergence_over_full_logits(weight, temperature, chunk, parts, cap):
    """By optax's formula; with temperature^2 the slope is temperature times the difference of the distributions."""
    (hidden, matrix, labels), (states, other, _) = arrays(0), arrays(1)
    counts = shifted_targets(labels) != IGNORE

    def expected(hidden, matrix):
        found, wanted = (spoken(*one, cap) / temperature for one in ((hidden, matrix), (states, other)))
        divergence = optax.kl_divergence(jax.nn.log_softmax(found), jax.nn.softmax(wanted))
        share = weight * temperature**2 * jnp.sum(jnp.where(counts, divergence, 0.0))
        return share + (1 - weight) * reference(hidden, matrix, labels, cap)

    def chunked(hidden, matrix):
        taught = Taught(jnp.asarray(states), jnp.asarray(other), weight, temperature)
        return cross_entropy_sum(hidden, matrix, labels, chunk, parts, taught, cap)[0]

    (loss, ours), (total, theirs) = (
        jax.jit(jax.value_and_grad(one, (0, 1)))(hidden, matrix) for one in (chunked, expected)
    )
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(chunked)(hidden, matrix), loss, rtol=1e-6)
    for one, another in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-5)


def test_who_agrees_with_the_teacher_has_nothing_to_learn():
    hidden, matrix, labels = arrays()
    taught = Taught(jnp.asarray(hidden), jnp.asarray(matrix), 1.0, 2.0)
    loss, gradient = jax.value_and_grad(lambda h: cross_entropy_sum(h, matrix, labels, 4, 1, taught)[0])(
        jnp.asarray(hidden)
    )
    np.testing.assert_allclose(loss, 0.0, atol=1e-4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
