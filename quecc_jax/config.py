"""One tree of frozen dataclasses describes one run; experiments are diffs against a base.

Nothing here touches devices: meshes, schedules and modules are built from these values by the
code that uses them.
"""

import dataclasses
from typing import Literal

from quecc_jax.compressor_config import CompressorConfig as CompressorConfig
from quecc_jax.query_config import QueryConfig as QueryConfig

ImageDecoding = Literal["upright", "original"]
"""See `DataConfig.image_decoding`."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """CLIP ViT tower. The defaults are CLIP-L/14 at 336 pixels with QueCC's feature levels."""

    image_size: int = 336
    """Side of the square input picture, in pixels."""
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    select_layer: int = -2
    """Hidden state used as single-level features; counts like a list of depth + 1 states."""
    levels: tuple[int, ...] = (12, 16, 22, 23)
    """Hidden states concatenated into the multi-level features."""
    post_norm: bool = False
    """The tower carries CLIP's final norm. No feature passes through it; it is there for export."""
    scales: tuple[int, ...] = (1,)
    """S2's multi-scale features: at scale s the picture is s times image_size wide and high, and the tower
    sees it in s x s tiles. Ascending; pictures are read at the largest. See `models.scales`."""
    tiles: tuple[tuple[int, int], ...] = ()
    """Any-resolution pictures, as LLaVA-NeXT's: grids (rows, columns) of squares of image_size, of which each
    picture takes the one that fits it best, beside a square of the whole. See `data.tiles`."""

    keep_cls: bool = False
    """The select layer's CLS passes the projector, too, and stands in front of a picture's compressed tokens:
    one more, as in LLaVA's cls_patch."""
    attention: bool = False
    """Beside the states, CLS' own among them, queries and keys are kept of the layer that reads the select
    layer's states. Compressors that need them (prumerge) have them without it; it is for features that are
    stored for several compressors."""

    @property
    def rows(self) -> int:
        """Rows of a kept state: patches, and CLS in front where it is kept."""
        return self.patches + (self.keep_cls or self.attention)

    def state_index(self, layer: int) -> int:
        """A hidden state counted from 0, the embedding; negative ones count from the end."""
        return layer if layer >= 0 else self.depth + 1 + layer

    @property
    def select_index(self) -> int:
        """The select layer's `state_index`."""
        return self.state_index(self.select_layer)

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one picture (n = grid squared)."""
        return self.grid**2

    @property
    def input_size(self) -> int:
        """Side of the square that a picture is read as, in pixels."""
        return self.image_size * self.scales[-1]

    @property
    def tiles_seen(self) -> int:
        """Squares of image_size that the tower sees of one picture, over all scales."""
        return sum(scale * scale for scale in self.scales)

    @property
    def places(self) -> int:
        """Places among a row's pictures that one picture takes at most: the whole and its tiles."""
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

    Mistral sets `window`, Qwen-1.5 and Qwen2 `qkv_bias`, Phi-3 `rope_scaling` and `window`. MPT is
    `positions` alibi, `norm` layer, `mlp` gelu and `tie_embeddings`.
    """

    vocab_size: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_width: int = 0
    """Width of one head where it is not width / heads (Mistral-Nemo); 0 where it is. Code reads
    `head_dim`."""
    mlp_width: int = 11008
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """`swiglu` has the matrices gate, up and down; `gelu` (exact) has up and down."""
    norm: Literal["rms", "layer"] = "rms"
    """Root-mean-square norm, or LayerNorm without bias."""
    norm_eps: float = 1e-5
    positions: Literal["rotary", "alibi"] = "rotary"
    rope_theta: float = 10000.0
    rope_fraction: float = 1.0
    """Share of each head's width that is rotated, from the front (Phi's partial rotary factor)."""
    rope_scaling: RopeScaling = RopeScaling()
    alibi_bias_max: int = 8
    """`alibi`: head slopes are 2^(-alibi_bias_max i / n), i = 1 .. n, for n heads, a power of two."""
    window: int = 0
    """Tokens that a position sees, itself included; 0 is no limit (Mistral's sliding window)."""
    full_layers: int = 0
    """First layers that the window spares (Qwen2's max_window_layers)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections, as in Qwen-1.5 and Qwen2."""
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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Tower, compressor, projector and decoder of one vision-language model."""

    vision: VisionConfig = VisionConfig()
    compressor: CompressorConfig = CompressorConfig()
    query: QueryConfig = QueryConfig()
    projector: str = "mlp2x_gelu"
    """`linear`, `matrix` (the same without bias), `identity` or `mlpNx_gelu` with N >= 1."""
    decoder: DecoderConfig = DecoderConfig()
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and matrix products; parameters are always float32 in training."""
    remat: Literal["none", "dots", "attention", "full"] = "full"
    """What the backward pass recomputes per decoder layer: nothing, all but matrix products, all but splash
    attention, all."""
    scan_unroll: int = 1
    """Decoder layers per turn of the loop over them, a divisor of depth."""
    gradients: Literal["bfloat16", "float32"] = "bfloat16"
    """Type in which chips add up their shares of the decoder's matrix gradients, if `dtype` is bfloat16.
    They are float32 from there on."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes the decoder's attention: `auto` takes splash attention on TPUs, cuDNN on NVIDIA GPUs
    and XLA elsewhere and where these do not fit; splash is interpreted, slowly, off TPUs."""

    @property
    def tower(self) -> VisionConfig:
        """`vision`, with what the compressor asks of it."""
        if not self.compressor.kind.reads_attention:
            return self.vision
        return dataclasses.replace(self.vision, attention=True)

    @property
    def visual_tokens(self) -> int:
        """Tokens V that one picture occupies in the decoder's input, CLS among them where it is kept; the
        most of those that are drawn."""
        return self.vision.keep_cls + self._compressed

    @property
    def _compressed(self) -> int:
        from quecc_jax.geometry import output_tokens

        return output_tokens(self.compressor, self.vision.grid)

    @property
    def has_newline(self) -> bool:
        """Tiles make one map of tokens, each row of which ends with a learned vector, as their tokens stand
        on a grid."""
        return bool(self.vision.tiles) and self.compressor.kind.shape != "free"

    @property
    def drawn_tokens(self) -> tuple[int, ...]:
        """Values V that batches draw from, ascending; empty where V is fixed."""
        return () if self.compressor.tokens else self.compressor.elastic

    @property
    def made_tokens(self) -> int:
        """Tokens T that the compressor makes of a picture: V (without CLS), or those of all V that are
        drawn."""
        return sum(self.made_scales)

    @property
    def made_scales(self) -> tuple[int, ...]:
        """The parts of T, one V behind the other: V alone, or all that are drawn unless they are nested."""
        whole = not self.drawn_tokens or self.compressor.kind.nested
        return (self._compressed,) if whole else self.drawn_tokens

    @property
    def memory_tokens(self) -> int:
        """Tokens R of a picture that the instruction reads before the decoder does; 0 without pre-fusion."""
        if not self.compressor.fuses:
            return 0
        return self.vision.patches if self.compressor.kind.memory == "patches" else self.compressor.memory

    @property
    def fusion_layers(self) -> DecoderConfig:
        """The layers of the pre-fusion: like the decoder's, but that nothing is out of sight."""
        return dataclasses.replace(
            self.decoder, depth=self.compressor.fusion_layers, window=0, full_layers=0
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture."""

    kind: Literal["llava_json", "array_record", "tfds", "easy_vqa", "pool"] = "llava_json"
    """`array_record` is what `launch.prepare_data` makes of a `llava_json`, and `tfds` what it makes with
    --format tfds."""
    path: str = ""
    """The conversations file (.json or .jsonl, `llava_json`), a mixture of such files as LLaVA-NeXT lists
    them (.yaml, or braces as in `data/{a,b}.json`), or the directory of the others."""
    images: str | tuple[str, ...] = ""
    """Folder that the rows' picture paths are relative to, or several that are searched in this order
    (`llava_json`)."""
    split: str = "train"
    """Published split, train or test (`easy_vqa`), or the name of one (`tfds`); the others hold one each."""
    weight: float | None = None
    """Share of this source in the mixture; weights need not sum to one. None for every source joins
    them, so that an epoch visits each row of each source exactly once."""

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of `images`, always as a tuple."""
        return (self.images,) if isinstance(self.images, str) else self.images


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How conversations become fixed-shape batches."""

    sources: tuple[SourceConfig, ...] = ()
    tokenizer: str = ""
    """Directory of a tokenizer that transformers' AutoTokenizer reads offline."""
    query_tokenizer: str = ""
    """Directory of the tokenizer of bare questions, where model.query.encoder has its own vocabulary
    (`clip_text`); it must write a start and an end token around a text."""
    template: Literal[
        "plain", "v1", "short", "llama_2", "llama_2_chat", "llama_3", "llama_3_1", "llava_llama_3",
        "mistral_instruct", "mistral_v1", "mistral_v3", "mistral_tekken", "phi3", "phi4_mini", "zephyr",
        "mpt", "chatml_direct", "chatml", "qwen", "qwen1_5", "qwen2_5", "smollm2",
    ] = "v1"  # fmt: skip
    """LLaVA's stage 1 captions, LLaVA's conversations, these without the system sentence, or another
    family's prompt format; `data.templates` has them."""
    image_place: Literal["front", "keep"] = "front"
    """A turn's only picture comes before its text, as in LLaVA, or where its placeholder stands; several
    in one turn always stay where they are."""
    labels: Literal["answers", "all"] = "answers"
    """Positions that carry loss: answers and their end, or all text (plain language modelling)."""
    max_length: int = 2048
    """Tokens S of a row, visual slots included."""
    query_length: int = 0
    """Tokens that are kept of a question for the compressor; what it cuts is counted. 0 keeps the whole turn,
    as the original does: a turn is no longer than its row. `data.queries` has the shapes of batches."""
    images_per_row: int = 1
    """Pictures I a conversation, and a row that holds one, has room for; 0 makes a run on text alone."""
    cached_features: bool = False
    """Read the tower's stored states instead of pixels; every source must be a pool, or prepared data with
    --features. A tower that the run names (tower_from, init_from) must be the one that made them."""
    cached_queries: bool = False
    """Read the stored feature of each question instead of computing it, where its encoder (model.query) is
    frozen: in stage 1, and `clip_text` in stage 2 too. Every source must be prepared data with --queries of
    that encoder; one that the run names (tower_from, init_from) must be the one that made them."""
    too_long: Literal["error", "truncate", "drop"] = "truncate"
    """What becomes of a row above max_length. Truncation cuts text only, and a row whose picture it would
    cut is an error; a dropped row leaves its place in the batch empty. Both are counted."""
    batching: Literal["pad", "grouped", "packed"] = "pad"
    """What a row of a batch is. `pad`: one conversation, padded to max_length. `grouped`: the same, but all
    rows of a batch have pictures or none has, and their lengths are alike, so that a batch can be shorter
    and one of text has no picture places. `packed`: as many conversations as fit, each a segment that sees
    itself alone. The latter two need every row's length, so the text of all rows is encoded once, before
    the first step, and the lengths are kept in `cache`."""
    window: int = 8192
    """Rows that are sorted by length (`grouped`) or packed together (`packed`) at a time."""
    halvings: int = 3
    """`grouped`: a batch may have max_length or a half, a quarter, ... of it, down to 2^-halvings; each
    length is compiled once. 0 gives all of them max_length."""
    packed_images: int = 0
    """`packed`: pictures I that a packed row has room for; what finds no place begins another row. The tower
    works on empty places too. 0 takes max_length / (V + 256), a conversation of 256 text tokens each."""
    cache: str = ""
    """Folder for the lengths of rows, kept between runs; empty takes quecc_jax in the user's cache folder."""
    bad_rows: Literal["error", "skip"] = "error"
    """What becomes of a row that cannot be learned from (`errors.Fault` lists the reasons): it ends the run
    naming file and line, or it leaves its place empty and is counted in the run's data_report.json."""
    max_bad_share: float = 0.01
    """Share of skipped rows among those read, counted as 1000 at least, above which the run ends."""
    image_decoding: ImageDecoding = "upright"
    """Pixels of a picture's file. `upright` turns it by its EXIF orientation and scales grey of 16 bits;
    `original` takes it as stored and clips such grey, as LLaVA does: published numbers come from such."""
    image_aspect: Literal["pad", "square"] = "pad"
    """Fit a picture to the square input by padding with the mean colour, or by cropping. With vision.tiles
    it plays no part: the whole is squeezed into its square, and tiles are padded with black."""
    workers: int = 0
    """Grain worker processes; 0 reads in the training process."""

    @property
    def query_limit(self) -> int:
        """Most tokens Q of a question for the compressor."""
        return self.query_length or self.max_length

    def row_images(self, visual_tokens: int, places: int = 1) -> int:
        """Pictures I that a row of a batch has room for, where a picture is `visual_tokens` tokens V, or
        with tiles up to `places` times V, in as many places of the I."""
        if self.batching != "packed" or not self.images_per_row:
            return self.images_per_row * places
        fitting = -(-self.max_length // (visual_tokens * places + 256))
        return self.packed_images or max(self.images_per_row, fitting) * places


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
    """Global gradient norm above which gradients are scaled down."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, batch and bookkeeping of one training stage."""

    stage: Literal[0, 1, 2] = 1
    """0 trains the decoder alone, on text; 1 compressor and projector; 2 these and the decoder.
    The tower is always frozen."""
    steps: int = 1000
    batch_size: int = 256
    """Rows of one optimizer step over the whole mesh, all accumulation slices together."""
    accumulation: int = 1
    """Slices a batch is cut into; gradients are summed over them before the update."""
    loss_chunk: int = 512
    """Positions whose logits exist at once while the cross-entropy is computed."""
    max_bad_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient after which training stops."""
    seed: int = 0
    log_every: int = 10


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Where and how often to save."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
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
    """Run directory that holds the frozen towers, of pictures and (`clip_text`) of questions, which
    `init_from` has not: their features were cached, or they come from elsewhere."""
    profile: str = ""
    """FIRST:LAST traces these steps with JAX's profiler into `out`/profile."""
