"""The same as llava_7b_stage2.py with Vicuna-13B.

python -m launch.train configs/llava_13b_stage2.py --data.tokenizer vicuna-13b
"""

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 128 conversations a step, starting from stage 1."""
    return llava.stage2("vicuna-13b", "runs/llava_13b_stage2", "runs/llava_13b_stage1")
