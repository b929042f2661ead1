"""The scaling study's grid: Qwen-1.5 of five sizes x seven V, trained as LLaVA-1.5, tested on POPE and GQA.

    python -m launch.sweep configs/llava_sweep.py --dry-run --topology v5e-64
    python -m launch.sweep configs/llava_sweep.py          # on every host that shares the directory

Rows hold a conversation each, so that a step has as many at every V.

Weights come from `python -m launch.convert import`, one run directory for each model below weights/.
"""

from collections.abc import Sequence

from configs import llava, llava_7b_stage1, llava_7b_stage2
from quecc_jax.config import RunConfig
from quecc_jax.experiments.grid import Benchmarks, Grid
from quecc_jax.experiments.llava_grid import Llm, llava_grid

SIZES = ("0.5b", "1.8b", "4b", "7b", "14b")


def grid() -> Grid:
    """35 cells, one seed."""
    stages = [llava_7b_stage1.config(), llava_7b_stage2.config()]
    return study("runs/llava_sweep", stages, [f"qwen1.5-{size}" for size in SIZES], "qwen")


def study(out: str, stages: Sequence[RunConfig], names: Sequence[str], template: str) -> Grid:
    """The study's V, rows and tests, for any language models below weights/ and their template."""
    return llava_grid(
        out=out,
        stages=[llava.one_each(stage) for stage in stages],
        llms=tuple(Llm(name, weights=f"weights/{name}", template=template) for name in names),
        visual_tokens=(1, 4, 16, 36, 64, 144, 576),
        benchmarks=Benchmarks("pope,gqa", "data/eval"),
    )
