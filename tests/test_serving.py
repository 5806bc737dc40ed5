"""The server answers as the recommender does, many at once, and refuses in one line what it may not answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.cli.serve import KEY_ENV, checked_key
from recbole_mm.errors import CheckpointError, ConfigError
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.serving.app import create_app, read_page
from recbole_mm.serving.batching import Batcher, BusyError
from recbole_mm.serving.guard import MOST_BODY, Guard, is_local
from recbole_mm.serving.metrics import Metrics
from recbole_mm.serving.schema import RecommendRequest, SimilarRequest
from recbole_mm.serving.served import PICTURE_SIDE, Catalogue, Served, UnknownIdError, opened_at
from recbole_mm.serving.service import Service, meant
from tests.conftest import TOY_SETTINGS, write_toy

HOSTILE = {
    "i1": "<img src=x onerror=alert(1)></script><script>alert(2)</script>",
    "i2": '=HYPERLINK("http://x")',
    "i3": "\u202edlrow olleh\u202c \U0001f469\u200d\U0001f680",
}
"""Titles that would be more than text somewhere."""

KEY = "0123456789abcdef-of-a-test"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of finished runs: two of SASRec, whose seeds differ, and one of BPR."""
    folder = tmp_path_factory.mktemp("serving")
    data = write_toy(folder / "data")
    items = data / "toy" / "toy.item"
    rows = [line.split("\t") for line in items.read_text(encoding="utf-8").splitlines()]
    lines = ["\t".join([row[0], HOSTILE.get(row[0], row[1]), *row[2:]]) for row in rows]
    items.write_text("\n".join(lines) + "\n", encoding="utf-8")
    images = data / "toy" / "images"
    (images / "i4.png").write_text("<html><script>alert(3)</script></html>")
    (images / "i5.png").unlink()
    Image.new("RGB", (3000, 1000), "red").save(images / "i6.png")
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(data), "checkpoint_dir": str(folder / "saved")}

    def run(model: str, **more: Any) -> Path:
        return recbole_mm.run(model, "toy", config_dict={**settings, **more}).run_dir

    return {"first": run("SASRec"), "second": run("SASRec", seed=5), "BPR": run("BPR")}


@pytest.fixture(scope="module")
def served(runs) -> Served:
    return Served(Recommender(open_run(runs["first"])))


@pytest.fixture
def client(served, runs) -> Iterator[TestClient]:
    yield from asking(Service(runs["first"], lambda folder: served))


def asking(service: Service, **options: Any) -> Iterator[TestClient]:
    """Yield a client of an application while it is alive."""
    with TestClient(create_app(service, **options), base_url="http://127.0.0.1:8000") as client:
        yield client


def listed(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(item["item"], item["score"]) for item in answer["items"]]


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"user": "u3"}, {"users": ["u3"]}),
        ({"user": "u3", "known": "test", "mask_history": False}, {"users": ["u3"]}),
        ({"history": ["i7", "i9"]}, {"histories": ["i7", "i9"]}),
        ({"user": "u3", "history": ["i9", "i7"]}, {"users": ["u3"], "histories": ["i9", "i7"]}),
        ({"history": ["i7", "no such item"], "skip_unknown": True}, {"histories": ["i7"]}),
        ({"user": "u3", "allow": ["i1", "i2", "i3"], "exclude": ["i2"], "mask_history": False}, {"users": ["u3"]}),
    ],
)
def test_recommendations_are_the_recommenders(client, served, asked, given):
    ours = client.post("/recommend", json={"k": 7, **asked}).json()
    recommender = served.recommender
    limits = {name: recommender.item_ids(asked[name]) for name in ("allow", "exclude") if name in asked}
    top = recommender.top_k(
        7,
        users=recommender.user_ids(given["users"]) if "users" in given else None,
        histories=[recommender.item_ids(given["histories"]).tolist()] if "histories" in given else None,
        known=asked.get("known", "all"),
        mask_history=asked.get("mask_history"),
        **limits,
    )
    expected = [(str(recommender.item_tokens[item]), score) for item, score in top.row(0)]
    assert listed(ours) == expected
    assert ours["run"] == recommender.run.run_dir.name
    assert [item["title"] for item in ours["items"]] == [recommender.title(item) for item, _ in top.row(0)]
    assert len(expected) == (2 if "allow" in asked else 7)


