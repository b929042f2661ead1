"""How much of a batch is data: padded, grouped and packed rows on the lengths of LLaVA-1.5's second stage.

python -m benchmarks.packing [--rows 665298] [--max-length 2048] [--batch-size 128]

No data set is read. Lengths are drawn from a model of llava_v1_5_mix665k, whose sources are

- rows of each part: LLaVA-1.5 (arXiv:2310.03744), table 7; VQA questions about one image are merged into
  one row there, so turns are the parts' published questions per image (VQAv2 443,757 / 82,783,
  GQA 943,000 / 72,140, OCR-VQA 801,579 / 166,022), at most 10 for RefCOCO and Visual Genome;
- bytes of the published files: conversation_58k.json 126 MB, detail_23k.json 20.5 MB,
  complex_reasoning_77k.json 79.6 MB, llava_v1_5_mix665k.json 1.03 GB. Tokens per turn are set so that text
  at 4.2 bytes a token with 64 bytes of JSON a turn and 130 a row gives these (the model's total is
  printed); ShareGPT's is what the others leave of the total.

Template v1 adds 36 tokens a row (BOS and the system sentence) and 9 a turn. Tokens per turn are log-normal,
turns of merged rows Poisson (at least one) or fixed. Rows above the limit are cut.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from quecc_jax.config import DataConfig
from quecc_jax.data.plans.packing import (
    BatchPlan,
    Grouped,
    Packed,
    Padded,
    Queries,
    RowLengths,
    length_buckets,
)
from quecc_jax.data.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the mixture."""

    rows: int
    turns: float
    """Mean number of question-answer pairs in a row."""
    tokens: float
    """Mean tokens of a pair, question and answer together."""
    spread: float = 0.4
    """Standard deviation of the logarithm of these."""
    merged: bool = False
    """Turns vary around their mean (Poisson, at least one); else they are all alike."""
    image: bool = True


MIXTURE = {
    "LLaVA conversation": Part(57_669, 4.5, 93, 0.5, merged=True),
    "LLaVA detail": Part(23_240, 1, 164, 0.3),
    "LLaVA reasoning": Part(76_803, 1, 200, 0.35),
    "ShareGPT": Part(40_688, 4, 367, 0.9, merged=True, image=False),
    "VQAv2": Part(82_783, 5.36, 10, 0.3, merged=True),
    "GQA": Part(72_140, 13.1, 12, 0.3, merged=True),
    "OKVQA": Part(8_998, 1, 20, 0.2),
    "OCR-VQA": Part(80_000, 4.8, 17, 0.3, merged=True),
    "A-OKVQA": Part(66_160, 1, 50, 0.2),
    "TextCaps": Part(21_953, 1, 45, 0.2),
    "RefCOCO": Part(48_447, 6, 35, 0.2, merged=True),
    "Visual Genome": Part(86_417, 10, 33, 0.2),
}
ROW_TOKENS, TURN_TOKENS = 36, 9
BYTES_PER_TOKEN, TURN_BYTES, ROW_BYTES = 4.2, 64, 130


