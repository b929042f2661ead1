"""A small LLaVA data set with photos of several sizes, text-only rows and shared images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 12


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_llava(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """mix.json with ROWS rows: row r has r % 3 images of seven in three folders."""
    names = [f"{('coco/train2017', 'gqa/images', 'vg')[k % 3]}/{k}.jpg" for k in range(7)]
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(k, 60 - 4 * k, 40 + k).save(folder / name, quality=90)
    rows: list[dict[str, Any]] = []
    for r in range(ROWS):
        chosen = [names[(r + k) % 7] for k in range(r % 3)]
        question = "<image>\n" * len(chosen) + f"red é {r}?"
        row = {
            "id": f"row-{r}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "blue"}],
        }
        rows.append(row | {"image": chosen[0] if len(chosen) == 1 else chosen} if chosen else row)
    path = folder / "mix.json"
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    return path, rows
