"""Trains one run: `python -m launch.train configs/NAME.py --optimizer.learning-rate 1e-4`."""

import sys

from launch.cli import parse_run
from quecc_jax.errors import run_cli


def main() -> None:
    """Parses the command line, trains, and prints where the result lies."""
    config = parse_run(sys.argv[1:], "python -m launch.train")
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.train.loop import train

    summary = train(config)
    print(f"{summary['out']}: step {summary['step']}, loss {summary['loss']:.4f}, "
          f"{summary['skipped']} steps skipped, {summary['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
