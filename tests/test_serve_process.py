"""The server as a process: ports, connections that say nothing, large bodies, a change under load, its end."""

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
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from tests.conftest import TOY_SETTINGS, write_toy

pytestmark = pytest.mark.slow

CONNECTIONS, SECONDS = 64, 3
REACHABLE = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
"""Ctrl-C reaches a server even where the tests run in a shell's background, whose jobs ignore it."""
IDLE = 10_000
"""Connections that are opened and say nothing, as far as this process may."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("serving")
    data = write_toy(folder / "data")
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(data), "checkpoint_dir": str(folder / "saved")}
    return [recbole_mm.run("SASRec", "toy", config_dict={**settings, "seed": seed}).run_dir for seed in (1, 2)]


class Server:
    """A server of its own process.

    Attributes:
        process, address, port: of it.
    """

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(run), "--port=0", *options]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, preexec_fn=REACHABLE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving \S+ at (http://127\.0\.0\.1:(\d+))/\n", line)
        assert found is not None, (line, self.process.communicate()[1])
        self.address, self.port = found[1], int(found[2])

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.address, trust_env=False, timeout=30)

    def ended(self) -> tuple[int, str, str]:
        """Exit status and what was printed, once it has ended."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def server(run: Path, *options: str) -> Iterator[Server]:
    one = Server(run, *options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_sigterm_answers_what_was_asked_and_ends(runs):
    with server(runs[0]) as one, one.client() as client:
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
    with server(runs[0]) as one:
        one.process.send_signal(signal.SIGINT)
        status, _, err = one.ended()
    assert (status, err) == (130, "interrupted\n")


def test_a_port_in_use_is_one_line(runs):
    with server(runs[0]) as one:
        command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(runs[1]), f"--port={one.port}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "it is in use" in done.stderr


@pytest.mark.parametrize("told", [True, False])
def test_a_body_of_100_mb_is_refused_and_costs_no_memory(runs, told):
    block, blocks = b" " * (1 << 20), 100
    with server(runs[0]) as one, one.client() as client:
        client.post("/recommend", json={"user": "u1"})
        before = _peak_mib(one.process.pid)
        headers = {"content-type": "application/json"}
        if told:
            headers["content-length"] = str(len(block) * blocks)
        answer = client.post("/recommend", content=(block for _ in range(blocks)), headers=headers)
        assert answer.status_code == 413
        assert _peak_mib(one.process.pid) - before < 20
        assert client.post("/recommend", json={"user": "u1"}).status_code == 200


def _peak_mib(process: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def test_connections_that_say_nothing_are_bounded_and_closed(runs):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 500), hard))
    count = min(IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 300)
    try:
        with server(runs[0], f"--connections={CONNECTIONS}", f"--timeout={SECONDS}") as one, ExitStack() as stack:
            begun = time.monotonic()
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=30))
            assert _files(one.process.pid) < CONNECTIONS + 300
            answered = False
            while not answered and time.monotonic() - begun < 60:
                with suppress(httpx2.TransportError), one.client() as client:
                    answered = client.get("/health").status_code == 200
                time.sleep(0.1)
            assert answered
            time.sleep(SECONDS)
            assert _files(one.process.pid) < CONNECTIONS  # those that said nothing have been closed
            one.process.send_signal(signal.SIGTERM)
            status, _, err = one.ended()
            assert (status, err) == (0, "")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.parametrize(
    "begin", [b"GET /health HT", b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"]
)
def test_a_request_that_comes_drop_by_drop_is_cut(runs, begin):
    with server(runs[0], f"--timeout={SECONDS}") as one:
        with socket.create_connection(("127.0.0.1", one.port), timeout=1) as drops:
            drops.sendall(begin)
            began = time.monotonic()
            while time.monotonic() - began < 5 * SECONDS:
                try:
                    drops.sendall(b" ")
                    if drops.recv(1000) == b"" or b"504" in begin:
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            assert time.monotonic() - began < 2 * SECONDS + 1
        with one.client() as client:
            assert client.get("/health").status_code == 200


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_no_request_is_lost_while_runs_change(runs, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(runs[0])

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
            turn(runs[turns % 2])
            one.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(_serves, one, runs[turns % 2].name)
        until.set()
        return await loading

    with server(link, "--look_every=0") as one:
        found = asyncio.run(change(one))
        with one.client() as client:
            counted = client.get("/metrics").text
    assert {status for status, _ in found} == {200}
    assert {run for _, run in found} == {run.name for run in runs}
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
    key = "a-key-of-sixteen-or-more"
    monkeypatch.setenv("RECBOLE_MM_API_KEY", key)
    with server(runs[0]) as one, one.client() as client:
        assert client.get("/run").status_code == 401
        assert client.get("/run", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert json.loads(client.get("/health").text)["status"] == "ok"
        one.process.send_signal(signal.SIGTERM)
        assert key not in "".join(map(str, one.ended()))
