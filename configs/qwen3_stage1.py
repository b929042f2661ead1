"""QueCC on SigLIP 2 before Qwen3, stage 1. The size stands behind a colon:

    python -m launch.convert import --from Qwen3-1.7B --vision siglip2-so400m-patch16-384 --out weights/qwen3-1.7b
    python -m launch.train configs/qwen3_stage1.py:1.7b --data.tokenizer weights/qwen3-1.7b/tokenizer \\
        --init-from weights/qwen3-1.7b

Sizes are 0.6b, 1.7b, 4b, 8b, 14b and 32b. Both stages speak the prompts that these models answer without thinking
aloud; in conversations of several turns each answer follows an empty thought, where Qwen's own program leaves out all
but the last.

SigLIP 2's so400m/16 at 384 pixels has 24 x 24 patches, as CLIP-L/14 at 336, so that V is one of the same numbers.
"""

from configs import llava
from quecc_jax.config import RunConfig

TOWER = "siglip2-so400m-16-384"


def config(size: str = "0.6b") -> RunConfig:
    """One epoch, 256 conversations a step."""
    out = f"runs/qwen3_{size}_stage1"
    return llava.stage1(f"qwen3-{size}", out, template="qwen3_no_think", vision_tower=TOWER)
