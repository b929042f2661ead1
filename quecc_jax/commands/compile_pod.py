"""Compiles a run's training step, or what answers questions, for a TPU pod that is not here, and says whether it fits
and what it costs:

python -m launch.compile_pod configs/NAME.py --topology v5e:16x16 [--json FILE] [--mesh.tensor 2 ...]
python -m launch.compile_pod configs/NAME.py --topology v5e:2x4 --program answer --mesh.fsdp 1 --mesh.tensor 8
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quecc_jax.aot.chips import GIB
from quecc_jax.aot.topology import Topology, parse_topology, prepare_environment, topology_devices
from quecc_jax.commands.checks import check_file, check_least, refuse_unread
from quecc_jax.commands.options import RunSettings
from quecc_jax.config import RunConfig
from quecc_jax.config.weights import Weights
from quecc_jax.errors import UserError
from quecc_jax.paths import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from quecc_jax.aot.answering import AnswerReport
    from quecc_jax.aot.report import PodReport

ANSWERING = ("batch_size", "prompt_tokens", "max_new_tokens", "weights")
"""Options of --program answer."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles a run's training step, or the programs that answer questions, for a TPU pod that is not here and
    reports whether they fit, their time and their cost. Exits with status 1 if they do not fit. Needs libtpu
    (requirements/tpu.txt) but no TPU. CONFIG.py gives the settings; options override them."""

    config: RunSettings
    topology: str
    """Chip and topology, such as v5e:16x16 or v5p:2x4x4; 2*v5e:16x16 for two slices."""
    program: Literal["train", "answer"] = "train"
    """The training step, or all that answers questions about one image each."""
    batch_size: int = 0
    """Questions answered at once, on all chips; 0 is the most that fit, found by compiling."""
    prompt_tokens: int = 64
    """Tokens of a prompt, template and question, beside the visual tokens."""
    max_new_tokens: int = 16
    """Tokens of an answer."""
    weights: Weights = "run"
    """In which the model answers: `run` is model.dtype, int8, int4 and nf4 are of the decoder's matrices."""
    json: Path | None = None
    """Also write the report to this file, as JSON."""
    quick: bool = False
    """Stop when memory and program are known, before the compiler makes code, which takes most of its time; of
    questions, the longest alone."""
    show_sharding: bool = False
    """Print how every parameter is sharded, and compile nothing."""


def run(options: Options) -> None:
    """Compiles, and prints the report."""
    config, topology = options.config, parse_topology(options.topology)
    if options.show_sharding:
        why = "is of a compilation, which --show-sharding has not; leave one out"
        refuse_unread(options, ("json", "quick", "program", *ANSWERING), why)
    if options.program == "train":
        refuse_unread(options, ANSWERING, "goes with --program answer; add that or leave it out")
    check_least(options, {"batch_size": 0, "prompt_tokens": 1, "max_new_tokens": 2})
    if options.json is not None:
        check_file("--json", options.json)
    counts = options.program == "train" and not options.show_sharding
    if counts and config.train.epochs and not config.train.steps:
        raise UserError(
            f"train.epochs {config.train.epochs:g} is counted from the data, which is not read here, and train.steps "
            "is 0; say how many steps that is with --train.steps"
        )
    # Before JAX is imported: nothing here may touch an accelerator, or look for one.
    prepare_environment()
    if options.show_sharding:
        show_sharding(config, topology)
        return
    if options.program == "answer":
        answering(options, topology)
        return
    from rich.console import Console

    from quecc_jax.aot.report import pod_reports, quick_report, remedies

    console = Console(stderr=True)
    title = f"Compiling {config.out} for {topology.name}; minutes for a model of billions"
    with console.status(title) as status:
        if options.quick:
            reports = [quick_report(config, topology)]
        else:
            reports = pod_reports(config, topology, lambda what: status.update(f"{title}: {what}"))
    report = reports[0]
    show(reports, config)
    if options.json is not None:
        whole = report.to_dict() | {"shorter_queries": [one.to_dict() for one in reports[1:]]}
        write_text(options.json, json.dumps(whole, indent=1) + "\n")
    if not report.fits:
        raise UserError(
            f"the step needs {report.needed / GIB:.2f} GiB per chip and {topology.name} has "
            f"{report.limit / GIB:.2f}; what would help: {'; '.join(remedies(config, report))}"
        )


