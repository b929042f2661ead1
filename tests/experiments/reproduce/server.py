"""A STAND-IN for the places that files are fetched from: a folder over HTTP, which can lose connections."""

import contextlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path


class Place:
    """The folder, and what its server did.

    Attributes:
      cut: bytes after which the next so many replies end early, one number for each.
      ranges: whether it gives parts of files.
      asked: (path, first byte) of every request.
    """

    def __init__(self, folder: Path):
        self.folder, self.ranges = folder, True
        self.cut: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.address = ""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Place]:
    """Serves a folder on a port of this machine."""
    place = Place(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            begin = int(told[1]) if told else 0
            place.asked.append((self.path, begin))
            file = place.folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            part = bool(told) and place.ranges
            if part and begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            rest = content[begin:] if part else content
            self.send_response(206 if part else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: place.cut.pop(0)] if place.cut else rest)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    place.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
