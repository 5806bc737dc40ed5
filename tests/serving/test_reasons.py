"""The words that an LLM wrote of a user for the run are the reasons that the server gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.serving.schema import RecommendRequest
from recbole_mm.serving.served import Served, opened_at
from recbole_mm.serving.service import Service
from tests.conftest import TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder
from tests.serving.toy_runs import asking

MODELS: dict[str, dict[str, Any]] = {
    "MLLMMSR": {
        **{"mllm": "tiny", "mllm_image_pixels": 28 * 28, "max_text_tokens": 12, "sft_tuning": "none"},
        **{"first_stage": "SASRec", "first_stage_config": {"epochs": 1}, "rerank_k": 4, "eval_step": 0},
    },
    "MLLMRec": {"similar_threshold": 0.3, "similar_k": 4, "co_k": 3, "embedding_size": 4},
}
GENRES = ("action", "comedy", "drama", "horror")


@pytest.fixture(scope="module", params=MODELS)
def run_dir(request, tmp_path_factory) -> Path:
    """The folder of a finished run whose texts were written without an LLM, from the items' titles."""
    folder = tmp_path_factory.mktemp("reasons")
    settings = {**TOY_SETTINGS, "data_path": str(write_toy(folder / "data")), "checkpoint_dir": str(folder / "saved")}
    settings["sentence_encoder"] = write_sentence_encoder(folder / "encoder")
    return recbole_mm.run(request.param, "toy", config_dict={**settings, "epochs": 1, **MODELS[request.param]}).run_dir


@pytest.fixture(scope="module")
def served(run_dir) -> Served:
    return opened_at(run_dir, {})


@pytest.fixture
def client(served, run_dir) -> Iterator[TestClient]:
    yield from asking(Service(run_dir, lambda folder: served))


def test_a_reason_is_what_was_written_of_the_user(client, served):
    assert client.get("/run").json()["reasons"] is True
    given = {}
    for user in ("u1", "u2"):
        answer = client.post("/recommend", json={"user": user, "k": 3, "reason": True}).json()
        given[user] = answer["reason"]
        assert any(genre in given[user] for genre in GENRES)
        assert client.post("/recommend", json={"user": user, "k": 3}).json() == {**answer, "reason": None}
    assert given["u1"] != given["u2"]
    if served.recommender.config["model"] == "MLLMMSR":
        user = served.recommender.user_ids(["u1"])
        history = served.recommender.histories_of(user).items.tolist()
        preferences = served.recommender.dataset.inputs.preferences
        assert given["u1"] == preferences.of(int(user[0]), history[-10:])


def test_somebody_new_is_given_no_reason_of_somebody_else(client, served):
    if not served.reads_histories:
        assert client.post("/recommend", json={"history": ["i7"], "reason": True}).status_code == 422
        return
    answer = client.post("/recommend", json={"history": ["i7"], "reason": True}).json()
    assert answer["items"]
    assert answer["reason"] is None


def test_reasons_are_given_to_those_who_ask_within_a_batch(served):
    asked = [RecommendRequest(user="u1", reason=True), RecommendRequest(user="u2"), RecommendRequest(user="nobody")]
    with_reason, without, wrong = served.answer(asked)
    assert with_reason["reason"]
    assert without["reason"] is None
    assert isinstance(wrong, Exception)
    assert len(without["items"]) == 10
