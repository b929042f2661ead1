"""Writes `hub/`: six rows in the layouts of three data sets on the Hub, with the library that writes those.

Run once, with `datasets` 5.2.0 (none of our requirements): python -m tests.data.sources.hub_files. Column names and
types are those of the data sets' cards; questions and images are of `tests/data/photos.py`.
"""

from io import BytesIO
from pathlib import Path

from tests.data.photos import photo

HERE = Path(__file__).parent / "hub"
ROWS = 6
IMAGES = (1, 2, 0, 1, 3, 1)
"""Images of each row; a row of LLaVA-OneVision-Data has one or none."""
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")


def question(row: int, turn: int) -> str:
    """What a turn asks."""
    return f"red é {row} {turn}?"


def answer(row: int, turn: int) -> str:
    """What it is answered."""
    return ("blue", "green")[(row + turn) % 2]


def write() -> None:
    """Writes the three data sets."""
    from datasets import Dataset, Features, Image, List, Value  # type: ignore[import-not-found]

    def file(row: int, number: int) -> dict[str, object]:
        # The library keeps paths as they are in what it writes here, and puts bytes into what it uploads.
        made = BytesIO()
        photo(10 * row + number, 20 + row, 16 + number).save(made, "PNG")
        return {"bytes": made.getvalue(), "path": f"{row}-{number}.png"}

    text = Value("string")
    images = [[file(row, k) for k in range(IMAGES[row])] for row in range(ROWS)]
    turns = [[(question(row, turn), answer(row, turn)) for turn in range(1 + row % 2)] for row in range(ROWS)]
    said = [[{"user": asked, "assistant": told} for asked, told in row] for row in turns]
    sets = {
        "the_cauldron/ai2d": (
            {"images": images, "texts": [[{**turn, "source": "AI2D"} for turn in row] for row in said]},
            {"images": List(Image()), "texts": List({"user": text, "assistant": text, "source": text})},
        ),
        "FineVision/ai2d_merged": (
            {
                "images": images,
                "texts": said,
                "source": ["ai2d_merged"] * ROWS,
                **{f"{name}_ratings": [[5] * len(row) for row in said] for name in RATINGS},
                **{f"{name}_min": [5] * ROWS for name in RATINGS},
            },
            {
                "images": List(Image()),
                "texts": List({"user": text, "assistant": text}),
                "source": text,
                **{f"{name}_ratings": List(Value("int64")) for name in RATINGS},
                **{f"{name}_min": Value("int64") for name in RATINGS},
            },
        ),
        "LLaVA-OneVision-Data/ai2d(internvl)": (
            {
                "id": [f"row-{row}" for row in range(ROWS)],
                "image": [row[0] if row else None for row in images],
                "conversations": [
                    [
                        {
                            "from": who,
                            "value": "<image>\n" * (pictures and not turn and who == "human") + value,
                        }
                        for turn, pair in enumerate(row)
                        for who, value in zip(("human", "gpt"), pair, strict=True)
                    ]
                    for row, pictures in zip(turns, map(bool, images), strict=True)
                ],
                "data_source": ["ai2d(internvl)"] * ROWS,
            },
            {
                "id": text,
                "image": Image(),
                "conversations": List({"from": text, "value": text}),
                "data_source": text,
            },
        ),
    }
    for name, (columns, features) in sets.items():
        rows = Dataset.from_dict(columns, features=Features(features))
        for shard in range(2):
            path = HERE / name / f"train-{shard:05d}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.shard(2, shard, contiguous=True).to_parquet(path, batch_size=2)


if __name__ == "__main__":
    write()
