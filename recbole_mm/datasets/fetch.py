"""Fetches one URL politely: a rate per host, few retries, and bounds on size, waiting and the time of a body."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from recbole_mm import __version__
from recbole_mm.datasets.connection import BoundedAdapter, PrivateAddressError
from recbole_mm.utils.retry_after import retry_after

_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be another one next time
_BUSY = (429, 503)


@dataclass(frozen=True)
class Limits:
    """Bounds on a download. Times are in seconds.

    Attributes:
        rate: requests a second to each host.
        threads: requests at the same time, over all hosts.
        connect_timeout, read_timeout: longest silence of a server.
        total_timeout: longest time for one attempt at one file, its redirects and headers included.
        attempts: tries for a URL, the first included.
        backoff: wait before the second try; doubled for every further one.
        longest_wait: if a server asks for more (`Retry-After`), it is asked nothing more in this run.
        max_bytes: size of a file.
        max_redirects: for one URL.
        give_up_after: files in a row that a host did not answer for, after which it is asked nothing more in this run.
        public_only: whether hosts at addresses that are not public are refused.
    """

    rate: float = 10.0
    threads: int = 8
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    total_timeout: float = 60.0
    attempts: int = 4
    backoff: float = 1.0
    longest_wait: float = 120.0
    max_bytes: int = 20 * 2**20
    max_redirects: int = 5
    give_up_after: int = 20
    public_only: bool = True


class FetchFailed(Exception):
    """A URL gave nothing.

    Attributes:
        reason: a few words.
        final: whether asking again would be in vain.
        wait: seconds the server asked for, None if it did not.
        answered: whether the host answered at all.
        later: whether the host is asked nothing more in this run.
    """

    def __init__(
        self, reason: str, final: bool, wait: float | None = None, answered: bool = True, later: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.wait = wait
        self.answered = answered
        self.later = later


class Stopped(Exception):
    """The download was stopped."""


class _Host:
    """When one host may be asked next. Safe for threads."""

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.closed = ""
        self._limits = limits
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0.0
        self._held_until = 0.0
        self._silent = 0

    def take_turn(self) -> None:
        """Wait until this request may be sent."""
        while True:
            with self._lock:
                now = time.monotonic()
                turn = max(now, self._next, self._held_until)
                self._next = turn + 1 / self._limits.rate
            if self._stop.wait(turn - now):
                raise Stopped
            if self.closed:
                raise FetchFailed(self.closed, final=False, later=True)
            if time.monotonic() >= self._held_until:
                return

    def hold(self, seconds: float) -> None:
        """Ask nothing for so long."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def close(self, reason: str) -> None:
        self.closed = reason

    def note(self, answered: bool) -> None:
        """Count files that the host was silent about."""
        with self._lock:
            self._silent = 0 if answered else self._silent + 1
            if self._silent == self._limits.give_up_after:  # threads on their way may yet add to it
                self.closed = f"the host did not answer {self._silent} times in a row"


