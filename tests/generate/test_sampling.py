"""Each sampling rule against its own plain form in NumPy; draws follow their keys."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from quecc_jax.generate.sampling import Sampling, choose, process, unless_greedy

VOCAB = 12


def plain(logits: list[float], seen: set[int], s: Sampling) -> list[float]:
    """The rules token by token, in float64."""
    row = [float(x) for x in logits]
    for token in seen:
        row[token] *= s.repetition_penalty if row[token] < 0 else 1 / s.repetition_penalty
    if s.temperature > 0:
        row = [x / s.temperature for x in row]
    order = sorted(range(len(row)), key=lambda i: -row[i])
    kept = order[: s.top_k] if s.top_k else order
    weights = np.exp([row[i] - row[order[0]] for i in kept])
    total, nucleus = 0.0, list[int]()
    for token, weight in zip(kept, weights / weights.sum(), strict=True):
        if nucleus and s.top_p < 1 and total >= s.top_p:
            break
        nucleus.append(token)
        total += weight
    return [x if i in nucleus else -np.inf for i, x in enumerate(row)]


run = jax.jit(process)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, VOCAB + 3),
    top_p=st.sampled_from([0.01, 0.3, 0.77, 0.97, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 1.7]),
)
def test_the_rules_are_those_of_a_plain_loop(seed, temperature, top_k, top_p, penalty):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(3, VOCAB))).astype(np.float32)
    seen = rng.random((3, VOCAB)) < 0.4
    s = Sampling(temperature, top_k, top_p, penalty)
    found = np.asarray(run(logits, seen, s))
    for ours, row, tokens in zip(found, logits, seen, strict=True):
        wanted = plain(row.tolist(), set(np.flatnonzero(tokens).tolist()), s)
        assert np.isfinite(ours).sum() >= 1
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_a_temperature_of_zero_takes_the_likeliest_after_the_penalty():
    logits, seen = jnp.array([[2.0, 1.9, -1.0]]), jnp.array([[True, False, False]])
    keys = jax.random.split(jax.random.key(0), 1)
    for penalty, token in ((1.0, 0), (1.2, 1)):
        assert choose(logits, seen, Sampling(0.0, repetition_penalty=penalty), keys, jnp.int32(0)) == token


def test_draws_have_the_processed_probabilities():
    logits = np.array([0.5, 2.0, 1.0, -1.0, 1.5], np.float32)
    s, n = Sampling(temperature=0.8, top_k=4, top_p=0.9), 4000
    keys = jax.random.split(jax.random.key(1), n)
    seen = np.zeros((n, 5), bool)
    tokens = np.asarray(jax.jit(choose)(np.tile(logits, (n, 1)), seen, s, keys, jnp.int32(3)))
    weights = np.exp(plain(logits.tolist(), set(), s))
    wanted = weights / weights.sum()
    counts = collections.Counter(tokens.tolist())
    for token, share in enumerate(wanted):
        assert abs(counts[token] / n - share) <= 5 * np.sqrt(share * (1 - share) / n)
    assert set(counts) == {1, 2, 4}


def test_a_row_is_drawn_by_its_own_key_and_step_whatever_stands_beside_it():
    logits, keys = jax.random.normal(jax.random.key(0), (4, VOCAB)), jax.random.split(jax.random.key(7), 4)
    seen, s = jnp.zeros((4, VOCAB), bool), Sampling(temperature=1.5)
    steps = [np.asarray(choose(logits, seen, s, keys, jnp.int32(step))) for step in range(8)]
    assert len({tuple(tokens) for tokens in steps}) > 4
    for step, tokens in enumerate(steps):
        again = choose(logits[::-1], seen, s, keys[::-1], jnp.int32(step))
        np.testing.assert_array_equal(again, tokens[::-1])
        assert choose(logits[2:3], seen[2:3], s, keys[2:3], jnp.int32(step)) == tokens[2]


@pytest.mark.parametrize(
    "settings, message",
    [
        (Sampling(temperature=-1), "--temperature is -1"),
        (Sampling(top_k=-2), "--top-k is -2"),
        (Sampling(top_p=0), "--top-p is 0"),
        (Sampling(top_p=1.5), "--top-p is 1.5"),
        (Sampling(repetition_penalty=0), "--repetition-penalty is 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        unless_greedy(settings)
    assert unless_greedy(Sampling()) == Sampling()
    assert unless_greedy(Sampling(0, top_k=3)) is None
