"""What a run's directory keeps: restored anywhere, checked strictly, and robust to damage."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from quecc_jax.config import CheckpointConfig, OptimizerConfig
from quecc_jax.errors import UserError
from quecc_jax.train.checkpoint import check_shapes, load_params, save_params
from quecc_jax.train.resume import Checkpoints
from quecc_jax.train.run_dir import load_run_config
from tests.train.runs import Batches, trainer_on

# A load that fails leaves orbax's other reads of it behind, which Python remarks on much later.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


def moved(state, by: float):
    """The state with every float shifted, so that checkpoints differ everywhere."""
    return jax.tree.map(lambda x: x + by if np.issubdtype(x.dtype, np.floating) else x, state)


@pytest.fixture(scope="session")
def saved(base, trainer, tmp_path_factory):
    """(config, {step: host state}) of a run with checkpoints 1 and 2."""
    out = tmp_path_factory.mktemp("saved") / "run"
    config = dataclasses.replace(base, out=str(out), checkpoint=CheckpointConfig(every=1, keep=2))
    state, batches, states = trainer.init(jax.random.key(3)), Batches(config), {}
    with Checkpoints(config) as checkpoints:
        checkpoints.begin(state)
        checkpoints.describe()
        for step in (1, 2):
            next(batches)
            state = moved(state, 0.5)._replace(step=state.step + 1, frozen=state.frozen)
            states[step] = jax.device_get(state)
            assert checkpoints.save(step, state, batches)
    return config, states


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of that run for the test to spoil."""
    shutil.copytree(saved[0].out, tmp_path / "run")
    return dataclasses.replace(saved[0], out=str(tmp_path / "run"))


def resumed(config, **settings):
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, **settings))


def restore(config, abstract):
    batches = Batches(config)
    with Checkpoints(config) as checkpoints:
        return checkpoints.restore(abstract, batches), batches


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (2, 1, 2)])
def test_restores_bitwise_under_any_mesh(saved, shape):
    config, states = saved
    abstract = trainer_on(config, shape).abstract_state
    state, batches = restore(config, abstract)
    assert_equal(jax.device_get(state), states[2])
    assert batches.taken == 2
    assert jax.tree.structure(state) == jax.tree.structure(abstract)  # type: ignore[operator]
    for leaf, target in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == target.sharding


def damages(config, names) -> list[tuple[Path, str]]:
    files = [p for p in (Path(config.out) / "checkpoints" / "2").rglob("*") if p.is_file()]
    return [(p, how) for p in sorted(files) if names(p) for how in ("delete", "halve", "empty")]


def damage(path: Path, how: str) -> None:
    if how == "delete":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if how == "halve" else 0)


