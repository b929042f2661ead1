"""Visual tokens of a batch, with reuse of what repeats: what is computed of a question or an image alone is held."""

import dataclasses
import functools
import hashlib
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

import cachetools
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.data.text.queries import question_ids
from quecc_jax.generate.decode import Params, on_mesh
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import batch_parts, on_host, replicated, spread_rows

MIB = 1 << 20

AT_ONCE = 32
"""Images, or questions, that one program encodes on a device, at most: more would be no faster, and take more room."""


Held = cachetools.LRUCache[bytes, PyTree]
"""Trees of arrays by what they are of, within a limit of bytes; those that were used longest ago leave first."""


Slot = tuple[int, ...]
"""Row and number of an image."""


class Reused(TypedDict):
    """What a saved result says of one kind of reuse."""

    hits: int
    misses: int
    hit_rate: float | None
    """None where nothing was looked up."""
    seconds_saved: float | None
    """What the hits would have taken at the mean time of a miss; None where no miss was timed."""


@dataclasses.dataclass
class Counter:
    """What one kind of reuse was worth."""

    hits: int = 0
    misses: int = 0
    timed: int = 0
    """Misses among those that were computed by a program compiled before."""
    seconds: float = 0.0
    """Time that these took."""

    def report(self) -> Reused:
        """The counts, and what they saved."""
        looked = self.hits + self.misses
        saved = round(self.hits * self.seconds / self.timed, 3) if self.timed else None
        return {
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / looked if looked else None,
            "seconds_saved": saved,
        }


