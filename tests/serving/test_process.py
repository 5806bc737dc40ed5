"""The server as a process: large bodies, connections that say nothing, a change under load, its end."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from recbole_mm.cli.serve import KEY_ENV
from tests.serving.server_process import ROOT, Server, server
from tests.serving.toy_runs import KEY

pytestmark = pytest.mark.slow

CONNECTIONS, SECONDS = 64, 3
IDLE = 10_000
"""Connections that are opened and say nothing, as far as this process may."""
POST_BEGUN = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n\r\n{"


@pytest.fixture(scope="module")
def running(runs) -> Iterator[Server]:
    """A server that no test ends."""
    with server(runs["first"]) as one:
        yield one


def test_sigterm_answers_what_was_asked_and_ends(runs):
    with server(runs["first"]) as one, one.client() as client:
        assert client.post("/recommend", json={"user": "u1"}).status_code == 200
        sent = threading.Event()
        answers: list[int] = []

        def slowly() -> Iterator[bytes]:
            yield b'{"user": '
            sent.set()
            time.sleep(1)
            yield b'"u2"}'

        def ask() -> None:
            headers = {"content-type": "application/json"}
            answers.append(client.post("/recommend", content=slowly(), headers=headers).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        assert sent.wait(10)
        time.sleep(0.3)
        one.process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers == [200]
        status, out, err = one.ended()
    assert (status, out, err) == (0, "ended\n", "")


def test_ctrl_c_is_an_interruption(runs):
    with server(runs["first"]) as one:
        one.process.send_signal(signal.SIGINT)
        status, _, err = one.ended()
    assert (status, err) == (130, "interrupted\n")


def test_a_port_in_use_is_one_line(running, runs):
    command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(runs["second"]), f"--port={running.port}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "it is in use" in done.stderr


@pytest.mark.parametrize("told", [True, False])
def test_a_body_of_100_mb_is_refused_and_costs_no_memory(running, told):
    block, blocks = b" " * (1 << 20), 100
    with running.client() as client:
        client.post("/recommend", json={"user": "u1"})
        before = _peak_mib(running.process.pid)
        headers = {"content-type": "application/json"}
        if told:
            headers["content-length"] = str(len(block) * blocks)
        answer = client.post("/recommend", content=(block for _ in range(blocks)), headers=headers)
        assert answer.status_code == 413
        assert _peak_mib(running.process.pid) - before < 20
        assert client.post("/recommend", json={"user": "u1"}).status_code == 200


def _peak_mib(process: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def test_connections_that_say_nothing_and_slow_requests_are_cut(runs):
    """10,000 connections are opened; a request that comes a byte at a time is closed after its seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 500), hard))
    count = min(IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 300)
    try:
        with server(runs["first"], f"--connections={CONNECTIONS}", f"--timeout={SECONDS}") as one, ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=30))
            assert _files(one.process.pid) < CONNECTIONS + 300
            assert _is_healthy(one, 60)
            time.sleep(SECONDS)
            assert _files(one.process.pid) < CONNECTIONS  # those that said nothing have been closed
            for begin in (b"GET /health HT", POST_BEGUN):
                _send_slowly(one.port, begin)
            assert _is_healthy(one, 1)
            one.process.send_signal(signal.SIGTERM)
            status, _, err = one.ended()
            assert (status, err) == (0, "")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def _is_healthy(one: Server, seconds: float) -> bool:
    """Return whether the server answers within some seconds."""
    begun = time.monotonic()
    while True:
        with suppress(httpx2.TransportError), one.client() as client:
            if client.get("/health").status_code == 200:
                return True
        if time.monotonic() - begun > seconds:
            return False
        time.sleep(0.1)


def _send_slowly(port: int, begin: bytes) -> None:
    """Begin a request and go on with spaces until the server closes the connection, which it has to do in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.2) as connection:
        connection.sendall(begin)
        begun = time.monotonic()
        while not _is_closed(connection):
            assert time.monotonic() - begun < 3 * SECONDS
            with suppress(OSError):
                connection.sendall(b" ")


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_no_request_is_lost_while_runs_change(runs, tmp_path):
    pair, link = (runs["first"], runs["second"]), tmp_path / "current"
    link.symlink_to(pair[0])

    def turn(folder: Path) -> None:
        link.with_name("next").symlink_to(folder)
        link.with_name("next").replace(link)

    async def load(address: str, until: asyncio.Event) -> Counter[tuple[int, str]]:
        found: Counter[tuple[int, str]] = Counter()

        async def ask(client: httpx2.AsyncClient, worker: int) -> None:
            number = worker
            while not until.is_set():
                number += 7
                body: dict[str, Any] = {"user": f"u{number % 60}"} if number % 2 else {"history": [f"i{number % 40}"]}
                answer = await client.post("/recommend", json=body)
                found[answer.status_code, answer.json().get("run", "")] += 1

        async with httpx2.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            await asyncio.gather(*(ask(client, worker) for worker in range(16)))
        return found

    async def change(one: Server) -> Counter[tuple[int, str]]:
        until = asyncio.Event()
        loading = asyncio.create_task(load(one.address, until))
        for turns in range(1, 5):
            turn(pair[turns % 2])
            one.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(_serves, one, pair[turns % 2].name)
        until.set()
        return await loading

    with server(link, "--look_every=0") as one:
        found = asyncio.run(change(one))
        with one.client() as client:
            counted = client.get("/metrics").text
    assert {status for status, _ in found} == {200}
    assert {run for _, run in found} == {run.name for run in pair}
    assert 'recbole_mm_changes_total{outcome="done"} 4.0' in counted
    assert f'recbole_mm_requests_total{{path="/recommend",status="200"}} {float(found.total())}' in counted
    assert _batches_were_larger_than_one(counted)


def _serves(one: Server, run: str) -> None:
    assert one.process.stdout is not None
    assert one.process.stdout.readline() == f"serving {run} from now on\n"


def _batches_were_larger_than_one(text: str) -> bool:
    counts = {name: float(value) for name, value in re.findall(r"recbole_mm_batch_size_(sum|count) (\S+)", text)}
    return counts["sum"] > counts["count"]


def test_others_are_answered_with_a_key(runs, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY)
    with server(runs["first"]) as one, one.client() as client:
        assert client.get("/run").status_code == 401
        assert client.get("/run", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert json.loads(client.get("/health").text)["status"] == "ok"
        one.process.send_signal(signal.SIGTERM)
        assert KEY not in "".join(map(str, one.ended()))