def test_damaged_newest_checkpoint_falls_back_loudly(saved, copy, trainer, capfd):
    """Any file that holds the newest checkpoint's content is lost or cut: the one before is used."""

    def is_needed(path: Path) -> bool:
        holds_arrays = path.parent.name == "d" and path.parents[1].name in ("params", "optimizer")
        return holds_arrays or path.name in ("_METADATA", "_CHECKPOINT_METADATA")

    cases = damages(copy, is_needed)
    assert len(cases) >= 15
    for path, how in cases[:: len(cases) // 6]:
        shutil.rmtree(copy.out)
        shutil.copytree(saved[0].out, copy.out)
        damage(path, how)
        capfd.readouterr()
        state, batches = restore(copy, trainer.abstract_state)
        assert_equal(jax.device_get(state), saved[1][1])
        assert batches.taken == 1
        said = capfd.readouterr().err
        assert "WARNING: checkpoint 2" in said and "going back to checkpoint 1" in said
        assert (Path(copy.out) / "damaged" / "2").is_dir()


def to_nowhere(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def to_itself(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.name)


def to_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def to_another_type(path: Path) -> None:
    described = path / "_CHECKPOINT_METADATA"
    described.write_text(json.dumps({**json.loads(described.read_text()), "custom_metadata": 1.5}))


@pytest.mark.parametrize("change", [to_nowhere, to_itself, to_a_file, to_another_type])
@pytest.mark.parametrize("step", [1, 2])
def test_what_is_no_checkpoint_but_has_its_name_is_said(saved, copy, trainer, capfd, change, step):
    """As where it was moved to a disk that is not mounted; orbax passes over some in silence and fails at others."""
    change(Path(copy.out) / "checkpoints" / str(step))
    capfd.readouterr()
    state, _ = restore(copy, trainer.abstract_state)
    assert_equal(jax.device_get(state), saved[1][3 - step])
    assert f"WARNING: checkpoint {step} of {copy.out} cannot be read" in capfd.readouterr().err
    assert os.path.lexists(Path(copy.out) / "damaged" / str(step))


def test_a_run_whose_checkpoints_are_lost_says_that_it_begins_anew(copy, trainer, capfd):
    (Path(copy.out) / "metrics.jsonl").write_text("")
    shutil.rmtree(Path(copy.out) / "checkpoints")
    state, _ = restore(copy, trainer.abstract_state)
    assert state is None and "has a log but no checkpoint: the run begins anew" in capfd.readouterr().err


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def flips(folder: Path) -> list[tuple[Path, int]]:
    """Three places in each file that holds arrays."""
    files = sorted(path for path in folder.rglob("d/*") if path.is_file())
    return [(path, path.stat().st_size * quarter // 4) for path in files for quarter in (1, 2, 3)]


def test_one_flipped_bit_in_an_array_or_the_data_s_position_is_seen(saved, copy, trainer, capfd):
    parts = Path(copy.out) / "checkpoints" / "2"
    described = parts / "_CHECKPOINT_METADATA"
    taken = described.read_bytes().index(b'"taken": 2') + len(b'"taken": ')
    steps = []
    for path, at in [*flips(parts), (described, taken)]:
        shutil.rmtree(copy.out)
        shutil.copytree(saved[0].out, copy.out)
        flip(path, at)
        state, batches = restore(copy, trainer.abstract_state)
        steps.append(int(state.step))
        assert batches.taken == steps[-1]
        assert_equal(jax.device_get(state), saved[1][steps[-1]])
    assert "_CHECKPOINT_METADATA is damaged" in capfd.readouterr().err
    # Each process's own index of its arrays is not read again.
    assert steps.count(1) > len(steps) / 2


def test_one_flipped_bit_in_frozen_parameters_is_an_error(copy, trainer):
    refused = 0
    for path, at in flips(Path(copy.out) / "frozen"):
        flip(path, at)
        try:
            restore(copy, trainer.abstract_state)
        except UserError as error:
            refused += 1
            assert re.search(r"frozen parameters in .* cannot be read", str(error))
            with pytest.raises(UserError, match=r"frozen parameters in .* cannot be read"):
                load_params(copy.out)
        flip(path, at)
    assert refused >= 4


@pytest.mark.slow
def test_no_damage_to_any_file_yields_a_wrong_state(saved, copy, trainer):
    """Every file, every damage: the newest state exactly, or the one before exactly."""
    for path, how in damages(copy, lambda path: True):
        shutil.rmtree(copy.out)
        shutil.copytree(saved[0].out, copy.out)
        damage(path, how)
        state, batches = restore(copy, trainer.abstract_state)
        assert_equal(jax.device_get(state), saved[1][int(state.step)])
        assert batches.taken == int(state.step)


def test_the_newest_of_several_good_checkpoints_takes_a_damaged_one_s_place(saved, copy, trainer, capfd):
    """Of 1, 2 and 10: 10, the newest as a number, not as a text; without it 2, not 1."""
    keeping = resumed(copy, keep=3)
    state, batches = restore(keeping, trainer.abstract_state)
    state = moved(state, 1.0)._replace(step=state.step + 8, frozen=state.frozen)
    tenth = jax.device_get(state)
    with Checkpoints(keeping) as checkpoints:
        assert checkpoints.save(10, state, batches)
    assert_equal(load_params(copy.out, ["decoder"])[1]["decoder"], tenth.trainable["decoder"])
    assert_equal(jax.device_get(restore(keeping, trainer.abstract_state)[0]), tenth)

    damage(Path(copy.out) / "checkpoints" / "10" / "params" / "_METADATA", "empty")
    second = saved[1][2]
    assert_equal(load_params(copy.out, ["decoder"])[1]["decoder"], second.trainable["decoder"])
    state, batches = restore(keeping, trainer.abstract_state)
    assert_equal(jax.device_get(state), second)
    assert batches.taken == 2
    assert "going back to checkpoint 2; [10] set aside" in capfd.readouterr().err


def test_training_goes_on_after_a_fallback(copy, trainer):
    damage(Path(copy.out) / "checkpoints" / "2" / "params" / "_METADATA", "empty")
    batches = Batches(copy)
    with Checkpoints(copy) as checkpoints:
        state = checkpoints.restore(trainer.abstract_state, batches)
        assert state is not None
        next(batches)
        state = moved(state, 1.0)._replace(step=state.step + 1)
        assert checkpoints.save(2, state, batches)
    again, _ = restore(copy, trainer.abstract_state)
    assert_equal(jax.device_get(again.trainable), jax.device_get(state.trainable))


def test_nothing_readable_is_an_error_and_deletes_nothing(copy, trainer):
    for step in "12":
        damage(Path(copy.out) / "checkpoints" / step / "params" / "_METADATA", "empty")
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] .*--checkpoint.resume never"):
        restore(copy, trainer.abstract_state)
    assert (Path(copy.out) / "checkpoints" / "2" / "optimizer").is_dir()
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_params(copy.out)


def test_damaged_frozen_parameters_are_an_error(copy, trainer):
    shutil.rmtree(Path(copy.out) / "frozen")
    with pytest.raises(UserError, match=r"frozen parameters in .* cannot be read"):
        restore(copy, trainer.abstract_state)


def test_resume_must_and_never(copy, trainer, tmp_path):
    empty = dataclasses.replace(copy, out=str(tmp_path / "empty"))
    assert restore(empty, trainer.abstract_state)[0] is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        restore(resumed(empty, resume="must"), trainer.abstract_state)
    assert int(restore(resumed(copy, resume="must"), trainer.abstract_state)[0].step) == 2
    never = resumed(copy, resume="never")
    assert restore(never, trainer.abstract_state)[0] is None
    state = trainer.init(jax.random.key(0))
    with Checkpoints(never) as checkpoints:
        checkpoints.begin(state)
    assert list((Path(copy.out) / "checkpoints").iterdir()) == []
    assert restore(copy, trainer.abstract_state)[0] is None


def test_another_model_is_named_leaf_by_leaf(copy, trainer):
    wide = dataclasses.replace(copy.model.decoder, mlp_width=64)
    other = dataclasses.replace(copy, model=dataclasses.replace(copy.model, decoder=wide))
    abstract = trainer_on(other).abstract_state
    with pytest.raises(UserError, match=r"decoder/\S+ has shape .*48.*, expected shape .*64"):
        restore(other, abstract)
    with pytest.raises(UserError, match=r"decoder/\S+ has shape .*48.*, expected shape .*64"):
        load_params(copy.out, ["decoder"], {"decoder": abstract.trainable["decoder"]})


def test_a_rate_of_its_own_for_the_projector_may_come_later(copy, saved, capfd):
    """Optax states without arrays are no part of the checkpoint."""
    split = dataclasses.replace(copy, optimizer=OptimizerConfig(projector_learning_rate=1e-3))
    abstract = trainer_on(split).abstract_state
    state, _ = restore(split, abstract)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)  # type: ignore[operator]
    assert_equal(jax.device_get(state.opt_state), saved[1][2].opt_state)
    assert "resuming with a changed setting: optimizer.projector_learning_rate" in capfd.readouterr().err


def test_load_params_gives_numpy_or_sharded_arrays_by_name(saved, trainer):
    config, states = saved
    found, params = load_params(config.out)
    assert sorted(params) == ["compressor", "decoder", "projector", "vision"]
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(params))
    assert_equal(params, {**states[2].trainable, **states[2].frozen})
    assert dataclasses.replace(found, data=config.data) == config

    abstract = trainer_on(config, (2, 2, 2)).abstract_state
    _, some = load_params(config.out, ["projector", "vision"], {**abstract.trainable, **abstract.frozen})
    assert sorted(some) == ["projector", "vision"]
    targets = jax.tree.leaves(abstract.trainable["projector"])
    for leaf, target in zip(jax.tree.leaves(some["projector"]), targets, strict=True):
        assert leaf.sharding == target.sharding
    assert_equal(jax.device_get(some["projector"]), states[2].trainable["projector"])
    with pytest.raises(UserError, match="has no parameters encoder; it has"):
        load_params(config.out, ["encoder"])


def test_half_precision_stands_for_float32_where_it_may_be_widened_alone():
    def leaf(dtype):
        return {"decoder": {"head": np.zeros((2, 3), dtype)}}

    half, single, whole = map(leaf, (np.float16, np.float32, np.int32))
    check_shapes(half, single, "here", widen=True)
    for found, widen in ((half, False), (whole, True)):
        with pytest.raises(
            UserError, match=r"here: decoder/head has shape .*, expected shape \(2, 3\) float32"
        ):
            check_shapes(found, single, "here", widen=widen)
    with pytest.raises(UserError, match="float16"):
        check_shapes(half, single, "here")


def test_parameters_alone_are_written_and_read_but_not_over_a_run(saved, copy, tmp_path):
    config, states = saved
    alone = dataclasses.replace(config, out=str(tmp_path / "alone"))
    params = {"projector": states[1].trainable["projector"]}
    for _ in range(2):  # In the place of what is there.
        save_params(alone, params)
    assert_equal(load_params(alone.out)[1], params)
    with pytest.raises(UserError, match="holds a training run; give another directory"):
        save_params(copy, params)


def test_load_params_skips_a_damaged_checkpoint(saved, copy, capsys):
    damage(Path(copy.out) / "checkpoints" / "2" / "params" / "_METADATA", "empty")
    _, params = load_params(copy.out, ["projector"])
    assert_equal(params["projector"], saved[1][1].trainable["projector"])
    assert "WARNING: checkpoint 2" in capsys.readouterr().err


def test_a_directory_without_a_run_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is this the directory of a run"):
        load_params(tmp_path)


def test_the_run_keeps_its_own_tokenizer_without_weights(base, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(base.data.tokenizer, source)
    (source / "model.safetensors").write_bytes(b"x" * 100)
    config = dataclasses.replace(
        base, out=str(tmp_path / "run"), data=dataclasses.replace(base.data, tokenizer=str(source))
    )
    with Checkpoints(config) as checkpoints:
        checkpoints.describe()
    shutil.rmtree(source)
    own = load_run_config(tmp_path / "run")
    assert own.data.tokenizer == str(tmp_path / "run" / "tokenizer")
    copied = {p.name: p.read_bytes() for p in Path(own.data.tokenizer).iterdir()}
    assert copied == {p.name: p.read_bytes() for p in Path(base.data.tokenizer).iterdir()}
    with Checkpoints(config) as checkpoints, pytest.raises(UserError, match=r"tokenizer .* be copied"):
        checkpoints.describe()


def test_what_a_killed_save_left_is_removed(copy, trainer):
    for name in ("checkpoints/3.orbax-checkpoint-tmp", "frozen.orbax-checkpoint-tmp"):
        (Path(copy.out) / name / "params").mkdir(parents=True)
    state, _ = restore(copy, trainer.abstract_state)
    assert int(state.step) == 2
    assert not list(Path(copy.out).rglob("*-tmp*"))


def test_an_unwritable_directory_is_a_sentence(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out directory .* cannot be written"):
        Checkpoints(dataclasses.replace(base, out=str(tmp_path / "file" / "run")))
