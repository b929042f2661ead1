"""QueCC's rows of the paper's table 1: what `launch.reproduce` trains.

    python -m launch.train configs/table1.py:stage1-v16 --init-from weights/vicuna-7b ...

`stage1-vV` and `stage2-vV` are LLaVA-1.5's two stages with Vicuna-7B at V visual tokens, as the scripts have them and
nearer to them than `configs/llava_7b_stage1.py`: a conversation in each row, images as they are stored
(`data.image_decoding original`), and gradients that nothing clips. `-small` behind it rehearses the same on a CPU, on
stand-in data.
"""

import dataclasses
import re

from configs import llava
from quecc_jax.config import CheckpointConfig, DecoderConfig, QueccConfig, RunConfig
from quecc_jax.config.presets import decoder

CHOICES = (1, 4, 16, 36)
"""V of the table's rows."""
SMALL_GRID = 12
"""Patches along a side of the rehearsal's images."""
SMALL_DECODER = DecoderConfig(width=32, depth=2, heads=2, kv_heads=2, mlp_width=64)
"""With Vicuna's vocabulary."""


def config(name: str = "stage2-v16") -> RunConfig:
    """One epoch of a stage.

    Raises:
      ValueError: the name is none of those.
    """
    told = re.fullmatch(r"stage([12])-v(\d+)(-small)?", name)
    if not told or int(told[2]) not in CHOICES:
        rows = ", ".join(map(str, CHOICES))
        raise ValueError(f"{name} is not stage1-vV or stage2-vV, with V one of {rows}, or either with -small")
    tokens = int(told[2])
    run = (
        llava.stage1("vicuna-7b", "runs/table1/stage1", tokens)
        if told[1] == "1"
        else llava.stage2("vicuna-7b", "runs/table1/stage2", "runs/table1/stage1", tokens)
    )
    run = llava.one_each(run)
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, image_decoding="original"),
        # The scripts' DeepSpeed settings name no clipping, and DeepSpeed then does none.
        optimizer=dataclasses.replace(run.optimizer, clip_norm=1e9),
    )
    assert run.model.decoder == decoder("vicuna-7b")
    return _small(run, tokens) if told[3] else run


def _small(run: RunConfig, tokens: int) -> RunConfig:
    """The same for a model of 2 million parameters and a few rows."""
    vision = dataclasses.replace(
        run.model.vision,
        image_size=SMALL_GRID * run.model.vision.patch_size,
        width=32,
        depth=3,
        heads=2,
        mlp_width=64,
        levels=(1, 2),
    )
    stride = SMALL_GRID // int(tokens**0.5)
    model = dataclasses.replace(
        run.model,
        vision=vision,
        compressor=QueccConfig(kernel=stride, stride=stride, heads=2),
        decoder=SMALL_DECODER,
        dtype="float32",
        remat="none",
    )
    # Few lengths of rows and questions, each of which is compiled.
    data = dataclasses.replace(run.data, max_length=192, query_length=32, num_length_buckets=2, workers=0)
    train = dataclasses.replace(run.train, steps=4, batch_size=8, log_every=1)
    return dataclasses.replace(run, model=model, data=data, train=train, checkpoint=CheckpointConfig(every=1))
