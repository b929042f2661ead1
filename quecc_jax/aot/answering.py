"""Compiles what answers questions for a topology: memory at a batch and lengths, bytes exchanged, tokens per second."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from quecc_jax.aot.buffers import Memory
from quecc_jax.aot.compiler import Compiled, compile_program, compile_quickly
from quecc_jax.aot.roofline import Bounds, NetworkUse, work_of
from quecc_jax.aot.topology import Topology, topology_devices
from quecc_jax.config import ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens, query_width
from quecc_jax.config.weights import Weights
from quecc_jax.data.batch import batch_spec
from quecc_jax.data.text.queries import query_buckets
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import Params, begin, in_compute_type
from quecc_jax.generate.engine import ADVANCE, BEGIN, CHUNK, room_for
from quecc_jax.generate.reuse import encode_images, encode_questions, finish, pieces, round_up
from quecc_jax.generate.stand_ins import stand_ins, with_dtype
from quecc_jax.models.decoder import CACHE_AXES, unstack
from quecc_jax.models.lora import NAME as LORA
from quecc_jax.models.lora import joined, without_adapters
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import RULES, batch_parts, batch_sharding, make_mesh, resolve

ENDS = (2,)
"""The token that ends answers; which one it is changes no program."""
IMAGES = "images"
"""The name of the program from pixels to what depends on the image alone: tower, and the compressor's part."""
DECODE = f"{CHUNK} tokens"
"""The name of the program that decodes."""


class Asked(NamedTuple):
    """What the programs are compiled for."""

    batch: int
    """Questions answered at once, on all chips."""
    prompt: int
    """Positions of a prompt, visual tokens among them."""
    new: int
    """Tokens of an answer."""
    weights: Weights = "run"


class Program(NamedTuple):
    """One of the compiled programs, per chip."""

    name: str
    times: float
    """How often it runs for a batch of questions."""
    memory: Memory
    needed: int
    """Bytes of main memory with all parameters, also those that it does not read."""
    flops: float
    """Of one run, on one chip; loops over tokens counted in full."""
    traffic: int
    """Bytes of one run between main memory and the cores."""
    collectives: list[NetworkUse]
    bounds: Bounds
    trace_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """Predicted, of one run."""
        return self.bounds.step_seconds


