"""Reuse of what repeats: questions' features over their pictures, pictures' features over their questions."""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.generate.decode import on_mesh
from quecc_jax.geometry import query_width
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import batch_parts, batch_sharding, replicated

MIB = 1 << 20


class Lru:
    """Arrays by key within a limit of bytes; the one that was used longest ago leaves first."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._held: collections.OrderedDict[Hashable, jax.Array] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> jax.Array | None:
        """The array of a key, which thereby becomes the newest."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, array: jax.Array) -> None:
        """Holds an array; one that exceeds the limit by itself is not held."""
        if key in self._held:
            self.bytes -= self._held.pop(key).nbytes
        self._held[key], self.bytes = array, self.bytes + array.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._held.popitem(last=False)[1].nbytes


@dataclasses.dataclass
class Counter:
    """What one kind of reuse was worth."""

    hits: int = 0
    misses: int = 0
    timed: int = 0
    """Misses among those that were computed by a program compiled before."""
    seconds: float = 0.0
    """Time that these took."""

    def report(self) -> dict[str, Any]:
        """Hits, misses, their ratio, and the seconds that the hits would have taken at the mean time of
        a miss; None where no miss was timed."""
        looked = self.hits + self.misses
        saved = round(self.hits * self.seconds / self.timed, 3) if self.timed else None
        return {"hits": self.hits, "misses": self.misses, "hit_rate": self.hits / looked if looked else None,
                "seconds_saved": saved}  # fmt: skip


class Reuse:
    """Features of questions and pictures under one set of parameters, with the counts of their reuse.

    Args:
      question_bytes: limit for questions' features (one is 16 KiB for a 7B model).
      picture_bytes: limit for pictures' tower states (one is 9 MiB for CLIP-L at 336 pixels, float32).
    """

    def __init__(self, question_bytes: int = 64 * MIB, picture_bytes: int = 512 * MIB):
        self.questions, self.pictures = Lru(question_bytes), Lru(picture_bytes)
        self.counted = {"questions": Counter(), "pictures": Counter()}

    def report(self) -> dict[str, dict[str, Any]]:
        """`Counter.report` of `questions` and `pictures`."""
        return {name: counter.report() for name, counter in self.counted.items()}


