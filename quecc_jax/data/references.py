"""Reads which images a row names, and refuses rows with films, recordings and other inputs that are not read.

A row that is about a film or a recording would otherwise be learned as if its text were all there is.
"""

import re
from collections.abc import Mapping

from quecc_jax.errors import BadRow

Row = Mapping[str, object]
"""One conversation as LLaVA's files hold it: a JSON object with `conversations` and, where it has images, `image`.
Files may hold anything in its place; `turns.read_row` checks."""

ImageRef = str | int | bytes
"""How a row refers to an image: by the path of its file, by its number in prepared data, or by its bytes."""

_OURS = frozenset(("id", "image", "conversations", "kind", "image_files"))
"""Keys that every reader knows; `image_files` keeps the paths of prepared images."""
_IMAGES = re.compile(
    r"(images|imgs?|pictures?|photos?|pixel_values|(image|img)_(paths?|files?|urls?|base64)|jpe?g|png)", re.I
)
_OTHERS = re.compile(
    r"(videos?|audios?|speech|sounds?|recordings?|depths?|thermal|infrared|lidar|radar|point_?clouds?|mesh"
    r"|frames)(_(paths?|files?|urls?|folder|dir|maps?|images?|frames?|list))?",
    re.I,
)
_MEDIA = re.compile(
    r".\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif|mp4|avi|mov|mkv|webm|mpe?g|m4v|flv|wmv|wav|mp3|flac|ogg|opus|m4a"
    r"|npy|npz|ply|pcd|las|obj|glb|exr|nii(\.gz)?|dcm|pdf)$",
    re.I,
)
_PLACEHOLDER = r"<(video|audio|speech|sound|depth|thermal|point_?cloud)>"
_BEGINS_OR_ENDS = re.compile(rf"^\s*{_PLACEHOLDER}|{_PLACEHOLDER}\s*$", re.I)
_READ = "text and images are read; leave the row out"
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.I)


def image_refs(row: Row) -> list[ImageRef]:
    """The images of a row, in the order of their placeholders; none for what is no JSON object.

    Raises:
      BadRow: one is no path of a file, or the row holds something else than text and images.
    """
    if not isinstance(row, dict):
        return []
    image = row.get("image")
    refs = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
    for ref in refs:
        if not isinstance(ref, str | int | bytes) or isinstance(ref, bool) or ref == "":
            raise BadRow("not a row", f"its image {str(ref)[:40]!r} is not the path of a file; write it so")
        if isinstance(ref, str):
            check_reference(ref)
    _check_others(row, bool(refs))
    return refs


def image_path(ref: ImageRef) -> str:
    """The path by which a row names an image. Raises BadRow if it names it in another way."""
    if not isinstance(ref, str):
        raise BadRow("not a row", f"its image {ref!r} is not the path of a file; write it so")
    return ref


def image_number(ref: ImageRef, images: int) -> int:
    """The number by which a row names one of so many prepared images. Raises BadRow if it is none of them."""
    if not isinstance(ref, int) or not 0 <= ref < images:
        raise BadRow("not a row", f"its image {ref!r} is not among the {images}; prepare the data anew")
    return ref


def check_reference(ref: str) -> None:
    """Raises BadRow if an image is named by something that is fetched or unpacked, not read as a file."""
    if ref[:5].lower() == "data:":
        raise BadRow(
            "picture missing",
            "its image stands in the text as a data: address; write it into a file and give the path",
        )
    found = _URL.match(ref)
    if found is None or found[1].lower() == "gs":
        return
    if found[1].lower() == "file":
        raise BadRow("picture missing", f"image {ref} is an address; give the path of the file alone")
    raise BadRow(
        "picture missing",
        f"image {ref} is an address, and images by URL are not fetched; "
        "download it and give the path of the file",
    )


def is_input(name: str) -> bool:
    """Whether a key or a column has the name of an input of the model other than text."""
    return bool(_OTHERS.fullmatch(name) or _IMAGES.fullmatch(name))


def _check_others(row: Row, images: bool) -> None:
    for key in row.keys() - _OURS:
        _check_key(key, row[key], images, "it")
    turns = row.get("conversations")
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    texts = [turn["value"] for turn in turns if isinstance(turn.get("value"), str)]
    for number, turn in enumerate(turns, start=1):
        for key in turn.keys() - {"from", "value"}:
            _check_key(key, turn[key], key not in ("image", "images"), f"turn {number}")
        text = turn.get("value")
        found = (
            _BEGINS_OR_ENDS.search(text)
            if isinstance(text, str) and turn.get("from") in ("human", "user")
            else None
        )
        # Questions about HTML hold such words too, but with what closes them.
        if found and not any(f"</{(found[1] or found[2])}" in text for text in texts):
            raise BadRow("modality", f"turn {number} asks about {found[0].strip()}, and only {_READ}")


def _check_key(key: object, value: object, images: bool, where: str) -> None:
    """Refuses what a key holds if it is an input of the model.

    Args:
      images: whether the row names images as it should; files of others are then notes about them.
    """
    if value is None or isinstance(value, bool | int | float) or not value:
        return
    name = str(key)
    if _OTHERS.fullmatch(name):
        raise BadRow("modality", f"{where} has {name!r}, and only {_READ}")
    if name.lower() == "images" or (not images and (name == "image" or _IMAGES.fullmatch(name))):
        raise BadRow(
            "modality",
            f"{where} has {name!r}, which is not read; name the images of a row "
            "'image', a path or a list of paths",
        )
    if not images and _is_media(value):
        raise BadRow(
            "modality",
            f"{where} has {name!r}, a file that is not read; name the images of a row "
            "'image', and leave rows with other files out",
        )


def _is_media(value: object) -> bool:
    """Whether a value names files of images, films, sound or shapes."""
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes | str) or _is_media(value.get("path"))
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_media, value))
    return isinstance(value, str) and len(value) < 1024 and "\n" not in value and bool(_MEDIA.search(value))
