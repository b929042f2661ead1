"""QueCC before Qwen-1.5, the scaling study's decoders, stage 1. The size stands behind a colon:

    python -m launch.train configs/qwen_stage1.py:1.8b --data.tokenizer qwen1.5-1.8b \\
        --init-from runs/qwen1.5-1.8b

Sizes are 0.5b, 1.8b, 4b, 7b and 14b. Both stages speak the template that these models know, as QueCC's
scripts let Vicuna speak its own.
"""

from configs import llava
from quecc_jax.config import RunConfig


def config(size: str = "0.5b") -> RunConfig:
    """One epoch, 256 conversations a step."""
    return llava.stage1(f"qwen1.5-{size}", f"runs/qwen_{size}_stage1", template="qwen")
