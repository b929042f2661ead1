"""QueCC on SigLIP 2 before Qwen3 in three stages, the last of which trains the tower too:

    python -m launch.convert import --from Qwen3-1.7B --vision siglip2-so400m-patch16-384 --out weights/qwen3-1.7b
    python -m launch.train configs/qwen3_onevision.py:1.7b --data.tokenizer weights/qwen3-1.7b/tokenizer \\
        --init-from weights/qwen3-1.7b

Captions for compressor and projector, then LLaVA-OneVision's way: everything is trained on detailed captions, and then
on instructions, at 1e-5 and the tower at 2e-6 (LLaVA-VL/LLaVA-NeXT, scripts/train/finetune_si.sh at 1fcd3d4). What
differs: images are squares, as QueCC's are, where OneVision cuts them into tiles; its mid stage has more than the
recaptioned images of data/llava_recap_558k.json, and its last stage more than LLaVA-1.5's instructions.
"""

import dataclasses

from configs import llava, qwen3_stage1, qwen3_stage2
from quecc_jax.config import OptimizerConfig, RunConfig, SourceConfig

RECAPTIONED = 558_128
RECAPTIONED_PACKED = 7.0
"""About how many share a packed row at V = 16, taken to have 270 tokens with their template."""


def stages(size: str = "0.6b") -> list[RunConfig]:
    """Three epochs, one of each."""
    out = f"runs/qwen3_{size}_onevision"
    one, last = qwen3_stage1.config(size), qwen3_stage2.config(size)
    source = SourceConfig(path="data/llava_recap_558k.json", images="data/images")
    middle = dataclasses.replace(
        last,
        data=dataclasses.replace(last.data, sources=(source,)),
        train=llava.epoch(2, RECAPTIONED, 128, 24, RECAPTIONED_PACKED),
    )
    return [dataclasses.replace(one, out=f"{out}/stage1"), whole(middle, 2, out), whole(last, 3, out)]


def whole(base: RunConfig, stage: int, out: str) -> RunConfig:
    """A stage that trains everything, the tower at a fifth of the rate."""
    return dataclasses.replace(
        base,
        out=f"{out}/stage{stage}",
        optimizer=OptimizerConfig(learning_rate=1e-5, vision_learning_rate=2e-6),
        train=dataclasses.replace(
            base.train, stage=stage, parts=("vision", "compressor", "projector", "decoder")
        ),
        init_from="",
    )