def test_similar_items_are_the_recommenders(client, served):
    recommender = served.recommender
    top = recommender.similar(recommender.item_ids(["i7"]), 5)
    ours = client.post("/similar", json={"item": "i7", "k": 5}).json()
    assert listed(ours) == [(str(recommender.item_tokens[item]), score) for item, score in top.row(0)]


def test_questions_of_all_kinds_are_answered_together_as_alone(served):
    questions: list[Any] = [
        RecommendRequest(user="u1", k=3),
        SimilarRequest(item="i7", k=2),
        RecommendRequest(user="u2", k=9),
        RecommendRequest(user="nobody"),
        RecommendRequest(history=("i7",), k=4),
        RecommendRequest(user="u4", k=500),
        SimilarRequest(item="i8", k=5),
    ]
    together = served.answer(questions)
    for question, answer in zip(questions, together, strict=True):
        alone = served.answer([question])[0]
        assert type(answer) is type(alone)
        if isinstance(answer, Exception):
            assert str(answer) == str(alone)
            continue
        assert [item for item, _ in listed(answer)] == [item for item, _ in listed(alone)]
        np.testing.assert_allclose(*(np.array([score for _, score in listed(one)]) for one in (answer, alone)), 1e-5)
    assert isinstance(together[3], UnknownIdError)
    assert isinstance(together[5], ConfigError)


def test_one_bad_question_does_not_spoil_the_others_of_its_batch(served, monkeypatch):
    users = [RecommendRequest(user=f"u{number}") for number in range(4)]
    calls, top_k = [], served.recommender.top_k

    def failing(k: int, users: np.ndarray, **more: Any) -> Any:
        calls.append(len(users))
        if served.recommender.user_ids(["u2"])[0] in users:
            raise ConfigError("not this one")
        return top_k(k, users=users, **more)

    monkeypatch.setattr(served.recommender, "top_k", failing)
    answers = served.answer(users)
    assert [isinstance(answer, ConfigError) for answer in answers] == [False, False, True, False]
    assert calls == [4, 1, 1, 1, 1]


def test_models_of_trained_users_say_that_they_read_no_histories(runs):
    for client in asking(Service(runs["BPR"], partial(opened_at, changed={}))):
        assert client.get("/run").json()["histories"] is False
        assert client.post("/recommend", json={"user": "u1"}).status_code == 200
        refused = client.post("/recommend", json={"history": ["i7"]})
        assert refused.status_code == 422
        assert "new users" in refused.json()["error"]
        assert len(client.post("/similar", json={"item": "i7"}).json()["items"]) == 10


# -------------------------------------------------------------------------------------------------------------- items


