"""Texts by an OpenAI-compatible server: vLLM, SGLang, Ollama, `transformers serve`, or a hosted one.

The `openai` client sends requests, many at once, on an event loop in a thread of its own; each finished text goes
straight to the caller, to be stored. What follows from an error is decided here; the client itself retries nothing:

- the server is busy, breaks or stalls (429, 5xx, a lost connection, no whole answer in time): tried again, later and
  later; after the last try, a `Failure`;
- this one request is refused, or its answer cannot be read: a `Failure` at once;
- no request can ever succeed (wrong key, model or address, a server that is gone): `TextServerError`, so that the
  stage ends with one message instead of thousands of failures. What was finished is kept.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import queue
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice
from typing import Any, Literal

import httpx2
from anyio.from_thread import start_blocking_portal
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, Omit
from PIL import Image

from recbole_mm.artifacts.executor import Failure
from recbole_mm.config.data_settings import NOBODY
from recbole_mm.errors import ConfigError, ImageError
from recbole_mm.llm.texts.cleaning import clean_answer
from recbole_mm.llm.texts.generator import NO_PICTURE, Request, StreamingGenerator, Writing
from recbole_mm.utils.escaping import encodable
from recbole_mm.utils.retry_after import retry_after

logger = logging.getLogger(__name__)

RECIPE = 1
"""Part of every key: raise it whenever the same prompt, model and settings would be asked for in another way."""

TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
HOPELESS = frozenset({401, 404})
"""Wrong key, wrong model or address: the same for every request."""
HOPELESS_AT_FIRST = frozenset({301, 302, 303, 307, 308, 402, 403, 405})
"""As long as nothing has succeeded; later it is about one request."""

LONGEST_PAUSE = 60.0
"""Seconds between two tries, whatever the server asks for."""
LARGEST_ANSWER = 8 * 2**20
"""Bytes; no text is nearly that long."""
CHARACTERS_PER_TOKEN = 4
"""An estimate: only the server knows its tokenizer."""
TEXTS_PER_BATCH = 64
IMAGE_SIDE = 1024
"""Longer pictures are made smaller before they are sent."""
JPEG_QUALITY = 92
RAW = "x-stainless-raw-response"
"""Header by which the client itself knows, from the request, that the answer's bytes are wanted."""
SENT_HEADERS = {"host", "connection", "user-agent", "authorization", RAW} | {
    *("accept", "accept-encoding", "content-type", "content-length")
}
"""All that a server is sent. The client would add the machine's description, and an organization of the environment."""


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

    Example:
        >>> Server("http://localhost:8000/v1/", "m").endpoint
        'http://localhost:8000/v1/chat/completions'
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


