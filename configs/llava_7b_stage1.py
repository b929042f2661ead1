"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 1: compressor and projector on 558k captions.

    python -m launch.train configs/llava_7b_stage1.py --data.tokenizer vicuna-7b --init-from runs/vicuna-7b

V = 16 visual tokens; --model.compressor.kernel and --model.compressor.stride 24, 12, 6, 4 give V = 1,
4, 16, 36. docs/pods.md has a mesh for each TPU slice.
"""

from configs import llava
from quecc_jax.config import RunConfig


def config() -> RunConfig:
    """One epoch, 256 conversations a step."""
    return llava.stage1("vicuna-7b", "runs/llava_7b_stage1")
