"""Images from files to the tower's input, as its own image processor makes them."""

import dataclasses
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, TypeVar

import jax
import numpy as np
from PIL import Image, UnidentifiedImageError

from quecc_jax.config import DataConfig, ImageDecoding, PixelConfig, VisionConfig
from quecc_jax.data.png import SIGNATURE, without_notes
from quecc_jax.data.references import ImageRef
from quecc_jax.data.tiles import split
from quecc_jax.errors import BadRow, UserError
from quecc_jax.paths import as_path, is_remote

T = TypeVar("T")
Pixels = TypeVar("Pixels", np.ndarray, jax.Array)

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Pillow's, by name."""
MAX_PIXELS = 89_000_000
"""Larger images are refused by their header, before they are decoded; Pillow itself warns from
89,478,485 pixels on and refuses twice as many."""
MAX_ASPECT = 200
"""Longest side over shortest; scaling the shortest side of a longer strip up would exhaust memory."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
"""What is tried on a file. Pillow reads more; some of it, such as PostScript, by running programs."""

ImageLike = str | Path | IO[bytes] | Image.Image
"""A path, an open file, or an image in memory."""

ORIENTATION = 0x0112
"""The EXIF tag."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright; 1 is upright."""
SIDEWAYS = tuple(turn for tag, turn in TURNS.items() if tag > 4)
"""Those that swap width and height."""
BAND = 256
"""Rows that are padded at once."""


def load_pixels(
    image: ImageLike,
    vision: VisionConfig,
    aspect: Literal["pad", "square"] = "pad",
    decoding: ImageDecoding = "upright",
) -> np.ndarray:
    """Reads an image and brings it to the tower's size.

    The steps are those of the tower's image processor (`vision.pixels`; CLIP's: shortest side to `input_size`,
    bicubic; centre crop), for `pad` after padding to a square with the mean colour. The processor's last step,
    `normalise`, is left to the device: 8 bits are a quarter of the bytes to assemble and to move.

    Args:
      image: Where the image is.
      vision: Gives the side of the square input, and how it is made.
      aspect: `pad` keeps the whole image, `square` does what the tower's processor does.
      decoding: as for `open_image`.

    Returns:
      uint8 [side, side, 3], side = vision.input_size; with vision.tiles [I, side, side, 3], the whole and its
      tiles, see `data.tiles`.

    Raises:
      BadRow: names a file that is missing or is not a readable image of a sensible size.
    """
    opened = open_image(image, decoding)
    if vision.tiles:
        return split(opened, vision.tiles, vision.image_size, RESAMPLING[vision.pixels.resample])
    return np.asarray(fit(opened, vision.input_size, aspect, vision.pixels))


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads a source's images, by their references in a row, as a run wants them."""

    find: Callable[[ImageRef], ImageLike | np.ndarray]
    """Where an image is, or its pixels where they are stored ready for the tower; raises BadRow."""
    vision: VisionConfig
    data: DataConfig

    def __call__(self, ref: ImageRef) -> np.ndarray:
        """As `load_pixels`."""
        found, data = self.find(ref), self.data
        if isinstance(found, np.ndarray):
            return found
        return load_pixels(found, self.vision, data.image_aspect, data.image_decoding)

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """Width and height in pixels, upright; raises as `image_size`."""
        found = self.find(ref)
        if isinstance(found, np.ndarray):
            return found.shape[1], found.shape[0]
        return image_size(found, self.data.image_decoding)


def open_image(image: ImageLike, decoding: ImageDecoding = "upright") -> Image.Image:
    """The image as RGB of 8 bits.

    Alpha is dropped and the colours beneath it appear: LLaVA never composites. Of an animation the first
    frame is taken. Embedded colour profiles and texts are ignored, of whatever size.

    Args:
      image: Where the image is; one that is already open is left as it is.
      decoding: `upright` turns it by its EXIF orientation. Grey of 16 bits, whole numbers and floats are
        scaled to 8 bits: from 0..1 (floats), 0..255 or 0..65535, whichever is the smallest that holds the
        values, or else from their own minimum and maximum. `original` gives the pixels that LLaVA reads,
        those of Pillow's convert("RGB"): as stored (Pillow turns TIFF files itself), grey above 255 white.
        In all else the two agree.

    Raises:
      BadRow: names the file that is missing, unreadable, damaged, empty, has more than MAX_PIXELS
        pixels, or is longer than MAX_ASPECT times its width.
    """
    return _opened(image, _upright_rgb if decoding == "upright" else _stored_rgb)


def image_size(
    image: ImageLike, decoding: ImageDecoding = "upright", formats: tuple[str, ...] = FORMATS
) -> tuple[int, int]:
    """Width and height of what `open_image` gives, in pixels; no more is decoded than they need.

    Raises:
      BadRow: as `open_image`, but for damage behind the header; or it is none of the formats.
    """

    def size(opened: Image.Image) -> tuple[int, int]:
        # Pillow turns TIFF files itself, and gives their size as it will be.
        turned = decoding == "upright" and opened.format != "TIFF" and _turn(opened) in SIDEWAYS
        return (opened.height, opened.width) if turned else opened.size

    return _opened(image, size, formats)


