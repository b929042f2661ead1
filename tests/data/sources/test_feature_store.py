"""Features beside prepared data: of the right tower, for every image that can be read."""

import dataclasses
import json
import shutil
import types
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.config import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    MeshConfig,
    PixelConfig,
    QueryConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.data.sources import feature_store
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.data.sources.source import RowSource
from quecc_jax.errors import BadRow, UserError
from quecc_jax.fingerprint import fingerprint, tower_fingerprint
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.groups import Group
from quecc_jax.load import load_engine
from quecc_jax.models.lora import merged
from quecc_jax.models.towers.vit import VisionTower
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.initial import check_queries
from quecc_jax.train.loop import train
from tests.clip_words import write_clip_tokenizer
from tests.commands.test_prepare_data import main_with
from tests.data.every_row import eval_batches
from tests.data.photos import write_llava
from tests.models.reference import clip_text
from tests.processes import Processes
from tests.tiny import asked, random_params

ONE_STEP = TrainConfig(steps=1, batch_size=8)


@pytest.fixture(scope="module")
def prepared(tokenizer, model, tmp_path_factory):
    """(LLaVA file, prepared directory with features, the run that has the tower, its parameters)."""
    folder = tmp_path_factory.mktemp("features")
    decoder = dataclasses.replace(
        model.decoder, vocab_size=600, width=16, depth=1, heads=2, kv_heads=2, mlp_width=16
    )
    model = dataclasses.replace(model, dtype="float32", remat="none", decoder=decoder)
    path, _ = write_llava(folder)
    data = DataConfig(
        tokenizer=tokenizer.directory, template="short", max_length=48, query_length=8, images_per_row=2
    )
    run = RunConfig(out=str(folder / "tower"), model=model, data=data, checkpoint=CheckpointConfig(every=0))
    params = random_params(run)["vision"]
    save_params(run, {"vision": params})
    out = folder / "prepared"
    main_with(
        "--data", path, "--images", folder, "--out", out, "--resize", 24, "--encode", "raw", "--workers", 1
    )
    main_with("--out", out, "--features", "--checkpoint", run.out, "--batch-size", 3)
    return path, out, run, params


def cached(prepared, **more):
    _, out, run, _ = prepared
    source = SourceConfig("array_record", str(out))
    return dataclasses.replace(run.data, sources=(source,), cached_features=True, **more)


def test_batches_hold_the_tower_s_states_of_their_images(prepared, model):
    path, _, _, params = prepared
    (batch,) = eval_batches(cached(prepared), model, 12)
    folders = ("coco/train2017", "gqa/images", "vg")
    files = [path.parent / folders[number % 3] / f"{number}.jpg" for number in range(7)]
    pixels = np.stack([normalise(load_pixels(file, model.vision), PixelConfig()) for file in files])
    wanted = np.asarray(jax.jit(VisionTower(model.vision).apply)({"params": params}, pixels))
    for row in range(12):
        for slot in range(row % 3):
            states = wanted[(row + slot) % 7]
            np.testing.assert_allclose(batch.features[row, slot], states, rtol=2e-3, atol=2e-3)
        assert not batch.features[row, row % 3 :].any()


def test_an_image_number_beyond_the_stored_ones_is_a_bad_row(prepared):
    _, out, _, _ = prepared
    none: Any = None
    features = read_features(out)
    source = RowSource("rows", [{"image": 7, "conversations": []}], features.of_image, none)
    with pytest.raises(BadRow, match="rows, row 1: its image 7 is not among the 7; prepare the data anew"):
        source.write_images(0, np.zeros((1, *features.shape[1:]), np.float16))


