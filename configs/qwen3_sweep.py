"""The scaling study's grid on today's models: Qwen3 of five sizes x seven V with SigLIP 2, tested on POPE and GQA.

    python -m launch.sweep configs/qwen3_sweep.py --dry-run --topology v5e-64
    python -m launch.sweep configs/qwen3_sweep.py          # on every host that shares the directory

Rows hold a conversation each, so that a step has as many at every V. Weights come from `python -m launch.convert import
--vision siglip2-so400m-patch16-384`, one run directory for each model below weights/.
"""

from configs import llava, qwen3_stage1, qwen3_stage2
from quecc_jax.experiments.grid import Benchmarks, Grid
from quecc_jax.experiments.llava_grid import Llm, llava_grid

SIZES = ("0.6b", "1.7b", "4b", "8b", "14b")


def grid() -> Grid:
    """35 cells, one seed."""
    names = [f"qwen3-{size}" for size in SIZES]
    return llava_grid(
        out="runs/qwen3_sweep",
        stages=[llava.one_each(stage.config()) for stage in (qwen3_stage1, qwen3_stage2)],
        llms=tuple(Llm(name, weights=f"weights/{name}", template="qwen3_no_think") for name in names),
        visual_tokens=(1, 4, 16, 36, 64, 144, 576),
        benchmarks=Benchmarks("pope,gqa", "data/eval"),
    )
