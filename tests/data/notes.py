"""Sound images whose files carry notes of more than a megabyte beside the pixels."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

LONG = b"a" * 3_000_000
TURN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    b"</x:xmpmeta>"
)
"""An XMP packet whose image is to be turned by a quarter."""


def image() -> Image.Image:
    """Smooth, so that lossy formats keep it."""
    across, down = np.meshgrid(np.arange(60), np.arange(40))
    return Image.fromarray(np.stack([4 * across, 6 * down, 2 * (across + down)], axis=-1).astype(np.uint8))


def stored(format: str, **options: object) -> bytes:
    """The image's file."""
    file = io.BytesIO()
    image().save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One of PNG's."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, behind: bool = False, **options: object) -> bytes:
    """The image as PNG, chunks behind its header or before its end."""
    data = stored("PNG", **options)
    at = len(data) - 12 if behind else 33
    return data[:at] + b"".join(chunks) + data[at:]


def turned() -> Image.Exif:
    """EXIF of an image that is to be turned by a quarter."""
    exif = Image.Exif()
    exif[274] = 6
    return exif


PROFILE = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_500_000)))
TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG))
NOTED: dict[str, Callable[[], bytes]] = {
    "png profile": lambda: png(PROFILE),
    "png zTXt": lambda: png(TEXT),
    "png zTXt behind the pixels": lambda: png(TEXT, behind=True),
    "png iTXt": lambda: png(chunk(b"iTXt", b"Comment\0\0\0\0\0" + LONG)),
    "png iTXt, packed": lambda: png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG))),
    "png tEXt": lambda: png(chunk(b"tEXt", b"Comment\0" + LONG)),
    "png 80 zTXt": lambda: png(
        *(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(LONG[:900_000])) for n in range(80))
    ),
    "png profile, broken": lambda: png(chunk(b"iCCP", b"p\0\0nonsense")),
    "png zTXt, broken": lambda: png(chunk(b"zTXt", b"C\0\0nonsense")),
    "png profile and EXIF, turned": lambda: png(PROFILE, exif=turned()),
    "png zTXt and XMP, turned": lambda: png(TEXT, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURN)),
    "png zTXt and packed XMP, turned": lambda: png(
        TEXT, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURN))
    ),
    "jpeg profile": lambda: stored("JPEG", icc_profile=bytes(5_000_000)),
    "jpeg comment": lambda: stored("JPEG", comment=LONG[:65_000]),
    "webp profile, turned": lambda: stored("WEBP", icc_profile=bytes(3_000_000), exif=turned()),
    "tiff profile": lambda: stored("TIFF", icc_profile=bytes(3_000_000)),
    "tiff description": lambda: stored("TIFF", tiffinfo={270: LONG.decode()}),
    "gif comment": lambda: stored("GIF", comment=LONG[:2_000_000]),
    "avif profile": lambda: stored("AVIF", icc_profile=bytes(3_000_000)),
}
"""Files by what they carry; "turned" ones are stored on their side."""