def answering(options: Options, topology: Topology) -> None:
    """Compiles what answers questions, and prints the report."""
    from rich.console import Console

    from quecc_jax.aot.answering import Asked, answer_report, largest_batch

    config, console = options.config, Console(stderr=True)
    prompt = options.prompt_tokens + config.model.visual_tokens
    asked = Asked(options.batch_size, prompt, options.max_new_tokens, options.weights)
    title = f"Compiling {config.out} for {topology.name}; minutes for a model of billions"
    with console.status(title) as status:

        def tell(what: str) -> None:
            status.update(f"{title}: {what}")

        if not asked.batch:
            asked = asked._replace(batch=largest_batch(config, topology, asked, tell))
        report = answer_report(config, topology, asked, options.quick, tell)
    show_answering(report, config)
    if options.json is not None:
        write_text(options.json, json.dumps(report.to_dict(), indent=1) + "\n")
    if not report.fits:
        raise UserError(
            f"answering needs {report.needed / GIB:.2f} GiB per chip and {topology.name} has "
            f"{report.limit / GIB:.2f}; what would help: a smaller --batch-size (0 finds the most that fit), fewer "
            "bits (--weights int8), or parameters split over more chips (--mesh.tensor)"
        )


def show_sharding(config: RunConfig, topology: Topology) -> None:
    """Prints the resolved table: one line per parameter, and totals."""
    from rich.table import Table

    from quecc_jax.data.batch import batch_spec
    from quecc_jax.models.teacher import with_teacher
    from quecc_jax.sharding import make_mesh, placements
    from quecc_jax.train.state import stored_frozen, trained_names
    from quecc_jax.train.step import abstract_params, boxed_params, check_division

    mesh = make_mesh(config.mesh, topology_devices(topology))
    check_division(config, mesh)
    spec = batch_spec(config.model, config.data, config.train.batch_size, config.data.cached_features)
    boxed, placed = (
        stored_frozen(with_teacher(params, config), config)
        for params in (boxed_params(config, spec), abstract_params(config, mesh, spec))
    )
    rows = placements(boxed, placed)
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table = Table(title=f"Parameters on {topology.name}: {axes}", title_justify="left")
    for heading in ("parameter", "shape", "logical axes", "mesh axes"):
        table.add_column(heading, overflow="fold")
    table.add_column("MiB per chip", justify="right")
    for row in rows:
        spec_text = ", ".join("+".join(a) if isinstance(a, tuple) else a or "·" for a in row.spec)
        axis_names = ", ".join(name or "·" for name in row.axes)
        table.add_row(row.name, "x".join(map(str, row.shape)), axis_names, spec_text, _mib(row.chip_bytes))
    names = trained_names({r.name.split("/")[0] for r in rows}, config.train)
    trained = [r for r in rows if r.name.split("/")[0] in names]
    whole, chip = sum(r.bytes for r in rows), sum(r.chip_bytes for r in rows)
    slots = 2 * sum(r.chip_bytes for r in trained)
    _print(table)
    print(
        f"{len(rows)} parameters, {whole / GIB:.2f} GiB in all; per chip {chip / GIB:.3f} GiB, and "
        f"{slots / GIB:.3f} GiB of optimizer state for the {len(trained)} trained ones"
    )