@dataclasses.dataclass(frozen=True)
class AnswerReport:
    """What answering a batch of questions takes on each chip of a topology."""

    topology: str
    chips: int
    mesh: dict[str, int]
    asked: Asked
    question: int
    """Tokens of the question that the compressor reads; 0 where it reads none."""
    positions: int
    """Of the cache: prompt and answer, padded as the engine pads them."""
    parameters: int
    """Bytes per chip."""
    cache: int
    """Bytes per chip."""
    limit: int
    """Bytes of main memory that a program may use."""
    programs: list[Program]

    @property
    def needed(self) -> int:
        """Bytes of main memory, of the program that needs most."""
        return max(one.needed for one in self.programs)

    @property
    def fits(self) -> bool:
        """Whether all programs can be loaded."""
        return self.needed <= self.limit

    @property
    def first_token_seconds(self) -> float:
        """Predicted, of a batch, with no image or question seen before."""
        return sum(one.times * one.seconds for one in self.programs[:-1])

    @property
    def tokens_per_second(self) -> float:
        """Predicted, of all chips, once the first tokens are there."""
        return self.asked.batch * CHUNK / self.programs[-1].seconds

    @property
    def answers_per_second(self) -> float:
        """Predicted, of all chips."""
        return self.asked.batch / sum(one.times * one.seconds for one in self.programs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        programs = [
            {
                **one._asdict(),
                "memory": {**one.memory._asdict(), "total": one.memory.total},
                "collectives": [use._asdict() for use in one.collectives],
                "bounds": one.bounds._asdict(),
                "governing": one.bounds.governing,
                "seconds": one.seconds,
            }
            for one in self.programs
        ]
        derived = ("needed", "fits", "first_token_seconds", "tokens_per_second", "answers_per_second")
        found = {name: getattr(self, name) for name in derived}
        return {**vars(self), "asked": self.asked._asdict(), "programs": programs, **found}


def answer_report(
    config: RunConfig,
    topology: Topology,
    asked: Asked,
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> AnswerReport:
    """Compiles the programs that `generate.Engine` answers with, for one image a question.

    Args:
      config: of a run; adapters are merged unless weights are of few bits.
      quick: stop each program when its memory is known, see `compile_quickly`.
      tell: called with what is compiled next.

    Raises:
      UserError: the topology is not known, the compiler not installed, or model or batch do not divide over the mesh.
    """
    setting = _Setting(config, topology, asked)
    made = []
    for name, times in setting.programs():
        tell(name)
        lower = functools.partial(_lower, config, topology, asked, name)
        compiled = (compile_quickly if quick else compile_program)(lower, topology)
        made.append(_program(name, times, compiled, setting.needed(name, compiled), topology, setting.mesh))
        limit = compiled.limit
    data = setting.model.compressor.reads_question
    return AnswerReport(
        topology.name,
        setting.mesh.devices.size,
        dict(setting.mesh.shape),
        asked,
        setting.question if data else 0,
        sum(setting.room),
        _local_bytes(setting.params),
        _local_bytes((setting.state.cache.keys, setting.state.cache.values)),
        limit,
        made,
    )


def largest_batch(
    config: RunConfig, topology: Topology, asked: Asked, tell: Callable[[str], None] = lambda _: None
) -> int:
    """The largest bucket of questions at once of which all programs fit, found by compiling them.

    Raises:
      UserError: as `answer_report`, or not even one question for each part of the mesh fits.
    """
    parts = batch_parts(make_mesh(config.mesh, topology_devices(topology)))

    def fits(batch: int) -> bool:
        one = asked._replace(batch=batch)
        setting = _Setting(config, topology, one)
        for name, _ in setting.programs():
            tell(f"{name}, {batch} questions")
            compiled = compile_quickly(functools.partial(_lower, config, topology, one, name), topology)
            if setting.needed(name, compiled) > compiled.limit:
                return False
        return True

    smallest = _Setting(config, topology, asked._replace(batch=parts))
    cache = _local_bytes((smallest.state.cache.keys, smallest.state.cache.values))
    room = topology.chip.usable_gib * 2**30 - _local_bytes(smallest.params)
    buckets = [parts]
    while buckets[-1] * cache / parts < max(room, 1.0):
        buckets.append(round_up(buckets[-1] + 1, parts))
    low, high = 0, len(buckets)
    # A prefill needs about as much beside the cache, so that half is where to begin.
    middle = max(0, len(buckets) - 3)
    while low < high:
        if fits(buckets[middle]):
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    if not low:
        raise UserError(
            f"{parts} questions at once do not fit {topology.name}; take fewer bits (--weights int8), more chips, or "
            "split the parameters (--mesh.tensor)"
        )
    return buckets[low - 1]


class _Setting:
    """Stand-ins of all that the programs read."""

    def __init__(self, config: RunConfig, topology: Topology, asked: Asked):
        config = with_dtype(config, asked.weights)
        config = dataclasses.replace(config, model=at_visual_tokens(config.model))
        self.mesh = mesh = make_mesh(config.mesh, topology_devices(topology))
        if asked.batch % batch_parts(mesh):
            raise UserError(
                f"a batch of {asked.batch} questions does not divide over {batch_parts(mesh)} devices of mesh axes "
                "data and fsdp; change --batch-size or the mesh"
            )
        self.model, self.params = _answering(config, mesh, asked.weights)
        self.room = room_for(self.model.decoder, asked.prompt, asked.new)
        data = dataclasses.replace(
            config.data,
            max_length=self.room[0],
            images_per_row=1,
            batching="pad",
            cached_features=False,
            cached_queries=False,
        )
        self.question = query_buckets(data, self.model)[-1]
        spec = batch_spec(self.model, data, asked.batch, False, self.question)
        assert spec.pixels is not None
        b, i = spec.query_ends.shape
        vlm = VLM(self.model, unrolled=True)
        self.images, parts = b * i, batch_parts(mesh)
        images, questions = next(pieces(self.images, parts)), next(pieces(b, parts))
        self.pixels = self._rows(jax.ShapeDtypeStruct((images, 1, *spec.pixels.shape[2:]), spec.pixels.dtype))
        self.ids = self._rows(jax.ShapeDtypeStruct((questions, 1, self.question), jnp.int32))
        self.lengths = self._rows(jax.ShapeDtypeStruct((questions, 1), jnp.int32))
        prepared = self._shape(encode_images, vlm, self.params, self.pixels)[0]
        self.prepared = self._rows(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct((b, i, *x.shape), x.dtype), prepared)
        )
        query = jax.ShapeDtypeStruct((b, i, query_width(self.model)), jnp.dtype(self.model.dtype))
        self.query = self._rows(query)
        self.visual: Visual = self._rows(self._shape(finish, vlm, self.params, self.prepared, self.query))
        self.batch = self._rows(spec._replace(pixels=None, features=None))
        self.budget = self._rows(jax.ShapeDtypeStruct((b,), jnp.int32))
        self.state = jax.tree.map(
            self._placed,
            self._shape(
                functools.partial(begin, vlm, ENDS, sampling=None, keys=None, new=self.room[1]),
                self.params,
                self.batch,
                self.visual,
                self.budget,
            ),
        )
        self.vlm, self.new = vlm, asked.new

    def programs(self) -> Iterator[tuple[str, float]]:
        """Names, in the order in which they run, and how often each does."""
        yield IMAGES, math.ceil(self.images / len(self.pixels))
        if self.model.compressor.reads_question:
            yield "question", math.ceil(len(self.batch.tokens) / len(self.ids))
            yield "compressor", 1
        yield "prefill", 1
        # The last run stops early where fewer tokens are left.
        yield DECODE, (self.new - 1) / CHUNK

    def lowered(self, name: str) -> jax.stages.Lowered:
        """The very program that the engine runs."""
        vlm, params = self.vlm, self.params
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(RULES):
            if name == IMAGES:
                return encode_images.lower(vlm, params, self.pixels)
            if name == "question":
                return encode_questions.lower(vlm, params, self.ids, self.lengths)
            if name == "compressor":
                return finish.lower(vlm, params, self.prepared, self.query)
            if name == "prefill":
                inputs = self.batch, self.visual, self.budget
                return BEGIN.lower(vlm, ENDS, params, *inputs, None, None, self.room[1])
            return ADVANCE.lower(vlm, ENDS, params, self.state, CHUNK)

    def needed(self, name: str, compiled: Compiled) -> int:
        """Bytes of main memory per chip with all parameters, also those that the program does not read."""
        inputs = {
            IMAGES: self.pixels,
            "question": (self.ids, self.lengths),
            "compressor": (self.prepared, self.query),
            "prefill": (self.batch, self.visual, self.budget),
            DECODE: self.state,
        }
        read = max(0, compiled.memory.arguments - _local_bytes(inputs[name]))
        # What was made of the images before waits for the last ones.
        others = _local_bytes(self.prepared) * (1 - len(self.pixels) / self.images) if name == IMAGES else 0
        return compiled.needed + max(0, _local_bytes(self.params) - read) + int(others)

    def _shape(self, function: Callable[..., PyTree], *inputs: PyTree) -> PyTree:
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(RULES):
            fixed = [one for one in inputs if isinstance(one, VLM)]
            return jax.eval_shape(functools.partial(function, *fixed), *inputs[len(fixed) :])

    def _rows(self, tree: PyTree) -> PyTree:
        rows = batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), tree)

    def _placed(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes: dict[int, tuple[str, ...]] = {0: (), 4: CACHE_AXES}
        names = axes.get(x.ndim, ("batch", *(None for _ in x.shape[1:])))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=resolve(names, x.shape, self.mesh))


