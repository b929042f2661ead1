"""Reads what a client sends, within limits of size and time."""

import asyncio
import re

from starlette.requests import Request

from quecc_jax.serve.web.bounds import Holding
from quecc_jax.serve.web.refusals import Refused


async def read_body(request: Request, limit: int, held: Holding, seconds: float) -> bytes:
    """The body of a request.

    Args:
      limit: bytes.
      held: takes them as they come.
      seconds: for all of it.

    Raises:
      Refused: it says no length, a larger one, or takes longer.
      ClientDisconnect: the client left.
    """
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not re.fullmatch("[0-9]{1,18}", length):
        raise Refused(411, "the request does not say its length; send Content-Length")
    if int(length) > limit:
        raise Refused(413, f"{int(length):,} bytes are more than the {limit:,} that are accepted; send fewer")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                held.take(len(chunk), "bytes")
                body += chunk
    except TimeoutError:
        raise Refused(408, f"the request took longer than {seconds:g} s to come; send it faster") from None
    return bytes(body)
