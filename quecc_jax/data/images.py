"""Pictures from files to the tower's input."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from quecc_jax.config import VisionConfig
from quecc_jax.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per channel (red, green, blue), of pixels scaled to 0..1: constants of OpenAI's CLIP."""


def load_pixels(image: str | Path | Image.Image, vision: VisionConfig,
                aspect: Literal["pad", "square"] = "pad") -> np.ndarray:
    """Reads a picture and brings it to the tower's size and normalisation.

    The steps are those of CLIP's image processor (shortest side to `image_size`, bicubic; centre
    crop; mean and deviation), for `pad` after padding to a square with CLIP's mean colour.

    Args:
      image: A file, or a picture that is already open.
      vision: Gives the side of the square input.
      aspect: `pad` keeps the whole picture, `square` crops the longer side.

    Returns:
      float32 [H, W, 3], H = W = vision.image_size, upright by the EXIF orientation.

    Raises:
      UserError: names a file that is missing or is not a readable picture.
    """
    return normalise(np.asarray(fit(open_image(image), vision.image_size, aspect)))


def open_image(image: str | Path | Image.Image) -> Image.Image:
    """The picture as upright RGB; raises a UserError that names an unreadable file."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"picture {image} does not exist; check the path") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {image} cannot be read ({error}); replace it") from None


def fit(image: Image.Image, size: int, aspect: Literal["pad", "square"]) -> Image.Image:
    """Square picture of side `size` pixels: padded with the mean colour, or cropped."""
    if aspect == "pad" and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in CLIP_MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    short = min(image.size)
    width, height = (max(size, int(size * side / short)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalise(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(x / 255 - mean) / std per channel: uint8 [..., 3] -> float32 [..., 3], into `out` if given."""
    std = np.array(CLIP_STD, np.float32)
    scale, shift = 1 / (255 * std), -np.array(CLIP_MEAN, np.float32) / std
    out = np.multiply(pixels, scale, out=out, dtype=np.float32)
    out += shift
    return out