class Fetcher:
    """Fetches files within `limits`; one object for all threads, one session for each.

    Args:
        limits: bounds.
        stop: set it, and every wait ends with `Stopped`.
    """

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits = limits
        self.stop = stop
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._too_long = f"not done after {limits.total_timeout:g} s"

    def fetch(self, session: requests.Session, url: str) -> bytes:
        """The content of `url`, after as many tries as it takes and is allowed.

        Raises:
            FetchFailed: it cannot be had.
            Stopped: the download was stopped.
        """
        host = self._host(check_url(url))
        for attempt in range(1, self.limits.attempts + 1):
            try:
                data = self._once(session, url)
            except FetchFailed as failed:
                if failed.final or failed.later or attempt == self.limits.attempts:
                    host.note(failed.answered)
                    raise
                pause = self.limits.backoff * 2 ** (attempt - 1) if failed.wait is None else failed.wait
                if self.stop.wait(pause):
                    raise Stopped from None
            else:
                host.note(answered=True)
                return data
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _host(self, name: str) -> _Host:
        with self._lock:
            return self._hosts.setdefault(name, _Host(self.limits, self.stop))

    def _once(self, session: requests.Session, url: str) -> bytes:
        end = time.monotonic() + self.limits.total_timeout
        try:
            for _ in range(self.limits.max_redirects + 1):
                host = self._host(check_url(url))
                asked = time.monotonic()
                host.take_turn()
                end += time.monotonic() - asked  # waiting for one's turn is no fault of this file
                adapter = session.get_adapter(url)
                assert isinstance(adapter, BoundedAdapter), "open_session gives the session"
                adapter.deadline = end
                with session.get(
                    url,
                    stream=True,
                    allow_redirects=False,  # each one is checked, counted and rated here
                    timeout=(self.limits.connect_timeout, self.limits.read_timeout),
                ) as response:
                    if response.status_code in _REDIRECTS and "Location" in response.headers:
                        url = urljoin(url, response.headers["Location"])
                        continue
                    if response.status_code != 200:
                        raise self._refused(host, response)
                    return self._body(response, end)
        except PrivateAddressError as error:
            host.close(f"{error}; --allow_private allows it")
            raise FetchFailed(host.closed, final=False, later=True) from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
            reason = self._too_long if time.monotonic() >= end else "timed out"
            raise FetchFailed(reason, final=False, answered=False) from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError, ValueError):
            raise FetchFailed("not a usable URL", final=True) from None
        except requests.exceptions.SSLError:
            raise FetchFailed("its TLS certificate cannot be verified", final=False, answered=False) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            cause = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else error
            dropped = isinstance(cause, urllib3.exceptions.ProtocolError)
            reason = "the connection was dropped" if dropped else "no connection"
            raise FetchFailed(reason, final=False, answered=dropped) from None
        raise FetchFailed(f"more than {self.limits.max_redirects} redirects", final=True)

    def _refused(self, host: _Host, response: requests.Response) -> FetchFailed:
        status = response.status_code
        reason = f"HTTP {status}"
        if status not in _PASSING:
            return FetchFailed(reason, final=True)
        wait = retry_after(response.headers.get("Retry-After"))
        if status in _BUSY:
            if wait is not None and wait > self.limits.longest_wait:
                host.close(f"{reason}: the host asks to be left alone for {wait:.0f} s")
                return FetchFailed(host.closed, final=False, later=True)
            host.hold(self.limits.backoff if wait is None else wait)
        return FetchFailed(reason, final=False, wait=None if wait is None else min(wait, self.limits.longest_wait))

    def _body(self, response: requests.Response, end: float) -> bytes:
        limit = self.limits.max_bytes
        length = response.headers.get("Content-Length", "")
        declared = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        too_large = FetchFailed(f"larger than {limit:,} bytes", final=True)
        if declared is not None and declared > limit:
            raise too_large
        data = bytearray()
        # read1 gives what has come: a server that sends a byte now and then meets the deadline here.
        while chunk := response.raw.read1(_CHUNK):
            data += chunk
            if len(data) > limit:
                raise too_large
            if time.monotonic() > end:
                raise FetchFailed(self._too_long, final=False)
        if declared is not None and len(data) < declared:
            raise FetchFailed("the connection was dropped", final=False)
        return bytes(data)


def open_session(public_only: bool = True) -> requests.Session:
    """A session of one thread, for `Fetcher`: it keeps no cookies and sends no passwords of `~/.netrc`.

    Args:
        public_only: refuse hosts at addresses that are not public.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(public_only))
    session.headers.update(
        {"User-Agent": f"recbole_mm/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
    )
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    session.auth = lambda request: request
    return session


def check_url(url: str) -> str:
    """The host of a URL that may be fetched, with its port.

    Raises:
        FetchFailed: it is not http or https, or names no host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchFailed("not a usable URL", final=True) from None
    if parts.scheme not in ("http", "https"):
        raise FetchFailed("neither http nor https", final=True)
    if not host:
        raise FetchFailed("the URL names no host", final=True)
    return f"{host}:{port}" if port else host