def _opened(image: ImageLike, read: Callable[[Image.Image], T], formats: tuple[str, ...] = FORMATS) -> T:
    """What is read of an image's file, after a look at its header."""
    if isinstance(image, str | Path):
        name = str(image)
    else:
        name = str(getattr(image, "name", "") or getattr(image, "filename", "") or "in memory")
    try:
        if isinstance(image, Image.Image):
            _check_size(image, name)
            return read(image)
        source = (
            BytesIO(as_path(image).read_bytes()) if isinstance(image, str) and is_remote(image) else image
        )
        try:
            return _read(source, name, read, formats)
        except UserError:
            raise
        except Exception as error:
            # Pillow refuses a PNG file for one large note that no pixel depends on.
            bare = _without_notes(source)
            if bare is None:
                raise error from None
            return _read(bare, name, read, formats)
    except UserError:
        raise
    except FileNotFoundError:
        raise BadRow("picture missing", f"image {name} does not exist; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise BadRow(
            "picture missing", f"image {name} cannot be opened ({error.strerror}); check the path"
        ) from None
    except UnidentifiedImageError:
        raise BadRow(
            "picture broken", f"image {name} is not an image, or none of {', '.join(formats)}; convert it"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadRow(
            "picture size", f"image {name} has more than {MAX_PIXELS:,} pixels; make it smaller"
        ) from None
    except Exception as error:
        # Decoders meet damaged files with exceptions of every kind: struct.error, IndexError, ...
        raise BadRow("picture broken", f"image {name} cannot be read ({error}); replace it") from None


def _read(
    source: str | Path | IO[bytes], name: str, read: Callable[[Image.Image], T], formats: tuple[str, ...]
) -> T:
    with Image.open(source, formats=formats) as opened:
        _check_size(opened, name)
        return read(opened)


def _without_notes(source: str | Path | IO[bytes]) -> IO[bytes] | None:
    """A PNG file without its notes; None for anything else, and where it has none."""
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            data = file.read() if file.read(len(SIGNATURE)) == SIGNATURE and not file.seek(0) else b""
    else:
        source.seek(0)
        data = source.read()
    bare = without_notes(data)
    return BytesIO(bare) if len(bare) < len(data) else None


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if not width or not height:
        raise BadRow("picture size", f"image {name} is empty ({width} x {height} pixels); replace it")
    if width * height > MAX_PIXELS:
        raise BadRow(
            "picture size",
            f"image {name} is {width} x {height}, more than {MAX_PIXELS:,} pixels; make it smaller",
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadRow(
            "picture size",
            f"image {name} is {width} x {height} pixels, one side more than "
            f"{MAX_ASPECT} times the other; crop it",
        )


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()  # Some formats keep their EXIF behind the pixels.
    turn = _turn(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    image = _stored_rgb(image)
    return image if turn is None else image.transpose(turn)


def _stored_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # Pillow would warn that it gets lost.
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    image = image.convert("RGB")
    image.info.clear()  # A note that turned it must not turn it again, here or in a file of it.
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        # A damaged note beside the pixels does not damage the image.
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as L; `open_image` says how."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("some of its values are not finite numbers")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        low = 0.0
        if high > 255 or image.mode.startswith("I;16"):
            high = 65535.0
        else:
            high = 255.0 if high > 1 or image.mode == "I" else 1.0
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-30))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def fit(image: Image.Image, size: int, aspect: Literal["pad", "square"], how: PixelConfig) -> Image.Image:
    """An RGB image as a square of side `size` pixels.

    Args:
      image: RGB.
      size: side of the square that the tower reads.
      aspect: `pad` puts the mean colour around it first, `square` crops or stretches it as `how` says.
      how: the tower's processor.
    """
    short, resample = how.resized or size, RESAMPLING[how.resample]
    if aspect == "pad" and image.width != image.height:
        image = _pad(image, short, padding(how), resample)
    width = height = short
    if how.fit == "crop":
        width, height = (max(short, int(short * side / min(image.size))) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), resample)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def padding(how: PixelConfig) -> tuple[int, ...]:
    """The mean colour in whole numbers, rounded down, as LLaVA pads."""
    return tuple(int(255 * part) for part in how.mean)


def squared_like_clip(how: PixelConfig, aspect: Literal["pad", "square"]) -> bool:
    """Whether `fit` makes the same squares for a tower as for CLIP, however they are normalised then."""
    clip = PixelConfig()
    if (
        dataclasses.replace(how, mean=clip.mean, std=clip.std, fit=clip.fit if aspect == "pad" else how.fit)
        != clip
    ):
        return False
    return aspect == "square" or padding(how) == padding(clip)


def _pad(image: Image.Image, size: int, colour: tuple[int, ...], resample: Image.Resampling) -> Image.Image:
    """Exactly the padded square resized, without the memory of that square.

    Pillow resizes rows first, then columns, and rounds in between. So rows can go through in bands,
    and rows of nothing but padding need not go through at all.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (size, side), colour)
    if image.width == side:
        narrow.paste(image.resize((size, image.height), resample), (0, top))
        return narrow.resize((size, size), resample)
    for start in range(0, image.height, BAND):
        band = Image.new("RGB", (side, min(BAND, image.height - start)), colour)
        band.paste(image, (left, -start))
        narrow.paste(band.resize((size, band.height), resample), (0, top + start))
    return narrow.resize((size, size), resample)


def normalise(pixels: Pixels, how: PixelConfig) -> Pixels:
    """(x / 255 - mean) / std per channel: uint8 [..., 3] -> float32 [..., 3], of NumPy or JAX."""
    std = np.array(how.std, np.float32)
    scale, shift = 1 / (255 * std), -np.array(how.mean, np.float32) / std
    return pixels.astype(np.float32) * scale + shift
