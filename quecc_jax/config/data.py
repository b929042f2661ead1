"""Settings of the data: sources, and how conversations become batches."""

import dataclasses
from typing import Literal

ImageDecoding = Literal["upright", "original"]
"""See `DataConfig.image_decoding`."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture."""

    kind: Literal["llava_json", "array_record", "parquet", "tfds", "easy_vqa", "pool"] = "llava_json"
    """`array_record` is what `launch.prepare_data` makes of a `llava_json`, and `tfds` what it makes with
    --format tfds; `parquet` is a data set as the Hub publishes it, see `data.sources.parquet`."""
    path: str = ""
    """The conversations file (.json or .jsonl, `llava_json`), a mixture of such files as LLaVA-NeXT lists
    them (.yaml, or braces as in `data/{a,b}.json`), or the directory of the others."""
    images: str | tuple[str, ...] = ""
    """Folder that the rows' image paths are relative to, or several that are searched in this order
    (`llava_json`)."""
    split: str = "train"
    """Published split, train or test (`easy_vqa`), or the name of one (`tfds`; `parquet`, where files are named
    by theirs); the others hold one each."""
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
        "plain",
        "v1",
        "short",
        "llama_2",
        "llama_2_chat",
        "llama_3",
        "llama_3_1",
        "llava_llama_3",
        "llava_llama_3_1",
        "mistral_instruct",
        "mistral_v1",
        "mistral_v3",
        "mistral_tekken",
        "phi3",
        "phi4_mini",
        "gemma",
        "olmo2",
        "zephyr",
        "mpt",
        "chatml_direct",
        "chatml",
        "qwen",
        "qwen1_5",
        "qwen2_5",
        "qwen3_no_think",
        "smollm2",
    ] = "v1"
    """LLaVA's stage 1 captions, LLaVA's conversations, these without the system sentence, or another
    family's prompt format; `data.templates` has them."""
    image_place: Literal["front", "keep"] = "front"
    """A turn's only image comes before its text, as in LLaVA, or where its placeholder stands; several
    in one turn always stay where they are."""
    labels: Literal["answers", "all"] = "answers"
    """Positions that carry loss: answers and their end, or all text (plain language modelling)."""
    max_length: int = 2048
    """Tokens S of a row, visual slots included."""
    query_length: int = 0
    """Tokens that are kept of a question for the compressor; what it cuts is counted. 0 keeps the whole turn,
    as the original does: a turn is no longer than its row. `data.queries` has the shapes of batches."""
    images_per_row: int = 1
    """Images I a conversation, and a row that holds one, has room for; 0 makes a run on text alone."""
    cached_features: bool = False
    """Read the tower's stored states instead of pixels; every source must be a pool, or prepared data with
    --features. A tower that the run names (tower_from, init_from) must be the one that made them."""
    cached_queries: bool = False
    """Read the stored feature of each question instead of computing it, where its encoder (model.query) is
    frozen: in stage 1, and `clip_text` in stage 2 too. Every source must be prepared data with --queries of
    that encoder; one that the run names (tower_from, init_from) must be the one that made them."""
    too_long: Literal["error", "truncate", "drop"] = "truncate"
    """What becomes of a row above max_length. Truncation cuts text only, and a row whose image it would
    cut is an error; a dropped row leaves its row of the batch empty. Both are counted."""
    batching: Literal["pad", "grouped", "packed"] = "pad"
    """What a row of a batch is. `pad`: one conversation, padded to max_length. `grouped`: the same, but all
    rows of a batch have images or none has, and their lengths are alike, so that a batch can be shorter
    and one of text has no image slots. `packed`: as many conversations as fit, each a segment that sees
    itself alone. The latter two need every row's length, so the text of all rows is encoded once, before
    the first step, and the lengths are kept in `cache`."""
    lookahead_rows: int = 8192
    """Rows that are sorted by length (`grouped`) or packed together (`packed`) at a time."""
    num_length_buckets: int = 4
    """`grouped`: how many lengths a batch may have: max_length, a half, a quarter, ... of it. Each is compiled
    once; 1 gives all batches max_length."""
    packed_images: int = 0
    """`packed`: images I that a packed row, or a pool of them, has room for; what does not fit begins another row. The
    tower works on empty slots too. 0 takes max_length / (V + text_per_image) for each row."""
    pooled_rows: int = 1
    """`packed`: rows of a pool, which lie on one device and in one microbatch and share room for images. A row may
    have more of them where its neighbours have fewer, so that less room stays empty."""
    text_per_image: int = 256
    """`packed`: text tokens that the data has for each image, by which packed_images counts where it is 0."""
    cache: str = ""
    """Folder for the lengths of rows, kept between runs; empty takes quecc_jax in the user's cache folder."""
    bad_rows: Literal["error", "skip"] = "error"
    """What becomes of a row that cannot be learned from (`errors.Fault` lists the reasons): it ends the run
    naming file and line, or it leaves its row empty and is counted in the run's data_report.json."""
    max_bad_share: float = 0.01
    """Share of skipped rows among those read, counted as 1000 at least, above which the run ends."""
    image_decoding: ImageDecoding = "upright"
    """Pixels of an image's file. `upright` turns it by its EXIF orientation and scales grey of 16 bits;
    `original` takes it as stored and clips such grey, as LLaVA does: published numbers come from such."""
    image_aspect: Literal["pad", "square"] = "pad"
    """Fit an image to the square input by padding with the mean colour, or as the tower's own processor does
    (vision.pixels): by cropping, or by stretching. With vision.tiles it plays no part: the whole is squeezed into its
    square, and tiles are padded with black."""
    held_out: int = 0
    """Rows, spread evenly over the joined sources, that training never reads; `train.eval_every` takes the loss on
    them. Rows are held out, not images: neighbours may ask about the same one."""
    workers: int = 0
    """Grain worker processes; 0 reads in the training process."""

    @property
    def rows_per_pool(self) -> int:
        """Rows of a pool: `pooled_rows` of packed rows, else each row has its own images."""
        return self.pooled_rows if self.batching == "packed" else 1

    @property
    def query_limit(self) -> int:
        """Most tokens Q of a question for the compressor."""
        return self.query_length or self.max_length

    def row_images(self, visual_tokens: int, crops: int = 1) -> int:
        """Images I that a row of a batch, or a pool of packed rows, has room for, where an image is `visual_tokens`
        tokens V, or with tiles up to `crops` times V, in as many of the I slots."""
        if self.batching != "packed" or not self.images_per_row:
            return self.images_per_row * crops
        fitting = -(-self.pooled_rows * self.max_length // (visual_tokens * crops + self.text_per_image))
        return self.packed_images or max(self.images_per_row, fitting) * crops
