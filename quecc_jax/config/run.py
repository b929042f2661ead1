"""Settings of one run: experiments are diffs against a base.

Nothing here touches devices: meshes, schedules and modules are built from these values by the
code that uses them.
"""

import dataclasses
from typing import Literal

from quecc_jax.config.data import DataConfig
from quecc_jax.config.model import ModelConfig
from quecc_jax.config.weights import FrozenWeights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a cosine schedule with linear warmup."""

    learning_rate: float = 1e-3
    projector_learning_rate: float | None = None
    """Separate peak rate for compressor and projector; the schedule's shape is shared."""
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    """Acts on matrices, tables and learned vectors; biases and the scales of norms are left alone."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 1e9 clips nothing."""
    vision_learning_rate: float | None = None
    """Separate peak rate for the tower, where it is trained."""


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """A teacher beside the answers: the run's starting weights with all the tower's tokens of every image, frozen."""

    weight: float = 0.0
    """Share of the divergence from the teacher in the loss, the rest is the cross-entropy on the answers; 0 is no
    teacher, and then the other settings mean nothing."""
    temperature: float = 1.0
    """Divides both models' logits before the divergence is taken, which then counts temperature^2 times, so that its
    gradient keeps its size (arXiv 1503.02531)."""


Part = Literal["vision", "compressor", "projector", "decoder"]
"""A part of the model that training can change; `vision` is the tower."""

_PARTS: dict[int, tuple[Part, ...]] = {
    0: ("decoder",),
    1: ("compressor", "projector"),
    2: ("compressor", "projector", "decoder"),
}
"""What a stage trains that does not say."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch and bookkeeping of one training stage."""

    stage: int = 1
    """Its number. One that names no `parts` trains by it: 0 the decoder alone, on text; 1 compressor and projector; 2
    these and the decoder."""
    steps: int = 1000
    epochs: float = 0.0
    """Passes over the joined sources; `launch.train` then counts `steps` from the data before the first of them, and
    keeps both. 0 trains `steps` steps. Sources with weights have no epochs."""
    batch_size: int = 256
    """Rows of one optimizer step over the whole mesh, all microbatches together."""
    conversations: int = 0
    """Conversations of one optimizer step. Of packed rows, which hold several, `launch.train` then counts `batch_size`
    from the data, as a multiple of what mesh and microbatches need; else it is this number. 0 takes `batch_size`."""
    grad_accum_steps: int = 1
    """Microbatches that a batch is cut into; gradients are summed over them before the update."""
    loss_chunk: int = 512
    """Positions whose logits exist at once while the cross-entropy is computed."""
    frozen_weights: FrozenWeights = "auto"
    """How the matrices of a decoder that is frozen, in stage 1 or under adapters, are kept: `auto` as float32, under
    adapters as model.dtype; `int8`, `int4` and `nf4` in fewer bits (QLoRA's is nf4)."""
    distil: DistilConfig = DistilConfig()
    max_bad_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient, or without any label, after which training stops."""
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    """Steps between two looks at the loss on `data.held_out` rows, each once, and at the last step; 0 is none."""
    wandb: str = ""
    """Project of Weights & Biases, or TEAM/PROJECT, that the log's scalars go to as well; empty is none. Its own
    environment variables hold: WANDB_MODE=offline writes files alone."""
    parts: tuple[Part, ...] = ()
    """What is trained, all else stays as it is; empty is what `stage` means. Adapters (`model.lora`) stand in for the
    decoder. The tower is frozen unless it is named."""

    @property
    def trained(self) -> tuple[Part, ...]:
        """The parts that this stage trains; none where it is past 2 and does not say."""
        return self.parts or _PARTS.get(self.stage, ())


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to save."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved, with 0 it alone."""
    keep: int = 2
    """The newest so many are kept."""
    keep_best: bool = False
    """Also keep the one with the lowest loss on held-out rows, of those that were measured when they were saved."""
    resume: Literal["auto", "never", "must"] = "auto"
    """`auto` continues the newest readable checkpoint if there is one; `must` insists on it."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1, meaning all that are left."""

    data: int = 1
    """Replicas; on several slices a multiple of their number."""
    fsdp: int = -1
    """Shares of parameters, optimizer state and rows."""
    tensor: int = 1
    """Shares of heads, MLP columns and vocabulary."""
    sequence_parallel: bool = False
    """Between attention and MLP products, split the sequence over the `tensor` devices too."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that `launch.train` needs."""

    out: str = "runs/default"
    """Directory of this run: checkpoints, logs and the resolved config."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str = ""
    """Run directory whose parameters start this one, e.g. stage 1 before stage 2."""
    tower_from: str = ""
    """Run directory that holds the frozen towers, of images and (`clip_text`) of questions, which
    `init_from` has not: their features were cached, or they come from elsewhere."""
    profile: str = ""
    """FIRST:LAST traces these steps with JAX's profiler into `out`/profile."""

    @property
    def trains_whole_decoder(self) -> bool:
        """Whether the decoder's own weights are trained, and not adapters in their stead or nothing of it."""
        return "decoder" in self.train.trained and not self.model.lora.rank

    @property
    def trains_tower(self) -> bool:
        """Whether the tower of images is trained."""
        return "vision" in self.train.trained
