"""Decoding with the cache picks what full passes over the growing text pick; draws follow their keys."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.generate.decode import advance, begin, decoding_params, on_mesh
from quecc_jax.generate.sampling import Sampling
from quecc_jax.models.decoder import unstack
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import batch_sharding, make_mesh
from quecc_jax.train.step import abstract_params
from tests.generator import build_generator
from tests.tiny import MODEL, random_batch, random_params, run

NEW = 5
CONFIG = run(data={"max_length": 20}, batch_size=5)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, seed=1)


@pytest.fixture(scope="module")
def prompts() -> Batch:
    """Prompts of different lengths about no, one or two images, and an empty row."""
    batch = random_batch(CONFIG, seed=3, images=[0, 1, 2, 0, 1])
    blank = {name: np.array(getattr(batch, name)) for name in ("tokens", "slots", "segments", "positions")}
    for array in blank.values():
        array[4] = 0
    blank["slots"][4] = -1
    assert len(set(blank["segments"].sum(axis=1).tolist())) > 3
    return batch._replace(ids=None, **blank)


@pytest.fixture(scope="module")
def reference(params, prompts) -> np.ndarray:
    """[B, NEW] continuations, each token chosen after a full pass over all before it."""

    @jax.jit
    def choose(batch: Batch) -> jax.Array:
        model: Any = VLM(MODEL)
        hidden = model.apply({"params": params}, batch)
        return model.apply({"params": params}, hidden, method=VLM.logits).argmax(axis=-1)

    rows, length = prompts.tokens.shape
    lengths = prompts.segments.sum(axis=1)
    tokens, segments = (np.pad(x, ((0, 0), (0, NEW))) for x in (prompts.tokens, prompts.segments))
    slots = np.pad(prompts.slots, ((0, 0), (0, NEW)), constant_values=-1)
    positions = np.broadcast_to(np.arange(length + NEW, dtype=np.int32), tokens.shape)
    out = np.zeros((rows, NEW), int)
    for step in range(NEW):
        grown = {"tokens": tokens, "slots": slots, "segments": segments, "positions": positions}
        picked = np.asarray(choose(prompts._replace(labels=slots, **grown)))
        for row in range(rows):
            end = lengths[row] + step
            out[row, step] = picked[row, end - 1]
            tokens[row, end], segments[row, end] = out[row, step], 1
    return out


def test_every_token_is_the_full_passes_choice_until_the_row_ends(params, prompts, reference):
    # A token that ends some rows, at different steps, and leaves others running.
    real = reference[:4]
    ends = {int(t): [row.tolist().index(t) if t in row else NEW for row in real] for t in np.unique(real)}
    eos, where = max(ends.items(), key=lambda item: len(set(item[1])))
    assert len(set(where)) >= 3 and NEW in where
    answers = np.asarray(build_generator(MODEL, NEW, eos)(params, prompts))
    assert answers.shape == (5, NEW) and answers.dtype == np.int32
    for row, end in enumerate(where):
        np.testing.assert_array_equal(answers[row, :end], reference[row, :end])
        assert (answers[row, end:] == eos).all()
    assert (answers[4] == eos).all()


def test_an_answer_may_be_one_token(params, prompts, reference):
    eos = next(t for t in range(MODEL.decoder.vocab_size) if t not in reference)
    answers = np.asarray(build_generator(MODEL, 1, eos)(params, prompts))
    np.testing.assert_array_equal(answers[:4], reference[:4, :1])


def test_any_of_several_tokens_ends_a_row(params, prompts, reference):
    eos = next(t for t in range(MODEL.decoder.vocab_size) if t not in reference)
    others = tuple(dict.fromkeys(reference[:4, 2].tolist()))[:2]
    answers = np.asarray(build_generator(MODEL, NEW, eos, others)(params, prompts))
    for row, real in zip(answers[:4], reference[:4], strict=True):
        end = next((i for i, token in enumerate(real) if token in others), NEW)
        assert row.tolist() == [*real[:end], *[eos] * (NEW - end)]


def test_bfloat16_answers_are_tokens(params, prompts):
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    answers = np.asarray(build_generator(model, 2, 0)(params, prompts))
    assert answers.shape == (5, 2) and answers.min() >= 0 and answers.max() < MODEL.decoder.vocab_size


def test_the_cache_has_the_models_type(params, prompts):
    for dtype in ("float32", "bfloat16"):
        model = VLM(dataclasses.replace(MODEL, dtype=dtype), unrolled=True)
        shapes = jax.eval_shape(
            lambda p, b, m=model: begin(
                m, (0,), decoding_params(p, m.config), b, None, jnp.full(5, 3), None, None, 3
            ),
            params,
            prompts,
        )
        assert {a.dtype for a in (*shapes.cache.keys, *shapes.cache.values)} == {jnp.dtype(dtype)}
        assert {a.shape for a in shapes.cache.keys} == {(5, 2, 20 + 3, 8)}


def test_parameters_for_decoding_change_no_number(params, prompts):
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    ready = decoding_params(params, model)
    assert decoding_params(ready, model) is not ready and "layers" not in ready["decoder"]
    types = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree.leaves_with_path(ready)}
    assert all((dtype == jnp.float32) == ("norm" in path) for path, dtype in types.items())
    forward: Any = jax.jit(lambda p: VLM(model, unrolled=True).apply({"params": p}, prompts))
    given = forward(params | {"decoder": unstack(params["decoder"])})
    np.testing.assert_array_equal(np.asarray(forward(ready), np.float32), np.asarray(given, np.float32))


def test_the_same_key_gives_the_same_answer(params, prompts):
    generate = build_generator(MODEL, NEW, 0)

    def draw(seed: int, **settings) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), 5)
        return np.asarray(generate(params, prompts, None, Sampling(**settings), keys))

    first = draw(0, temperature=3.0)
    np.testing.assert_array_equal(draw(0, temperature=3.0), first)
    assert (draw(1, temperature=3.0)[:4] != first[:4]).any()
    greedy = np.asarray(generate(params, prompts))
    np.testing.assert_array_equal(draw(2, temperature=0.0), greedy)
    np.testing.assert_array_equal(draw(2, temperature=5.0, top_k=1), greedy)


def test_a_penalised_token_of_prompt_or_answer_does_not_come_again(params, prompts):
    """With a penalty beyond all logits, greedy answers hold no token twice and none of their prompts."""
    generate = build_generator(MODEL, NEW, eos=-1)
    keys = jax.random.split(jax.random.key(0), 5)
    tokens = np.asarray(generate(params, prompts, None, Sampling(0.0, repetition_penalty=1e6), keys))
    for row in range(4):
        text = (prompts.segments[row] > 0) & (prompts.slots[row] < 0)
        said = set(prompts.tokens[row][text].tolist())
        fresh = set(range(MODEL.decoder.vocab_size)) - said
        assert len(set(tokens[row].tolist())) == NEW and set(tokens[row].tolist()) <= fresh


@pytest.mark.slow
def test_eight_devices_answer_as_one_does(params):
    """Rows over data and fsdp, matrices over fsdp and tensor, the cache's heads over tensor."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = run(data={"max_length": 20}, batch_size=8)
    batch = random_batch(config, seed=4)._replace(ids=None)
    keys, sampling = jax.random.split(jax.random.key(0), 8), Sampling(temperature=2.0, top_k=20)
    alone = build_generator(MODEL, NEW, 0)
    shapes = abstract_params(config, mesh, batch_spec(MODEL, config.data, 8))
    placed = decoding_params(jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), params, shapes), MODEL)
    kernel = placed["decoder"]["layers_0"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 24)
    rows = jax.device_put(batch, batch_sharding(mesh))
    together = build_generator(MODEL, NEW, 0, mesh=mesh)
    for drawn in ((None, None, None), (None, sampling, keys)):
        np.testing.assert_array_equal(together(placed, rows, *drawn), alone(params, batch, *drawn))

    model = VLM(MODEL, unrolled=True)
    first = on_mesh(
        jax.jit(lambda p, b: begin(model, (0,), p, b, None, jnp.full(8, 3), None, None, 3)), mesh
    )(placed, rows)
    key = first.cache.keys[0]
    assert key.sharding.shard_shape(key.shape) == (2, 1, 23, 8)


def test_the_cache_is_written_in_place(params, prompts):
    """Nothing as large as a layer's keys is copied in the compiled loop, in this or another order, and the given memory
    is reused."""
    model = VLM(MODEL, unrolled=True)
    ready = decoding_params(params, MODEL)
    state = jax.eval_shape(
        lambda p, b: begin(model, (0,), p, b, None, jnp.full(5, 37), None, None, 37), ready, prompts
    )
    step = jax.jit(functools.partial(advance, model, (0,)), static_argnums=2, donate_argnums=1)
    compiled = step.lower(ready, state, 4).compile()
    orders = tuple(f"= f32[{order}]" for order in ("5,2,57,8", "5,57,2,8", "5,2,8,57"))
    made = [line for line in (compiled.as_text() or "").splitlines() if any(one in line for one in orders)]
    assert sum("dynamic-update-slice" in line for line in made) >= 4
    assert [line for line in made if re.search(r" (copy|transpose)\(|_copy|transpose_", line)] == []
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in (*state.cache.keys, *state.cache.values))
    memory: Any = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= kept == 4 * 5 * 57 * 2 * 8 * 4
