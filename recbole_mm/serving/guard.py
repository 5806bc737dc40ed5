"""Checks every request before it is answered: its host, its key, the size of its body, and its time."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_mm.serving.metrics import Metrics

MOST_BODY = 1 << 20
"""Bytes of a request's body."""

OPEN = frozenset({"/", "/health"})
"""Paths that need no key: the page, which asks for it, and what a load balancer reads."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def is_local(host: str) -> bool:
    """Return whether only this machine reaches a host.

    Example:
        >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware that refuses what may not be asked, and counts what was.

    Args:
        app: answers.
        metrics: count requests.
        key: that requests must show as `Authorization: Bearer KEY`; None: none, and requests must name this machine,
            which those of a page whose name was made to lead here do not.
        seconds: bound of a request, its body included.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str | None = None, seconds: float = 30) -> None:
        self.app, self.metrics, self.seconds = app, metrics, seconds
        self._authorization = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", ()))
                names = {name.lower() for name, _ in given}
                message = {**message, "headers": given + [header for header in HEADERS if header[0] not in names]}
            await send(message)

        try:
            async with asyncio.timeout(self.seconds):
                await self._guarded(scope, receive, send_with_headers)
        except TimeoutError:
            if not status:
                await _refuse(send_with_headers, 504, f"not answered within {self.seconds:g} s")
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(path, status or 500, time.monotonic() - begun)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._authorization is None:
            if not is_local(_host(headers)):
                await _refuse(send, 421, "without a key this server answers to 127.0.0.1 and localhost alone")
                return
        elif scope["path"] not in OPEN and not hmac.compare_digest(
            headers.get(b"authorization", b""), self._authorization
        ):
            await _refuse(send, 401, "a key is needed: Authorization: Bearer KEY", (b"www-authenticate", b"Bearer"))
            return
        body = await _body(headers, receive)
        if body is None:
            await _refuse(send, 413, f"the body has more than {MOST_BODY:,} bytes")
            return
        rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return rest.pop() if rest else await receive()

        await self.app(scope, read, send)


def _host(headers: Mapping[bytes, bytes]) -> str:
    """Return the host that a request names, without its port and brackets."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).strip("[]")


async def _body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
    """Return a request's body; None where it is larger than `MOST_BODY`."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 10 or int(length) > MOST_BODY:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _refuse(send: Send, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": error}).encode()
    given = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})