def _answering(config: RunConfig, mesh: Mesh, weights: Weights) -> tuple[ModelConfig, Params]:
    """The model, and stand-ins of its parameters as the engine holds them."""
    plain, model = stand_ins(config, mesh, weights), config.model
    if LORA in plain and weights in ("run", "float32", "bfloat16"):
        plain, model = {name: part for name, part in plain.items() if name != LORA}, without_adapters(model)
    params = joined(in_compute_type(plain, model))
    return model, params | {"decoder": unstack(params["decoder"])}


def _lower(config: RunConfig, topology: Topology, asked: Asked, name: str) -> jax.stages.Lowered:
    return _Setting(config, topology, asked).lowered(name)


def _program(
    name: str, times: float, compiled: Compiled, needed: int, topology: Topology, mesh: Mesh
) -> Program:
    program = compiled.program._replace(unknown_trips=CHUNK)
    flops, moved, sent, limits = work_of(program, topology, list(mesh.devices.flat))
    return Program(
        name,
        times,
        compiled.memory,
        needed,
        float(flops),
        moved,
        sent,
        limits,
        compiled.trace_seconds,
        compiled.compile_seconds,
    )


def _local_bytes(tree: PyTree) -> int:
    """Bytes of stand-ins on each device."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape
        if isinstance(leaf.sharding, NamedSharding):
            shape = leaf.sharding.shard_shape(shape)
        total += math.prod(shape) * jax.dtypes.itemsize_bits(leaf.dtype) / 8
    return int(total)