def test_items_come_as_the_data_have_them(client):
    for item, title in HOSTILE.items():
        answer = client.get(f"/items/{item}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json()["columns"]["title"] == title
        assert answer.json()["image"] is True
    assert client.get("/items/i5").json()["image"] is False


def test_pictures_are_encoded_anew_and_small(client):
    answer = client.get("/images/i6")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (PICTURE_SIDE, round(PICTURE_SIDE / 3))
    assert client.get("/images/i6").content == answer.content
    for item in ("i4", "i5"):  # no picture but HTML, and none at all
        assert client.get(f"/images/{item}").status_code == 404
    assert client.get("/images/../../etc/passwd").status_code == 404
    assert client.get("/images/no%2Fsuch").json()["error"].startswith("item 'no/such' is not in the data")


def test_items_are_found_by_words_and_users_by_beginnings(client):
    found = client.get("/items", params={"q": "ACTION film", "limit": 100}).json()["items"]
    assert found
    assert all("action film" in item["title"].lower() for item in found)
    assert client.get("/items", params={"q": "number 17"}).json()["items"][0]["item"] == "i17"
    assert client.get("/items", params={"q": "no such words"}).json() == {"items": []}
    users = client.get("/users", params={"q": "u5", "limit": 3}).json()["users"]
    assert len(users) == 3
    assert all(user.startswith("u5") for user in users)


def test_popular_items_come_first(client, served):
    counts = np.bincount(served.recommender.dataset.rows.items, minlength=served.recommender.n_items)
    found = [item["item"] for item in client.get("/items", params={"limit": 40}).json()["items"]]
    shown = counts[served.recommender.item_ids(found)]
    assert len(found) == len(served.items)
    assert (np.diff(shown) <= 0).all()


def test_a_run_whose_images_have_gone_is_served_without(runs, tmp_path):
    data = Path(open_run(runs["first"]).config["data_path"])  # the dataset's own folder
    moved = tmp_path / "moved" / "toy"
    shutil.copytree(data, moved)
    shutil.rmtree(moved / "images")
    served = opened_at(runs["first"], {"data_path": str(moved.parent)})
    for client in asking(Service(runs["first"], lambda folder: served)):
        answer = client.post("/recommend", json={"user": "u1"}).json()
        assert answer["items"]
        assert not any(item["image"] for item in answer["items"])
        assert client.get("/images/i7").status_code == 404


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "asked", "status", "says"),
    [
        ("/recommend", {}, 422, "give a user, a history or both"),
        ("/recommend", {"user": "u61"}, 404, "user 'u61' is not in the data of the run; did you mean"),
        ("/recommend", {"history": ["i77"]}, 404, "item 'i77' is not in the data of the run; did you mean 'i7'"),
        ("/recommend", {"user": "[PAD]"}, 404, "is not in the data"),
        ("/recommend", {"history": []}, 422, "body.history: "),
        ("/recommend", {"history": ["no"], "skip_unknown": True}, 422, "empty of known items"),
        ("/recommend", {"history": ["i1"] * 10_001}, 422, "body.history: "),
        ("/recommend", {"user": "u1", "k": 0}, 422, "body.k: "),
        ("/recommend", {"user": "u1", "k": 500}, 422, "k: 500 items cannot be recommended of"),
        ("/recommend", {"user": "u1", "k": 10**30}, 422, "body.k: "),
        ("/recommend", {"user": "u" * 513}, 422, "body.user: "),
        ("/recommend", {"user": "u1", "allow": ["i1"], "exclude": ["i1"]}, 422, "no item is left to recommend"),
        ("/recommend", {"user": "u1", "reasons": True}, 422, "body.reasons: "),
        ("/recommend", {"user": "u1", "reason": True}, 422, "SASRec has no texts"),
        ("/recommend", {"user": ["u1"]}, 422, "body.user: "),
        ("/similar", {"item": "<b>"}, 404, "item '<b>' is not in the data"),
        ("/similar", {}, 422, "body.item: "),
    ],
)
def test_a_bad_question_is_one_line(client, path, asked, status, says):
    answer = client.post(path, json=asked)
    assert answer.status_code == status
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"null", b'"u1"', b"[" * 100_000, b'{"user": "u1", "k": 1e999}', b'{"user": "u1", "k": NaN}'],
)
def test_what_is_no_question_is_refused(client, body):
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]


