"""What a grid is expected to take: hours of training, tests, compiling and saving, memory, and dollars."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quecc_jax.aot.chips import GIB, find_chip, price_of
from quecc_jax.aot.memory import train_memory, verdict
from quecc_jax.config import MeshConfig, RunConfig, SourceConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import Cell, Grid
from quecc_jax.experiments.llava_grid import training_flops
from quecc_jax.experiments.store import result_file
from scaling.cost import Lengths, Machine, find_machine, seconds_of, work_of_query

TEXT_TOKENS = 50
"""Text tokens of a question where the grid does not say."""
ANSWER_PROGRAMS = 2
"""Programs that answer at one V: what reads the prompt, and the steps after it."""


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What is taken for granted; none of it is measured here."""

    topology: str = "v5e-64"
    """A chip and how many of them."""
    mfu: float = 0.4
    """Share of the chips' peaks that training and answering reach."""
    answer_tokens: int = 16
    """Tokens of an answer, where its test allows so many."""
    compile_minutes: float = 2.0
    """For one program; a step of 7B takes about that on a host that does nothing else (docs/pods.md)."""
    save_rate: float = 1.0
    """GB/s at which all hosts together write a checkpoint."""
    price: float | None = None
    """Dollars per chip and hour; None takes the list price, where one is known."""


class CellCost(NamedTuple):
    """Seconds on all chips together."""

    train: float
    tests: float | None
    """None where the number of questions is not known."""
    compiling: float
    saving: float

    @property
    def total(self) -> float:
        """All that is known."""
        return self.train + (self.tests or 0.0) + self.compiling + self.saving


def dry_run(grid: Grid, chosen: Sequence[Cell], assumed: Assumed) -> str:
    """A table of cells with their FLOPs, hours and memory on a topology; below it the sum, chip hours and dollars.

    Raises:
      UserError: the topology is not CHIP-COUNT of a known chip, or a number is out of range.
    """
    name, count = _topology(assumed)
    chip, machine = find_chip(name), find_machine(name, count, assumed.mfu)
    width = max(len(cell.name) for cell in chosen)
    lines = [
        f"{'cell':{width}} {'steps':>17}   row tokens   FLOPs        train h  tests h  compile h   save h"
        "   GiB a chip   decoder"
    ]
    flops, limit = 0.0, (chip.usable_gib or chip.hbm_gib) * GIB
    questions, costs = _Questions(), list[CellCost]()
    for cell in chosen:
        cost = cell_cost(grid, cell, assumed, machine, questions)
        steps = " + ".join(f"{run.train.steps:,}" for run in cell.runs)
        flops += training_flops(cell)
        memory = max((train_memory(run, count) for run in cell.runs), key=lambda one: one.total)
        needed, found = memory.total, verdict(memory, limit)
        done = result_file(grid, cell.name).is_file()
        if not done:
            costs.append(cost)
        state = ("" if found == "fits" else f" {found}") + ("  done" if done else "")
        tests = "?" if cost.tests is None else f"{cost.tests / 3600:.2f}"
        lines.append(
            f"{cell.name:{width}} {steps:>17}{cell.runs[-1].data.max_length:>13,}   {training_flops(cell):.3e} "
            f"{cost.train / 3600:9.2f} {tests:>8} {cost.compiling / 3600:10.2f} {cost.saving / 3600:8.2f}   "
            f"{needed / GIB:10.2f}   {_trained(cell.runs[-1])}{state}"
        )
    lines += _sums(chosen, costs, flops, assumed, machine, chip.kind)
    if questions.unknown:
        lines.append(
            f"? how many questions {', '.join(dict.fromkeys(questions.unknown))} holds is not known here, and the "
            "time of these tests not in the sums"
        )
    lines.append(
        f"a chip has {limit / GIB:g} GiB; parameters, slots and gradients are counted, activations estimated for the "
        "stage that needs most, over the mesh of the run's own settings; `close` may fit or not"
    )
    lines += _alike(chosen)
    return "\n".join(lines)


def _topology(assumed: Assumed) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)-(\d+)", assumed.topology)
    if not match or int(match[2]) < 1:
        raise UserError(f"--topology {assumed.topology} is not a chip and a count, such as v5e-64 or h100-8")
    if not 0 < assumed.mfu <= 1:
        raise UserError(f"--mfu {assumed.mfu:g} is outside 0..1")
    if assumed.answer_tokens < 1:
        raise UserError(f"--answer-tokens is {assumed.answer_tokens}; give at least 1")
    for name, lowest in (("compile_minutes", 0.0), ("save_rate", 1e-9), ("price", 0.0)):
        value = getattr(assumed, name)
        if value is not None and not lowest <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; give a positive number")
    return match[1], int(match[2])


