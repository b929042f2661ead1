"""Answers with weights in few bits: on one device and on eight, from a checkpoint read matrix by matrix."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.config import DecoderConfig, MeshConfig, RunConfig, SourceConfig
from quecc_jax.config.weights import FORMS
from quecc_jax.errors import UserError, run_cli
from quecc_jax.evaluate.task_answers import fingerprint
from quecc_jax.experiments.cell import ask
from quecc_jax.experiments.grid import Test
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.generate.decode import State, advance, decoding_params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine, load_vlm
from quecc_jax.models import kernel_forms
from quecc_jax.models.decoder import Decoder, empty_cache
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.models.quantized import form_of
from quecc_jax.models.vlm import VLM
from quecc_jax.train import checkpoint
from quecc_jax.train.checkpoint import save_params
from tests import tiny
from tests.models.decoders import S, everything

EXAMPLE = Path(__file__).parents[2] / "examples"
RUN = EXAMPLE / "model"
LIMITS = Limits(max_new_tokens=6)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    told = json.loads((EXAMPLE / "questions.json").read_text())
    return [Question(one["question"], (EXAMPLE / one["image"],)) for one in told][:8]


def kernels(params: Any) -> dict[str, Any]:
    """Matrices of the decoder's layers by layer, stacked or not, and name."""
    layers = {name: layer for name, layer in params["decoder"].items() if name.startswith("layers")}
    return {
        f"{layer}/{name}": part["kernel"]
        for layer, parts in layers.items()
        for name, part in parts.items()
        if "kernel" in part
    }


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_read_into_the_form_of_its_numbers(form):
    config, params = load_vlm(RUN, weights=form)
    plain = load_vlm(RUN)[1]
    assert len(kernels(params)) == 7 and {form_of(kernel) for kernel in kernels(params).values()} == {form}
    expected = in_form(plain["decoder"], config.model.decoder, form)
    equal(params, {**plain, "decoder": expected})
    assert fingerprint(params) != fingerprint(plain)


def test_only_one_matrix_is_whole_at_a_time(monkeypatch):
    wide = {tuple(kernel.shape) for kernel in kernels(load_vlm(RUN)[1]).values()}
    before = {id(array) for array in jax.live_arrays()}
    seen, convert = [], checkpoint.converted

    def spy(kernel: Any, change: Any, where: str) -> Any:
        live = [x for x in jax.live_arrays() if id(x) not in before]
        seen.append(sum(x.shape in wide and x.dtype == jnp.float32 for x in live))
        return convert(kernel, change, where)

    monkeypatch.setattr(checkpoint, "converted", spy)
    load_vlm(RUN, weights="int8")
    assert seen == [1] * 7


@pytest.mark.parametrize("form", FORMS)
def test_eight_devices_answer_as_one_does(form, questions):
    one = load_engine(RUN, visual_tokens=4, weights=form)
    assert {form_of(kernel) for kernel in kernels(one.params).values()} == {form}
    spread = load_engine(RUN, MeshConfig(2, 4, 1), visual_tokens=4, weights=form)
    kernel = kernels(spread.params)["layers_0/q"]
    assert kernel[form].sharding.shard_shape(kernel[form].shape) == (16, 2, 32)
    answers = one.answers(questions, LIMITS)
    assert spread.answers(questions, LIMITS) == answers and len(set(answers)) > 3


def test_what_a_bfloat16_model_is_kept_in(questions):
    engine = load_engine(RUN, visual_tokens=4, weights="bfloat16")
    assert engine.config.model.dtype == "bfloat16"
    assert {kernel.dtype for kernel in kernels(engine.params).values()} == {jnp.dtype(jnp.bfloat16)}
    config, params = load_vlm(RUN, visual_tokens=4, weights="int4")
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    mixed = Engine(half, params)
    kernel = kernels(mixed.params)["layers_1/down"]
    assert kernel["int4"].dtype == jnp.int4 and kernel["scale"].dtype == jnp.float32
    assert mixed.params["decoder"]["embedding"].dtype == jnp.bfloat16
    exact = load_engine(RUN, visual_tokens=4).answers(questions, LIMITS)
    same = [a == b for a, b in zip(mixed.answers(questions, LIMITS), exact, strict=True)]
    assert np.mean(same) > 0.7


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> RunConfig:
    """A run with random parameters, one of which is not a number."""
    config = dataclasses.replace(tiny.RUN, out=str(tmp_path_factory.mktemp("nan") / "run"))
    params = tiny.random_params(config)
    params["decoder"]["layers"]["up"]["kernel"][1, 2, 3] = np.nan
    save_params(config, params)
    return config


