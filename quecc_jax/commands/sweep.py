"""Trains and tests a grid of models: python -m launch.sweep configs/NAME.py --dry-run

Start the same command on as many hosts as there are; each takes cells that no other has, from the
shared directory. Started again, it goes on with the cells that are missing. Scores are written after
every cell, as `python -m scaling fit --scores OUT/scores.json` takes them. With --on a scheduler starts
the cells, each by the same command with --only.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from quecc_jax.commands.checks import refuse_unread, share
from quecc_jax.commands.config_file import load_file
from quecc_jax.commands.sweep_cost import Assumed, dry_run
from quecc_jax.errors import UserError
from quecc_jax.experiments.clusters import kubernetes, slurm
from quecc_jax.experiments.clusters.kubernetes import Kubernetes
from quecc_jax.experiments.clusters.slurm import Slurm
from quecc_jax.experiments.grid import Cell, Grid, at
from quecc_jax.experiments.runner import check, run_grid, run_one, unmet
from quecc_jax.experiments.status import status
from quecc_jax.experiments.store import claim, result_file
from quecc_jax.paths import is_remote

ASSUMED = tuple(field.name for field in dataclasses.fields(Assumed))


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and tests every cell of a grid."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")]
    """A file with `grid() -> Grid`, such as configs/llava_sweep.py."""
    dry_run: bool = False
    """Print cells, FLOPs, hours and dollars, and with --on what would be submitted; do nothing."""
    status: bool = False
    """Print what became of each cell: state, attempts, where they ran; do nothing."""
    topology: str = Assumed.topology
    """Dry run: a chip and how many of them, such as v5e-64 or h100-8."""
    mfu: float = Assumed.mfu
    """Dry run: share of the chips' peak that training is taken to reach."""
    answer_tokens: int = Assumed.answer_tokens
    """Dry run: tokens of an answer, where a test allows so many."""
    compile_minutes: float = Assumed.compile_minutes
    """Dry run: for one program."""
    save_rate: float = Assumed.save_rate
    """Dry run: GB/s at which all hosts together write a checkpoint."""
    price: float | None = Assumed.price
    """Dry run: dollars per chip and hour; by default the list price on demand, where one is known."""
    shard: str = ""
    """I/N takes only every N-th cell, from the I-th (0 .. N - 1) on; without it hosts share all cells."""
    only: str = ""
    """Runs this one cell, in as many processes as were started by this command, which find each other as those of
    `launch.train` do. Told to stop by SIGTERM it ends with status 143, for a scheduler to start it again."""
    out: str = ""
    """Directory in place of the grid's own, here or as gs://BUCKET/PATH."""
    on: Literal["local", "slurm", "kubernetes"] = "local"
    """Run the cells here, or submit those that have no result: as an array job of Slurm, or as JobSets."""
    slurm: Slurm = Slurm()  # noqa: RUF009 (frozen)
    kubernetes: Kubernetes = Kubernetes()  # noqa: RUF009 (frozen)


def run(options: Options) -> None:
    """Trains and tests the cells that are missing, submits them, or says what they would take or have become."""
    _check(options)
    grid = load_file(options.config, "grid", Grid)
    grid = at(grid, options.out) if options.out else grid
    check_place(grid)
    chosen = sharded(grid.cells, options.shard)
    if options.dry_run:
        print(dry_run(grid, chosen, Assumed(**{name: getattr(options, name) for name in ASSUMED})))
    elif options.status:
        print(status(grid, chosen))
    if options.on != "local":
        _submit(options, grid, chosen)
    elif options.only:
        _run_only(grid, options.only)
    elif not (options.dry_run or options.status):
        _run_here(grid, chosen)


def _check(options: Options) -> None:
    """Options that would do nothing are mistakes."""
    if not options.dry_run:
        refuse_unread(options, ASSUMED, "goes with --dry-run; add it or leave this out")
    for name in ("slurm", "kubernetes"):
        if options.on != name:
            refuse_unread(options, (name,), f"goes with --on {name}; add that or leave it out")
    if options.status:
        refuse_unread(options, ("dry_run", "on", "only"), "does not go with --status; leave it out")
    if options.only:
        refuse_unread(options, ("dry_run", "on", "shard"), "does not go with --only; leave it out")


def check_place(grid: Grid) -> None:
    """Raises UserError for a grid in a bucket whose cells keep what needs a directory."""
    kept = [cell.name for cell in grid.cells if cell.benchmarks or cell.samples]
    if is_remote(grid.out) and kept:
        raise UserError(
            f"{grid.out} is in a bucket, but {kept[0]} has benchmarks or samples, which are kept in a directory; "
            "mount the bucket, or another directory that all hosts see, and give its path as --out"
        )


def _submit(options: Options, grid: Grid, chosen: Sequence[Cell]) -> None:
    """Submits the cells that have no result, or prints what would be submitted."""
    if options.on == "slurm":
        slurm.check(options.slurm, grid.out)
    else:
        kubernetes.check(options.kubernetes, grid.out)
    left = [cell for cell in chosen if not result_file(grid, cell.name).is_file()]
    for cell in left:
        if missing := unmet(grid, cell):
            raise UserError(
                f"{cell.name} needs {', '.join(missing)}, which has no result yet; run the sweep without --on until it "
                "has"
            )
    if not left:
        print(f"all {len(chosen)} cells are done")
        return
    if options.on == "slurm":
        text = slurm.script(grid, left, options.config, options.slurm, Path.cwd())
        if options.dry_run:
            print(f"\nThis would go to sbatch:\n\n{text}")
            return
        claim(grid)
        print(f"{len(left)} cells are array job {slurm.submit(grid, text)}; logs: {grid.out}/slurm")
    else:
        documents = kubernetes.manifests(grid, left, options.config, options.kubernetes)
        if options.dry_run:
            print(f"\nThis would go to kubectl create:\n\n{kubernetes.text(documents)}")
            return
        print("\n".join(kubernetes.submit(documents)))
    print(f"python -m launch.sweep {options.config} --out {grid.out} --status")


def _run_only(grid: Grid, name: str) -> None:
    """Runs one cell, in this process or with others."""
    # Imported late: a dry run needs no JAX.
    from quecc_jax.distributed import joined
    from quecc_jax.train.preemption import Preempted

    preempted = None
    with joined():
        try:
            run_one(grid, name)
        except Preempted as told:
            preempted = told
    if preempted is not None:
        print(f"{preempted}; the same command continues it", flush=True)
        # Only now: the processes leave together.
        raise preempted


def _run_here(grid: Grid, chosen: Sequence[Cell]) -> None:
    """Runs the cells that are missing, one after another."""
    # Imported late: a dry run needs no JAX.
    from quecc_jax.train.preemption import Preempted

    try:
        outcome = run_grid(grid, {cell.name for cell in chosen})
    except Preempted as preempted:
        print(f"{preempted}; the same command continues it")
        return
    scores = f"{grid.out}/scores.json"
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
    part, parts = share("--shard", shard)
    return every[part::parts]
