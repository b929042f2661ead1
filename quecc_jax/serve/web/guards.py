"""Who may ask: the server's names, other sites' pages, keys, and how often."""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import cachetools
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quecc_jax.serve.metrics import Metrics
from quecc_jax.serve.web.refusals import OWN_HEADERS, Refused

OPEN = ("/healthz",)
"""Paths that whoever reaches the server may ask for, under any name: a balancer knows it by its address alone."""
REMEMBERED = 10_000
"""Clients whose rate is counted at a time."""
LEFT = 499
"""Status of a request whose client left before the reply, for counts."""


class Access(NamedTuple):
    """Who may ask a server, and how often."""

    names: tuple[str, ...] = ()
    """Host names and addresses that requests may call it by, beside this machine's own; with keys they may call it
    anything."""
    keys: tuple[str, ...] = ()
    """Of which a request for /v1 must have one; with none all may ask."""
    option: str = "--host"
    """Of the command, that gives it another name."""
    per_minute: int = 0
    """Requests of a client, known by its key or address; 0 for no limit."""


class Gate:
    """The outermost part of a server: refuses requests and counts all of them.

    Args:
      app: gets the others.
      known: the server's own paths, for the counts.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, known: Sequence[str]):
        self.app, self._metrics, self._known = app, metrics, frozenset(known)
        here = ("localhost", "127.0.0.1", "::1")
        self._option = access.option
        self._names = {f"[{name}]" if ":" in name else name.lower() for name in (*here, *access.names)}
        self._keys = [_digest(key) for key in access.keys]
        self._rate = Rate(access.per_minute) if access.per_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = LEFT

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                own = [(name.lower().encode(), value.encode()) for name, value in OWN_HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in own if name not in given),
                ]
            await send(message)

        self._metrics.begun()
        try:
            try:
                self._check(scope)
            except Refused as refused:
                await refused.response()(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self._known else "other"
            self._metrics.served(path, status)

    def _check(self, scope: Scope) -> None:
        """Raises Refused."""
        if scope["path"] in OPEN:
            return
        headers = Headers(scope=scope)
        client = self._client(scope)
        if not self._keys:
            self._check_sender(headers)
        elif scope["path"].startswith("/v1/"):
            client = self._with_key(headers)
        if self._rate is not None and scope["path"] not in ("/metrics",):
            self._rate.count(client)

    def _with_key(self, headers: Headers) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = _digest(key.strip() if scheme.lower() == "bearer" else "")
        # All are compared, each in constant time, so that no time tells which part was right.
        if not sum(hmac.compare_digest(found, own) for own in self._keys):
            raise Refused(
                401,
                "no API key of this server; send one as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found.hex()

    def _check_sender(self, headers: Headers) -> None:
        """Refuses other names, which a page of another site may have been given (DNS rebinding), and other sites."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        try:
            named, asking = urlsplit(f"//{host}").netloc, host if origin is None else urlsplit(origin).netloc
        except ValueError:
            raise Refused(403, "the request names no host") from None
        if named.rsplit(":", 1)[0].lower() not in self._names and host.lower() not in self._names:
            raise Refused(
                403,
                f"this server has no name {host[:80]}; start it with {self._option} and that name or address",
            )
        if asking != host or len(headers.getlist("host")) > 1:
            raise Refused(403, "the request comes from another page")

    def _client(self, scope: Scope) -> str:
        host = (scope.get("client") or ("",))[0]
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return host
        # Whoever has one address of IPv6 has a whole network of them.
        return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


class Rate:
    """So many requests a minute of each client, any of them at once."""

    def __init__(self, per_minute: int):
        self._per_minute = per_minute
        self._left: cachetools.LRUCache[str, tuple[float, float]] = cachetools.LRUCache(REMEMBERED)

    def count(self, client: str) -> None:
        """One more request.

        Raises:
          Refused: it is one too many.
        """
        now = time.monotonic()
        left, then = self._left.get(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
        if left < 1:
            self._left[client] = left, now
            raise Refused(
                429,
                f"more than {self._per_minute} requests a minute; ask more slowly",
                code="rate_limit_exceeded",
                again=(1 - left) * 60 / self._per_minute,
            )
        self._left[client] = left - 1, now


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
