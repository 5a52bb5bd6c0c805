"""An HTTP proxy on 127.0.0.1 that answers every GET later, as a store at a distance would. Prints its port.

    python benchmarks/latency_proxy.py --to 8333 --delay-ms 50

Connections do not wait for each other. Bytes pass unchanged, so signatures of requests stay valid.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
CHUNK = 2**18
LENGTH = re.compile(rb"\r\ncontent-length:\s*([0-9]+)", re.IGNORECASE)


async def forward_requests(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass requests on, each GET after a delay. A client without pipelining then gets every answer that much later."""
    while True:
        head = await source.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):
            await asyncio.sleep(delay_s)
        target.write(head)
        if found := LENGTH.search(head):
            target.write(await source.readexactly(int(found[1])))
        await target.drain()


async def forward_answers(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass bytes on until the end."""
    while data := await source.read(CHUNK):
        target.write(data)
        await target.drain()


async def serve(to: int, delay_s: float) -> None:
    """Accept connections until the process is ended."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(HOST, to, limit=CHUNK)
        tasks = [
            asyncio.create_task(forward_requests(reader, to_upstream, delay_s)),
            asyncio.create_task(forward_answers(upstream, writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (to_upstream, writer):
            end.close()
            with suppress(OSError):
                await end.wait_closed()

    server = await asyncio.start_server(connected, HOST, 0, limit=CHUNK, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextmanager
def latency_proxy(to: int, delay_ms: float) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A proxy before a local port, as a process of its own; its port and the process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--to", str(to), "--delay-ms", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=int, required=True, help="port of the server")
    parser.add_argument("--delay-ms", type=float, default=50.0)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.to, arguments.delay_ms / 1000))
