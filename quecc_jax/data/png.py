"""PNG files without the notes that Pillow refuses to unpack."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords of texts in which Pillow looks for an EXIF orientation."""
_LARGEST = 1 << 20
"""Bytes of a text, unpacked, above which Pillow refuses the whole file."""


def without_notes(data: bytes) -> bytes:
    """A PNG file without its colour profile and its texts, which no pixel depends on.

    Texts that may say which way is up stay, unless they are too large. What is no PNG file, or is cut off,
    comes back as far as it goes.
    """
    if not data.startswith(SIGNATURE):
        return data
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        body = chunk[8 : 8 + length]
        if not (kind == b"iCCP" or (kind in _TEXTS and not _says_orientation(kind, body))):
            kept.append(chunk)
        at += 12 + length
    return b"".join([*kept, data[at:]])


def _says_orientation(kind: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _ORIENTATION:
        return False
    # zTXt: method, text. iTXt: flag, method, language, translated keyword, text.
    packed = rest[1:] if kind == b"zTXt" else None
    if kind == b"iTXt":
        parts = rest[2:].split(b"\0", 2)
        packed = parts[2] if rest[:1] == b"\1" and len(parts) == 3 else None
    if packed is None:
        return len(rest) <= _LARGEST
    try:
        return len(zlib.decompressobj().decompress(packed, _LARGEST + 1)) <= _LARGEST
    except zlib.error:
        return False
