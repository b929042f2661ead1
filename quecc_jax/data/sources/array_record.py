"""Prepared data: rows and images of a LLaVA file in ArrayRecord shards, see `launch.prepare_data`.

    manifest.json              what the shards hold and their SHA-256, how they were made; written last
    rows-*.array_record        one JSON row a record; "image" lists numbers of images
    pictures-*.array_record    one file's bytes or raw pixels a record, each image once

Rows keep their order and number. Of an image or row that could not be read the record says why, so that
the same rows are bad, and for the same reason, whichever way the data are read.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Literal, TypedDict, cast

import numpy as np

from quecc_jax.config import DataConfig, ImageDecoding, VisionConfig
from quecc_jax.data.images import ImageReader, squared_like_clip
from quecc_jax.data.references import ImageRef, Row, image_number
from quecc_jax.data.sources.shards import Records, Shard
from quecc_jax.errors import BadRow, UserError
from quecc_jax.json_text import parsed
from quecc_jax.paths import AnyPath, as_path
from quecc_jax.records import Count, of_form, read_record

MANIFEST = "manifest.json"
UNREADABLE = b"\0unreadable\0"
"""Begins the record of what could not be read; neither JSON nor a format of images begins so."""
FORMAT = 1
"""Of the directory's layout; goes up when older readers would misread it."""
ADVICE = "prepare the data anew"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are stored."""

    size: int = 0
    """Side of the square that images are brought to, in pixels; 0 stores the files as they are."""
    aspect: Literal["pad", "square"] = "pad"
    """How they are brought there, as `DataConfig.image_aspect`."""
    encoding: Literal["jpeg", "png", "raw"] = "jpeg"
    """Of resized images. `png` and `raw` (uint8 [size, size, 3]) lose nothing."""
    quality: int = 95
    """Of `jpeg`; colours are not subsampled."""
    decoding: ImageDecoding = "upright"
    """How resized images were read, as `DataConfig.image_decoding`; files stored as they are have not been
    read."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An opened directory of prepared data."""

    directory: str
    recipe: Recipe
    rows: Sequence[Row]
    images: Records


class Manifest(TypedDict):
    """What manifest.json says."""

    format: int
    recipe: dict[str, Any]
    """Fields of `Recipe`."""
    source: str
    images: list[str]
    rows: Count
    pictures: Count
    unreadable: "Unreadable"
    bytes: Count
    shards: Mapping[str, Sequence[Shard]]
    """Of "pictures" and of "rows"."""


class Unreadable(TypedDict):
    """How many rows and images could not be read, and the first reasons."""

    rows: Count
    pictures: Count
    first: list[str]


class PreparedRows(Sequence[Row]):
    """The rows of prepared data, each parsed when asked for."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Row:  # type: ignore[override]
        return cast(Row, parsed(readable(self.records[row]).decode()))


def check_recipe(directory: str, recipe: Recipe, vision: VisionConfig, data: DataConfig) -> None:
    """Checks that images stored in this way are those that a run reads.

    Raises:
      UserError: they are of another size, aspect or decoding.
    """
    if not recipe.size or not data.images_per_row:
        return
    size, aspect, decoding = vision.input_size, data.image_aspect, data.image_decoding
    if vision.tiles:
        raise UserError(
            f"{directory} holds squares of {recipe.size} pixels, but model.vision.tiles need "
            "whole images; prepare it without --resize"
        )
    if not squared_like_clip(vision.pixels, aspect):
        raise UserError(
            f"{directory} holds squares of {recipe.size} pixels as CLIP's image processor makes them, but the run's "
            "tower has another (model.vision.pixels); prepare it without --resize"
        )
    if (recipe.size, recipe.aspect) != (size, aspect):
        raise UserError(
            f"{directory} holds images of {recipe.size} pixels, aspect {recipe.aspect}, but "
            f"the run asks for {size}, {aspect}; prepare it with --resize {size} --aspect "
            f"{aspect}, or change vision.image_size or data.image_aspect"
        )
    if recipe.decoding != decoding:
        raise UserError(
            f"{directory} holds images that were decoded {recipe.decoding}, but the run has "
            f"data.image_decoding {decoding}; prepare it with --decoding {decoding}, or change "
            "data.image_decoding"
        )


def prepared_images(prepared: Prepared, vision: VisionConfig, data: DataConfig) -> ImageReader:
    """Reads images by number.

    Raises:
      UserError: as `check_recipe`.
    """
    check_recipe(prepared.directory, prepared.recipe, vision, data)
    return ImageReader(Stored(prepared.images, prepared.recipe), vision, data)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Finds stored images by number."""

    records: Records
    recipe: Recipe

    def __call__(self, ref: ImageRef) -> BytesIO | np.ndarray:
        """The bytes of an image's file, or uint8 [height, width, 3] where raw pixels are stored. Raises BadRow."""
        record = readable(self.records[image_number(ref, len(self.records))])
        size = self.recipe.size
        if size and self.recipe.encoding == "raw":
            return np.frombuffer(record, np.uint8).reshape(size, size, 3)
        return BytesIO(record)


def fault_record(bad: BadRow) -> bytes:
    """The record that stands for an image or row that could not be read."""
    return UNREADABLE + json.dumps([bad.fault, str(bad)]).encode()


def readable(record: bytes) -> bytes:
    """The record itself; raises the BadRow again that a record of `fault_record` tells of."""
    if record.startswith(UNREADABLE):
        fault, message = parsed(record[len(UNREADABLE) :].decode())
        raise BadRow(fault, f"{message} (found when the data were prepared)")
    return record


def read_manifest(directory: AnyPath) -> Manifest:
    """The manifest of a prepared directory.

    Raises:
      UserError: there is none, or it is damaged or of another format.
    """
    path = as_path(directory) / MANIFEST
    try:
        found = read_record(path, dict[str, Any], ADVICE)
    except FileNotFoundError:
        raise UserError(
            f"{directory} has no {MANIFEST}, so it is not (yet) prepared data; run or finish "
            "python -m launch.prepare_data"
        ) from None
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}; {ADVICE}")
    return of_form(found, Manifest, str(path), ADVICE)


def open_prepared(directory: AnyPath) -> Prepared:
    """Opens a prepared directory, here or in a bucket.

    Raises:
      UserError: it is not whole.
    """
    manifest = read_manifest(directory)
    shards = manifest["shards"]
    return Prepared(
        str(directory),
        of_form(manifest["recipe"], Recipe, f"{directory}/{MANIFEST}", ADVICE),
        PreparedRows(Records(directory, shards["rows"])),
        Records(directory, shards["pictures"]),
    )