def draw(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Text tokens [rows], images [rows] of a sample of the mixture, and bytes of JSON per row."""
    rng = np.random.default_rng(seed)
    total = sum(part.rows for part in MIXTURE.values())
    tokens, image_counts, size = list[np.ndarray](), list[np.ndarray](), 0.0
    for part in MIXTURE.values():
        count = round(rows * part.rows / total)
        turns = np.full(count, round(part.turns))
        if part.merged:
            turns = 1 + rng.poisson(part.turns - 1, count)
        mean = np.log(part.tokens) - part.spread**2 / 2
        said = rng.lognormal(mean, part.spread, int(turns.sum()))
        text = np.add.reduceat(said, np.concatenate([[0], np.cumsum(turns)[:-1]]))
        tokens.append(np.rint(ROW_TOKENS + TURN_TOKENS * turns + text + part.image).astype(np.int32))
        image_counts.append(np.full(count, int(part.image), np.int32))
        size += (text * BYTES_PER_TOKEN + turns * TURN_BYTES + ROW_BYTES).sum()
    return np.concatenate(tokens), np.concatenate(image_counts), size / sum(map(len, tokens))


@dataclasses.dataclass(frozen=True)
class Use:
    """What the batches of an epoch hold."""

    tokens: float
    """Share of all positions that are tokens of rows."""
    images: float
    """Share of all image slots that hold images."""
    positions: int
    """Of all batches together."""
    slots: int
    batches: int
    seconds: float
    """Time that drawing them took."""


def measure(draws: Iterator[BatchPlan], measures: RowLengths, batches: int) -> Use:
    """Use over the first so many batches of an epoch over one source."""
    positions = slots = tokens = image_counts = 0
    began = time.perf_counter()
    for _ in range(batches):
        one = next(draws)
        rows = one.ids[one.ids >= 0]
        positions += len(one.ids) * one.length
        slots += len(one.ids) // one.pooled * one.images
        tokens += int(measures.tokens[rows].sum())
        image_counts += int(measures.image_counts[rows].sum())
    seconds = time.perf_counter() - began
    return Use(tokens / positions, image_counts / max(slots, 1), positions, slots, batches, seconds)


def compare(
    rows: int,
    max_length: int,
    batch_size: int,
    visual_tokens: int,
    images: int = 0,
    window: int = DataConfig.lookahead_rows,
    pooled: int = 1,
    text_per_image: int = DataConfig.text_per_image,
) -> dict[str, Use]:
    """Use by the name of the batching, over an epoch of drawn rows."""
    text, image_counts, _ = draw(rows)
    # Shapes of questions play no part here: one bucket.
    measures = RowLengths(
        np.minimum(text + visual_tokens * image_counts, max_length), image_counts, image_counts
    )
    queries = Queries((max_length,), measures.queries)
    order = Sampler([len(text)], None, 0)
    data = DataConfig(
        max_length=max_length,
        batching="packed",
        packed_images=images,
        pooled_rows=pooled,
        text_per_image=text_per_image,
    )
    grouped = Grouped(order, measures, queries, batch_size, window, length_buckets(data), 1)
    places = data.row_images(visual_tokens)
    packed = Packed(order, measures, queries, batch_size, window, max_length, places, pooled)
    padded = Padded(order, queries, batch_size, max_length, 1)
    return {
        "pad": measure(iter(padded), measures, len(text) // batch_size),
        "grouped": measure(iter(grouped), measures, grouped.batches),
        "packed": measure(iter(packed), measures, packed.epoch() // batch_size),
    }


@dataclasses.dataclass(frozen=True)
class Options:
    """Utilisation of the three batchings on LLaVA-665k-like lengths."""

    rows: int = 665_298
    max_length: int = 2048
    batch_size: int = 128
    visual_tokens: tuple[int, ...] = (1, 36, 576)
    images: int = 0
    """data.packed_images; 0 is its default."""
    pooled_rows: int = 1
    """data.pooled_rows."""
    text_per_image: int = DataConfig.text_per_image
    """data.text_per_image."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    given = tyro.cli(Options, args=argv)
    text, image_counts, size = draw(given.rows)
    total = sum(part.rows for part in MIXTURE.values())
    console = Console()
    quantiles = np.quantile(text, [0.1, 0.25, 0.5, 0.75, 0.9, 0.99]).astype(int).tolist()
    console.print(
        f"{len(text):,} rows, {1 - image_counts.mean():.1%} of them text alone; text tokens of a row: mean "
        f"{text.mean():.0f}, 10/25/50/75/90/99 % {quantiles}; {(text > given.max_length).mean():.1%} are cut."
        f" As JSON the {total:,} rows of the model have {total * size / 1e9:.2f} GB (published: 1.03)."
    )
    table = Table("V", "batching", "tokens", "images", "I", "batches", "positions", "ratio", "us/row")
    for v in given.visual_tokens:
        uses = compare(
            given.rows,
            given.max_length,
            given.batch_size,
            v,
            given.images,
            pooled=given.pooled_rows,
            text_per_image=given.text_per_image,
        )
        for name, use in uses.items():
            images = use.slots / max(use.batches * given.batch_size, 1)
            table.add_row(
                str(v),
                name,
                f"{use.tokens:.1%}",
                f"{use.images:.1%}",
                f"{images:.2f}",
                f"{use.batches:,}",
                f"{use.positions / 1e6:,.0f} M",
                f"{uses['pad'].positions / use.positions:.2f}",
                f"{use.seconds / given.rows * 1e6:.1f}",
            )
    console.print(table)
    console.print(
        "tokens, images: share of positions and of image slots in use; I: image slots of a row, mean;"
        " positions: those that an epoch sends through the decoder; ratio: how many times fewer than by pad;"
        " us/row: time to draw the batches, on one core."
    )


if __name__ == "__main__":
    main()
