"""Compiled programs in a bucket: JAX keeps them there, and the next process compiles nothing."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import build_trainer
from tests.bucket import pretended_bucket
from tests.tiny import random_batch

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def bucket(tmp_path):
    """JAX's cache in a pretended bucket, and the directory that stands for it."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    with pretended_bucket(tmp_path) as folder:
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        yield folder
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_second_start_takes_the_step_from_the_bucket(config, bucket):
    seen: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))

    def start() -> tuple[float, int, int]:
        """The loss of a step, and how many programs were found and not found."""
        seen.clear()
        jax.clear_caches()
        compilation_cache.reset_cache()
        trainer = build_trainer(config, make_mesh(config.mesh, jax.devices()[:1]))
        _, metrics = trainer.step(trainer.init(jax.random.key(0)), trainer.put(random_batch(config)))
        hits, misses = (seen.count(f"/jax/compilation_cache/cache_{what}") for what in ("hits", "misses"))
        return float(metrics["loss"]), hits, misses

    loss, _, compiled = start()
    assert compiled and list((bucket / "compiled").iterdir())
    assert start() == (loss, compiled, 0)