def test_a_form_of_another_site_is_refused(client):
    answer = client.post("/recommend", content=b'{"user": "u1"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422


def test_a_large_body_is_refused_however_it_comes(client):
    large = b" " * (MOST_BODY + 1)
    assert client.post("/recommend", content=large).status_code == 413
    assert client.post("/recommend", content=iter([large])).status_code == 413  # in chunks, its length untold
    assert client.post("/recommend", content=b"x", headers={"content-length": "1_0"}).status_code == 413
    fits = json.dumps({"user": "u1"}).encode().ljust(MOST_BODY)
    assert client.post("/recommend", content=fits, headers={"content-type": "application/json"}).status_code == 200


def test_other_paths_and_methods_are_refused_in_json(client):
    assert client.get("/no/such").json() == {"error": "Not Found"}
    assert client.get("/recommend").status_code == 405
    assert client.get("/docs").status_code == 404  # a page that would load scripts of elsewhere


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_without_a_key_only_this_machine_is_answered(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_with_a_key_every_answer_needs_it(runs, served):
    for client in asking(Service(runs["first"], lambda folder: served), key=KEY):
        for path in ("/run", "/items", "/items/i1", "/images/i6", "/users", "/metrics", "/openapi.json", "/no"):
            for shown in (
                {},
                {"authorization": KEY},
                {"authorization": f"Bearer {KEY}x"},
                {"authorization": "Bearer "},
            ):
                answer = client.get(path, headers=shown)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/recommend", json={"user": "u1"}).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200
        right = {"authorization": f"Bearer {KEY}", "host": "shop.example"}
        assert client.post("/recommend", json={"user": "u1"}, headers=right).status_code == 200
        assert KEY not in client.get("/metrics", headers=right).text


def test_keys_are_checked_before_anything_is_served():
    assert checked_key("", True, "127.0.0.1") is None
    assert checked_key(KEY, False, "0.0.0.0") == KEY
    for key, local in (
        ("", False),
        ("short", True),
        ("short", False),
        ("ä" * 20, False),
        ("tab\tin the middle of it", True),
    ):
        with pytest.raises(ConfigError, match=KEY_ENV):
            checked_key(key, local, "0.0.0.0")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_hosts_that_only_this_machine_reaches(host, local):
    assert is_local(host) is local


# --------------------------------------------------------------------------------------------------- many and too many


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
        found = meant(path)
        assert found is not None
        assert found[0] == runs[run].resolve()
    assert meant(tmp_path / "nowhere") is None


def test_another_run_takes_over_and_a_broken_one_does_not(runs, tmp_path, capsys):
    link = tmp_path / "current"
    link.symlink_to(runs["first"])
    service = Service(link, partial(opened_at, changed={}))

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


# --------------------------------------------------------------------------------------------------- command and page


def test_a_port_in_use_is_one_line(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(runs["first"]), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --host=127.0.0.1 --port={port}: it is in use")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0", "--port", "0"], f"{KEY_ENV} holds no key"),
        (["--host", "no.such.host.invalid", "--port", "0"], KEY_ENV),
        (["--port", "0", "--no_such=1"], "no_such"),
    ],
)
def test_what_cannot_be_served_is_one_line(runs, capsys, monkeypatch, arguments, says):
    monkeypatch.delenv(KEY_ENV, raising=False)
    assert main(["serve", str(runs["first"]), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_there_is_one_line(runs, tmp_path, capsys):
    assert main(["serve", str(tmp_path / "no-run"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs["first"], unfinished)
    (unfinished / "result.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        Service(unfinished, partial(opened_at, changed={}))


@pytest.mark.parametrize("option", ["--port=70000", "--port=x", "--batch=0", "--timeout=nan", "--waiting=-1"])
def test_numbers_of_options_have_bounds(runs, capsys, option):
    assert main(["serve", str(runs["first"]), option]) == 2
    assert "is not from" in capsys.readouterr().err


def test_near_ids_are_sought_among_neighbours():
    numbers = {"[PAD]": 0, **{f"item{number:06}": number + 1 for number in range(50_000)}}
    items = Catalogue("item", numbers)
    with pytest.raises(UnknownIdError, match="did you mean 'item0123"):
        items.number("item01234")
    with pytest.raises(UnknownIdError, match=r"run$"):
        items.number("x" * 300)
    assert items.beginning_with("item0499", 200) == [f"item0{number}" for number in range(49900, 50000)]


def test_the_page_runs_its_own_script_alone(client):
    answer = client.get("/")
    page, policy = read_page()
    assert answer.text == page
    assert answer.headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in policy
    assert page.count("<script") == page.count("<style") == 1


def test_the_page_puts_nothing_in_as_markup_and_needs_no_other_host():
    page, _ = read_page()
    for risky in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert risky not in page
    assert not re.search(r"https?://|\ssrc=|\son\w+=\"|\sstyle=", page)


def test_every_field_of_the_page_has_a_label():
    page, _ = read_page()
    fields = re.findall(r"<input ([^>]*)>", page)
    labelled = set(re.findall(r'<label for="([\w-]+)"', page))
    for field in fields:
        name = re.search(r'id="([\w-]+)"', field)
        assert ('type="radio"' in field and "<label" in page) if name is None else name[1] in labelled
    assert '<html lang="en">' in page
    assert 'role="status"' in page
    used = set(re.findall(r'at\("([\w-]+)"\)', page))
    assert used <= set(re.findall(r'id="([\w-]+)"', page))
