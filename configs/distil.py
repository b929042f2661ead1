"""LLaVA-1.5-7B compressed to V = 36: it teaches itself, with all 576 visual tokens, what QueCC's are to say.

    python -m launch.convert import --from llava-v1.5-7b --vision clip-vit-large-patch14-336 --out weights/llava-7b
    python -m launch.train configs/distil.py

The decoder stays as it is under adapters and is the teacher's too; of its own the teacher has the projector. Data,
steps and adapters are those of llava_7b_lora_stage2.py; compressor and projector have stage 1's rate, since the
compressor begins at random. Without adapters, --train.stage 1 --model.lora.rank 0. At this size nobody has run it:
docs/train.md says what was measured on small models.
"""

import dataclasses

from configs import llava
from quecc_jax.config import DistilConfig, RunConfig

WEIGHTS = "weights/llava-7b"


def config() -> RunConfig:
    """One epoch of instructions, 128 conversations a step, half of the loss from the teacher."""
    whole = llava.stage2("vicuna-7b", "", WEIGHTS, visual_tokens=36)
    run = llava.with_adapters(whole, "runs/distil_llava_7b")
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, tokenizer=f"{WEIGHTS}/tokenizer"),
        optimizer=dataclasses.replace(run.optimizer, projector_learning_rate=1e-3),
        train=dataclasses.replace(run.train, distil=DistilConfig(weight=0.5)),
    )
