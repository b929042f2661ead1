"""Trains and tests a grid of models: python -m launch.sweep configs/NAME.py --dry-run

Start the same command on as many hosts as there are; each takes cells that no other has, from the
shared directory. Started again, it goes on with the cells that are missing. Scores are written after
every cell, as `python -m scaling fit --scores OUT/scores.json` takes them.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from quecc_jax.aot.chips import GIB, find_chip
from quecc_jax.aot.memory import train_memory, verdict
from quecc_jax.commands.checks import refuse_unread
from quecc_jax.commands.config_file import load_file
from quecc_jax.config import RunConfig
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import Cell, Grid, at
from quecc_jax.experiments.llava_grid import training_flops
from quecc_jax.experiments.runner import check, run_grid
from quecc_jax.experiments.store import result_file


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and tests every cell of a grid."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")]
    """A file with `grid() -> Grid`, such as configs/llava_sweep.py."""
    dry_run: bool = False
    """Print cells, FLOPs and hours, and train nothing."""
    topology: str = "v5e-64"
    """Dry run: a chip and how many of them, such as v5e-64 or h100-8."""
    mfu: float = 0.4
    """Dry run: share of the chips' peak that training is taken to reach."""
    shard: str = ""
    """I/N takes only every N-th cell, from the I-th (0 .. N - 1) on; without it hosts share all cells."""
    out: str = ""
    """Directory in place of the grid's own."""


def run(options: Options) -> None:
    """Trains and tests the cells that are missing, or says what they would take."""
    if not options.dry_run:
        refuse_unread(options, ("topology", "mfu"), "goes with --dry-run; add it or leave this out")
    grid = load_file(options.config, "grid", Grid)
    grid = at(grid, options.out) if options.out else grid
    chosen = sharded(grid.cells, options.shard)
    if options.dry_run:
        print(dry_run(grid, chosen, options.topology, options.mfu))
        return
    # Imported late: a dry run needs no JAX.
    from quecc_jax.train.preemption import Preempted

    try:
        outcome = run_grid(grid, {cell.name for cell in chosen})
    except Preempted as preempted:
        print(f"{preempted}; the same command continues it")
        return
    scores = Path(grid.out, "scores.json")
    done = sum(result_file(grid, cell.name).is_file() for cell in chosen)
    print(f"{done} of {len(chosen)} cells done; scores: {scores}")
    if outcome.elsewhere:
        print(f"running elsewhere: {', '.join(outcome.elsewhere)}")
    check(outcome._replace(elsewhere=[]), grid)
    print(f"python -m scaling fit --scores {scores} --out {grid.out}/law")


def sharded(every: Sequence[Cell], shard: str) -> Sequence[Cell]:
    """The cells of `--shard I/N`.

    Raises:
      UserError: it does not read I/N with I below N.
    """
    if not shard:
        return every
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {shard} is not I/N with I from 0 to N - 1, such as 0/4")
    return every[int(match[1]) :: int(match[2])]


def dry_run(grid: Grid, chosen: Sequence[Cell], topology: str, mfu: float) -> str:
    """A table of cells with their FLOPs, and hours on a topology at a share `mfu` of its peak.

    Raises:
      UserError: the topology is not CHIP-COUNT of a known chip, or mfu is outside 0..1.
    """
    match = re.fullmatch(r"(.+)-(\d+)", topology)
    if not match or int(match[2]) < 1:
        raise UserError(f"--topology {topology} is not a chip and a count, such as v5e-64 or h100-8")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} is outside 0..1")
    chip, count = find_chip(match[1]), int(match[2])
    rate = chip.flops * count * mfu
    width = max(len(cell.name) for cell in chosen)
    lines = [f"{'cell':{width}} {'steps':>17}   row tokens   FLOPs        hours   GiB a chip   decoder"]
    total, limit = 0.0, (chip.usable_gib or chip.hbm_gib) * GIB
    for cell in chosen:
        steps = " + ".join(f"{run.train.steps:,}" for run in cell.runs)
        flops = training_flops(cell)
        total += flops
        memory = max((train_memory(run, count) for run in cell.runs), key=lambda one: one.total)
        needed, found = memory.total, verdict(memory, limit)
        state = "" if found == "fits" else f" {found}"
        state += "  done" if result_file(grid, cell.name).is_file() else ""
        lines.append(
            f"{cell.name:{width}} {steps:>17}{cell.runs[-1].data.max_length:>13,}   "
            f"{flops:.3e} {flops / rate / 3600:9.2f}   {needed / GIB:10.2f}   {_trained(cell.runs[-1])}{state}"
        )
    lines.append(
        f"{len(chosen)} cells, {total:.3e} FLOPs, {total / rate / 3600:,.1f} hours on {count} x {chip.kind} "
        f"at {100 * mfu:g} % of {chip.flops / 1e12:g} TFLOP/s each; tests, compilation, saving come on top"
    )
    lines.append(
        f"a chip has {limit / GIB:g} GiB; parameters, slots and gradients are counted, activations estimated for the "
        "stage that needs most, over the mesh of the run's own settings; `close` may fit or not"
    )
    lengths = {tuple(run.data.max_length for run in cell.runs) for cell in chosen}
    counts = {cell.runs[-1].model.visual_tokens for cell in chosen}
    if len(lengths) == 1 and len(counts) > 1:
        (stages,) = lengths
        lines.append(
            f"note: rows have {' and '.join(f'{n:,}' for n in dict.fromkeys(stages))} positions at every V, so that "
            "what training takes hardly depends on V; llava_grid's text_tokens makes them as long as each V needs"
        )
    return "\n".join(lines)


def _trained(run: RunConfig) -> str:
    """How the last stage trains the decoder."""
    lora, form = run.model.lora.rank, run.train.frozen_weights
    kept = "" if form == "auto" else f" in {form}"
    if lora:
        return f"adapters of rank {lora}{kept}"
    return f"frozen{kept}" if run.train.stage == 1 else "whole"
