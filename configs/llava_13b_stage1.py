"""The same as llava_7b_stage1.py with Vicuna-13B, which LLaVA-1.5 trains as its 7B.

python -m launch.train configs/llava_13b_stage1.py --data.tokenizer vicuna-13b --init-from runs/vicuna-13b
"""

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 256 conversations a step."""
    return llava.stage1("vicuna-13b", "runs/llava_13b_stage1")
