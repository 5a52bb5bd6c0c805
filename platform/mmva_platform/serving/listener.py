"""HTTP in the front's own process: a request then crosses one process on its way to the model, not two."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from time import monotonic, sleep
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from mmva.errors import UsageError

_KEEP_ALIVE_S: Final = 75  # longer than clients and balancers keep a connection that they may use again
_DRAIN_S: Final = 15


class Listener:
    """An application on a port, on the event loop that runs; several processes may share the port."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """Listen and answer from now on. OSError if the port is taken."""
        self._socket = _bound(host, port)
        self._socket.listen()  # or who connects before the loop gets to uvicorn would be refused
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what goes wrong is the application's to say
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_DRAIN_S,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """Take no more connections; answer what is in work."""
        self._server.should_exit = True
        await self._serving


def await_port(host: str, port: int, patience_s: float = 15.0) -> None:
    """Wait until a port is free: the processes of a server that was killed are there for some seconds more.

    Raises:
        UsageError: If it stays taken, or nobody can listen there: a line before everything is started.
    """
    deadline = monotonic() + patience_s
    while True:
        try:
            _bound(host, port, shared=False).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() > deadline:
                raise UsageError(f"serving.port {port} on {host}: {error.strerror}; choose another") from error
            sleep(0.5)
        else:
            return


def _bound(host: str, port: int, *, shared: bool = True) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind(address)
    except OSError:
        listening.close()
        raise
    return listening
