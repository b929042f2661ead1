"""Images of requests: from files to what the tower takes, within limits over all requests at a time."""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import NamedTuple

from quecc_jax.config import RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.images import image_size
from quecc_jax.errors import BadRow, UserError
from quecc_jax.generate.questions import ReadImage
from quecc_jax.generate.reading import read_image
from quecc_jax.serve.web.bounds import Bounds, Holding, Room
from quecc_jax.serve.web.fetch import Fetcher
from quecc_jax.serve.web.refusals import Refused

UPLOADS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
THREADS = 2
"""That decode; more only take memory."""
READERS = 8
"""Questions whose images are being decoded; others wait with their files, which are smaller."""
_DATA = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII | re.IGNORECASE)


class Shown(NamedTuple):
    """An image of a conversation."""

    url: str
    param: str
    """The field that names it."""


class Images:
    """Reads images for one server, on one event loop."""

    def __init__(self, bounds: Bounds, fetcher: Fetcher | None = None):
        self.bounds = bounds
        self._fetcher = fetcher or Fetcher(bounds)
        self._pixels = Room(max(bounds.held_pixels, bounds.pixels))
        self._pool = ThreadPoolExecutor(THREADS, "images")
        self._readers = asyncio.Semaphore(READERS)

    async def find(self, url: str, held: Holding, param: str) -> bytes:
        """The file that a data URI holds, or an http address names.

        Args:
          held: takes the bytes that are fetched.
          param: the field of the request, for messages.

        Raises:
          Refused: it is neither, or cannot be had.
        """
        if url[:5].lower() != "data:":
            return await self._fetcher(url, held, param)
        start = _DATA.match(url, 0, 200)
        if start is None:
            raise Refused(400, f"{param} is no data URI in base64; write data:image/png;base64,...", param)
        if (len(url) - start.end()) * 3 // 4 > self.bounds.image_bytes + 2:
            raise Refused(
                413, f"{param} has more than {self.bounds.image_bytes:,} bytes; make the file smaller", param
            )
        try:
            return base64.b64decode(url[start.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, f"{param} is no base64; encode the file's bytes", param) from None

    async def of_question(
        self, shown: Sequence[Shown], config: RunConfig, visual_tokens: int, held: Holding
    ) -> tuple[ReadImage, ...]:
        """All images of a question; raises as `find` and `read`."""
        files = [(await self.find(one.url, held, one.param), one.param) for one in shown]
        async with self._readers:
            return tuple([await self._read(file, config, visual_tokens, param) for file, param in files])

    async def read(self, file: bytes, config: RunConfig) -> ReadImage:
        """An image file for questions to a model.

        Raises:
          Refused: it is no image of the accepted kinds, has too many pixels, or is damaged.
          UserError: the model takes no image.
        """
        async with self._readers:
            return await self._read(file, config)

    async def _read(
        self, file: bytes, config: RunConfig, visual_tokens: int = 0, param: str | None = None
    ) -> ReadImage:
        where = f"{param}: " if param else ""
        if not config.data.images_per_row:
            raise UserError("this model was trained on text alone and takes no image; leave it out")
        try:
            # A header may be of a million parts.
            width, height = await asyncio.wrap_future(self._pool.submit(self.size, file))
            amount = width * height
            await self._pixels.wait_for(amount)
            model = at_visual_tokens(config.model, visual_tokens)
            read = functools.partial(read_image, file, dataclasses.replace(config, model=model))
            decoding = self._submitted(read, amount)
            return await asyncio.wrap_future(decoding)
        except Refused as refused:
            raise Refused(refused.status, f"{where}{refused}", param) from None
        except BadRow as error:
            raise Refused(400, f"{where}{error}", param) from None

    def _submitted(self, read: "functools.partial[ReadImage]", amount: int) -> "Future[ReadImage]":
        """What decodes. Its pixels are given back when it is really over: a thread cannot be cancelled."""
        loop = asyncio.get_running_loop()
        try:
            decoding = self._pool.submit(read)
        except BaseException:
            self._pixels.give(amount)
            raise

        def over(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed, with all that wait.
                loop.call_soon_threadsafe(self._pixels.give, amount)

        decoding.add_done_callback(over)
        return decoding

    def size(self, file: bytes) -> tuple[int, int]:
        """Width and height of an image file, upright.

        Raises:
          Refused: it is no image of the accepted kinds, or has too many pixels.
          BadRow: as `open_image`.
        """
        try:
            width, height = image_size(BytesIO(file), formats=UPLOADS)
        except BadRow as error:
            if error.fault == "picture size":
                raise
            raise Refused(415, f"this is no image of the kinds {', '.join(UPLOADS)}; convert it") from None
        if width * height > self.bounds.pixels:
            raise Refused(
                413,
                f"the image has {width} x {height} pixels, more than {self.bounds.pixels:,}; make it smaller",
            )
        return width, height