class Reuse:
    """What is computed of questions and of images alone under one set of parameters, with the counts of its reuse.

    Args:
      question_bytes: limit for questions' features (one is 16 KiB for a 7B model).
      image_bytes: limit for what `VLM.prepare` makes of images: visual tokens, or where they depend on the question
        what goes before (of one image 7 MiB for QueCC behind CLIP-L at 336 pixels, float32).
    """

    def __init__(self, question_bytes: int = 64 * MIB, image_bytes: int = 512 * MIB):
        self.questions: Held = cachetools.LRUCache(question_bytes, size_of)
        self.images: Held = cachetools.LRUCache(image_bytes, size_of)
        self.counted = {"questions": Counter(), "images": Counter()}
        """By the names that saved results have."""
        self.pace: dict[str, float] = {}
        """Seconds of one, by these names, in the newest program that had been compiled before."""

    def counts(self) -> dict[str, dict[str, float]]:
        """Of `questions` and of `images`, as JSON can hold them."""
        return {name: dataclasses.asdict(counter) for name, counter in self.counted.items()}

    def total(self, counts: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
        """Counts from now on from the sums of several `counts`."""
        for name, counter in self.counted.items():
            for field in dataclasses.fields(counter):
                setattr(counter, field.name, sum(one[name][field.name] for one in counts))

    def report(self) -> dict[str, Reused]:
        """Of `questions` and of `images`."""
        return {name: counter.report() for name, counter in self.counted.items()}


class Encoders:
    """From questions and images to visual tokens, by way of a `Reuse`."""

    def __init__(self, config: ModelConfig, reuse: Reuse, mesh: Mesh | None = None):
        self.config, self.reuse = config, reuse
        self._mesh, self._compiled = mesh, set[tuple[str, int, bool]]()
        model = VLM(config, unrolled=True)
        images = functools.partial(on_mesh(encode_images, mesh), model)
        self._encode = {
            ("questions", False): functools.partial(on_mesh(encode_questions, mesh), model),
            ("images", False): images,
            ("images", True): functools.partial(images, look=True),
        }
        self._prepare, self._finish = (
            functools.partial(on_mesh(one, mesh), model) for one in (prepare, finish)
        )

    def __call__(self, params: Params, batch: Batch) -> Visual:
        """What the decoder's input takes of a batch's images.

        Args:
          params: in `decoding_params`' form.
          batch: on the host, with pixels, or with features, which are taken as they are.
        """
        c, (b, i) = self.config, batch.query_ends.shape
        visual: Visual | None = self._made(params, batch)
        if visual is None:
            return Visual(jnp.zeros((b, i, c.visual_tokens, c.decoder.width), jnp.dtype(c.dtype)))
        return visual

    def attention(self, params: Params, batch: Batch) -> np.ndarray | None:
        """Where the compressor looks: float32 [B, I, V, H, g, g] of the same arguments, the weights by which
        each of the V tokens averages the g x g patches in each of H heads. They sum to one; outside of its
        own square a token that has one gives zeros. Where a compressor attends more than once, the last time
        counts; a kept CLS passes by. None where it does not attend, or no row has an image.
        """
        weights = self._made(params, batch, look=True)
        return None if weights is None else over_image(on_host(weights), self.config.vision.grid)

    def _made(self, params: Params, batch: Batch, look: bool = False) -> PyTree:
        """`Visual`, or the weights [B, I, V, H, R] by which its tokens look; None where no row has an image."""
        ends = np.asarray(batch.query_ends)
        present = [slot for slot in np.ndindex(ends.shape) if ends[slot] >= 0]
        if not present:
            return None
        if not self.config.compressor.reads_question:
            return self._of_images(params, batch, present, look)
        prepared = self._of_images(params, batch, present)
        return self._finish(params, prepared, self._of_questions(params, batch, present), look=look)

    def _of_images(self, params: Params, batch: Batch, present: Sequence[Slot], look: bool = False) -> PyTree:
        """What `VLM.prepare` makes of the images, arrays [B, I, ...], or the weights by which it looks."""
        shape = batch.query_ends.shape
        if batch.features is not None:
            return self._prepare(params, spread_rows(batch.features, self._mesh), look=look)
        keys = {slot: self._image_key(batch.pixels[slot], look) for slot in present}
        return self._gather("images", self.reuse.images, keys, shape, params, (batch.pixels,), look=look)

    def image_keys(self, pixels: np.ndarray) -> list[bytes]:
        """By what `Reuse.images` holds each of an image's crops, uint8 [P, H, W, 3]."""
        return [self._image_key(crop) for crop in pixels]

    def _image_key(self, pixels: np.ndarray, look: bool = False) -> bytes:
        # What no question changes is made at one V.
        by_v = not self.config.compressor.reads_question
        return image_key(pixels) + (f"{self.config.visual_tokens} {look}".encode() if by_v else b"")

    def _of_questions(self, params: Params, batch: Batch, present: Sequence[Slot]) -> jax.Array:
        """The questions' features [B, I, H]."""
        shape, ends = batch.query_ends.shape, np.asarray(batch.query_ends)
        queries, segments = np.asarray(batch.queries), np.asarray(batch.query_segments)
        asked = {slot: question_ids(queries[slot[0]], segments[slot[0]], ends[slot]) for slot in present}
        keys = {slot: one.tobytes() for slot, one in asked.items()}
        ids, lengths = np.zeros((*shape, queries.shape[1]), np.int32), np.zeros(shape, np.int32)
        for slot, one in asked.items():
            ids[slot][: len(one)], lengths[slot] = one, len(one)
        features: jax.Array = self._gather(
            "questions", self.reuse.questions, keys, shape, params, (ids, lengths)
        )
        return features

    def _gather(
        self,
        name: str,
        held: Held,
        keys: dict[Slot, bytes],
        shape: tuple[int, int],
        params: Params,
        inputs: tuple[np.ndarray, ...],
        look: bool = False,
    ) -> PyTree:
        """Arrays [B, I, ...], rows over the mesh: encodings of inputs [B, I, ...] by the keys of their slots, zeros
        in slots without.

        Keys that are not held are encoded once each, `AT_ONCE` together.
        """
        found = {key: tree for key in set(keys.values()) if (tree := held.get(key)) is not None}
        missing: dict[bytes, Slot] = {}
        for slot, key in keys.items():
            if key not in found:
                missing.setdefault(key, slot)
        counter = self.reuse.counted[name]
        counter.misses += len(missing)
        counter.hits += len(keys) - len(missing)
        left = iter(missing.items())
        for rows in pieces(len(missing), self._split):
            part = [*itertools.islice(left, rows)]
            slots = [slot for _, slot in part]
            where = tuple(np.array([*slots, *slots[:1] * (rows - len(slots))]).T)
            began = time.perf_counter()
            given = spread_rows(tuple(x[where][:, None] for x in inputs), self._mesh)
            encoded = self._encode[name, look](params, *given)
            if self._mesh is not None:
                encoded = jax.device_put(encoded, replicated(self._mesh))
            trees = jax.block_until_ready(encoded)
            if (name, rows, look) in self._compiled:
                took = time.perf_counter() - began
                counter.timed += len(slots)
                counter.seconds += took
                self.reuse.pace[name] = took / rows
            self._compiled.add((name, rows, look))
            for (key, _), tree in zip(part, trees, strict=False):
                found[key] = tree
                if 0 < size_of(tree) <= held.maxsize:
                    held[key] = tree
        absent = jax.tree.map(jnp.zeros_like, next(iter(found.values())))
        rows_of = [found[keys[slot]] if slot in keys else absent for slot in np.ndindex(shape)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x).reshape(*shape, *x[0].shape), *rows_of)
        return spread_rows(stacked, self._mesh)

    @property
    def _split(self) -> int:
        """Devices that rows are split over."""
        return 1 if self._mesh is None else batch_parts(self._mesh)


