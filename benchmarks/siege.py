"""A server under siege: `python -m benchmarks.siege`, a few minutes.

Honest clients ask one question after the other, first alone and then beside slow clients, which hold connections in
every way that HTTP has, and hostile ones, which send what no client should. Printed are the honest ones' times in both
parts, what they were answered, and the server's memory, threads and open files before and after.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

import psutil

ROUNDS = 8
"""At most, before the siege."""
QUESTION = "what color is the shape in row 1, column 1?"


def request(body: bytes, more: str = "", length: int | None = None) -> bytes:
    """A chat request."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n{more}\r\n"
    )
    return head.encode() + body


def asking(**more: object) -> bytes:
    """The body of the honest question, with changes."""
    return json.dumps(
        {"model": "model", "messages": [{"role": "user", "content": QUESTION}], **more}
    ).encode()


def harm() -> Sequence[bytes]:
    """One of each kind of hostile request."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    return (
        os.urandom(2000),
        b"GET / HTTP/1.1\r\nHost: [\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\nOrigin: null\r\n\r\n",
        request(b"[" * 100_000),
        request(b'{"model": "\\ud800"}'),
        request(b'{"seed": 1' + b"0" * 400 + b"}"),
        request(b"{}", length=10**12),
        request(b"{}", "Content-Length: 5\r\n"),
        request(asking(temperature="x")),
        request(asking(messages=[{"role": "user", "content": [image]}])),
        request(asking(stream=True)),
        request(asking())[:-5],
    )


class Siege:
    """All clients of one server."""

    def __init__(self, port: int):
        self.port = port
        self.statuses: Counter[bytes] = Counter()
        self.answers: set[bytes] = set()
        self.done = asyncio.Event()
        self.sent = 0
        """Hostile requests."""

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def honest(self, count: int) -> list[float]:
        """Seconds of each of some questions, one after the other."""
        took = list[float]()
        for _ in range(count):
            began = time.perf_counter()
            reader, writer = await self._connect()
            writer.write(request(asking(), "Connection: close\r\n"))
            reply = await reader.read()
            writer.close()
            took.append(time.perf_counter() - began)
            self.statuses[reply[9:12]] += 1
            if found := re.search(rb'"content":"([^"]*)"', reply):
                self.answers.add(found[1])
        return took

    async def slow(self, number: int) -> None:
        """A client that holds a connection as long as it can, again and again."""
        begin = (b"", b"POST / HTTP/1.1\r\nX: ", request(b"", length=5000), request(asking(stream=True)))[
            number % 4
        ]
        while not self.done.is_set():
            with contextlib.suppress(OSError):
                reader, writer = await self._connect()
                writer.write(begin)
                while not self.done.is_set() and not reader.at_eof():
                    if number % 4 in (1, 2):
                        writer.write(b" ")
                    await asyncio.sleep(2)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.1)
                writer.transport.abort()

    async def hostile(self, kinds: Sequence[bytes], pause: float) -> None:
        """Sends each kind in turn until it is told to end."""
        while not self.done.is_set():
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await self._connect()
                writer.write(kinds[self.sent % len(kinds)])
                if self.sent % 3:
                    await asyncio.wait_for(reader.read(100), 0.5)
                writer.transport.abort()
            self.sent += 1
            await asyncio.sleep(pause)


def quantiles(took: Sequence[float]) -> str:
    """p50 and p99, in milliseconds."""
    cut = statistics.quantiles(took, n=100)
    return f"p50 {cut[49] * 1000:.0f} ms, p99 {cut[98] * 1000:.0f} ms"


def state(server: psutil.Process) -> str:
    """What the server holds."""
    return f"{server.memory_info().rss / 1e6:.0f} MB, {server.num_threads()} threads, {server.num_fds()} open files"


async def besiege(port: int, server: psutil.Process, arguments: argparse.Namespace) -> None:
    """Both parts."""

    async def honest(siege: Siege) -> list[float]:
        parts = await asyncio.gather(*(siege.honest(arguments.questions) for _ in range(arguments.honest)))
        return [one for part in parts for one in part]

    # Until a round compiles nothing: a program for some number of askers takes seconds when it comes first.
    alone, took, rounds = Siege(port), [1.0], 0
    while max(took) >= 1 and rounds < ROUNDS:
        took, rounds = await honest(alone), rounds + 1
    print(f"alone, round {rounds}: {quantiles(took)}; {state(server)}", flush=True)
    siege = Siege(port)
    slow = [asyncio.create_task(siege.slow(number)) for number in range(arguments.slow)]
    hostile = [asyncio.create_task(siege.hostile(harm(), arguments.pause)) for _ in range(arguments.hostile)]
    await asyncio.sleep(5)
    took = []
    while siege.sent < arguments.requests:
        took += await honest(siege)
        print(f"  {siege.sent} hostile requests: {state(server)}", flush=True)
    siege.done.set()
    await asyncio.gather(*slow, *hostile)
    print(f"under siege: {quantiles(took)}; {state(server)}")
    told = {status.decode(): count for status, count in siege.statuses.items()}
    print(
        f"{len(took)} honest questions were answered {told}, {len(siege.answers | alone.answers)} answer(s)"
    )


def main() -> None:
    """Starts a server, besieges it, and ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        ("honest", 16),
        ("questions", 40),
        ("slow", 300),
        ("hostile", 4),
        ("requests", 10_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--pause", type=float, default=0.02, help="seconds between two requests of a hostile client"
    )
    arguments = parser.parse_args()
    command = ["-m", "launch.serve", "--checkpoint", "examples/model", "--port", "0", "--max-new-tokens", "8"]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().split(":")[2].split("/")[0])
            asyncio.run(besiege(port, psutil.Process(process.pid), arguments))
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
