"""Compiles a training step for a TPU topology and reports its memory, FLOPs, collectives and predicted time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from quecc_jax.aot import hlo
from quecc_jax.aot.buffers import Buffer, Memory
from quecc_jax.aot.compiler import Compiled, compile_program, compile_quickly
from quecc_jax.aot.quality import defects
from quecc_jax.aot.roofline import Bounds, NetworkUse, work_of
from quecc_jax.aot.topology import Topology, topology_devices
from quecc_jax.config import RunConfig
from quecc_jax.data.text.queries import query_buckets
from quecc_jax.flops import train_flops
from quecc_jax.sharding import batch_parts, make_mesh
from quecc_jax.train.step import build_trainer

LARGEST = 12
"""Buffers that a report lists."""


@dataclasses.dataclass(frozen=True)
class PodReport:
    """What one step takes on one chip of a topology, and a whole run on all of them."""

    topology: str
    chips: int
    mesh: dict[str, int]
    rows_per_chip: float
    """Rows of one microbatch per chip."""
    query_length: int
    """Tokens Q of a batch's questions in this program: one of `queries.query_buckets`."""
    memory: Memory
    needed: int
    """Bytes of main memory that the compiler counts, padding and fragmentation included."""
    limit: int
    """Bytes of main memory that it may use."""
    model_flops: float
    """Of one step on all chips."""
    hlo_flops: float
    """The same, as compiled."""
    traffic: int
    """Bytes per chip and step between main memory and the cores."""
    collectives: list[NetworkUse]
    bounds: Bounds
    step_seconds: float
    mfu: float
    run_hours: float
    """For all of the config's steps."""
    buffers: list[Buffer]
    unknown_loops: list[str]
    """Loops that count once, as their trip count is not known."""
    defects: list[str]
    """What a good step would not do, by `quality.defects`."""
    trace_seconds: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program can be loaded."""
        return self.needed <= self.limit

    @property
    def flops_ratio(self) -> float:
        """HLO FLOPs over model FLOPs."""
        return self.hlo_flops / self.model_flops

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        # Saved reports have the collectives under this name.
        rows = {
            "exchanges": [one._asdict() for one in self.collectives],
            "buffers": [one._asdict() for one in self.buffers],
        }
        derived = {"fits": self.fits, "flops_ratio": self.flops_ratio, "governing": self.bounds.governing}
        memory = {**self.memory._asdict(), "total": self.memory.total}
        fields = {{"collectives": "exchanges"}.get(name, name): value for name, value in vars(self).items()}
        return {**fields, **rows, **derived, "memory": memory, "bounds": self.bounds._asdict()}


def pod_reports(config: RunConfig, topology: Topology, tell: Callable[[str], None]) -> list[PodReport]:
    """Lowers and compiles the run's step for a topology, once for every bucket of questions, and reports on
    each, the longest first.

    A step that the compiler refuses for its memory is reported like any other.

    Args:
      tell: called with what is compiled next.

    Raises:
      UserError: the topology is not known, the compiler not installed, or the run does not divide over it.
    """
    buckets = query_buckets(config.data, config.model)[::-1]
    mesh = make_mesh(config.mesh, topology_devices(topology))
    trainer, found = build_trainer(config, mesh), list[PodReport]()
    for number, length in enumerate(buckets, start=1):
        tell(f"questions of up to {length} tokens, {number} of {len(buckets)} programs")
        compiled = compile_program(functools.partial(trainer.lower, query_length=length), topology)
        found.append(_pod_report(config, topology, mesh, length, compiled))
    return found


def quick_report(config: RunConfig, topology: Topology) -> PodReport:
    """The report of the program for the longest questions, as soon as the compiler knows its memory, which is long
    before it has its code; the code's bytes are left out.

    Raises:
      UserError: as `pod_reports`.
    """
    length = query_buckets(config.data, config.model)[-1]
    mesh = make_mesh(config.mesh, topology_devices(topology))
    compiled = compile_quickly(functools.partial(_lower, config, topology, length), topology)
    return _pod_report(config, topology, mesh, length, compiled)


def _lower(config: RunConfig, topology: Topology, length: int) -> jax.stages.Lowered:
    trainer = build_trainer(config, make_mesh(config.mesh, topology_devices(topology)))
    return trainer.lower(query_length=length)


def _pod_report(
    config: RunConfig, topology: Topology, mesh: Mesh, query_length: int, compiled: Compiled
) -> PodReport:
    program, memory = compiled.program, compiled.memory
    chips = mesh.devices.size
    flops, moved, sent, limits = work_of(program, topology, list(mesh.devices.flat))
    model = train_flops(config, query=query_length)
    parts = batch_parts(mesh)
    return PodReport(
        topology=topology.name,
        chips=chips,
        mesh=dict(mesh.shape),
        rows_per_chip=config.train.batch_size / config.train.grad_accum_steps / parts,
        query_length=query_length,
        memory=memory,
        needed=compiled.needed,
        limit=compiled.limit,
        model_flops=model,
        hlo_flops=float(flops * chips),
        traffic=moved,
        collectives=sent,
        bounds=limits,
        step_seconds=limits.step_seconds,
        mfu=model / (limits.step_seconds * chips * topology.chip.flops),
        run_hours=limits.step_seconds * config.train.steps / 3600,
        buffers=compiled.buffers[:LARGEST],
        unknown_loops=hlo.runs(program)[1],
        defects=defects(config, dict(mesh.shape), program, flops * chips / model),
        trace_seconds=compiled.trace_seconds,
        compile_seconds=compiled.compile_seconds,
    )


def _rows_that_fit(report: PodReport) -> int:
    """Rows per chip and slice, less than now, whose temporaries would fit were they proportional to rows."""
    now = report.rows_per_chip
    room = report.limit - (report.needed - report.memory.temporaries)
    fewer = [n for n in range(1, int(now)) if now % n == 0]
    return max([n for n in fewer if report.memory.temporaries * n / now <= room], default=1)


def remedies(config: RunConfig, report: PodReport) -> list[str]:
    """Settings that would lower the memory of a step that does not fit, most effective first."""
    mesh, found = report.mesh, []
    if report.memory.arguments > report.memory.temporaries and mesh["data"] > 1:
        parts = mesh["data"] * mesh["fsdp"]
        found.append(f"--mesh.data 1 --mesh.fsdp {parts} splits the training state over all chips")
    if config.model.remat != "full":
        found.append("--model.remat full keeps only each layer's input")
    if report.rows_per_chip > 1:
        rows = _rows_that_fit(report)
        slices = round(config.train.grad_accum_steps * report.rows_per_chip / rows)
        found.append(f"--train.grad-accum-steps {slices} works on {rows} rows per chip at a time")
    if not config.mesh.sequence_parallel or report.rows_per_chip <= 1:
        tensor = 2 * mesh["tensor"]
        found.append(f"--mesh.tensor {tensor} --mesh.sequence-parallel splits rows over {tensor} chips")
    if config.train.loss_chunk > 256:
        found.append("--train.loss-chunk 256 holds fewer logits at once")
    return [*found, "a topology of more chips"]
