"""Answers on meshes of eight devices are those of one, and parameters are read as the model computes with them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, SourceConfig
from quecc_jax.errors import UserError
from quecc_jax.evaluate import benchmarks
from quecc_jax.evaluate.answers import answer_rows
from quecc_jax.evaluate.likelihood import log_likelihoods
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.sampling import Sampling
from quecc_jax.groups import Group, group_of
from quecc_jax.load import load_vlm
from quecc_jax.sharding import make_mesh
from tests.evaluate import mesh_run
from tests.evaluate.mesh_run import QUESTIONS, TASK, Asked, lines

MESHES = [
    (2, 2, 2),
    *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in [(1, 8, 1), (1, 1, 8), (8, 1, 1)]),
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Asked:
    return mesh_run.asked(tmp_path_factory.mktemp("asked"))


def results_of(asked: Asked, out: Path, mesh: tuple[int, int, int] | None, **settings):
    over = None if mesh is None else MeshConfig(*mesh)
    return benchmarks.run(
        Path(asked.run.out), TASK, asked.data, out, max_new_tokens=3, batch_size=4, mesh=over, **settings
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_a_benchmark_has_the_answers_of_one_device(asked, tmp_path, mesh):
    results = results_of(asked, tmp_path, mesh)
    files = [folder / TASK / "answers.jsonl" for folder in (tmp_path, asked.alone)]
    assert lines(files[0]) == lines(files[1])
    counted = results["tasks"][TASK]["reuse"]["images"]
    assert (counted["misses"], counted["hits"]) == (4, 8)
    assert {path.name for path in (tmp_path / TASK).iterdir()} == {
        path.name for path in (asked.alone / TASK).iterdir()
    }


@pytest.mark.slow
def test_a_benchmark_with_weights_in_few_bits_has_the_answers_of_one_device(asked, tmp_path):
    results_of(asked, tmp_path / "one", None, weights="int8")
    results_of(asked, tmp_path / "eight", (2, 2, 2), weights="int8")
    one, eight = (lines(tmp_path / name / TASK / "answers.jsonl") for name in ("one", "eight"))
    assert one == eight


@pytest.mark.parametrize("mesh", MESHES)
def test_a_data_set_and_likelihoods_have_the_answers_of_one_device(asked, mesh):
    sources = (SourceConfig(kind="llava_json", path=str(asked.rows), images=str(asked.rows.parent)),)
    found = []
    for over in (None, make_mesh(MeshConfig(*mesh))):
        config, params = load_vlm(asked.run.out, over)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
        answers = answer_rows(config, params, max_new_tokens=3, batch_size=4, group=Group(over))
        engine = Engine(config, params, mesh=over)
        pair = Question(answers[0].question, (answers[0].row["image"],)), "yes no"
        found.append(
            ([answer.prediction for answer in answers], log_likelihoods(engine, [pair], batch_size=1))
        )
    (one, likely), (eight, spread) = found
    assert one == eight and len(one) == QUESTIONS
    assert [answer for answer in one] == [x["answer"] for x in lines(asked.alone / TASK / "answers.jsonl")]
    np.testing.assert_allclose([value for value, _ in spread], [value for value, _ in likely], rtol=1e-5)


def test_parameters_come_in_the_type_of_the_model_and_in_their_shards(asked):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config, params = load_vlm(asked.run.out, mesh, weights="bfloat16")
    cast = decoding_params(load_vlm(asked.run.out, mesh)[1], config.model)
    found = decoding_params(params, config.model)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(cast))
    types = {jax.tree_util.keystr(path): x.dtype for path, x in jax.tree_util.tree_leaves_with_path(params)}
    assert {dtype for name, dtype in types.items() if "norm" not in name} == {jnp.dtype(jnp.bfloat16)}
    assert {dtype for name, dtype in types.items() if "norm" in name} == {jnp.dtype(jnp.float32)}
    up = params["decoder"]["layers"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape) == (1, up.shape[1] // 2, up.shape[2] // 2)


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_the_mesh(asked):
    limits = Limits(6, sampling=Sampling(1.2, top_k=20), seed=3)
    said = []
    for over in (None, make_mesh(MeshConfig(2, 2, 2))):
        engine = Engine(*load_vlm(asked.run.out, over), mesh=over)
        said.append(engine.answers([Question("Is there a snowboard in the image?")], limits))
    assert said[0] == said[1]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 2, 12])
def test_every_item_is_in_one_share(count, items):
    shares = [Group(None, number, count).share(range(items)) for number in range(count)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_groups_of_processes_hold_whole_copies(monkeypatch):
    """As if the eight devices belonged to processes of their own."""
    devices = jax.devices()

    class Device:
        def __init__(self, number: int, each: int):
            self.id, self.process_index, self.of = number, number // each, devices[number]

    def groups(each: int, mesh: tuple[int, int, int]) -> list[tuple[int, int, bool]]:
        class Fake:
            def __init__(self, config: MeshConfig):
                numbers = [Device(number, each) for number in range(8)]
                self.devices = np.array(numbers, object).reshape(config.data, config.fsdp, config.tensor)
                self.axis_names, self.axis_types, self.size = ("data", "fsdp", "tensor"), None, 8

        monkeypatch.setattr("quecc_jax.groups.make_mesh", Fake)
        monkeypatch.setattr("quecc_jax.groups.Mesh", lambda devices, *_, **__: devices)
        found = []
        for process in range(8 // each):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            group = group_of(MeshConfig(*mesh))
            size = 1 if group.mesh is None else group.mesh.size
            assert size * group.total == 8
            found.append((group.number, group.total, group.writes))
        return found

    assert groups(2, (4, 2, 1)) == [(n, 4, True) for n in range(4)]
    assert groups(4, (8, 1, 1)) == [(0, 2, True), (1, 2, True)]
    assert groups(2, (2, 2, 2)) == [(0, 2, True), (0, 2, False), (1, 2, True), (1, 2, False)]
    assert groups(4, (1, 8, 1)) == [(0, 1, True), (0, 1, False)]
    assert groups(1, (8, 1, 1)) == [(n, 8, True) for n in range(8)]


def test_a_mesh_that_does_not_fit_is_one_sentence(asked, tmp_path):
    with pytest.raises(UserError, match=r"needs 3 devices, 8 are here; change mesh.data"):
        results_of(asked, tmp_path, (3, 1, 1))
