"""Texts by an OpenAI-compatible server: vLLM, SGLang, Ollama, `transformers serve`, or a hosted one.

Requests run side by side on an event loop in a thread of its own; each finished text goes straight to whoever fills the
store. What a request may meet is told apart:

- the server is busy, breaks or stalls (429, 5xx, a lost connection, no whole answer in time): tried again, later and
  later; after the last try, a `Failure`;
- this one request is refused, or its answer cannot be read: a `Failure` at once;
- no request can ever succeed (wrong key, model or address, a server that is gone): `TextServerError`, so that the
  stage ends with one message instead of thousands of failures. What was finished is kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal

import httpx2

from recbole_mm.artifacts.executor import Failure
from recbole_mm.config.yaml_settings import NOBODY
from recbole_mm.errors import ImageError
from recbole_mm.llm.texts.cleaning import clean_answer
from recbole_mm.llm.texts.generator import Writing, collected
from recbole_mm.llm.texts.request import NO_PICTURE, Request
from recbole_mm.llm.texts.server import Server, TextServerError
from recbole_mm.llm.texts.wire import IMAGE_SIDE, error_message, message_content
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


class _Lost(Exception):
    """A try that may succeed later. `pause`: seconds the server asks for; `gone`: there was no answer at all."""

    def __init__(self, reason: str, pause: float | None = None, gone: bool = False, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.pause, self.gone, self.unreachable = reason, pause, gone, unreachable


class OpenAIGenerator:
    """Asks a server for `/chat/completions`, many at once.

    The server is taken for the model it names: the address is no part of the keys, so the same model elsewhere gives
    the same texts. Greedy by default; with a temperature, the seed is sent along, and repeats as well as the server
    does.

    Args:
        server: whom to ask, and how patiently.
        writing: how texts are written. The prompt's tokens are estimated, a picture's are not counted.

    Raises:
        TextServerError: while texts are written: see the module.
    """

    makes: Literal["answers"] = "answers"

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

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """As many texts, in the same order; a `Failure` with its reason where there is none."""
        return collected(self.stream({str(place): each for place, each in enumerate(requests)}), len(requests))

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        """Yield what is finished, as soon as it is: several texts at once where they come faster than they are taken.

        Leaving early ends the requests under way.
        """
        if requests and self.server.url == NOBODY:
            raise TextServerError(
                f"text_url: {len(requests)} texts of {self.server.model} are not in the artifact store, and the "
                "settings of a finished run ask no server by themselves; say which one"
            )
        done: queue.SimpleQueue[tuple[str, str | Failure] | BaseException | None] = queue.SimpleQueue()
        asking = _Asking(self.server, self.writing, done)
        thread = threading.Thread(target=asking.run, args=(requests,), name="text-server", daemon=True)
        thread.start()
        try:
            ended = False
            while not ended:
                taken = [done.get()]
                while len(taken) < TEXTS_PER_BATCH and not done.empty():
                    taken.append(done.get())
                batch = dict(one for one in taken if isinstance(one, tuple))
                if batch:
                    yield batch
                for one in taken:
                    if isinstance(one, BaseException):
                        raise one
                ended = taken[-1] is None
        finally:
            asking.stop()
            thread.join()

    def close(self) -> None:
        """No connection outlives a stream."""


class _Asking:
    """The requests of one stream, on one event loop."""

    def __init__(self, server: Server, writing: Writing, done: queue.SimpleQueue) -> None:
        self.server, self.writing, self.done = server, writing, done
        self.jitter = random.Random()  # its own: a run's random state must not depend on how busy a server was
        self.limit = "max_tokens"
        self.succeeded = False
        self.lost_in_a_row = 0
        self.not_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None
        self._stopped = False
        self._guard = threading.Lock()

    # --- the thread --------------------------------------------------------------------------------------------------

    def run(self, requests: Mapping[str, Request]) -> None:
        """Answer all requests; the last thing put is None, or the error that ended it."""
        try:
            asyncio.run(self._guarded(requests))
            self.done.put(None)
        except asyncio.CancelledError:
            self.done.put(None)
        except BaseException as error:
            self.done.put(error)

    def stop(self) -> None:
        """End what is under way. Called from another thread."""
        with self._guard:
            self._stopped = True
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _guarded(self, requests: Mapping[str, Request]) -> None:
        with self._guard:
            if self._stopped:
                return
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            await self._all(requests)
        finally:
            with self._guard:
                self._task = None

    # --- all requests ------------------------------------------------------------------------------------------------

    async def _all(self, requests: Mapping[str, Request]) -> None:
        """One request first: if it shows that none can succeed, no second one is sent. Then several at once."""
        headers = {"Authorization": f"Bearer {self.server.key}"} if self.server.key else {}
        limits = httpx2.Limits(max_connections=self.server.concurrency)
        # A proxy that the environment names is for other machines.
        async with httpx2.AsyncClient(
            headers=headers, timeout=None, limits=limits, follow_redirects=False, trust_env=not self.server.is_local
        ) as client:
            todo = iter(requests.items())
            for key, request in islice(todo, 1):
                await self._one(client, key, request)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.server.concurrency, len(requests))):
                        group.create_task(self._work(client, todo))
            except* TextServerError as errors:
                raise errors.exceptions[0] from None

    async def _work(self, client: httpx2.AsyncClient, todo: Iterator[tuple[str, Request]]) -> None:
        for key, request in todo:
            await self._one(client, key, request)

    async def _one(self, client: httpx2.AsyncClient, key: str, request: Request) -> None:
        self.done.put((key, await self._text(client, request)))

    async def _text(self, client: httpx2.AsyncClient, request: Request) -> str | Failure:
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
            await self._wait()
            try:
                answer = await self._asked(client, content)
            except _Lost as lost:
                if attempt == self.server.retries:
                    return self._given_up(lost)
                await self._pause(lost, attempt)
            else:
                self.lost_in_a_row = 0
                return answer
        raise AssertionError("the last try returns")

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until the time the server asked everybody to wait for."""
        while (rest := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(rest)

    async def _pause(self, lost: _Lost, attempt: int) -> None:
        """Twice as long each time, from half of it to all of it, so that requests lost together return apart."""
        pause = min(self.server.backoff * 2**attempt, LONGEST_PAUSE) * self.jitter.uniform(0.5, 1.0)
        if lost.pause is not None:
            asked = min(lost.pause, LONGEST_PAUSE)
            self.not_before = max(self.not_before, time.monotonic() + asked)
            pause = max(pause, asked)
        await asyncio.sleep(pause)

    def _given_up(self, lost: _Lost) -> Failure:
        """A failure; or the end, where nobody answers at all.

        Raises:
            TextServerError: the server cannot be reached and never could, or many requests in a row got no answer.
        """
        tries = self.server.retries + 1
        if lost.unreachable and not self.succeeded:
            raise TextServerError(
                f"text_url: no server answers at {self.server.url} ({lost.reason}); start it, or correct the address"
            )
        self.lost_in_a_row = self.lost_in_a_row + 1 if lost.gone or not self.succeeded else 0
        if self.lost_in_a_row >= 3 * self.server.concurrency:
            raise TextServerError(
                f"the server at {self.server.url} has failed {self.lost_in_a_row} requests in a row "
                f"({lost.reason}); what was finished is kept: run again when it is back"
            )
        return Failure(f"{lost.reason} (tried {tries} {'time' if tries == 1 else 'times'})")

    # --- one try -----------------------------------------------------------------------------------------------------

    async def _asked(self, client: httpx2.AsyncClient, content: str | list[dict[str, Any]]) -> str | Failure:
        """Send a request, read the answer.

        Raises:
            _Lost: it may succeed later.
            TextServerError: none can succeed.
        """
        body = self._body(content)
        try:
            async with asyncio.timeout(self.server.timeout):
                status, headers, raw = await self._exchanged(client, body)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _Lost(f"no whole answer within {self.server.timeout:g} s", gone=True) from error
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            raise _Lost(f"no connection: {self._safe(str(error))}", gone=True, unreachable=True) from error
        except httpx2.HTTPError as error:
            raise _Lost(
                f"the connection was lost: {self._safe(str(error)) or type(error).__name__}", gone=True
            ) from error
        if status == 200:
            return self._read(raw)
        reason = f"the server answered {status}: {self._safe(error_message(raw))}"
        if status in TRANSIENT:
            raise _Lost(reason, retry_after(headers.get("retry-after")))
        if status in HOPELESS or (status in HOPELESS_AT_FIRST and not self.succeeded):
            raise TextServerError(
                f"text_url {self.server.url}, text_model {self.server.model!r}: {reason}{_hint(status)}"
            )
        if status == 400 and "max_completion_tokens" in reason and self.limit == "max_tokens":
            self.limit = "max_completion_tokens"  # what OpenAI's newer models call it
            return await self._asked(client, content)
        return Failure(reason)

    async def _exchanged(self, client: httpx2.AsyncClient, body: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and content. An answer without end is cut short, and none is unpacked, to any size."""
        kind = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with client.stream("POST", self.server.endpoint, content=body, headers=kind) as response:
            raw = bytearray()
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > LARGEST_ANSWER:
                    break
            return response.status_code, response.headers, bytes(raw)

    def _body(self, content: str | list[dict[str, Any]]) -> bytes:
        fields: dict[str, Any] = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.writing.temperature,
            self.limit: self.writing.max_new_tokens,
        }
        if self.writing.temperature > 0:
            fields |= {"top_p": self.writing.top_p, "seed": self.writing.seed}
        return json.dumps(fields).encode("ascii")

    def _read(self, raw: bytes) -> str | Failure:
        """The text in an answer of the server."""
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
