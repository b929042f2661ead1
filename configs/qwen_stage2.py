"""QueCC before Qwen-1.5, stage 2, starting from qwen_stage1.py of the same size:

python -m launch.train configs/qwen_stage2.py:1.8b --data.tokenizer qwen1.5-1.8b
"""

from configs import llava
from quecc_jax.config import RunConfig


def config(size: str = "0.5b") -> RunConfig:
    """One epoch, 128 conversations a step."""
    before = f"runs/qwen_{size}_stage1"
    return llava.stage2(f"qwen1.5-{size}", f"runs/qwen_{size}_stage2", before, template="qwen")
