"""A folder like npm's emoji-datasource-google, of a few plain pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GROUPS = {
    "animal-mammal": ("Animals & Nature", ("cat", "dog", "cow", "pig", "fox", "bear")),
    "plant-flower": ("Animals & Nature", ("rose", "tulip", "cactus", "palm", "herb", "fern")),
    "food-fruit": ("Food & Drink", ("apple", "pear", "lemon", "grapes", "melon", "cherries")),
    "transport-ground": ("Travel & Places", ("car", "bus", "taxi", "tram", "bike", "truck")),
    "tool": ("Objects", ("hammer", "pick", "axe", "saw", "nut", "bolt")),
}
LEFT_OUT: tuple[dict[str, Any], ...] = (
    {"short_name": "grinning", "category": "Smileys & Emotion"},
    {"short_name": "hot_dog"},
    {"short_name": "unseen", "has_img_google": False},
)


def write_package(folder: Path) -> Path:
    """Thirty pictures that are taken and three that are not."""
    (folder / "img/google/64").mkdir(parents=True)
    rng, listed = np.random.default_rng(0), list[dict[str, Any]]()
    for subcategory, (category, names) in GROUPS.items():
        for name in names:
            listed.append({"short_name": name, "category": category, "subcategory": subcategory})
    listed += [{"category": "Food & Drink", "subcategory": "food-prepared", **one} for one in LEFT_OUT]
    for number, one in enumerate(listed):
        # Files are listed in another order than that of their code points.
        one |= {"unified": f"1F{999 - number}", "image": f"1f{999 - number}.png"}
        one.setdefault("has_img_google", True)
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[8:56, 8:56] = (*rng.integers(0, 256, 3), 255)
        pixels[20:30, 12 : 20 + number] = (*rng.integers(0, 256, 3), 255)
        Image.fromarray(pixels).save(folder / "img/google/64" / one["image"])
    (folder / "emoji.json").write_text(json.dumps(listed))
    return folder
