"""Connections for downloads from untrusted URLs: to public addresses alone, and with a deadline.

A host's name is resolved once, all of its addresses are looked at, and the connection is made to one of those, so that
a name server which answers differently the next time changes nothing. That holds for every redirect too. Where the
environment names a proxy, it is the proxy that connects: names that lead to an address that is not public from here
are refused, others are left to it.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NameResolutionError

_UNICAST = ipaddress.ip_network("2000::/3")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address at the end, for networks that have IPv6 alone


class PrivateAddressError(Exception):
    """A host is at an address that is not public: this machine, its network, a cloud's metadata service."""


def is_public(address: str) -> bool:
    """Whether an IP address can be reached by everybody; addresses of IPv4 inside IPv6 are judged by themselves.

    >>> is_public("93.184.215.14"), is_public("169.254.169.254"), is_public("::ffff:127.0.0.1")
    (True, False, False)
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not found.is_multicast
    inside = found.ipv4_mapped or found.sixtofour
    if inside is None and found in _TRANSLATED:
        inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if inside is not None:
        return is_public(str(inside))
    return found in _UNICAST and found.is_global and found.teredo is None


def public_addresses(host: str, port: int | None) -> list[str]:
    """The addresses of a host, in the order in which they should be tried.

    Raises:
        PrivateAddressError: one of them is not public.
        OSError: the name has none.
    """
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    _refuse_private(host, addresses)
    return addresses


def _refuse_private(host: str, addresses: Sequence[str]) -> None:
    for address in addresses:
        if not is_public(address):
            where = "" if address == host else f" of {host}"
            raise PrivateAddressError(f"the address {address}{where} is not public")


class BoundedAdapter(HTTPAdapter):
    """Sends requests until `deadline`, and to public addresses alone if `public_only`.

    Attributes:
        deadline: moment of `time.monotonic()` after which nothing more is read: neither headers nor content.
    """

    def __init__(self, public_only: bool) -> None:
        self.public_only = public_only
        self.deadline = float("inf")
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools(self.public_only)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Make the pool of connections to a proxy."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools(public_only=False)  # a proxy may well be inside the own network
        return manager

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request.

        Raises:
            PrivateAddressError: its host is at an address that is not public, and `public_only` is set.
        """
        url = str(request.url)
        if self.public_only and select_proxy(url, kwargs.get("proxies")):
            parts = urlsplit(url)
            with suppress(OSError):  # behind a proxy a name may have no address here
                public_addresses(parts.hostname or "", parts.port)
        return super().send(request, *args, **kwargs)

    def _pools(self, public_only: bool) -> dict[str, type]:
        plain = partial(_Connection, self, public_only)
        secure = partial(_SecureConnection, self, public_only)
        return {
            "http": type("_Pool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("_SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }


class _BoundedMixin(HTTPConnection):
    def __init__(self, adapter: BoundedAdapter, public_only: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapter = adapter
        self._public_only = public_only
        self.response_class = self._response  # type: ignore[assignment]

    def _new_conn(self) -> socket.socket:
        if not self._public_only:
            return super()._new_conn()
        host = self._dns_host
        try:
            addresses = public_addresses(host, self.port)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        try:
            connected = self._first_that_answers(addresses)
        finally:
            self._dns_host = host  # which the certificate is compared with
        _refuse_private(host, [connected.getpeername()[0]])
        return connected

    def _first_that_answers(self, addresses: Sequence[str]) -> socket.socket:
        for place, address in enumerate(addresses):
            self._dns_host = address
            try:
                return super()._new_conn()
            except Exception:
                if place == len(addresses) - 1 or time.monotonic() > self._adapter.deadline:
                    raise
        raise OSError("a name without an address")

    def _response(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *args, **kwargs)
        response.fp = io.BufferedReader(_UntilDeadline(response.fp.detach(), sock, self._adapter.deadline))
        return response


class _Connection(_BoundedMixin):
    """HTTP."""


class _SecureConnection(_BoundedMixin, HTTPSConnection):
    """HTTPS."""


class _UntilDeadline(io.RawIOBase):
    """Reads a socket until a moment, however little comes at a time: its own timeout begins anew with each byte.

    Args:
        raw: reads `sock`.
        sock: has the longest time to wait for one byte as its timeout.
        deadline: moment of `time.monotonic()`.
    """

    def __init__(self, raw: Any, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline
        self._patience = sock.gettimeout() or float("inf")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        patience = min(self._patience, left)
        self._sock.settimeout(None if patience == float("inf") else patience)
        return self._raw.readinto(buffer)

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()
