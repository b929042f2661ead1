"""The comparison of compressors: train each on the same testbed, time them, write the report.

python -m launch.compare_compressors --out runs/compressors
"""

import dataclasses

from quecc_jax.commands.config_file import shipped
from quecc_jax.commands.demo import run_and_report


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains one small vision-language model behind every compressor and compares them. Started again with the
    same --out, it continues with the jobs that are missing."""

    out: str = "runs/compressors"
    """Directory for everything that is made."""
    quick: bool = False
    """A few steps of everything, to see every part work."""


def run(options: Options) -> None:
    """Trains what is missing and writes the report."""
    grids = shipped("study_compressors")
    run_and_report(
        grids.quick() if options.quick else grids.grid(), options.out, "launch.compare_compressors"
    )
