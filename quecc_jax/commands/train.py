"""Trains one run, or all stages of a recipe: `python -m launch.train configs/NAME.py --optimizer.learning-rate 1e-4`.

On several hosts, start the same command on each of them; see `quecc_jax.distributed`.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from quecc_jax.commands.options import RunSettings


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains one run, or one after another the stages of a recipe, a file that has `stages()`; FILE.py:2 is its second
    stage alone. CONFIG.py gives the settings; options override them, of all stages, but --out, the directory of their
    directories, and --init-from, which is where the first begins."""

    config: RunSettings


def run(options: Options) -> None:
    """Trains one run; see `run_stages`."""
    run_stages([options])


def run_stages(stages: Sequence[Options]) -> None:
    """Trains run after run, and prints where each result lies. Those that are done already are passed over.

    SIGTERM, which announces that the machine will be taken away, saves a checkpoint if a step was done, and ends with
    status 0; the same command then continues.
    """
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.distributed import joined, notice
    from quecc_jax.train.logs.terminal import describe_goodput
    from quecc_jax.train.loop import train
    from quecc_jax.train.preemption import Preempted

    with joined():
        for number, config in enumerate((one.config for one in stages), start=1):
            if len(stages) > 1:
                notice(f"{config.out}: stage {number} of {len(stages)}, {' and '.join(config.train.trained)}")
            try:
                summary, ended = train(config), True
                report = f"{describe_goodput(summary)}\n{_outcome(summary)}"
            except Preempted as stopped:
                report, ended = f"{stopped}; the same command continues it", False
            except KeyboardInterrupt:
                print(f"{config.out}: the same command continues from what was saved", file=sys.stderr)
                raise
            if jax.process_index() == 0:
                print(report)
            if not ended:
                return


def _outcome(summary: Mapping[str, Any]) -> str:
    """What `train.loop.train` says of a run that came to its end, for people."""
    # A run that was done already did no step of which there would be a loss.
    idle = math.isnan(summary["loss"]) and not summary["skipped"]
    said = "nothing was left to do" if idle else f"loss {summary['loss']:.4f}"
    report = f"{summary['out']}: step {summary['step']}, {said}, {summary['skipped']} steps skipped"
    if summary["truncated"] or summary["dropped"]:
        report += (
            f"\n{summary['truncated']} rows were longer than data.max_length and lost their end, "
            f"{summary['dropped']} were left out"
        )
    return report
