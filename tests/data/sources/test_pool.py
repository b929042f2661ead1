"""Pools as directories: whole or absent, reproducible, and features of the right tower only."""

import numpy as np
import pytest

from quecc_jax.data.sources import feature_store
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.data.sources.pool import read_pool, write_features
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed import build as build_module
from quecc_jax.experiments.testbed.build import build_pool


def small(directory, **more):
    return build_pool(
        "reading", "train", directory, **{"image_size": 24, "num_images": 10, "questions_per_image": 2} | more
    )


def test_same_seed_same_pool(tmp_path):
    one, two, other = (small(tmp_path / name, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert one.rows == two.rows and np.array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)
    assert one.images.shape == (10, 24, 24, 3) and one.images.dtype == np.uint8
    assert len(one.rows) == one.meta["rows"] == 20


def test_splits_draw_from_different_streams(tmp_path):
    train = small(tmp_path / "train")
    test = build_pool("reading", "test", tmp_path / "test", 24, 10, 2)
    assert [row["conversations"][0] for row in train.rows] != [row["conversations"][0] for row in test.rows]


def test_interrupted_build_leaves_the_old_pool(tmp_path, monkeypatch):
    small(tmp_path / "pool", seed=1)
    before = read_pool(tmp_path / "pool").rows

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "write_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "pool", seed=2)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "new", seed=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert read_pool(tmp_path / "pool").rows == before


def test_rebuilding_replaces(tmp_path):
    small(tmp_path / "pool", seed=1)
    assert len(small(tmp_path / "pool", seed=1, num_images=4).images) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"image_size": 25}, "3 x 3"),
        ({"num_images": 0}, "number of images"),
        ({"questions_per_image": 13}, "different questions"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        small(tmp_path / "pool", **more)
    assert not list(tmp_path.iterdir())


def test_questions_run_out_in_mosaics(tmp_path):
    with pytest.raises(UserError, match="different questions"):
        build_pool("mosaic", "test", tmp_path / "pool", 24, 3, 4, m=1)


def test_single_questions_can_be_capped(tmp_path):
    pool = build_pool("single", "test", tmp_path / "pool", 24, 30, 2)
    asked = np.bincount([row["image"] for row in pool.rows], minlength=30)
    assert asked.max() == 2 and asked.min() >= 1


def test_not_a_pool(tmp_path):
    with pytest.raises(UserError, match="not a pool"):
        read_pool(tmp_path)
    pool = small(tmp_path / "pool")
    rows = pool.directory / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"rows\.jsonl has .* bytes, not"):
        read_pool(pool.directory)
    (pool.directory / "checksums.json").unlink()  # as version 0.1 left it
    with pytest.raises(UserError, match="other numbers"):
        read_pool(pool.directory)
    (pool.directory / "images.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"images\.npy"):
        read_pool(pool.directory)


def mean_features(images):
    """[b, H, W, 3] -> [b, 4, 2, 3], something that tells images apart."""
    assert len(images) == 4
    means = images.reshape(len(images), 4, -1, 3).mean(axis=2)
    return np.stack([means, -means], axis=2)


def test_features_are_stored_for_every_image(tmp_path):
    pool = small(tmp_path / "pool")
    done: list[int] = []
    stored = write_features(pool, mean_features, 4, "tower-1", done.append)
    assert done == [4, 8, 10, 10]
    assert stored.dtype == np.float16 and stored.shape == (10, 4, 2, 3)
    wanted = np.concatenate([mean_features(np.asarray(pool.images[k : k + 4])) for k in (0, 4, 6)])
    np.testing.assert_allclose([stored[k] for k in (0, 5, 8)], wanted[[0, 5, 10]], rtol=1e-3)


def test_features_of_another_tower_are_refused_and_replaced(tmp_path):
    pool = small(tmp_path / "pool")
    with pytest.raises(UserError, match="no features"):
        read_features(pool.directory, "tower-1")
    write_features(pool, mean_features, 4, "tower-1")
    with pytest.raises(UserError, match="another tower"):
        read_features(pool.directory, "tower-2")

    def never(_):
        raise AssertionError("features of this tower are there already")

    first = np.array(write_features(pool, never, 4, "tower-1"))
    second = write_features(pool, lambda images: -mean_features(images), 4, "tower-2")
    np.testing.assert_array_equal(second, -first)
    with pytest.raises(UserError, match="another tower"):
        read_features(pool.directory, "tower-1")


def test_interrupted_features_are_absent_and_continue_shard_by_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "ITEMS", 4)
    pool = small(tmp_path / "pool")

    def fail(images, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return mean_features(images)

    with pytest.raises(KeyboardInterrupt):
        write_features(pool, fail, 4, "tower-1")
    with pytest.raises(UserError, match="no features"):
        read_features(pool.directory)
    seen = []

    def count(images):
        seen.append(len(images))
        return mean_features(images)

    stored = write_features(pool, count, 4, "tower-1")
    assert len(seen) == 2 and len(stored) == 10  # of three shards of at most 4 the first was whole
    assert not list(pool.directory.glob(".*"))
    fresh = write_features(small(tmp_path / "fresh"), mean_features, 4, "tower-1")
    np.testing.assert_array_equal(stored, fresh)


def test_features_beyond_float16_are_refused(tmp_path):
    pool = small(tmp_path / "pool")
    with pytest.raises(UserError, match="float16"):
        write_features(pool, lambda images: mean_features(images) * 1e6, 4, "tower-1")