class TransientError(Exception):
    """A try that may succeed later.

    Attributes:
        reason: one line.
        pause: seconds the server asks for.
        unanswered: there was no answer at all.
        unreachable: there was no connection.
    """

    def __init__(
        self, reason: str, pause: float | None = None, unanswered: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.pause, self.unanswered, self.unreachable = reason, pause, unanswered, unreachable


class OpenAIGenerator(StreamingGenerator):
    """Asks a server for `/chat/completions`, many at once.

    The server is taken for the model it names: the address is no part of the keys, so the same model on another server
    gives the same texts. Greedy by default; with a temperature, the seed is sent along, and repeats as well as the
    server does.

    Args:
        server: its address, model and key, and how patiently it is asked.
        writing: how texts are written. The prompt's tokens are estimated, a picture's are not counted.

    Raises:
        TextServerError: while texts are written: see the module.

    Example:
        >>> generator = OpenAIGenerator(Server("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct"), Writing())
        >>> generator.identity, generator.count_tokens("blue suede shoes")
        ('openai:Qwen/Qwen2.5-7B-Instruct', 4)
    """

    makes: Literal["answers"] = "answers"
    reads_images = True
    longest_prompt = None

    def __init__(self, server: Server, writing: Writing) -> None:
        self.server = server
        self.writing = writing
        self.identity = f"openai:{server.model}"
        self.parameters: dict[str, Any] = writing.parameters | {
            "backend": "openai",
            "recipe": RECIPE,
            "image_side": IMAGE_SIDE,
        }
        if server.key and not server.is_local and server.url.strip().startswith("http:"):
            logger.warning("text_url is http, not https: the key and all texts travel where others can read them")

    def count_tokens(self, text: str) -> int:
        """An estimate: four characters a token."""
        return -(-len(text) // CHARACTERS_PER_TOKEN)

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        """Yield what is finished, as soon as it is: several texts at once where they come faster than they are taken.

        Leaving early ends the requests under way.
        """
        if requests and self.server.url == NOBODY:
            raise TextServerError(
                f"text_url: {len(requests)} texts of {self.server.model} are not in the artifact store, and the "
                "settings of a finished run ask no server by themselves; say which one"
            )
        done: queue.SimpleQueue[tuple[str, str | Failure] | None] = queue.SimpleQueue()
        with start_blocking_portal(name="text-server") as portal:
            asking = portal.start_task_soon(_Asking(self.server, self.writing, done).all, requests)
            asking.add_done_callback(lambda _: done.put(None))
            try:
                taken: list[tuple[str, str | Failure] | None] = []
                while None not in taken:
                    taken = [done.get()]
                    while len(taken) < TEXTS_PER_BATCH and not done.empty():
                        taken.append(done.get())
                    if batch := dict(filter(None, taken)):
                        yield batch
                asking.result()
            finally:
                asking.cancel()

    def close(self) -> None:
        """No connection outlives a stream."""


class _Asking:
    """The requests of one stream, on one event loop; `done` gets each key with its text."""

    def __init__(self, server: Server, writing: Writing, done: queue.SimpleQueue) -> None:
        self.server, self.writing, self.done = server, writing, done
        self.jitter = random.Random()  # its own: a run's random state must not depend on how busy a server was
        self.limit = "max_tokens"
        self.succeeded = False
        self.failed_in_a_row = 0
        self.not_before = 0.0

    # --- all requests ------------------------------------------------------------------------------------------------

    async def all(self, requests: Mapping[str, Request]) -> None:
        """One request first: if it shows that none can succeed, no second one is sent. Then several at once."""
        async with _open_client(self.server) as client:
            todo = iter(requests.items())
            await self._work(client, islice(todo, 1))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.server.concurrency, len(requests))):
                        group.create_task(self._work(client, todo))
            except* TextServerError as errors:
                raise errors.exceptions[0] from None

    async def _work(self, client: AsyncOpenAI, todo: Iterator[tuple[str, Request]]) -> None:
        for key, request in todo:
            self.done.put((key, await self._text(client, request)))

    async def _text(self, client: AsyncOpenAI, request: Request) -> str | Failure:
        """One text, after as many tries as it takes and is allowed."""
        tokens = -(-len(request.prompt) // CHARACTERS_PER_TOKEN)
        if tokens > self.writing.context_tokens:
            budget = f"text_context_tokens ({self.writing.context_tokens})"
            return Failure(f"the prompt has about {tokens} tokens, more than {budget}")
        try:
            content = await asyncio.to_thread(message_content, request)
        except (ImageError, OSError, ValueError) as error:
            return Failure(f"{NO_PICTURE}: {error}")
        if content is None:
            return Failure(NO_PICTURE)
        for attempt in range(self.server.retries + 1):
            while (rest := self.not_before - time.monotonic()) > 0:  # the server asked everybody to wait
                await asyncio.sleep(rest)
            try:
                answer = await self._ask(client, content)
            except TransientError as error:
                if attempt == self.server.retries:
                    return self._given_up(error)
                await self._pause(error, attempt)
            else:
                self.failed_in_a_row = 0
                return answer
        raise AssertionError("the last try returns")

    async def _pause(self, error: TransientError, attempt: int) -> None:
        """Twice as long each time, from half of it to all of it, so that requests lost together return apart."""
        pause = min(self.server.backoff * 2**attempt, LONGEST_PAUSE) * self.jitter.uniform(0.5, 1.0)
        if error.pause is not None:
            asked = min(error.pause, LONGEST_PAUSE)
            self.not_before = max(self.not_before, time.monotonic() + asked)
            pause = max(pause, asked)
        await asyncio.sleep(pause)

    def _given_up(self, error: TransientError) -> Failure:
        """A failure; or the end, where nobody answers at all.

        Raises:
            TextServerError: the server cannot be reached and never could, or many requests in a row got no answer.
        """
        tries = self.server.retries + 1
        if error.unreachable and not self.succeeded:
            raise TextServerError(
                f"text_url: no server answers at {self.server.url} ({error.reason}); start it, or correct the address"
            )
        self.failed_in_a_row = self.failed_in_a_row + 1 if error.unanswered or not self.succeeded else 0
        if self.failed_in_a_row >= 3 * self.server.concurrency:
            raise TextServerError(
                f"the server at {self.server.url} has failed {self.failed_in_a_row} requests in a row "
                f"({error.reason}); what was finished is kept: run again when it is back"
            )
        return Failure(f"{error.reason} (tried {tries} {'time' if tries == 1 else 'times'})")

    # --- one try -----------------------------------------------------------------------------------------------------

    async def _ask(self, client: AsyncOpenAI, content: str | list[dict[str, Any]]) -> str | Failure:
        """Send a request, read the answer.

        Raises:
            TransientError: it may succeed later.
            TextServerError: none can succeed.
        """
        fields: dict[str, Any] = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.writing.temperature,
            self.limit: self.writing.max_new_tokens,
        }
        if self.writing.temperature > 0:
            fields |= {"top_p": self.writing.top_p, "seed": self.writing.seed}
        key = f"Bearer {self.server.key}" if self.server.key else Omit()
        headers = {"Authorization": key, "Accept-Encoding": "identity"}
        try:
            async with asyncio.timeout(self.server.timeout):
                answer = await client.chat.completions.with_raw_response.create(**fields, extra_headers=headers)
        except (TimeoutError, APITimeoutError) as error:
            raise TransientError(f"no whole answer within {self.server.timeout:g} s", unanswered=True) from error
        except APIConnectionError as error:
            cause = error.__cause__
            said = self._safe(str(cause)) or type(cause).__name__
            if isinstance(cause, (httpx2.ConnectError, httpx2.ProxyError)):
                raise TransientError(f"no connection: {said}", unanswered=True, unreachable=True) from error
            raise TransientError(f"the connection was lost: {said}", unanswered=True) from error
        except APIStatusError as error:
            return await self._refused(client, content, error.response)
        return self._read(answer.content)

    async def _refused(
        self, client: AsyncOpenAI, content: str | list[dict[str, Any]], response: httpx2.Response
    ) -> str | Failure:
        """What a status other than 200 means; see `_ask` for errors."""
        status = response.status_code
        reason = f"the server answered {status}: {self._safe(error_message(response.content))}"
        if status in TRANSIENT:
            raise TransientError(reason, retry_after(response.headers.get("retry-after")))
        if status in HOPELESS or (status in HOPELESS_AT_FIRST and not self.succeeded):
            raise TextServerError(
                f"text_url {self.server.url}, text_model {self.server.model!r}: {reason}{_hint(status)}"
            )
        if status == 400 and "max_completion_tokens" in reason and self.limit == "max_tokens":
            self.limit = "max_completion_tokens"  # what OpenAI's newer models call it
            return await self._ask(client, content)
        return Failure(reason)

    def _read(self, raw: bytes) -> str | Failure:
        """The text in an answer of the server: of its JSON, since compatible servers stray from the client's types."""
        try:
            choice = json.loads(raw)["choices"][0]
            message = choice["message"]
            said = message["content"]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return Failure(f"the server's answer is no chat completion: {self._safe(error_message(raw))}")
        self.succeeded = True  # the address, the key and the model are right, whatever became of this text
        if isinstance(said, list):
            parts = [part.get("text") for part in said if isinstance(part, dict)]
            said = "".join(part for part in parts if isinstance(part, str))
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return Failure("the model or the server refused to answer")
        if not isinstance(said, str):
            return Failure("the model said nothing (a reasoning model may need a larger text_max_new_tokens)")
        return clean_answer(said, self.writing.max_words, ended=choice.get("finish_reason") != "length")

    def _safe(self, text: str) -> str:
        """A reason for logs and the store: one short line without the key."""
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return (line.replace(self.server.key, "[key]") if self.server.key else line)[:200]