# Compiled once per model and shapes, for all who use the model.


_jitted = functools.partial(jax.jit, static_argnums=0, static_argnames="look")


@functools.partial(jax.jit, static_argnums=0)
def encode_questions(model: VLM, params: Params, ids: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
    segments = (jnp.arange(ids.shape[-1]) < lengths[..., None]).astype(jnp.int32)
    asked = ids[:, 0], segments[:, 0], lengths - 1
    return _rows(model.apply({"params": params}, *asked, method=VLM.encode_query), len(ids))


@_jitted
def encode_images(model: VLM, params: Params, pixels: jax.Array, look: bool = False) -> tuple[PyTree, ...]:
    states: PyTree = model.apply({"params": params}, pixels, method=VLM.encode_image)
    return _rows(prepare(model, params, states, look=look), len(pixels))


@_jitted
def prepare(model: VLM, params: Params, states: jax.Array, look: bool = False) -> PyTree:
    return _seen(look, model, params, VLM.prepare, states)


@_jitted
def finish(model: VLM, params: Params, prepared: PyTree, query: jax.Array, look: bool = False) -> PyTree:
    return _seen(look, model, params, VLM.finish, prepared, query)


def _seen(look: bool, model: VLM, params: Params, method: Callable[..., PyTree], *inputs: PyTree) -> PyTree:
    """What a method makes, [B, I, ...], or the weights [B, I, V, H, R] by which it looked; None if it did not."""
    made, sown = model.apply({"params": params}, *inputs, method=method, mutable=["intermediates"])
    if not look:
        return made
    found = jax.tree.leaves(sown)
    if not found:
        return None
    # Weights that do not depend on the image have one row for all.
    (b, i), shape = jax.tree.leaves(made)[0].shape[:2], found[-1].shape[1:]
    return jnp.broadcast_to(found[-1], (b * i, *shape)).reshape(b, i, *shape)


def _rows(tree: PyTree, count: int) -> tuple[PyTree, ...]:
    """Each of [count, 1, ...] by itself."""
    return tuple(jax.tree.map(operator.itemgetter((r, 0)), tree) for r in range(count))


def size_of(tree: PyTree) -> int:
    """Bytes of a tree's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def image_key(pixels: np.ndarray) -> bytes:
    """What tells an image from others; equal pixels have equal keys."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def over_image(weights: np.ndarray, grid: int) -> np.ndarray:
    """Attention weights laid out over the whole image, [..., V, H, g, g].

    Args:
      weights: [..., V, H, R]. R = g^2 are all patches. Fewer are those of the token's own square: V = h^2
        squares tile the image, both in raster order.
      grid: g.
    """
    *rows, v, heads, r = weights.shape
    out = np.zeros((*rows, v, heads, grid, grid), weights.dtype)
    region = math.isqrt(r)
    across = grid // region
    for token in range(v):
        y, x = (square % across * region for square in (token // across, token))
        own = weights[..., token, :, :].reshape(*rows, heads, region, region)
        out[..., token, :, y : y + region, x : x + region] = own
    return out


def pieces(number: int, parts: int = 1) -> Iterator[int]:
    """In what numbers so many are encoded: powers of two, at most `AT_ONCE`, times the parts that they are split over.
    That takes few programs, and only the last may have more places than there are left."""
    while number > 0:
        size = parts * min(AT_ONCE, 1 << max(0, (number // parts).bit_length() - 1))
        yield size
        number -= size


def round_up(number: int, multiple: int = 1) -> int:
    """The bucket of a size: the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is a multiple."""
    power = 1 << max(0, (number - 1).bit_length())
    size = power * 3 // 4 if power * 3 // 4 >= number and power >= 4 else power
    return -(-size // multiple) * multiple
