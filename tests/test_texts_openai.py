"""Texts by a server that behaves, stalls, breaks, is busy, talks junk, or is not there."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.errors import ConfigError, ImageError
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.openai import (
    IMAGE_SIDE,
    LARGEST_ANSWER,
    SENT_HEADERS,
    OpenAIGenerator,
    Server,
    TextServerError,
)
from recbole_mm.llm.texts.stage import texts_through_store
from recbole_mm.utils.retry_after import retry_after

KEY = "sk-hush"


def completion(text: Any, finish: str = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


class FakeServer:
    """An HTTP server on a free port of this machine, whose answers a test decides.

    Args:
        answer: (handler, the request's JSON, how many requests with this prompt came before) -> (status, headers,
            content); or None where it has answered itself, or will not.
    """

    def __init__(self, answer: Callable[[Any, dict, int], tuple[int, dict, bytes] | None]) -> None:
        self.seen: list[dict] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.most_at_once = self._now = 0
        self.ended = threading.Event()
        lock, fake = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    before = sum(seen["messages"] == body["messages"] for seen in fake.seen)
                    fake.seen.append(body)
                    fake.headers.append(self.headers)
                    fake.paths.append(self.path)
                    fake.times.append(time.monotonic())
                    fake._now += 1
                    fake.most_at_once = max(fake.most_at_once, fake._now)
                try:
                    said = answer(self, body, before)
                    if said is not None:
                        status, headers, content = said
                        self.send_response(status)
                        for name, value in {"Content-Length": str(len(content)), **headers}.items():
                            self.send_header(name, value)
                        self.end_headers()
                        self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # who asked has gone
                finally:
                    with lock:
                        fake._now -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    opened: list[FakeServer] = []

    def start(answer: Callable) -> FakeServer:
        opened.append(FakeServer(answer))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def echo(_: Any, body: dict, __: int) -> tuple[int, dict, bytes]:
    return 200, {}, completion(f"About {prompt_of(body)}.")


def prompt_of(body: dict) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def generator_of(url: str, writing: Writing | None = None, **settings: Any) -> OpenAIGenerator:
    patience = {"concurrency": 4, "timeout": 5.0, "retries": 2, "backoff": 0.01}
    return OpenAIGenerator(Server(url, "m", **{**patience, **settings}), writing or Writing())


def asked(*prompts: str) -> list[Request]:
    return [Request(prompt, None) for prompt in prompts]


# --- a server that behaves -------------------------------------------------------------------------------------------


def test_a_request_says_what_it_should(serve) -> None:
    server = serve(echo)
    writing = Writing(max_new_tokens=33)
    assert generator_of(server.url, writing, key=KEY).generate(asked("a film")) == ["About a film."]
    assert server.seen == [
        {"model": "m", "messages": [{"role": "user", "content": "a film"}], "temperature": 0.0, "max_tokens": 33}
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    generator_of(f"{server.url}/", Writing(temperature=0.7, top_p=0.9, seed=4)).generate(asked("\ud800"))
    assert {"temperature": 0.7, "top_p": 0.9, "seed": 4}.items() <= server.seen[1].items()
    assert server.seen[1]["messages"][0]["content"] == "?"
    assert "Authorization" not in server.headers[1]
    assert server.paths == ["/v1/chat/completions"] * 2


def test_a_server_is_told_nothing_of_the_machine_or_of_other_accounts(serve, monkeypatch) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(variable, "sk-other")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    server = serve(echo)
    assert generator_of(server.url).generate(asked("a")) == ["About a."]
    assert "sk-other" not in str(server.headers[0])
    assert {name.lower() for name in server.headers[0]} <= SENT_HEADERS
    assert server.headers[0]["User-Agent"]  # some hosts refuse requests without one
    assert "application/json" in server.headers[0]["Accept"]


def test_a_picture_is_sent_as_a_jpeg_of_bounded_size(serve) -> None:
    server = serve(echo)
    requests = [
        Request("large", None, lambda: Image.new("RGB", (3000, 1500), (200, 10, 10)), "1"),
        Request("small", None, lambda: Image.new("L", (20, 30)), "2"),
    ]
    assert generator_of(server.url).generate(requests) == ["About large.", "About small."]
    sizes = {}
    for body in server.seen:
        picture, text = body["messages"][0]["content"]
        assert (picture["type"], text["type"]) == ("image_url", "text")
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        sizes[text["text"]] = (image.mode, image.size)
    assert sizes == {"large": ("RGB", (IMAGE_SIDE, IMAGE_SIDE // 2)), "small": ("RGB", (20, 30))}


def test_order_is_kept_and_as_many_are_asked_at_once_as_wanted(serve) -> None:
    def slower_first(_: Any, body: dict, __: int) -> tuple[int, dict, bytes]:
        time.sleep(0.2 if prompt_of(body) < "p3" else 0.02)
        return echo(_, body, __)

    server = serve(slower_first)
    prompts = [f"p{number}" for number in range(12)]
    assert generator_of(server.url, concurrency=3).generate(asked(*prompts)) == [f"About {each}." for each in prompts]
    assert server.most_at_once == 3
    assert prompt_of(server.seen[0]) == "p0"
    assert server.times[1] - server.times[0] >= 0.15, "the first one alone shows whether any can succeed"


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (completion("Sure! Here is the description: **A film.**"), "A film."),
        (completion("<think>hm</think>A film."), "A film."),
        (completion([{"type": "text", "text": "A "}, {"type": "text", "text": "film."}]), "A film."),
        (completion("A film about love and war. It is a", finish="length"), "A film about love and war."),
        (completion("word " * 300), " ".join(["word"] * 100)),
        (completion(""), Failure("the answer is empty")),
        (completion(None), Failure("the model said nothing (a reasoning model may need a larger text_max_new_tokens)")),
        (completion("I cannot help with that."), Failure("the model refused to answer")),
        (completion(None, refusal="no"), Failure("the model or the server refused to answer")),
        (completion("half of", finish="content_filter"), Failure("the model or the server refused to answer")),
    ],
)
def test_answers_are_read(serve, content: bytes, outcome: str | Failure) -> None:
    server = serve(lambda *_: (200, {}, content))
    assert generator_of(server.url).generate(asked("?")) == [outcome]
    assert len(server.seen) == 1


def test_tokens_are_estimated_and_too_long_a_prompt_is_not_sent(serve) -> None:
    server = serve(echo)
    generator = generator_of(server.url, Writing(context_tokens=10))
    assert [generator.count_tokens("x" * length) for length in (0, 1, 4, 5)] == [0, 1, 1, 2]
    texts = generator.generate(asked("x" * 41, "x" * 40))
    assert texts[0] == Failure("the prompt has about 11 tokens, more than text_context_tokens (10)")
    assert isinstance(texts[1], str)
    assert len(server.seen) == 1


def test_newer_models_of_openai_are_asked_in_their_own_words(serve) -> None:
    def newer(_: Any, body: dict, __: int) -> tuple[int, dict, bytes]:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {}, json.dumps({"error": {"message": message}}).encode()
        assert body["max_completion_tokens"] == 256
        return echo(_, body, __)

    server = serve(newer)
    assert generator_of(server.url).generate(asked("a", "b", "c")) == ["About a.", "About b.", "About c."]
    assert sum("max_tokens" in body for body in server.seen) == 1


# --- a server that does not ------------------------------------------------------------------------------------------


def drop(handler: Any) -> None:
    """Close the connection without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def half(handler: Any) -> None:
    """Promise a whole answer, send half of it, close."""
    content = completion("a film")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    drop(handler)


