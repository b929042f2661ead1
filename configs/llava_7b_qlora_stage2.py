"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 2 with QLoRA: adapters around a decoder in 4 bits.

python -m launch.train configs/llava_7b_qlora_stage2.py --data.tokenizer vicuna-7b

Rank and alpha are QLoRA's (arXiv 2305.14314), rates and dropout those of LLaVA-1.5's finetune_lora.sh.
"""

import dataclasses

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 128 conversations a step, starting from stage 1."""
    whole = llava.stage2("vicuna-7b", "", "runs/llava_7b_stage1")
    run = llava.with_adapters(whole, "runs/llava_7b_qlora_stage2", rank=64, alpha=16.0)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, frozen_weights="nf4"))
