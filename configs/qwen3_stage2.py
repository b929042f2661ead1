"""QueCC on SigLIP 2 before Qwen3, stage 2, starting from qwen3_stage1.py of the same size:

python -m launch.train configs/qwen3_stage2.py:1.7b --data.tokenizer weights/qwen3-1.7b/tokenizer
"""

from configs import llava
from configs.qwen3_stage1 import TOWER
from quecc_jax.config import RunConfig


def config(size: str = "0.6b") -> RunConfig:
    """One epoch, 128 conversations a step."""
    before, out = f"runs/qwen3_{size}_stage1", f"runs/qwen3_{size}_stage2"
    return llava.stage2(f"qwen3-{size}", out, before, template="qwen3_no_think", vision_tower=TOWER)
