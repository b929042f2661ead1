"""Stores of data and of runs: prepared data, features, lengths, pools, checkpoints and what lies beside them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quecc_jax.config import CheckpointConfig, DataConfig, RunConfig, SourceConfig
from quecc_jax.data.lengths import measure
from quecc_jax.data.preparing import prepare as preparing
from quecc_jax.data.sources.array_record import Recipe, open_prepared, read_manifest
from quecc_jax.data.sources.feature_store import read_features, write_features
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.sources.pool import read_pool, write_rows
from quecc_jax.data.sources.shards import find_shard, write_shard
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import BadRow
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.resume import Checkpoints
from tests.data.photos import write_llava
from tests.stores import Store
from tests.tiny import MODEL, run
from tests.train.runs import Batches, trainer_on

SMALL: dict[str, Any] = {"shard_images": 3, "shard_rows": 5}


def plain(tree: Any) -> Any:
    """Arrays as bytes, named by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _bytes(leaf) for path, leaf in leaves}


def _bytes(leaf: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def make_prepared(folder: Path, seed: int) -> None:
    path, _ = write_llava(folder.parent / f"llava-{seed}")
    text = path.read_text().replace("blue", ("blue", "pink")[seed])
    path.write_text(text)
    source = str(path.parent)
    preparing.prepare(path, (source,), folder, Recipe(24, ("pad", "square")[seed], "raw"), workers=1, **SMALL)


def read_prepared(folder: Path) -> Any:
    manifest = read_manifest(folder)
    prepared = open_prepared(folder)
    rows = [prepared.rows[number] for number in range(len(prepared.rows))]
    return manifest["source"], dataclasses.asdict(prepared.recipe), rows, list(prepared.images)


def make_features(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2100, 4, 4, 3), np.uint8)

    def image(number: int) -> np.ndarray:
        if number == 5:
            raise BadRow("picture broken", "image 5 is broken")
        return images[number]

    def halved(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), 4, 12) / 2

    def whole(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), 4, 12)

    write_features(folder, 2100, image, whole, 64, "f", name="features")
    write_features(folder, 2100, image, halved, 64, "f", name="queries")


def read_both_features(folder: Path) -> Any:
    both = []
    for name in ("features", "queries"):
        found = read_features(folder, "f", name)
        both.append([found[number].tobytes() for number in (*range(5), *range(6, len(found)))])
    return both


def _data(folder: Path) -> DataConfig:
    beside = folder.parent / "lengths-source"
    if not beside.exists():
        path, _ = write_llava(beside)
        train_word_tokenizer(["red blue one two"], beside / "tokenizer")
        assert path.name == "mix.json"
    source = SourceConfig("llava_json", str(beside / "mix.json"), str(beside))
    return DataConfig(
        sources=(source,),
        tokenizer=str(beside / "tokenizer"),
        template="short",
        max_length=48,
        images_per_row=2,
        cache=str(folder),
        workers=0,
    )


def make_lengths(folder: Path, seed: int) -> None:
    """Two files, for two numbers of visual tokens."""
    data = _data(folder)
    for visual_tokens in (1 + seed, 4 + seed):
        measure(open_sources(data, MODEL), data, visual_tokens)


def read_lengths(folder: Path) -> Any:
    data = _data(folder)
    sources = open_sources(data, MODEL)
    return [[field.tobytes() for field in measure(sources, data, count)] for count in (1, 4)]


def make_notes(folder: Path, seed: int) -> None:
    """An interrupted preparation: shards with their notes, and no manifest."""
    for number in range(3):
        records = [bytes([seed, number, k]) * 50 for k in range(4)]
        write_shard(folder, f"rows-{number}", "key", records, [number, seed])


def read_notes(folder: Path) -> Any:
    """What is kept, with what it holds; what is not kept is made anew, which gives the same."""
    found = []
    for number in range(3):
        if find_shard(folder, f"rows-{number}", "key") is None:
            write_shard(
                folder, f"rows-{number}", "key", [bytes([0, number, k]) * 50 for k in range(4)], [number, 0]
            )
        found.append(find_shard(folder, f"rows-{number}", "key"))
    return [(shard[:4], remarks) for shard, remarks in filter(None, found)]


def make_pool(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    np.save(folder / "images.npy", rng.integers(0, 256, (3, 8, 8, 3), np.uint8))
    np.save(folder / "cells.npy", rng.integers(0, 9, (3, 2, 2, 3)).astype(np.int8))
    np.save(folder / "sources.npy", rng.integers(0, 9, (3, 2, 2)).astype(np.int32))
    rows = [{"id": f"{seed}-{k}", "image": k, "kind": "color", "conversations": []} for k in range(3)]
    write_rows(rows, {"task": "mosaic", "pictures": 3, "rows": 3, "m": 2, "seed": seed}, folder)


def read_whole_pool(folder: Path) -> Any:
    pool = read_pool(folder)
    return pool.meta, pool.rows, *(_bytes(x) for x in (pool.images, pool.cells, pool.sources))


def _run(folder: Path) -> RunConfig:
    beside = folder.parent / "run-tokenizer"
    if not beside.exists():
        train_word_tokenizer(["red blue one two"], beside)
    config = run(steps=2)
    data = dataclasses.replace(config.data, tokenizer=str(beside))
    return dataclasses.replace(
        config, data=data, out=str(folder), checkpoint=CheckpointConfig(every=1, keep=2)
    )


def make_run(folder: Path, seed: int) -> None:
    """Checkpoints 1 and 2 of random parameters, frozen ones among them; those of both seeds have the same shapes."""
    config, rng = _run(folder), np.random.default_rng(seed)

    def filled(leaf: Any) -> jax.Array:
        values = (
            rng.normal(size=leaf.shape) if np.issubdtype(leaf.dtype, np.floating) else np.zeros(leaf.shape)
        )
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    state = jax.tree.map(filled, trainer_on(config).abstract_state)
    batches = Batches(config)
    with Checkpoints(config) as checkpoints:
        checkpoints.begin(state)
        checkpoints.describe()
        for step in (1, 2):
            next(batches)
            moved = jax.tree.map(filled, state.trainable)
            state = state._replace(trainable=moved, step=state.step + 1)
            assert checkpoints.save(step, state, batches)


def resume_run(folder: Path) -> Any:
    config = _run(folder)
    batches = Batches(config)
    with Checkpoints(config) as checkpoints:
        state = checkpoints.restore(trainer_on(config).abstract_state, batches)
    assert state is not None
    return plain(state), batches.taken


def load_run(folder: Path) -> Any:
    config, params = load_params(folder)
    texts = {path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())}
    return dataclasses.replace(config, out="", data=None), plain(params), texts  # type: ignore[arg-type]


def without_newest(folder: Path) -> None:
    jax.tree.map(
        lambda path: path.unlink(), [p for p in (folder / "checkpoints" / "2").rglob("*") if p.is_file()]
    )


STORES = (
    Store("prepared data", make_prepared, read_prepared),
    Store("features", make_features, read_both_features),
    Store("lengths", make_lengths, read_lengths),
    Store("notes of shards", make_notes, read_notes),
    Store("pool", make_pool, read_whole_pool),
    Store("checkpoints, resumed", make_run, resume_run, without_newest),
    Store("checkpoints, loaded", make_run, load_run, without_newest),
)
