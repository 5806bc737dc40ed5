"""Many requests at once, too many, late ones, and a change of the run meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from recbole_mm.serving.app import create_app
from recbole_mm.serving.batching import Batcher, BusyError
from recbole_mm.serving.guard import Guard
from recbole_mm.serving.metrics import Metrics
from recbole_mm.serving.schema import RecommendRequest
from recbole_mm.serving.served import opened_at
from recbole_mm.serving.server import rest_memory
from recbole_mm.serving.service import Service, newest_run
from tests.serving.toy_runs import asking, listed


def test_questions_that_come_while_one_is_answered_go_together():
    batches: list[list[int]] = []
    first, go = threading.Event(), threading.Event()

    def answer(questions: Sequence[int]) -> list[int | Exception]:
        batches.append(list(questions))
        first.set()
        assert go.wait(10)
        return [ValueError("seven") if question == 7 else question * 10 for question in questions]

    async def ask() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(answer, most_at_once=3, most_waiting=5)
        work = asyncio.create_task(batcher.work())
        asked = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(first.wait)
        asked += [asyncio.create_task(batcher.ask(number)) for number in (1, 7, 2, 3, 4)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.ask(99)
        asked[3].cancel()  # who asked 2 has gone
        await asyncio.sleep(0)
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        work.cancel()
        return found

    found = asyncio.run(ask())
    assert batches == [[0], [1, 7, 3], [4]]
    assert [found[0], found[1], found[4], found[5]] == [0, 10, 30, 40]
    assert isinstance(found[2], ValueError)
    assert isinstance(found[3], asyncio.CancelledError)


def test_a_batch_that_breaks_is_told_to_all_of_it_and_the_next_is_answered():
    def answer(questions: Sequence[int]) -> list[int | Exception]:
        return [1 // question for question in questions]

    async def ask() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(answer)
        work = asyncio.create_task(batcher.work())
        broken = await asyncio.gather(batcher.ask(0), batcher.ask(1), return_exceptions=True)
        found = [*broken, await batcher.ask(1)]
        work.cancel()
        return found

    found = asyncio.run(ask())
    assert [type(one) for one in found] == [RuntimeError, RuntimeError, int]


def test_too_many_are_told_to_come_again(runs, served):
    for client in asking(Service(runs["first"], lambda folder: served, most_waiting=0)):
        answer = client.post("/recommend", json={"user": "u1"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("late", ["body", "answer"])
def test_a_request_has_so_much_time(late):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            if late == "body":
                await asyncio.sleep(60)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/recommend", "headers": [(b"host", b"localhost")]}
        await Guard(app, Metrics(), seconds=0.05)(scope, receive, send)
        return sent

    start, body = asyncio.run(ask())
    assert start["status"] == 504
    assert b"0.05 s" in body["body"]


def test_an_error_of_the_program_is_told_without_its_inside(runs, served, monkeypatch):
    service = Service(runs["first"], lambda folder: served)
    monkeypatch.setattr(served, "facts", lambda: 1 / 0)
    with TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/run")
        assert answer.status_code == 500
        assert "division" not in answer.text
        assert 'path="/run",status="500"' in client.get("/metrics").text


def test_counts_are_read_by_prometheus(client):
    for _ in range(3):
        client.post("/recommend", json={"user": "u1"})
    client.post("/recommend", json={"user": "nobody"})
    client.get("/items/i1")
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'recbole_mm_requests_total{path="/recommend",status="200"} 3.0' in text
    assert 'recbole_mm_requests_total{path="/recommend",status="404"} 1.0' in text
    assert 'recbole_mm_requests_total{path="/items/{item:path}",status="200"} 1.0' in text
    assert "/no/such" not in text
    assert "recbole_mm_batch_size_count 4.0" in text
    assert re.search(r'recbole_mm_run\{run="SASRec-toy-\w+"\} 1.0', text)


def test_paths_are_described(client):
    document = client.get("/openapi.json").json()
    paths = {
        "/recommend",
        "/similar",
        "/items",
        "/items/{item}",
        "/images/{item}",
        "/users",
        "/run",
        "/health",
        "/metrics",
    }
    assert set(document["paths"]) == paths
    answers = document["paths"]["/recommend"]["post"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Recommendations")


# ------------------------------------------------------------------------------------------------------------- changes


def test_a_path_means_a_run_or_the_newest_of_a_folder(runs, tmp_path):
    saved = runs["first"].parent
    for age, name in enumerate(("second", "BPR", "first")):
        os.utime(runs[name] / "result.json", (1_700_000_000 - age, 1_700_000_000 - age))
    link = tmp_path / "current"
    link.symlink_to(runs["BPR"])
    for path, run in ((saved, "second"), (runs["first"], "first"), (link, "BPR")):
        found = newest_run(path)
        assert found is not None
        assert found[0] == runs[run].resolve()
    assert newest_run(tmp_path / "nowhere") is None


def test_another_run_takes_over_and_a_broken_one_does_not(runs, tmp_path, capsys):
    link = tmp_path / "current"
    link.symlink_to(runs["first"])
    settled: list[str] = []
    service = Service(link, partial(opened_at, changed={}), after_change=lambda: settled.append(service.served.name))

    def turn(folder: Path) -> None:
        link.unlink()
        link.symlink_to(folder)
        client.portal.call(service.look)

    for client in asking(service):
        before = client.post("/recommend", json={"user": "u1"}).json()
        assert before["run"] == runs["first"].name
        turn(runs["second"])
        after = client.post("/recommend", json={"user": "u1"}).json()
        assert after["run"] == client.get("/health").json()["run"] == runs["second"].name
        assert listed(after) != listed(before)
        assert capsys.readouterr().out == f"serving {runs['second'].name} from now on\n"
        broken = tmp_path / "broken"
        shutil.copytree(runs["first"], broken)
        (broken / "model.safetensors").write_bytes(b"no weights")
        turn(broken)
        link.unlink()
        client.portal.call(service.look)  # nothing is meant at all
        assert client.post("/recommend", json={"user": "u1"}).json() == after
        text = client.get("/metrics").text
        assert 'recbole_mm_changes_total{outcome="done"} 1.0' in text
        assert 'recbole_mm_changes_total{outcome="failed"} 1.0' in text
        assert text.count("recbole_mm_run{") == 1
    assert settled == [runs["second"].name]


def test_what_is_in_memory_is_left_out_of_collections():
    try:
        rest_memory()
        assert gc.get_freeze_count() > 10_000
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()


def test_a_newer_run_is_noticed_by_itself(runs, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(runs["first"])
    for client in asking(Service(link, partial(opened_at, changed={}), look_every=0.05)):
        link.unlink()
        link.symlink_to(runs["second"])
        for _ in range(600):
            if client.get("/health").json()["run"] == runs["second"].name:
                break
            client.portal.call(asyncio.sleep, 0.05)
        assert client.get("/run").json()["run"] == runs["second"].name


def test_a_question_is_answered_by_one_run_alone(runs):
    """What waits while another run takes over is looked up in the run that scores it."""
    first, second = (opened_at(runs[name], {}) for name in ("first", "second"))
    service = Service(runs["first"], lambda folder: first)

    async def ask() -> list[dict[str, Any]]:
        await service.start()
        asked = [asyncio.create_task(service.ask(RecommendRequest(user=f"u{number}"))) for number in range(8)]
        await asyncio.sleep(0)
        service.served = second
        found = await asyncio.gather(*asked)
        await service.stop()
        return found

    for number, answer in enumerate(asyncio.run(ask())):
        by = {first.name: first, second.name: second}[answer["run"]]
        alone = by.answer([RecommendRequest(user=f"u{number}")])[0]
        assert isinstance(alone, dict)
        assert [item for item, _ in listed(answer)] == [item for item, _ in listed(alone)]
