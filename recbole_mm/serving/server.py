"""Listens on a socket and runs uvicorn: bounded connections, bounded seconds to send a request, a clean end."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from recbole_mm.errors import ConfigError
from recbole_mm.serving.service import Service

LAST_SECONDS = 30
"""Seconds that requests have to be answered once the server is told to end."""

ACCEPTED_AT_ONCE = 128
"""Connections that are taken before the first of them is looked at, so that their files do not run out."""

TURN_SECONDS = 0.0005
"""Seconds after which a thread of Python lets another one go on. With Python's own 5 ms, each of the many steps of
scoring would wait that long while another run is being opened."""

FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 for at most so many connections, each with so many seconds to send a whole request.

    uvicorn's own bound counts connections once they have sent a request; one that sends nothing would stay for ever.

    Args:
        most: connections.
        seconds: from the opening of a connection, or from the first byte of a later request, to the request's end.
    """

    def __init__(self, *arguments: Any, most: int, seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most, self._seconds = most, seconds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(FULL)
            transport.close()
        else:
            self._arm()

    def data_received(self, data: bytes) -> None:
        """Read on; the time stops once a request is complete."""
        if self._deadline is None:
            self._arm()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(self._seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the port is in use or not allowed, or there is no such host.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
        # asyncio asks for this only where a socket names its protocol. Connections inherit it; without it the body of
        # an answer, which is sent behind its head, waits 40 ms for the other side to acknowledge that.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            reason = "it is in use; take another one, such as --port=8001, or 0 for any"
        elif number == errno.EACCES:
            reason = "it may not be opened; take one from 1024 on"
        else:
            reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host={host} --port={port}: {reason}") from error


@contextmanager
def _signals_handled(service: Service, server: uvicorn.Server) -> Iterator[None]:
    """Look for a newer run on SIGHUP; and end on SIGTERM, which uvicorn raises anew behind the end."""
    handlers: dict[int, Callable[..., None]] = {
        signal.SIGTERM: lambda *_: setattr(server, "should_exit", True),
        signal.SIGHUP: lambda *_: service.look_soon(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rest_memory() -> None:
    """Leave what is in memory now, a run above all, out of the collections of garbage to come.

    A full one takes a quarter of a second for a run of 100,000 users, in which nobody is answered.
    """
    gc.unfreeze()  # so that a run of before goes
    gc.collect()
    gc.freeze()


def serve(
    app: FastAPI, service: Service, listening: socket.socket, connections: int, seconds: float, ready: str
) -> None:
    """Answer until SIGTERM or Ctrl-C; then answer what has been asked, and return.

    Args:
        app: of the service.
        service: SIGHUP has it look for a newer run.
        listening: the socket.
        connections: bound of the open connections.
        seconds: that a connection has to send a request.
        ready: a line that is printed once signals are heeded.
    """
    config = uvicorn.Config(
        app,
        http=partial(BoundedProtocol, most=connections, seconds=seconds),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = uvicorn.Server(config)
    sys.setswitchinterval(TURN_SECONDS)
    rest_memory()
    with _signals_handled(service, server):
        print(ready, flush=True)
        server.run(sockets=[listening])