def show(reports: "list[PodReport]", config: RunConfig) -> None:
    """Prints reports for people: that of the longest questions, and how the others differ."""
    from rich.markup import escape
    from rich.table import Table

    from quecc_jax.aot.roofline import EFFICIENCY

    report = reports[0]
    table = Table(
        title=f"{config.out}, stage {config.train.stage}, on {report.topology}",
        title_justify="left",
        show_header=False,
    )

    def line(name: str, value: str) -> None:
        table.add_row(name, value)

    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    sequence = ", sequence over tensor" if config.mesh.sequence_parallel else ""
    line("mesh", f"{report.chips} chips: {mesh}{sequence}")
    line(
        "step",
        f"{config.train.batch_size} rows of {config.data.max_length} tokens, "
        f"{config.train.grad_accum_steps} microbatches of {report.rows_per_chip:g} rows per chip, "
        f"remat {config.model.remat}, V {config.model.visual_tokens}, questions of up to "
        f"{report.query_length} tokens",
    )
    table.add_section()
    m = report.memory
    verdict = "[green]fits[/]" if report.fits else "[red]does not fit[/]"
    line("memory per chip", f"{report.needed / GIB:.2f} of {report.limit / GIB:.2f} GiB: {verdict}")
    line(
        "",
        f"arguments {_gib(m.arguments)}, temporaries {_gib(m.temporaries)}, output {_gib(m.output)} "
        f"of which {_gib(m.aliased)} in place of arguments, code {_gib(m.code) if m.code else 'not made'}",
    )
    for buffer in report.buffers:
        line(f"  {buffer.bytes / GIB:.3f} GiB", escape(f"{buffer.kind} {buffer.shape} {buffer.name}"))
    table.add_section()
    line(
        "FLOPs per step",
        f"{report.hlo_flops:.4g} compiled, {report.model_flops:.4g} of the model, ratio "
        f"{report.flops_ratio:.3f}",
    )
    if report.unknown_loops:
        line("", f"[yellow]loops of unknown length, counted once: {', '.join(report.unknown_loops)}[/]")
    for defect in report.defects:
        line("", f"[yellow]{escape(defect)}[/]")
    line("HBM traffic", f"{report.traffic / GIB:.1f} GiB per chip and step")
    for e in report.collectives:
        line(
            f"{e.kind}, {e.network}",
            f"{e.bytes / GIB:.3f} GiB received in {e.times} collectives, {e.seconds * 1e3:.1f} ms at peak",
        )
    table.add_section()
    b = report.bounds
    line("bounds", f"compute {b.compute:.3f} s, HBM {b.hbm:.3f} s, ICI {b.ici:.3f} s, DCN {b.dcn:.3f} s")
    line("predicted step", f"{report.step_seconds:.3f} s: {b.governing} at {EFFICIENCY:.0%} of its peak")
    line("predicted MFU", f"{report.mfu:.1%}")
    line(
        "predicted run",
        f"{report.run_hours:.2f} h for {config.train.steps} steps, "
        f"{report.run_hours * report.chips:.0f} chip hours",
    )
    if config.train.epochs or config.train.conversations:
        line(
            "",
            "no data is read here: train.epochs and train.conversations, which launch.train counts in it, may come to "
            "other steps and rows",
        )
    line("compile time", f"{report.compile_seconds:.0f} s, after {report.trace_seconds:.0f} s of tracing")
    if reports[1:]:
        table.add_section()
    for one in reports[1:]:
        line(
            f"questions of up to {one.query_length}",
            f"{one.needed / GIB:.2f} GiB, {one.step_seconds:.3f} s a step, {one.run_hours:.2f} h if no "
            "batch has longer ones",
        )
    _print(table)


def show_answering(report: "AnswerReport", config: RunConfig) -> None:
    """Prints a report for people."""
    from rich.table import Table

    from quecc_jax.aot.roofline import EFFICIENCY
    from quecc_jax.generate.engine import CHUNK

    asked = report.asked
    table = Table(
        title=f"{config.out} answers on {report.topology}, {asked.weights} weights, V {config.model.visual_tokens}",
        title_justify="left",
    )
    for heading in (
        "program",
        "times",
        "needed, GiB",
        "FLOPs",
        "HBM, GiB",
        "received, MiB",
        "bound by",
        "predicted",
    ):
        table.add_column(heading, justify="left" if heading in ("program", "bound by") else "right")
    for one in report.programs:
        received = sum(use.bytes for use in one.collectives) / 2**20
        numbers = (
            f"{one.needed / GIB:.2f}",
            f"{one.flops:.3g}",
            f"{one.traffic / GIB:.3f}",
            f"{received:.2f}",
        )
        table.add_row(
            one.name, f"{one.times:g}", *numbers, one.bounds.governing, f"{one.seconds * 1e3:.2f} ms"
        )
    _print(table)
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    exchanges = sum(use.times for use in report.programs[-1].collectives) // CHUNK
    reads = f", of which the compressor reads {report.question}" if report.question else ""
    print(
        f"{report.chips} chips: {mesh}; {asked.batch} questions at once, prompts of {asked.prompt} tokens{reads}, "
        f"answers of {asked.new}; a cache of {report.positions} positions\n"
        f"memory per chip: {report.needed / GIB:.2f} of {report.limit / GIB:.2f} GiB: "
        f"{'fits' if report.fits else 'does not fit'}; parameters {report.parameters / GIB:.2f}, cache "
        f"{report.cache / GIB:.2f}\n"
        f"predicted, each at {EFFICIENCY:.0%} of the peak of what bounds it: first tokens in "
        f"{report.first_token_seconds * 1e3:.1f} ms, then {report.tokens_per_second:,.0f} tokens per second; "
        f"{report.answers_per_second:,.1f} answers per second. Left out: the host, and the latency of "
        f"{exchanges} exchanges per token"
    )


def _print(table: "Table") -> None:
    """Prints a table; where the output is no terminal, at full width."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 180).print(table)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.3f}"