class Encoders:
    """The model's way from questions and pictures to visual tokens, by way of a `Reuse`."""

    def __init__(self, config: ModelConfig, reuse: Reuse, mesh: Mesh | None = None):
        self.config, self.reuse = config, reuse
        self._mesh, self._compiled = mesh, set[tuple[str, int]]()
        model = VLM(config, unrolled=True)
        self._encode = {name: functools.partial(on_mesh(encode, mesh), model)
                        for name, encode in (("questions", _questions), ("pictures", _pictures))}  # fmt: skip
        self._compress = functools.partial(on_mesh(_compress, mesh), model)

    def __call__(
        self, params: Any, batch: Batch, pictures: Sequence[Sequence[Hashable]]
    ) -> tuple[jax.Array, jax.Array | None]:
        """Visual tokens of a batch.

        Args:
          params: in `decoding_params`' form.
          batch: on the host, with pixels, or with features, which are taken as they are.
          pictures: for each row the keys of its pictures; equal keys mean equal pixels.

        Returns:
          Visual tokens [B, I, V, M], and float32 [B, I, V, H, g / h, g / h], the weights by which each of
          the V tokens averages its own square of the g x g patches in each of H heads; None where the
          compressor does not attend, or no row has a picture.
        """
        c, (b, i) = self.config, batch.queries.shape[:2]
        lengths = np.asarray(batch.query_lengths)
        present = [(r, n) for r in range(b) for n in range(i) if lengths[r, n]]
        if not present:
            return jnp.zeros((b, i, c.visual_tokens, c.decoder.width), jnp.dtype(c.dtype)), None
        states = batch.features
        if states is None:
            keys = {(r, n): pictures[r][n] for r, n in present}
            states = self._gather("pictures", self.reuse.pictures, keys, (b, i), params, (batch.pixels,))
        query = jnp.zeros((b, i, query_width(c)), jnp.dtype(c.dtype))
        if c.compressor.reads_question:
            ids = np.asarray(batch.queries)
            keys = {(r, n): ids[r, n, : lengths[r, n]].tobytes() for r, n in present}
            query = self._gather("questions", self.reuse.questions, keys, (b, i), params, (ids, lengths))
        if self._mesh is not None:
            states, query = jax.device_put((states, query), batch_sharding(self._mesh))
        return self._compress(params, states, query)

    def _gather(
        self, name: str, held: Lru, keys: dict[tuple[int, int], Hashable], shape: tuple[int, int],
        params: Any, inputs: tuple[Any, ...],
    ) -> jax.Array:  # fmt: skip
        """[B, I, ...]: encodings of inputs [B, I, ...] by their places' keys, zeros in places without.

        Keys that are not held are encoded together, once each.
        """
        found = {key: array for key in set(keys.values()) if (array := held.get(key)) is not None}
        missing: dict[Hashable, tuple[int, int]] = {}
        for place, key in keys.items():
            if key not in found:
                missing.setdefault(key, place)
        counter = self.reuse.counted[name]
        counter.misses += len(missing)
        counter.hits += len(keys) - len(missing)
        if missing:
            places = list(missing.values())
            rows = round_up(len(places), self._split)
            where = tuple(np.array([*places, *places[:1] * (rows - len(places))]).T)
            began = time.perf_counter()
            given = tuple(x[where][:, None] for x in inputs)
            if self._mesh is not None:
                given = jax.device_put(given, batch_sharding(self._mesh))
            encoded = self._encode[name](params, *given)
            if self._mesh is not None:
                encoded = jax.device_put(encoded, replicated(self._mesh))
            arrays = jax.block_until_ready(encoded)
            if (name, rows) in self._compiled:
                counter.timed += len(places)
                counter.seconds += time.perf_counter() - began
            self._compiled.add((name, rows))
            for key, array in zip(missing, arrays, strict=False):
                found[key] = array
                held.put(key, array)
        absent = jnp.zeros_like(next(iter(found.values())))
        places = list(np.ndindex(shape))
        stacked = jnp.stack([found[keys[place]] if place in keys else absent for place in places])
        return stacked.reshape(*shape, *absent.shape)

    @property
    def _split(self) -> int:
        """Devices that rows are split over."""
        return 1 if self._mesh is None else batch_parts(self._mesh)


# Compiled once per model and shapes, for all who use the model.


@functools.partial(jax.jit, static_argnums=0)
def _questions(model: VLM, params: Any, ids: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
    return _rows(model.apply({"params": params}, ids, lengths, method=VLM.encode_query))


@functools.partial(jax.jit, static_argnums=0)
def _pictures(model: VLM, params: Any, pixels: jax.Array) -> tuple[jax.Array, ...]:
    return _rows(model.apply({"params": params}, pixels, method=VLM.encode_image))


@functools.partial(jax.jit, static_argnums=0)
def _compress(model: VLM, params: Any, states: jax.Array, query: jax.Array) -> tuple[jax.Array, Any]:
    made: Any = model.apply({"params": params}, states, query, method=VLM.compress,
                            mutable=["intermediates"])  # fmt: skip
    tokens, weights = made[0], jax.tree.leaves(made[1])
    return tokens, _by_region(weights[0], tokens.shape, model.config) if weights else None


def _rows(x: Any) -> tuple[jax.Array, ...]:
    return tuple(x[r, 0] for r in range(x.shape[0]))


def _by_region(weights: jax.Array, tokens: tuple[int, ...], config: ModelConfig) -> jax.Array:
    """[B, I, V, H, g / h, g / h] of QueCC's own [B I, V, H, R]."""
    b, i, v, _ = tokens
    region = config.vision.grid // math.isqrt(v)
    return weights.reshape(b, i, v, -1, region, region)


def round_up(number: int, multiple: int = 1) -> int:
    """The bucket of a size: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is a multiple."""
    power = 1 << max(0, (number - 1).bit_length())
    size = power * 3 // 4 if power * 3 // 4 >= number and power >= 4 else power
    return -(-size // multiple) * multiple
