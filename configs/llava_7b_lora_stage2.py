"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 2 with adapters: the decoder stays as it is, in bfloat16.

python -m launch.train configs/llava_7b_lora_stage2.py --data.tokenizer vicuna-7b
"""

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 128 conversations a step, starting from stage 1."""
    whole = llava.stage2("vicuna-7b", "", "runs/llava_7b_stage1")
    return llava.with_adapters(whole, "runs/llava_7b_lora_stage2")
