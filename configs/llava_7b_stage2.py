"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 2: the decoder too, on 665k instructions.

python -m launch.train configs/llava_7b_stage2.py --data.tokenizer vicuna-7b
"""

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 128 conversations a step, starting from stage 1."""
    return llava.stage2("vicuna-7b", "runs/llava_7b_stage2", "runs/llava_7b_stage1")
