"""The scaling study's grid on today's models: Qwen3 of five sizes x seven V with SigLIP 2, tested on POPE and GQA.

    python -m launch.sweep configs/qwen3_sweep.py --dry-run --topology v5e-64
    python -m launch.sweep configs/qwen3_sweep.py          # on every host that shares the directory

Rows hold a conversation each, so that a step has as many at every V. Weights come from `python -m launch.convert import
--vision siglip2-so400m-patch16-384`, one run directory for each model below weights/.
"""

from configs import llava_sweep, qwen3_stage1, qwen3_stage2
from quecc_jax.experiments.grid import Grid

SIZES = ("0.6b", "1.7b", "4b", "8b", "14b")


def grid() -> Grid:
    """35 cells, one seed."""
    stages = [qwen3_stage1.config(), qwen3_stage2.config()]
    return llava_sweep.study(
        "runs/qwen3_sweep", stages, [f"qwen3-{size}" for size in SIZES], "qwen3_no_think"
    )
