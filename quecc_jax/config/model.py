"""Settings of a model: tower, compressor, projector, decoder."""

import dataclasses
from typing import Literal

from quecc_jax.config.lora import LoraConfig
from quecc_jax.config.query import QueryConfig
from quecc_jax.models.compressors.base_config import CompressorConfig
from quecc_jax.models.compressors.quecc_config import QueccConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per channel (red, green, blue), of pixels scaled to 0..1: constants of OpenAI's CLIP."""


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """How a tower's own image processor makes its pixels. The defaults are CLIP's."""

    mean: tuple[float, ...] = CLIP_MEAN
    """Of red, green and blue in 0..1; taken off, and what pads an image to a square."""
    std: tuple[float, ...] = CLIP_STD
    """What the rest is divided by."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    """How Pillow resizes."""
    fit: Literal["crop", "stretch"] = "crop"
    """How an image that is not padded becomes a square: its longer side is cropped (CLIP, DINOv2), or both sides
    are resized to the square's (SigLIP)."""
    resized: int = 0
    """Pixels that the shorter side is resized to before the middle is cut out; 0 is the square's side. DINOv2's
    processor has 256 for squares of 224."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision transformer. The defaults are CLIP-L/14 at 336 pixels with QueCC's feature levels; SigLIP and DINOv2 are
    other values.

    `convert.formats.towers` has each family's, `config.presets` published towers.
    """

    image_size: int = 336
    """Side of the square input image, in pixels."""
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu", "gelu_tanh", "swiglu"] = "quick_gelu"
    """`swiglu` has a third matrix in each layer (DINOv2's giant)."""
    select_layer: int = -2
    """Hidden state used as single-level features; counts like a list of depth + 1 states."""
    levels: tuple[int, ...] = (12, 16, 22, 23)
    """Hidden states concatenated into the multi-level features."""
    post_norm: bool = False
    """The tower carries its final norm. No feature passes through it; it is there for export."""
    scales: tuple[int, ...] = (1,)
    """S2's multi-scale features: at scale s the image is s times image_size wide and high, and the tower
    sees it in s x s tiles. Ascending; images are read at the largest. See `models.scales`."""
    tiles: tuple[tuple[int, int], ...] = ()
    """Any-resolution images, as LLaVA-NeXT's: grids (rows, columns) of squares of image_size, of which each
    image takes the one that fits it best, beside a square of the whole. See `data.tiles`."""

    keep_cls: bool = False
    """The select layer's CLS passes the projector, too, and stands in front of an image's compressed tokens:
    one more, as in LLaVA's cls_patch."""
    keep_attention: bool = False
    """Beside the states, CLS' own among them, queries and keys are kept of the layer that reads the select
    layer's states. Compressors that need them (prumerge) have them without it; it is for features that are
    stored for several compressors."""
    cls: bool = True
    """A learned vector, CLS, stands in front of the patches (not SigLIP)."""
    registers: int = 0
    """Learned vectors between CLS and the patches; no feature is taken of them."""
    patch_bias: bool = False
    """A bias on the patch embedding."""
    pre_norm: bool = True
    """A norm in front of the layers (CLIP)."""
    layer_scale: bool = False
    """A learned factor for each channel of what attention and MLP add to the stream (DINOv2)."""
    position_grid: int = 0
    """Patches along one side of the image that the learned positions are for, where these are interpolated to the
    image's own; 0 where they need not be."""
    antialias_positions: bool = False
    """They are interpolated with antialiasing (DINOv2 with registers)."""
    drop_border: bool = False
    """image_size need not be a multiple of patch_size: what is left over at the right and below is not seen (so400m/14
    at 384 pixels)."""
    pixels: PixelConfig = PixelConfig()
    """How its own image processor makes them."""
    max_squares: int = 0
    """Most squares' worth of tokens in an image's map: one that has more than 1.1^2 times as many is shrunk to it,
    bilinearly, before newlines stand in it (LLaVA-OneVision's anyres_max_9: 9); 0 shrinks none."""

    @property
    def rows(self) -> int:
        """Rows of a kept state: patches, and CLS in front where it is kept."""
        return self.patches + (self.keep_cls or self.keep_attention)

    def state_index(self, layer: int) -> int:
        """A hidden state counted from 0, the embedding; negative ones count from the end."""
        return layer if layer >= 0 else self.depth + 1 + layer

    @property
    def select_index(self) -> int:
        """The select layer's `state_index`."""
        return self.state_index(self.select_layer)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one image (n = grid squared)."""
        return self.grid**2

    @property
    def positions(self) -> int:
        """Vectors that the layers read of one square: CLS, registers and patches."""
        return self.cls + self.registers + self.patches

    @property
    def input_size(self) -> int:
        """Side of the square that an image is read as, in pixels."""
        return self.image_size * self.scales[-1]

    @property
    def tiles_seen(self) -> int:
        """Tiles of image_size that the tower sees of one image, over all scales."""
        return sum(scale * scale for scale in self.scales)

    @property
    def max_crops(self) -> int:
        """Crops that one image has at most, each one of the I images of a row: the whole and its tiles."""
        return 1 + max((rows * columns for rows, columns in self.tiles), default=0)

    @property
    def feature_width(self) -> int:
        """Channels D of a state that compressors and the projector read: those of all scales."""
        return self.width * len(self.scales)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies differ from theta^(-2i / d); the names in brackets are Hugging Face's."""

    kind: Literal["none", "linear", "llama3", "longrope"] = "none"
    factor: float = 1.0
    """`linear` divides all frequencies by it, `llama3` (LLaMA-3.1) the slow ones."""
    slow_turns: float = 1.0
    """`llama3`: full turns within original_length below which a pair is slow [low_freq_factor]."""
    fast_turns: float = 4.0
    """`llama3`: turns above which a pair keeps its frequency [high_freq_factor]."""
    original_length: int = 0
    """`llama3`, `longrope`: positions of the pretraining [original_max_position_embeddings]."""
    short_factors: tuple[float, ...] = ()
    """`longrope` (Phi-3): divisors of the frequencies in rows of up to original_length [short_factor]."""
    long_factors: tuple[float, ...] = ()
    """`longrope`: the same in longer rows [long_factor]."""
    attention_factor: float = 1.0
    """`longrope`: factor on cosines and sines. Hugging Face's default for a model that was stretched
    s > 1 times, s = max_position_embeddings / original_length, is
    sqrt(1 + ln(s) / ln(original_length))."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Causal transformer. The defaults are LLaMA-7B / Vicuna-7B; other families are values.

    `convert.formats.families` has each family's.
    """

    vocab_size: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_width: int = 0
    """Width of one head where it is not width / heads (Mistral-Nemo, Qwen3, Gemma); 0 where it is. Code reads
    `head_dim`."""
    mlp_width: int = 11008
    mlp: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    """`swiglu` and `geglu` (tanh) have the matrices gate, up and down; `gelu` (exact) has up and down."""
    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square norm, or LayerNorm without bias."""
    norm_eps: float = 1e-5
    norm_sites: Literal["before", "after", "both"] = "before"
    """Where attention and MLP have a norm: before them, behind them, before what they add to the stream
    (OLMo 2), or both (Gemma)."""
    zero_centred_norm: bool = False
    """Scales of RMS norms are stored less one (Gemma)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMS norm of queries and keys before positions turn them: of each head by itself with one scale [head_dim]
    (Qwen3, Gemma 3), or of all heads together with a scale [heads, head_dim] (OLMo 2)."""
    positions: Literal["rotary", "alibi"] = "rotary"
    rope_theta: float = 10000.0
    rope_fraction: float = 1.0
    """Share of each head's width that is rotated, from the front (Phi's partial rotary factor)."""
    rope_scaling: RopeScaling = RopeScaling()
    local_rope_theta: float = 0.0
    """rope_theta of layers that have the window, which `rope_scaling` spares (Gemma 3); 0 makes no difference
    between layers."""
    unrotated_every: int = 0
    """Every so many layers one has no positions, the last of them (SmolLM3: 4); 0 is none."""
    alibi_bias_max: int = 8
    """`alibi`: head slopes are 2^(-alibi_bias_max i / n), i = 1 .. n, for n heads, a power of two."""
    window: int = 0
    """Tokens that a position sees, itself included; 0 is no limit (Mistral's sliding window)."""
    full_layers: int = 0
    """First layers that the window spares (Qwen2's max_window_layers)."""
    full_every: int = 0
    """Every so many layers the window spares one, the last of them (Gemma 2: 2, Gemma 3: 6); 0 is none."""
    query_scalar: float = 0.0
    """What attention divides by the root of [query_pre_attn_scalar]; 0 is `head_dim`."""
    attention_softcap: float = 0.0
    """Attention's logits x are c tanh(x / c) for this c (Gemma 2: 50); 0 leaves them."""
    logit_softcap: float = 0.0
    """The same of the logits of the vocabulary (Gemma 2: 30)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections, as in Qwen-1.5 and Qwen2."""
    out_bias: bool = False
    """A bias on attention's output projection [attention_bias has both]."""
    scale_embeddings: bool = False
    """Embeddings enter the layers times sqrt(width), rounded to the activations' type (Gemma). Visual tokens do
    not."""
    tie_embeddings: bool = False
    """The output matrix is the embedding table."""
    max_positions: int = 0
    """Positions that the published model promises [max_position_embeddings], for exports; 0 is unknown. No
    computation reads it."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.width // self.heads

    @property
    def rotated_dim(self) -> int:
        """Leading part of each head that carries rotary positions."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """`window` of each layer, 0 where it is spared."""
        numbers = range(self.depth)
        spared = (n < self.full_layers or _closes(n, self.full_every) for n in numbers)
        return tuple(0 if free else self.window for free in spared)

    @property
    def layer_rotations(self) -> tuple[Literal["plain", "local", "none"], ...]:
        """How each layer turns queries and keys: by `rope_theta`, by `local_rope_theta`, or not."""
        return tuple(
            "none"
            if _closes(n, self.unrotated_every)
            else "local"
            if self.local_rope_theta and window
            else "plain"
            for n, window in enumerate(self.layer_windows)
        )


def _closes(number: int, every: int) -> bool:
    """Whether a layer, counted from 0, is the last of `every`."""
    return every > 0 and (number + 1) % every == 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Tower, compressor, projector and decoder of one vision-language model."""

    vision: VisionConfig = VisionConfig()
    compressor: CompressorConfig = QueccConfig()
    query: QueryConfig = QueryConfig()
    projector: str = "mlp2x_gelu"
    """`linear`, `matrix` (the same without bias), `identity` or `mlpNx_gelu` with N >= 1."""
    decoder: DecoderConfig = DecoderConfig()
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and matrix products; parameters are always float32 in training."""
    remat: Literal["none", "dots", "attention", "full"] = "full"
    """What the backward pass recomputes per decoder layer: nothing, all but matrix products, all but splash
    attention, all."""
    scan_unroll: int = 1
    """Decoder layers per turn of the loop over them, a divisor of depth."""
    grad_reduce_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type in which chips add up their shares of the decoder's matrix gradients, if `dtype` is bfloat16.
    They are float32 from there on."""
    attention_kernel: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes the decoder's attention: `auto` takes splash attention on TPUs, cuDNN on NVIDIA GPUs
    and XLA elsewhere and where these do not fit; splash is interpreted, slowly, off TPUs."""

    @property
    def tower(self) -> VisionConfig:
        """`vision`, with what the compressor asks of it."""
        if not self.compressor.reads_attention:
            return self.vision
        return dataclasses.replace(self.vision, keep_attention=True)

    @property
    def visual_tokens(self) -> int:
        """Tokens V that one image occupies in the decoder's input, CLS among them where it is kept; the
        most of those that are drawn."""
        return self.vision.keep_cls + self.compressor.num_tokens(self.vision.grid)

    @property
    def has_newline(self) -> bool:
        """Tiles make one map of tokens, each row of which ends with a learned vector, as their tokens stand
        on a grid."""
        return bool(self.vision.tiles) and self.compressor.shape != "free"

    @property
    def elastic_choices(self) -> tuple[int, ...]:
        """Values V that batches draw from, ascending; empty where V is fixed."""
        return self.compressor.elastic_choices

    @property
    def num_output_tokens(self) -> int:
        """Tokens T that the compressor makes of an image: V (without CLS), or those of all V that are
        drawn."""
        return sum(self.output_token_groups)

    @property
    def output_token_groups(self) -> tuple[int, ...]:
        """The parts of T, one V behind the other: V alone, or all that are drawn unless they are nested."""
        return self.compressor.groups(self.vision.grid)

    @property
    def memory_tokens(self) -> int:
        """Tokens R of an image that the instruction reads before the decoder does; 0 without pre-fusion."""
        return self.compressor.memory_tokens(self.vision.patches)

    @property
    def fusion_layers(self) -> DecoderConfig:
        """The layers of the pre-fusion: like the decoder's, but all alike, and that nothing is out of sight."""
        return dataclasses.replace(
            self.decoder,
            depth=self.compressor.fusion_layers,
            window=0,
            full_layers=0,
            full_every=0,
            local_rope_theta=0.0,
            unrotated_every=0,
        )
