"""One tree of frozen dataclasses describes one run; importing it imports neither jax nor flax."""

from quecc_jax.config.data import DataConfig, ImageDecoding, SourceConfig
from quecc_jax.config.lora import LoraConfig
from quecc_jax.config.model import DecoderConfig, ModelConfig, PixelConfig, RopeScaling, VisionConfig
from quecc_jax.config.query import ClipTextConfig, QueryConfig
from quecc_jax.config.run import (
    CheckpointConfig,
    DistilConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from quecc_jax.models.compressors.base_config import CompressorConfig
from quecc_jax.models.compressors.none_config import NoneConfig
from quecc_jax.models.compressors.quecc_config import QueccConfig

__all__ = [
    "CheckpointConfig",
    "ClipTextConfig",
    "CompressorConfig",
    "DataConfig",
    "DecoderConfig",
    "DistilConfig",
    "ImageDecoding",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "NoneConfig",
    "OptimizerConfig",
    "PixelConfig",
    "QueccConfig",
    "QueryConfig",
    "RopeScaling",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
    "VisionConfig",
]