@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_are_not_finite_are_refused_by_name(other, form):
    with pytest.raises(UserError, match=rf"decoder/layers/up/kernel of .* not finite, which {form} cannot"):
        load_vlm(other.out, weights=form)
    assert np.isnan(load_vlm(other.out)[1]["decoder"]["layers"]["up"]["kernel"]).sum() == 1


def test_a_device_without_four_bits_is_refused_in_a_sentence(monkeypatch):
    def fail(*_: object) -> None:
        raise NotImplementedError("S4 is not implemented\nand more")

    monkeypatch.setattr(kernel_forms.jax, "block_until_ready", fail)
    for form in ("int4", "nf4"):
        with pytest.raises(
            UserError, match=rf"^cpu has no integers of 4 bits, which {form} needs .S4 is not impl"
        ):
            load_vlm(RUN, weights=form)  # type: ignore[arg-type]
    load_vlm(RUN, weights="int8")


def test_weights_that_there_are_not():
    with pytest.raises(UserError, match="weights int3 are none of run, float32, bfloat16, int8, int4, nf4"):
        load_vlm(RUN, weights="int3")  # type: ignore[arg-type]


def command(monkeypatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    run_cli(lambda: execute(name, sys.argv[1:]))


def test_commands_take_them(monkeypatch, capsys, tmp_path, questions):
    pool = build_pool("single", "test", tmp_path / "pool", 96, 6, 1, 1, seed=3)
    asked = "--checkpoint", RUN, "--visual-tokens", 1, "--weights", "int4"
    command(
        monkeypatch,
        "generate",
        *asked,
        "--image",
        EXAMPLE / "single-1.png",
        "--question",
        "what color is it?",
    )
    expected = load_engine(RUN, visual_tokens=1, weights="int4").answers(
        [Question("what color is it?", (EXAMPLE / "single-1.png",))], Limits()
    )
    assert capsys.readouterr().out.strip() == expected[0]
    command(monkeypatch, "evaluate", *asked, "--data", tmp_path / "pool", "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["weights"] == "int4" and results["questions"] == len(pool.rows)
    assert results["accuracy"] > 0.8


@pytest.mark.parametrize("cached", [False, True])
def test_a_grid_s_test_takes_them(monkeypatch, tmp_path, cached):
    build_pool("single", "test", tmp_path / "pool", 96, 4, 1, 1, seed=3)
    run = load_vlm(RUN)[0]
    run = dataclasses.replace(run, out=str(RUN))
    found: list[Any] = []

    def answer_rows(config: RunConfig, params: Any, **_: Any) -> list[Any]:
        found.append((config, kernels(params)))
        return []

    monkeypatch.setattr("quecc_jax.experiments.cell.answer_rows", answer_rows)
    sources = (SourceConfig(kind="pool", path=str(tmp_path / "pool")),)
    for weights in ("run", "bfloat16", "nf4"):
        ask(run, run.model, Test(sources, cached_features=cached, weights=weights))  # type: ignore[arg-type]
    assert [config.model.dtype for config, _ in found] == ["float32", "bfloat16", "float32"]
    assert [{form_of(kernel) for kernel in held.values()} for _, held in found] == [{None}, {None}, {"nf4"}]


@pytest.mark.parametrize("form, share", [("int8", 0.2), ("int4", 1.0)])
def test_a_loop_over_tokens_keeps_no_matrix_whole(form, share):
    """Beside the parameters there is room for one matrix, not for all; CPUs unpack 4 bits to 8, all of them."""
    decoder = DecoderConfig(vocab_size=64, width=128, depth=6, heads=4, kv_heads=4, mlp_width=256)
    config = dataclasses.replace(tiny.MODEL, decoder=decoder)
    shapes = Decoder(decoder, unrolled=False)
    boxed = jax.eval_shape(
        lambda t: shapes.init(jax.random.key(0), t, method=everything), jnp.zeros((1, S), jnp.int32)
    )
    params = {"decoder": in_form(tiny.random_like(nn.meta.unbox(boxed)["params"]), decoder, form)}
    held = decoding_params(params, config)
    wide = sum(4 * jax.tree.leaves(kernel)[0].size for kernel in kernels(held).values())
    cache = empty_cache(decoder, 1, 8)._replace(length=jnp.int32(1))
    one = jnp.ones((1,), jnp.int32)
    state = State(one, one == 0, one, one, 9 * one, None, cache)
    model = VLM(config, unrolled=True)
    program = jax.jit(advance, static_argnums=(0, 1, 4)).lower(model, (0,), held, state, 4)
    analysis = program.compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < share * wide / (1 if form == "int8" else 2)
