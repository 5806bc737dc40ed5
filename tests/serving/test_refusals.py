"""What may not be asked is refused in one line: wrong ids and numbers, large bodies, other hosts, no key."""

from __future__ import annotations

import json

import pytest
import torch

from recbole_mm.cli.serve import KEY_ENV, checked_key, leave_a_core
from recbole_mm.errors import ConfigError
from recbole_mm.serving.guard import MOST_BODY, is_local
from recbole_mm.serving.service import Service
from tests.serving.toy_runs import KEY, asking


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
    assert "with the header Content-Type: application/json" in answer.json()["error"]


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


@pytest.mark.parametrize(("threads", "given", "left"), [(4, None, 3), (1, None, 1), (4, "4", 4)])
def test_scoring_leaves_http_a_core(monkeypatch, threads, given, left):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        leave_a_core()
        assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)


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
