"""The server answers as the recommender does, with items as the data have them."""

from __future__ import annotations

import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recbole_mm.errors import ConfigError
from recbole_mm.recommending.opening import open_run
from recbole_mm.serving.schema import RecommendRequest, SimilarRequest
from recbole_mm.serving.served import PICTURE_SIDE, Catalogue, UnknownIdError, opened_at
from recbole_mm.serving.service import Service
from tests.serving.toy_runs import HOSTILE, asking, listed

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


def test_near_ids_are_sought_among_neighbours():
    numbers = {"[PAD]": 0, **{f"item{number:06}": number + 1 for number in range(50_000)}}
    items = Catalogue("item", numbers)
    with pytest.raises(UnknownIdError, match="did you mean 'item0123"):
        items.number("item01234")
    with pytest.raises(UnknownIdError, match=r"run$"):
        items.number("x" * 300)
    assert items.beginning_with("item0499", 200) == [f"item0{number}" for number in range(49900, 50000)]