TROUBLES: dict[str, Callable[[Any], tuple[int, dict, bytes] | None]] = {
    "429": lambda _: (429, {}, b'{"error": {"message": "slow down"}}'),
    "500": lambda _: (500, {}, b"oops"),
    "502": lambda _: (502, {}, b"<html>Bad Gateway</html>"),
    "503": lambda _: (503, {"Retry-After": "0"}, b""),
    "dropped": drop,
    "half an answer": half,
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_passing_trouble_is_survived(serve, trouble: str) -> None:
    def shaky(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes] | None:
        return TROUBLES[trouble](handler) if before < 2 else echo(handler, body, before)

    server = serve(shaky)
    assert generator_of(server.url).generate(asked("a", "b", "c")) == ["About a.", "About b.", "About c."]
    assert len(server.seen) == 9


@pytest.mark.parametrize("trouble", TROUBLES)
def test_lasting_trouble_with_one_request_is_its_failure(serve, trouble: str) -> None:
    def poisoned(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes] | None:
        return TROUBLES[trouble](handler) if prompt_of(body) == "bad" else echo(handler, body, before)

    server = serve(poisoned)
    texts = generator_of(server.url).generate(asked("a", "bad", "c"))
    assert (texts[0], texts[2]) == ("About a.", "About c.")
    assert isinstance(texts[1], Failure)
    assert texts[1].reason.endswith("(tried 3 times)")
    assert "\n" not in texts[1].reason
    assert len(server.seen) == 5


@pytest.mark.parametrize("way", ["before the status", "inside the answer"])
def test_a_stall_ends_after_the_time_for_a_whole_answer(serve, way: str) -> None:
    def stalling(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes] | None:
        if prompt_of(body) != "slow":
            return echo(handler, body, before)
        if way == "inside the answer":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            while not server.ended.wait(0.05):  # a byte now and then: no pause is ever long
                handler.wfile.write(b" ")
                handler.wfile.flush()
        server.ended.wait(60)
        return None

    server = serve(stalling)
    started = time.monotonic()
    texts = generator_of(server.url, timeout=1.5, retries=1).generate(asked("a", "slow", "b"))
    assert texts == ["About a.", Failure("no whole answer within 1.5 s (tried 2 times)"), "About b."]
    assert time.monotonic() - started < 30


def test_retry_after_makes_everybody_wait(serve) -> None:
    def busy(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes]:
        if prompt_of(body) == "busy" and before == 0:
            return 429, {"Retry-After": "2"}, b""
        time.sleep(0.1)
        return echo(handler, body, before)

    server = serve(busy)
    generator_of(server.url, concurrency=2).generate(asked("a", "busy", *(f"p{number}" for number in range(8))))
    refused = next(time for body, time in zip(server.seen, server.times) if prompt_of(body) == "busy")
    later = [moment - refused for moment in server.times if moment > refused + 1]  # those before had begun
    assert later
    assert min(later) >= 1.95


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after("0.5") == 0.5
    assert 55 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after(formatdate(0, usegmt=True)) == 0
    assert retry_after("-3") == 0
    for nothing in (None, "", "soon", "nan", "inf"):
        assert retry_after(nothing) is None


def test_pauses_double_and_differ(serve, monkeypatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("recbole_mm.llm.texts.openai.asyncio.sleep", sleep)
    server = serve(lambda *_: (500, {}, b""))
    random.seed(1)
    state = random.getstate()
    generator_of(server.url, retries=9, backoff=1.0).generate(asked("a"))
    assert random.getstate() == state, "waiting must not change what a run draws"
    assert len(slept) == 9
    assert all(min(2**attempt, 60) / 2 <= pause <= min(2**attempt, 60) for attempt, pause in enumerate(slept))
    assert len({pause / 2**attempt for attempt, pause in enumerate(slept[:6])}) == 6


JUNK = {
    "nothing": b"",
    "half": b'{"choices": [{"mess',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"text"',
    "another object": b"{}",
    "empty choices": b'{"choices": []}',
    "no choices": b'{"choices": null}',
    "a number": b'{"choices": [1]}',
    "no message": b'{"choices": [{"message": null}]}',
    "no content": b'{"choices": [{"message": {}}]}',
    "text choices": b'{"choices": ["text"]}',
    "bytes": b"\xff\xfe",
    "HTML": b"<html><body>Welcome\nto nginx</body></html>",
    "depth": b"[" * 100_000,
    "an error": b'{"error": {"message": "no such thing"}}',
}


@pytest.mark.parametrize("content", JUNK.values(), ids=JUNK)
def test_junk_is_a_failure_at_once(serve, content: bytes) -> None:
    server = serve(
        lambda handler, body, before: (200, {}, content) if prompt_of(body) == "?" else echo(handler, body, before)
    )
    texts = generator_of(server.url).generate(asked("a", "?", "b"))
    assert (texts[0], texts[2]) == ("About a.", "About b.")
    assert isinstance(texts[1], Failure)
    assert texts[1].reason.startswith("the server's answer is no chat completion")
    assert "\n" not in texts[1].reason
    assert len(texts[1].reason) < 300
    assert len(server.seen) == 3


def test_an_answer_without_end_is_cut_short(serve) -> None:
    def endless(handler: Any, body: dict, before: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        while not server.ended.is_set():
            handler.wfile.write(b"x" * 2**20)

    server = serve(endless)
    (outcome,) = generator_of(server.url, timeout=60.0).generate(asked("a"))
    assert isinstance(outcome, Failure)
    assert "no chat completion" in outcome.reason
    assert LARGEST_ANSWER < 2**25


@pytest.mark.parametrize("status", [400, 413, 422, 403])
def test_one_refused_request_is_a_failure_at_once(serve, status: int) -> None:
    def refusing(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes]:
        if prompt_of(body) == "bad":
            return status, {}, json.dumps({"error": {"message": f"no {KEY}\nfor you"}}).encode()
        return echo(handler, body, before)

    server = serve(refusing)
    texts = generator_of(server.url, key=KEY).generate(asked("a", "bad", "b"))
    assert texts == ["About a.", Failure(f"the server answered {status}: no [key] for you"), "About b."]
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 307])
def test_a_first_request_that_shows_that_none_can_succeed_ends_the_stage(serve, tmp_path, status: int, caplog) -> None:
    message = json.dumps({"detail": f"no {KEY} here"}).encode()
    server = serve(lambda *_: (status, {"Location": "http://127.0.0.1:1/"}, message))
    requests = dict(enumerate(asked(*map(str, range(100)))))
    with Store(tmp_path / "artifacts.sqlite") as store, pytest.raises(TextServerError) as caught:
        texts_through_store(store, "stage", generator_of(server.url, key=KEY), requests, show_progress=False)
    assert isinstance(caught.value, ConfigError)
    assert f"{status}: no [key] here" in str(caught.value)
    assert "check" in str(caught.value) or "valid key" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text
    assert len(server.seen) == 1


def test_a_key_that_expires_ends_the_stage_and_keeps_what_is_finished(serve, tmp_path) -> None:
    def expiring(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes]:
        return (401, {}, b"expired") if len(server.seen) > 20 else echo(handler, body, before)

    server = serve(expiring)
    requests = dict(enumerate(asked(*map(str, range(100)))))
    with Store(tmp_path / "artifacts.sqlite") as store:
        with pytest.raises(TextServerError, match="expired"):
            texts_through_store(store, "stage", generator_of(server.url), requests, show_progress=False)
        assert store.count("stage") == 20
        assert len(server.seen) <= 20 + 4
        good = serve(echo)
        report = texts_through_store(store, "stage", generator_of(good.url), requests, show_progress=False)
    assert report.computed == 80
    assert len(good.seen) == 80


def test_a_server_that_is_not_there_is_said_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(TextServerError, match="no server answers at") as caught:
            generator_of(url).generate(asked("a", "b"))
    assert url in str(caught.value)
    with pytest.raises(TextServerError, match="no server answers at"):
        generator_of("http://no-such-host.invalid/v1").generate(asked("a"))


@pytest.mark.parametrize("trouble", ["dropped", "500 from the start"])
def test_a_server_that_goes_away_ends_the_stage(serve, trouble: str) -> None:
    def dying(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes] | None:
        if trouble == "500 from the start":
            return 500, {}, b""
        return drop(handler) if len(server.seen) > 5 else echo(handler, body, before)

    server = serve(dying)
    with pytest.raises(TextServerError, match="12 requests in a row"):
        generator_of(server.url, retries=0).generate(asked(*map(str, range(200))))
    # Six answered, twelve that were lost in a row, at most as many before a slow answer began the row anew, four on
    # their way: far from all 200.
    assert len(server.seen) < 40


def failing(error: Exception) -> Callable[[], Image.Image]:
    def load() -> Image.Image:
        raise error

    return load


@pytest.mark.parametrize("load", [lambda: None, failing(ImageError("torn")), failing(OSError("gone"))])
def test_a_picture_that_cannot_be_had_is_a_failure(serve, load: Callable) -> None:
    server = serve(echo)
    texts = generator_of(server.url).generate([Request("?", None, load, "hash"), *asked("a")])
    assert texts[1] == "About a."
    assert isinstance(texts[0], Failure)
    assert texts[0].reason.startswith("the picture cannot be loaded")
    assert len(server.seen) == 1


def test_a_mistake_in_the_program_is_not_hidden(serve) -> None:
    with pytest.raises(ZeroDivisionError):
        generator_of(serve(echo).url).generate([Request("?", None, failing(ZeroDivisionError()), "hash")])


def test_the_environments_proxy_is_not_asked_about_this_machine(serve, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert generator_of(serve(echo).url).generate(asked("a")) == ["About a."]


def test_a_key_on_an_open_line_is_warned_about(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        generator_of("http://127.0.0.1:1/v1", key=KEY)
        generator_of("http://localhost:1/v1", key=KEY)
        generator_of("https://example.com/v1", key=KEY)
        generator_of("http://example.com/v1")
        assert not caplog.text
        generator_of("http://example.com/v1", key=KEY)
    assert "others can read them" in caplog.text
    assert KEY not in caplog.text


# --- kill and leave --------------------------------------------------------------------------------------------------


def test_leaving_a_stream_ends_the_requests_under_way(serve) -> None:
    def slow(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes]:
        server.ended.wait(0 if prompt_of(body) == "0" else 120)
        return echo(handler, body, before)

    server = serve(slow)
    stream = generator_of(server.url, timeout=200.0).stream(dict(zip("0123456789", asked(*"0123456789"))))
    started = time.monotonic()
    assert next(stream) == {"0": "About 0."}
    stream.close()
    assert time.monotonic() - started < 60
    assert not [thread for thread in threading.enumerate() if thread.name == "text-server"]
    unread = generator_of(server.url).stream({"1": asked("1")[0]})
    unread.close()


PROGRAM = """
import sys
from recbole_mm.artifacts.store import Store
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.openai import OpenAIGenerator, Server
from recbole_mm.llm.texts.stage import texts_through_store
generator = OpenAIGenerator(Server(sys.argv[1], "m", concurrency=2), Writing())
requests = {number: Request(str(number), None) for number in range(40)}
texts_through_store(Store(sys.argv[2]), "stage", generator, requests, show_progress=False)
"""


def test_killed_and_resumed_asks_only_for_what_was_under_way(serve, tmp_path) -> None:
    enough = threading.Event()

    def stopping(handler: Any, body: dict, before: int) -> tuple[int, dict, bytes]:
        if len(server.seen) > 12:
            enough.set()
            server.ended.wait(60)
        return echo(handler, body, before)

    server = serve(stopping)
    path = tmp_path / "artifacts.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), server.url, str(path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        assert enough.wait(120)
        with Store(path) as store:
            deadline = time.monotonic() + 120
            while store.count("stage") < 12 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
            assert store.count("stage") == 12
            good = serve(echo)
            requests = {number: Request(str(number), None) for number in range(40)}
            report = texts_through_store(store, "stage", generator_of(good.url), requests, show_progress=False)
    finally:
        process.kill()
    assert report.computed == len(good.seen) == 28
    assert report.texts == {number: f"About {number}." for number in range(40)}


@pytest.mark.parametrize("charset", ["utf-16", "idna", "zlib_codec", "nonsense"])
def test_an_error_in_any_codec_is_a_failure(serve, charset: str) -> None:
    kind = {"Content-Type": f"application/json; charset={charset}"}
    server = serve(lambda *_: (400, kind, b'{"error": "too long"}'))
    assert generator_of(server.url).generate(asked("?")) == [Failure("the server answered 400: too long")]


def test_a_packed_answer_is_not_unpacked(serve) -> None:
    """A few hundred kilobytes may hold gigabytes."""
    packed = gzip.compress(bytes(200 * 2**20), 9)

    def bomb(*_: Any) -> tuple[int, dict, bytes]:
        return 200, {"Content-Encoding": "gzip"}, packed

    server = serve(bomb)
    tracemalloc.start()
    try:
        (answer,) = generator_of(server.url).generate(asked("a"))
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert isinstance(answer, Failure)
    assert "no chat completion" in answer.reason
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_key_goes_nowhere_else(serve, status: int) -> None:
    other = serve(echo)
    server = serve(lambda *_: (status, {"Location": f"{other.url}/chat/completions"}, b""))
    with pytest.raises(TextServerError, match=f"answered {status}") as error:
        generator_of(server.url, key="sk-secret").generate(asked("a", "b"))
    assert other.seen == []
    assert len(server.seen) == 1
    assert "sk-secret" not in str(error.value)
