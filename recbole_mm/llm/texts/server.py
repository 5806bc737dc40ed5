"""An OpenAI-compatible server: where it is, the key to it, and how patiently it is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpx2

from recbole_mm.errors import ConfigError


class TextServerError(ConfigError):
    """No text can be had from this server, now or with these settings."""


@dataclass(frozen=True)
class Server:
    """Where texts come from.

    Attributes:
        url: up to and including the version, e.g. http://localhost:8000/v1.
        model: the name the server knows its model by.
        key: sent as a bearer token; never shown, logged or stored.
        concurrency: requests under way at once.
        timeout: seconds for one whole request and answer, however much of it has come.
        retries: further tries of a request that was lost.
        backoff: seconds before the first of them; each further one waits twice as long.

    Raises:
        ConfigError: the address is not one, or would be written to logs with a secret in it.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    backoff: float = 1.0

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url.strip())
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError("text_url is not an address; give one like http://localhost:8000/v1") from error
        if url.scheme not in ("http", "https") or not url.host:  # not shown: it may hold a password
            raise ConfigError("text_url is not accepted; give one like http://localhost:8000/v1")
        if url.userinfo or url.query or url.fragment:
            raise ConfigError(
                f"text_url: the address of {url.host} holds a user name, a query or a fragment, which would be logged; "
                "name an environment variable with the key in text_api_key_env instead"
            )

    @property
    def endpoint(self) -> str:
        """Where chats are asked for."""
        base = self.url.strip().rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine: no proxy stands between, and no eavesdropper."""
        host = httpx2.URL(self.url.strip()).host
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None where the variable is absent or empty, or none is named.

    Raises:
        ConfigError: it cannot be sent in a header. The message does not show it.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"text_api_key_env: the key in {variable} holds characters that no key has; set it anew")
    return key or None
