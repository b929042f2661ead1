"""Listens, loads the model meanwhile, and ends in good order."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

from starlette.types import ASGIApp
from uvicorn import Config, Server

from quecc_jax.errors import UserError
from quecc_jax.serve.web.bounds import Bounds
from quecc_jax.serve.web.protocol import bounded

BACKLOG = 256
"""Connections that the system holds until they are accepted."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: the address cannot be listened at.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port} cannot be listened at ({reason}); choose another"
        ) from None
    return listener


def address(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class BoundedServer(Server):
    """uvicorn's server, with our bounds.

    Args:
      app: what it serves.
      load: is called in a thread once it listens; the server ends with what it raises.
      stop: is called when it shall end, and has it end when it is done.
    """

    def __init__(
        self, app: ASGIApp, bounds: Bounds, load: Callable[[], None], stop: Callable[[], Awaitable[None]]
    ):
        config = Config(
            app,
            http=bounded(bounds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.failed: BaseException | None = None
        self._load, self._stop = load, stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and begins to load."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._loaded, name="load", daemon=True).start()

    def _loaded(self) -> None:
        try:
            self._load()
        except BaseException as error:
            self.failed = error
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens no more, has answers end, then ends the connections."""
        for server in self.servers:
            server.close()
        await self._stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server. uvicorn sends them on to the process then, whose status would say that
        it was killed; here a SIGTERM ends it well, and Ctrl-C is said as everywhere."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        interrupted = False

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted |= number == signal.SIGINT
            if interrupted and self.should_exit:
                self.force_exit = True
            self.should_exit = True

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if interrupted and self.failed is None:
            raise KeyboardInterrupt


def run(server: BoundedServer, listener: socket.socket) -> None:
    """Serves until it is told to end.

    Raises:
      KeyboardInterrupt: by Ctrl-C.
      BaseException: what loading raised.
    """
    with listener:
        server.run([listener])
    if server.failed is not None:
        raise server.failed
