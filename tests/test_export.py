"""Exports: vectors whose products are the scores, an index that is measured, and a card that says what is so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)
from safetensors.numpy import load_file

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.recommending import card as cards
from recbole_mm.recommending import index
from recbole_mm.recommending.command import opened
from recbole_mm.recommending.export import export
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.runs.folder import read_result
from tests.conftest import TOY_SETTINGS


@pytest.fixture(scope="module")
def recommender_of(toy_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")

    def of(model: str) -> Recommender:
        settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(toy_path), "checkpoint_dir": str(folder)}
        return opened(recbole_mm.run(model, "toy", config_dict=settings))

    return of


@pytest.fixture(scope="module")
def sasrec(recommender_of) -> Recommender:
    return recommender_of("SASRec")


def read(folder: Path, kind: str, what: str) -> tuple[list[str], np.ndarray]:
    if kind == "parquet":
        table = pd.read_parquet(folder / f"{what}s.parquet")
        return table[f"{what}_id"].tolist(), np.stack(table["vector"])
    ids = (folder / f"{what}_ids.txt").read_text(encoding="utf-8").splitlines()
    path = folder / f"{what}s.{kind}"
    return ids, np.load(path) if kind == "npy" else load_file(path)["vectors"]


@pytest.mark.parametrize("kind", ["safetensors", "parquet", "npy"])
def test_products_of_vectors_are_the_scores(sasrec, tmp_path, kind):
    export(sasrec, tmp_path, kind=kind, known="test")
    (items, item_vectors), (users, user_vectors) = read(tmp_path, kind, "item"), read(tmp_path, kind, "user")
    assert items == sasrec.item_tokens[1:].tolist()
    assert len(users) == 60
    top = sasrec.top_k(5, users=sasrec.user_ids(users), known="test", mask_history=False)
    order = np.argsort(-(user_vectors @ item_vectors.T), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(order + 1, top.items)


def test_a_general_model_is_exported_too(recommender_of, tmp_path):
    bpr = recommender_of("BPR")
    done = export(bpr, tmp_path, kind="npy")
    assert list(done.files) == ["items.npy", "item_ids.txt", "users.npy", "user_ids.txt", "README.md"]
    np.testing.assert_allclose(np.load(tmp_path / "users.npy"), bpr.model.user_embedding.weight.detach()[1:])


def test_an_export_is_a_feature_of_another_run(sasrec, toy_path, tmp_path):
    export(sasrec, toy_path / "toy" / "of_sasrec", kind="npy", users=False)
    feature = {"text": {"file": "of_sasrec/items.npy", "ids": "of_sasrec/item_ids.txt"}}
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path)}
    run = recbole_mm.run("SASRecContent", "toy", config_dict={**settings, "item_features": feature})
    assert run.test_result["ndcg@10"] > 0


def test_the_recall_of_an_index_is_measured(sasrec, tmp_path, capsys):
    pytest.importorskip("faiss")
    import faiss

    assert main(["export", str(sasrec.run.run_dir), f"--out={tmp_path}", "--index=hnsw"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/items.faiss: hnsw: recall@10 1.0000 against exact search over 60 users;" in said
    found = faiss.read_index(str(tmp_path / "items.faiss"))
    assert (found.ntotal, found.d) == (40, 64)


def test_a_poor_index_has_a_poor_recall():
    class Poor:
        def search(self, users, k):
            return None, np.tile(np.arange(k), (len(users), 1))

    rng = np.random.default_rng(0)
    items, users = rng.normal(size=(200, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    recall = index.measured("poor", Poor(), items, users)
    exact = np.argsort(-(users @ items.T), axis=1)[:, :10]
    assert recall.recall == pytest.approx(np.mean(exact < 10))


def test_the_card_says_what_the_run_was(sasrec, tmp_path):
    export(sasrec, tmp_path, users=False)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    (tmp_path / "front.yaml").write_text(front)
    result = json.loads((sasrec.run.run_dir / "result.json").read_text())
    (entry,) = read_yaml(tmp_path / "front.yaml")["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert metrics == result["test_result"]
    assert "# SASRec on toy" in body
    assert "60 users, 40 items" in body
    assert f"| ndcg@10 | {result['test_result']['ndcg@10']:.4f} |" in body
    assert "No interaction that is held out for validation or test was part of its training." in body
    assert "toy.inter" in body
    assert "| items.safetensors | 40 items x 64, float32 |" in body


def test_the_card_says_what_validation_chose_and_what_is_not_known(sasrec, monkeypatch):
    result = read_result(sasrec.run.run_dir)
    monkeypatch.setattr(cards, "read_result", lambda _: {**result, "chosen_on_validation": "fusion_weight: 0.3"})
    assert "Chosen on validation: fusion_weight: 0.3." in cards.model_card(sasrec, {}).replace("\\", "")
    old = {name: value for name, value in result.items() if name != "sees_held_out"}
    monkeypatch.setattr(cards, "read_result", lambda _: old)
    said = cards.model_card(sasrec, {})
    assert "an older version, which did not say whether training saw" in said
    assert "No interaction that is held out" not in said


def test_a_class_that_was_never_registered_has_a_card(sasrec, tmp_path, monkeypatch):
    monkeypatch.setitem(sasrec.config.final_config_dict, "model", "MyOwn")
    export(sasrec, tmp_path)
    assert "MyOwn" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_nothing_of_the_data_is_markup_in_a_card(sasrec, tmp_path, monkeypatch):
    monkeypatch.setitem(sasrec.config.final_config_dict, "dataset", "<script>alert(1)</script>|x")
    export(sasrec, tmp_path, users=False)
    body = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    assert "<script" not in body


def test_bad_input_is_one_line(sasrec, recommender_of, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="NeuMF does not score by the dot product of two vectors"):
        export(recommender_of("NeuMF"), tmp_path)
    with pytest.raises(ConfigError, match="--format=csv is not accepted; give safetensors, parquet, npy"):
        export(sasrec, tmp_path, kind="csv")
    with pytest.raises(ConfigError, match="--index=tree is not accepted; give hnsw or flat"):
        export(sasrec, tmp_path, index="tree")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"--index needs FAISS: pip install 'recbole_mm\[index\]'"):
        export(sasrec, tmp_path, index="flat")