def _hint(status: int) -> str:
    if status in (401, 402, 403):
        return "; put a valid key into the environment variable that text_api_key_env names"
    if status == 404:
        return "; check text_model, and that text_url ends in the version, e.g. /v1"
    return "; check text_url"


# --- the client ------------------------------------------------------------------------------------------------------


def _open_client(server: Server) -> AsyncOpenAI:
    """A client that sends nothing but what it is asked to, follows no redirect and reads no answer without end."""

    async def send_little(request: httpx2.Request) -> None:
        for name in set(request.headers) - SENT_HEADERS:
            del request.headers[name]

    async def read_little(response: httpx2.Response) -> None:
        response.stream = _Bounded(response.stream)
        response.headers.pop("content-encoding", None)  # a small packed answer may hold gigabytes: none is unpacked
        response.encoding = "utf-8"  # that of JSON: the client reads an error as text in any codec that a server names

    http = httpx2.AsyncClient(
        timeout=None,  # `_ask` has one for the whole answer
        limits=httpx2.Limits(max_connections=server.concurrency),
        follow_redirects=False,
        trust_env=not server.is_local,  # a proxy that the environment names is for other machines
        event_hooks={"request": [send_little], "response": [read_little]},
    )
    base = server.endpoint.removesuffix("/chat/completions")
    return AsyncOpenAI(api_key=server.key or "none", base_url=base, max_retries=0, timeout=None, http_client=http)


class _Bounded(httpx2.AsyncByteStream):
    """The beginning of a stream, at most a chunk more than `LARGEST_ANSWER`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            yield chunk
            size += len(chunk)
            if size > LARGEST_ANSWER:
                return

    async def aclose(self) -> None:
        """Close the connection, or give it back."""
        await self.stream.aclose()


# --- messages --------------------------------------------------------------------------------------------------------


def message_content(request: Request) -> str | list[dict[str, Any]] | None:
    """The content of a chat message; None where the picture cannot be had. Called in threads."""
    if request.image is None:
        return encodable(request.prompt)
    image = request.image()
    if image is None:
        return None
    picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
    return [picture, {"type": "text", "text": encodable(request.prompt)}]


def data_url(image: Image.Image) -> str:
    """A picture as the `data:` address that servers take: a JPEG of at most `IMAGE_SIDE` pixels a side."""
    if max(image.size) > IMAGE_SIDE:
        image = image.copy()
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def error_message(raw: bytes) -> str:
    """The message of an error in JSON, or the beginning of anything else."""
    text = raw[:2000].decode("utf-8", "replace")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return text or "nothing"
    while isinstance(found, dict):
        inner = next((found[key] for key in ("error", "message", "detail", "msg") if found.get(key)), None)
        if inner is None:
            return text
        found = inner
    return found if isinstance(found, str) else text