def _sums(
    chosen: Sequence[Cell],
    costs: Sequence[CellCost],
    flops: float,
    assumed: Assumed,
    machine: Machine,
    kind: str,
) -> Iterator[str]:
    """Lines below the table; the hours are of cells that are not done."""
    parts = {
        "training": sum(cost.train for cost in costs),
        "tests": sum(cost.tests or 0.0 for cost in costs),
        "compiling": sum(cost.compiling for cost in costs),
        "saving": sum(cost.saving for cost in costs),
    }
    hours, count = sum(parts.values()) / 3600, machine.count
    told = ", ".join(f"{name} {seconds / 3600:,.1f}" for name, seconds in parts.items())
    yield f"{len(chosen)} cells, {flops:.3e} FLOPs of training"
    yield (
        f"{hours:,.1f} hours on {count} x {kind} for the {len(costs)} that are not done ({told}), one after another: "
        f"{hours * count:,.0f} chip hours"
    )
    try:
        price, source = price_of(assumed.topology.rpartition("-")[0], assumed.price)
        yield f"${hours * count * price:,.0f} at ${price:g} per chip and hour ({source})"
    except UserError as error:
        yield f"dollars: {error}"
    yield (
        f"taken for granted: {100 * assumed.mfu:g} % of the chips' peaks, answers of {assumed.answer_tokens} tokens or "
        f"as few as a test allows, {assumed.compile_minutes:g} min to compile a program, {assumed.save_rate:g} GB/s to "
        "save, no failures and no waiting"
    )


def cell_cost(
    grid: Grid, cell: Cell, assumed: Assumed, machine: Machine, questions: "_Questions | None" = None
) -> CellCost:
    """What one cell is expected to take.

    Training counts model FLOPs; tests every question at the roofline (`scaling.cost`) in the test's batches, without
    exchange between chips. Steps wait until a checkpoint is written.
    """
    known = questions or _Questions()
    saved = sum(_saved_bytes(run) for run in cell.runs)
    return CellCost(
        training_flops(cell) / machine.flops,
        _tests_seconds(grid, cell, assumed, machine, known),
        60 * assumed.compile_minutes * _programs(cell),
        saved / (1e9 * assumed.save_rate),
    )


def _tests_seconds(
    grid: Grid, cell: Cell, assumed: Assumed, machine: Machine, questions: "_Questions"
) -> float | None:
    last, text = cell.runs[-1], grid.query_tokens or TEXT_TOKENS
    total, known = 0.0, True
    for v in cell.visual_tokens or (0,):
        model = at_visual_tokens(last.model, v)
        for number, longest, batch in questions.of(cell):
            if number is None:
                known = False
                continue
            lengths = Lengths(text, min(assumed.answer_tokens, longest), text)
            work = work_of_query(model, lengths)
            total += number / batch * sum(float(seconds_of(part, machine, batch)) for part in work.values())
    return total if known else None


class _Questions:
    """How many questions tests have; each source is counted once."""

    def __init__(self) -> None:
        self.counts: dict[SourceConfig, int | None] = {}
        self.unknown: list[str] = []

    def of(self, cell: Cell) -> Iterator[tuple[int | None, int, int]]:
        """(questions, longest answer, batch) of each test and benchmark of a cell."""
        for test in cell.tests:
            numbers = [self._count(source) for source in test.sources]
            whole = None if None in numbers else sum(number or 0 for number in numbers)
            yield whole, test.max_new_tokens, test.batch_size
        if cell.benchmarks:
            # Imported late, with their scorers: few grids have them.
            from quecc_jax.evaluate.tasks import chosen

            for task in chosen(cell.benchmarks.names):
                if task.questions is None:
                    self.unknown.append(task.name)
                yield task.questions, task.max_new_tokens, cell.benchmarks.batch_size

    def _count(self, source: SourceConfig) -> int | None:
        if source not in self.counts:
            # Imported late: it takes a second.
            from quecc_jax.data.sources.open import read_rows

            try:
                self.counts[source] = len(read_rows(source))
            except (UserError, OSError):
                self.counts[source] = None
                self.unknown.append(source.path)
        return self.counts[source]


def _programs(cell: Cell) -> int:
    """Programs that are compiled: a step for each length of questions of every run, and what answers at every V."""
    # Imported late: it takes a second.
    from quecc_jax.data.text.queries import limit_buckets

    steps = sum(
        len(limit_buckets(run.data.query_limit)) if run.model.compressor.reads_question else 1
        for run in cell.runs
    )
    return steps + ANSWER_PROGRAMS * len(cell.visual_tokens or (0,)) * bool(cell.tests or cell.benchmarks)


def _saved_bytes(run: RunConfig) -> float:
    """Of all checkpoints of a run: what is frozen once, what is trained and its slots each time."""
    memory = train_memory(dataclasses.replace(run, mesh=MeshConfig(1, 1, 1)), 1)
    steps, every = run.train.steps, run.checkpoint.every
    saves = math.ceil(steps / every) if every > 0 else 1
    # Gradients are as many numbers of float32 as are trained.
    return memory.parameters - memory.gradients + saves * (memory.gradients + memory.slots)


def _alike(chosen: Sequence[Cell]) -> Iterator[str]:
    lengths = {tuple(run.data.max_length for run in cell.runs) for cell in chosen}
    counts = {cell.runs[-1].model.visual_tokens for cell in chosen}
    if len(lengths) == 1 and len(counts) > 1:
        (stages,) = lengths
        yield (
            f"note: rows have {' and '.join(f'{n:,}' for n in dict.fromkeys(stages))} positions at every V, so that "
            "what training takes hardly depends on V; llava_grid's text_tokens makes them as long as each V needs"
        )


def _trained(run: RunConfig) -> str:
    """How the last stage trains the decoder."""
    lora, form = run.model.lora.rank, run.train.frozen_weights
    kept = "" if form == "auto" else f" in {form}"
    if lora:
        return f"adapters of rank {lora}{kept}"
    return "whole" if run.trains_whole_decoder else f"frozen{kept}"