def quiet(config):
    return train(config, progress=lambda record: None)


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A run that has trained for one step on stored features, and its last record."""
    _, _, run, _ = prepared
    out = str(tmp_path_factory.mktemp("trained") / "run")
    config = dataclasses.replace(run, out=out, data=cached(prepared), train=ONE_STEP, tower_from=run.out)
    return config, quiet(config)


def test_another_tower_is_refused_by_training(prepared, trained, tmp_path):
    _, _, run, params = prepared
    other = dataclasses.replace(run, out=str(tmp_path / "other"))
    save_params(other, {"vision": {**params, "class_embedding": np.roll(params["class_embedding"], 1)}})
    config = dataclasses.replace(run, out=str(tmp_path / "run"), data=cached(prepared), train=ONE_STEP)
    with pytest.raises(UserError, match="are of another tower or other preprocessing"):
        quiet(dataclasses.replace(config, tower_from=other.out))
    square = dataclasses.replace(config.data, image_aspect="square")
    with pytest.raises(UserError, match=r"another tower or other|aspect pad, but"):
        quiet(dataclasses.replace(config, tower_from=run.out, data=square))
    _, done = trained
    assert done["step"] == 1 and np.isfinite(done["loss"])


def test_stored_queries_train_as_computed_ones_do_and_only_of_this_decoder(prepared, trained, tmp_path):
    _, out, _, _ = prepared
    start, computed = trained
    config = dataclasses.replace(
        start, out=str(tmp_path / "run"), data=cached(prepared, cached_queries=True), init_from=start.out
    )
    with pytest.raises(UserError, match="has no queries"):
        quiet(config)
    main_with("--out", out, "--queries", "--checkpoint", start.out, "--batch-size", 5)
    # Both begin with the very parameters of `start`, whose first step was made before they were stored.
    again = quiet(dataclasses.replace(config, out=str(tmp_path / "again"), data=start.data))
    stored = quiet(config)
    assert stored["loss"] != computed["loss"]
    np.testing.assert_allclose(stored["loss"], again["loss"], rtol=1e-5)
    assert stored["loss"] != again["loss"]  # rounded to float16, they cannot agree to the last bit
    with pytest.raises(UserError, match="are of another encoder"):
        quiet(
            dataclasses.replace(
                config, out=str(tmp_path / "other"), init_from="", train=dataclasses.replace(ONE_STEP, seed=9)
            )
        )
    # A limit that cuts no question of these rows might cut another's: it has to be the same.
    for limit in (2, config.data.query_length + 1):
        short = dataclasses.replace(config.data, query_length=limit)
        with pytest.raises(UserError, match=r"another tokenizer or data\.query_length"):
            quiet(dataclasses.replace(config, out=str(tmp_path / "short"), data=short))
    with pytest.raises(UserError, match=r"cached_queries needs a frozen encoder of the question"):
        quiet(dataclasses.replace(config, train=dataclasses.replace(ONE_STEP, stage=2)))


def test_stored_queries_name_their_encoder_and_train_with_no_other(prepared, tmp_path):
    _, out, run, _ = prepared
    params = random_params(dataclasses.replace(run, data=cached(prepared), train=ONE_STEP))
    given = dataclasses.replace(run, out=str(tmp_path / "decoder"))
    save_params(given, {"decoder": params["decoder"]})
    main_with("--out", out, "--queries", "--checkpoint", given.out, "--encoder", "embeddings")
    config = dataclasses.replace(
        given,
        data=cached(prepared, cached_queries=True),
        model=dataclasses.replace(run.model, query=QueryConfig("embeddings")),
    )
    (batch,) = eval_batches(config.data, config.model, 12)
    table, seen = params["decoder"]["embedding"], 0
    for row, image, ids in asked(batch):
        np.testing.assert_allclose(batch.query_features[row, image], table[ids].mean(axis=0), atol=1e-3)
        seen += 1
    assert seen
    frozen: Any = types.SimpleNamespace(frozen=jax.device_put(params))
    check_queries(config, frozen)
    for query in (QueryConfig(), QueryConfig("early_exit", 1)):
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, query=query))
        with pytest.raises(UserError, match=r"another encoder \(embeddings:\w+, not (decoder|early_exit 1):"):
            check_queries(other, frozen)
    with pytest.raises(UserError, match=r"query\.layer 2 is not between 1 and the 1 layers"):
        main_with(
            "--out", out, "--queries", "--checkpoint", given.out, "--encoder", "early_exit", "--layer", 2
        )


def test_queries_of_a_run_with_adapters_are_those_of_its_merged_decoder(prepared, tmp_path):
    """As a first stage reads it that begins with that run and has no adapters."""
    _, out, run, _ = prepared
    model = dataclasses.replace(run.model, lora=LoraConfig(rank=2))
    given = dataclasses.replace(run, model=model, out=str(tmp_path / "adapted"))
    params = random_params(dataclasses.replace(given, data=cached(prepared), train=ONE_STEP))
    save_params(given, {name: params[name] for name in ("decoder", "lora")})
    main_with("--out", out, "--queries", "--checkpoint", given.out)
    config = dataclasses.replace(run, data=cached(prepared, cached_queries=True))
    held = jax.device_put({name: params[name] for name in ("decoder", "lora")})
    check_queries(config, types.SimpleNamespace(frozen=merged(held, model.lora)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="are of another encoder"):
        check_queries(config, types.SimpleNamespace(frozen=held))  # type: ignore[arg-type]


def stored_queries(folder) -> np.ndarray:
    found = read_features(folder, name="queries")
    return np.stack([found[row] for row in range(0, len(found), 3)] + [found[row] for row in range(1, 12, 3)])


def test_queries_on_a_mesh_and_of_several_groups_are_those_of_one_device(prepared, tmp_path, monkeypatch):
    _, out, run, _ = prepared
    given = dataclasses.replace(run, out=str(tmp_path / "given"))
    params = random_params(dataclasses.replace(given, data=cached(prepared), train=ONE_STEP))
    save_params(given, {"decoder": params["decoder"]})
    ask = ("--queries", "--checkpoint", given.out, "--batch-size", 3)
    for name in ("one", "eight", "groups"):
        shutil.copytree(out, tmp_path / name, ignore=shutil.ignore_patterns("queries*", ".queries*"))
    main_with("--out", tmp_path / "one", *ask)
    monkeypatch.setattr(feature_store, "ITEMS", 5)
    main_with("--out", tmp_path / "eight", *ask, "--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2)
    expected, found = (stored_queries(tmp_path / name) for name in ("one", "eight"))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert len(np.unique(expected, axis=0)) > 3

    # Another group, whose shards are not among those of this process: each makes its own, and that is said.
    monkeypatch.setattr("quecc_jax.groups.group_of", lambda mesh: Group(None, 0, 2))
    with pytest.raises(UserError, match=r"2 shards that were just written are not in .*; name a directory"):
        main_with("--out", tmp_path / "groups", *ask)
    monkeypatch.setattr("quecc_jax.groups.group_of", lambda mesh: Group(None, 1, 2))
    with pytest.raises(UserError, match=r"1 shards that were just written"):
        main_with("--out", tmp_path / "groups", *ask)
    monkeypatch.setattr("quecc_jax.groups.group_of", lambda mesh: Group())
    main_with("--out", tmp_path / "groups", *ask)
    np.testing.assert_array_equal(stored_queries(tmp_path / "groups"), expected)


@pytest.mark.slow
def test_two_processes_share_out_the_queries(prepared, tmp_path):
    path, _, run, _ = prepared
    given = dataclasses.replace(run, out=str(tmp_path / "given"))
    params = random_params(dataclasses.replace(given, data=cached(prepared), train=ONE_STEP))
    save_params(given, {"decoder": params["decoder"]})
    rows = json.loads(path.read_text()) * 90
    many = path.parent / "many.json"
    many.write_text(json.dumps(rows))
    main_with(
        "--data", many, "--images", path.parent, "--out", tmp_path / "one", "--resize", 24, "--workers", 1
    )
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    ask = ("--queries", "--checkpoint", given.out, "--batch-size", 64)
    main_with("--out", tmp_path / "one", *ask)
    command = ("launch.prepare_data", "--out", tmp_path / "two", *ask, "--mesh.data", 2)
    with Processes(command, 2, tmp_path / "said", 1) as two:
        assert two.statuses(300) == [0, 0], two.said()
        assert "1,080 questions" in two.printed(0) and not two.printed(1)
    expected, found = (stored_queries(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_array_equal(found, expected)


def test_a_fingerprint_tells_what_matters_apart_on_any_mesh(prepared, model):
    _, _, _, params = prepared
    vision = model.vision
    known = {tower_fingerprint(params, vision, DataConfig())}
    for change in ({"norm_eps": 1e-6}, {"levels": (1, 2)}, {"activation": "gelu"}):
        known.add(tower_fingerprint(params, dataclasses.replace(vision, **change), DataConfig()))
    known.add(tower_fingerprint(params, vision, DataConfig(image_aspect="square")))
    known.add(tower_fingerprint(params, vision, DataConfig(image_decoding="original")))
    known.add(tower_fingerprint(jax.tree.map(lambda x: x[::-1], params), vision, DataConfig()))
    assert len(known) == 7
    half = np.arange(64 * 6, dtype=np.float16).reshape(64, 6)
    rows = jax.sharding.NamedSharding(make_mesh(MeshConfig(1, 4, 2)), jax.sharding.PartitionSpec("fsdp"))
    spread = jax.device_put(half.astype(np.float32), rows)
    assert fingerprint({"a": half}) == fingerprint({"a": spread}) != fingerprint({"a": half[::-1]})
    assert fingerprint({"a": half}) != fingerprint({"b": half})


@pytest.mark.slow
def test_clip_s_text_tower_trains_alike_cached_and_computed_and_answers(prepared, tmp_path):
    path, out, run, tower = prepared
    words = write_clip_tokenizer(tmp_path / "bytes")
    text = ClipTextConfig(vocab_size=words, width=16, depth=1, heads=2, mlp_width=16, projection=12)
    model = dataclasses.replace(run.model, query=QueryConfig("clip_text", text=text))
    data = cached(prepared, query_tokenizer=str(tmp_path / "bytes"), query_length=9)
    config = dataclasses.replace(
        run,
        out=str(tmp_path / "computed"),
        model=model,
        data=data,
        train=dataclasses.replace(ONE_STEP, stage=2),
    )
    params = {"vision": tower, "text": random_params(config)["text"]}
    towers = dataclasses.replace(config, out=str(tmp_path / "towers"))
    save_params(towers, params)
    with pytest.raises(UserError, match=r"tower_from .* has no parameters text; name a run"):
        quiet(dataclasses.replace(config, tower_from=run.out))
    config = dataclasses.replace(config, tower_from=towers.out)
    computed = quiet(config)
    held = load_params(config.out, ["text"])[1]
    jax.tree.map(np.testing.assert_array_equal, held, {"text": params["text"]})
    main_with("--out", out, "--queries", "--checkpoint", towers.out)
    (batch,) = eval_batches(dataclasses.replace(data, cached_queries=True), model, 12)
    # The last rows ask for ten tokens, and lose one of them, but not their end.
    assert max(len(ids) for _, _, ids in asked(batch)) == len(asked(batch)[-1][2]) == 9
    for row, image, ids in asked(batch):
        assert (ids[0], ids[-1]) == (words - 2, words - 1)
        wanted = clip_text(params["text"], text, ids)
        np.testing.assert_allclose(batch.query_features[row, image], wanted, rtol=1e-2, atol=1e-2)
    stored = dataclasses.replace(
        config, out=str(tmp_path / "stored"), data=dataclasses.replace(data, cached_queries=True)
    )
    again = quiet(stored)
    np.testing.assert_allclose(again["loss"], computed["loss"], rtol=1e-3)
    with pytest.raises(UserError, match="has no parameters text"):
        load_params(stored.out, ["text"])
    # The run has a copy of its questions' tokenizer, and names the towers' run.
    engine = load_engine(stored.out)
    assert engine.config.data.query_tokenizer == f"{stored.out}/query_tokenizer"
    question = Question("what color is it, and where?", (engine.image(path.parent / "gqa/images/1.jpg"),))
    assert len(engine.answers([question], Limits(2))) == 1
    (found,) = engine.reuse.questions.values()
    reader: Any = engine.tokenizer.questions
    asking = [*reader.hf(question.text)["input_ids"][:8], words - 1]
    np.testing.assert_allclose(found, clip_text(params["text"], text, np.array(asking)), rtol=1e-3, atol=1e-4)
