"""Downloads images of hosts that the server's owner allows, and of no others."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import h11

from quecc_jax.serve.web.bounds import Bounds, Holding
from quecc_jax.serve.web.refusals import Refused

PORTS = {"http": 80, "https": 443}
AT_ONCE = 16
"""Downloads at a time."""


class Address(NamedTuple):
    """Where a file is."""

    host: str
    port: int
    tls: bool
    target: str
    """Path and query."""


class Fetcher:
    """Gets files over http and https.

    Args:
      bounds: of an image's bytes and of the time for it.
      hosts: that are allowed, each `HOST` (at the ports 80 and 443) or `HOST:PORT`; exactly these.
      private: whether they may have addresses of private networks and of this machine.
    """

    def __init__(self, bounds: Bounds, hosts: Sequence[str] = (), private: bool = False):
        self._bounds, self._private = bounds, private
        self._hosts = {host.lower() for host in hosts}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, url: str, held: Holding, param: str) -> bytes:
        """The file at an address. Redirections are not followed.

        Args:
          held: takes the bytes.
          param: the field of the request that named it, for messages.

        Raises:
          Refused: the address is not allowed, or does not give a file within the bounds.
        """
        address = self._allowed(url, param)
        try:
            async with asyncio.timeout(self._bounds.fetch_seconds), self._room:
                return await self._get(address, held, param)
        except TimeoutError:
            why = f"takes longer than {self._bounds.fetch_seconds:g} s"
        except (OSError, h11.ProtocolError, UnicodeError):
            why = "cannot be had"
        raise Refused(400, f"{param}: the image {why}; send it as a data URI", param, "image_unavailable")

    def _allowed(self, url: str, param: str) -> Address:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            parts, host, port = SplitResult("", "", "", "", ""), "", 0
        plain = url.isascii() and url.isprintable() and "@" not in parts.netloc
        if not host or not port or parts.scheme not in PORTS or not plain:
            raise Refused(400, f"{param} is neither a data URI nor an address of http or https", param)
        usual = port == PORTS[parts.scheme] and host in self._hosts
        if not usual and f"{host}:{port}" not in self._hosts:
            raise Refused(
                400,
                f"{param}: this server gets no images from there; send the image as a data URI",
                param,
                "image_host_not_allowed",
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Address(host, port, parts.scheme == "https", target.replace(" ", "%20"))

    async def _get(self, address: Address, held: Holding, param: str) -> bytes:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        numbers = [str(info[4][0]) for info in found]
        # The address that was looked at is the one that is called, whatever the name means a moment later.
        if not numbers or (not self._private and not all(map(_is_public, numbers))):
            raise OSError("a private address")
        reader, writer = await asyncio.open_connection(
            numbers[0],
            address.port,
            ssl=ssl.create_default_context() if address.tls else None,
            server_hostname=address.host if address.tls else None,
        )
        try:
            return await self._file(address, reader, writer, held, param)
        finally:
            writer.transport.abort()

    async def _file(
        self,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: Holding,
        param: str,
    ) -> bytes:
        connection = h11.Connection(h11.CLIENT)
        usual = address.port == PORTS["https" if address.tls else "http"]
        host = f"[{address.host}]" if ":" in address.host else address.host
        headers = [
            ("Host", host if usual else f"{host}:{address.port}"),
            ("Accept", "image/*"),
            ("User-Agent", "quecc"),
            ("Connection", "close"),
        ]
        request = h11.Request(method="GET", target=address.target, headers=headers)
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response) and event.status_code != 200:
                # Where it leads to is not said: an address of another network is none of the client's business.
                raise Refused(
                    400,
                    f"{param}: the image's server answers {event.status_code}; give the image's own address, or "
                    "send it as a data URI",
                    param,
                    "image_unavailable",
                )
            elif isinstance(event, h11.Data):
                if len(body) + len(event.data) > self._bounds.image_bytes:
                    raise Refused(
                        413,
                        f"{param} has more than {self._bounds.image_bytes:,} bytes; make the file smaller",
                        param,
                    )
                held.take(len(event.data), "bytes")
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise OSError("the connection ended")


def _is_public(number: str) -> bool:
    address = ipaddress.ip_address(number.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or address
    return bool(inner.is_global and not inner.is_multicast)
