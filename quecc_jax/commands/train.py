"""Trains one run: `python -m launch.train configs/NAME.py --optimizer.learning-rate 1e-4`.

On several hosts, start the same command on each of them; see `quecc_jax.distributed`.
"""

import dataclasses
import sys

from quecc_jax.commands.options import RunSettings


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains one run. CONFIG.py gives the settings; options override them."""

    config: RunSettings


def run(options: Options) -> None:
    """Trains, and prints where the result lies.

    SIGTERM, which announces that the machine will be taken away, saves a checkpoint if a step was done, and ends with
    status 0; the same command then continues.
    """
    # Imported late, so that --help and mistakes in the command line answer at once.
    import jax

    from quecc_jax.distributed import joined
    from quecc_jax.train.logs.terminal import describe_goodput
    from quecc_jax.train.loop import train
    from quecc_jax.train.preemption import Preempted

    with joined():
        try:
            summary = train(options.config)
            report = (
                f"{describe_goodput(summary)}\n{summary['out']}: step {summary['step']}, loss "
                f"{summary['loss']:.4f}, {summary['skipped']} steps skipped"
            )
            if summary["truncated"] or summary["dropped"]:
                report += (
                    f"\n{summary['truncated']} rows were longer than data.max_length and lost their "
                    f"end, {summary['dropped']} were left out"
                )
        except Preempted as preempted:
            report = f"{preempted}; the same command continues it"
        except KeyboardInterrupt:
            print(f"{options.config.out}: the same command continues from what was saved", file=sys.stderr)
            raise
        if jax.process_index() == 0:
            print(report)
