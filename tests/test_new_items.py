"""New items are ranked by their content beside the trained ones; reasons are the words that the run's LLM wrote."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.artifacts.store import Store
from recbole_mm.cli import main
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.title_cards import HEIGHT, WIDTH
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.inputs.context import artifact_dir
from recbole_mm.recommending.command import Request, _identity_of, opened, recommend
from recbole_mm.recommending.new_items import with_new_items
from recbole_mm.recommending.recommender import Recommender
from tests.conftest import TOY_FEATURES, TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder

TINY = {"mllm": "tiny", "mllm_image_pixels": 28 * 28, "max_text_tokens": 12}
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {},
    "SASRecContent": {"item_features": TOY_FEATURES},
    "Molar": {**TINY, "item_sources": ["mllm", "text"], "item_features": {"text": TOY_FEATURES["text"]}},
    "Molar joint": {**TINY, "mirm_training": "joint", "item_llm_learning_rate": 1e-2},
    "HLLM": TINY,
    "MLLMMSR": {
        **TINY,
        "sft_tuning": "none",
        "first_stage": "SASRec",
        "first_stage_config": {"epochs": 1},
        "rerank_k": 4,
        "eval_step": 0,
    },
    "MLLMRec": {"similar_threshold": 0.3, "similar_k": 4, "co_k": 3, "embedding_size": 4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`finished(model)` -> Recommender of a run of one epoch; each is run once."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {**TOY_SETTINGS, "data_path": str(write_toy(folder / "data")), "checkpoint_dir": str(folder / "saved")}
    settings["sentence_encoder"] = write_sentence_encoder(folder / "encoder")

    @cache
    def of(model: str) -> Recommender:
        return opened(recbole_mm.run(model.split()[0], "toy", config_dict={**settings, "epochs": 1, **MODELS[model]}))

    return of


@pytest.fixture
def spring(finished, tmp_path) -> Path:
    """New items: n3, which looks and reads as the item i3 does, and n4, as i4."""
    data, folder = Path(finished("SASRec").config["data_path"]), tmp_path / "spring"
    (folder / "images").mkdir(parents=True)
    lines = ["item_id:token\ttitle:token_seq\tclass:token_seq"]
    for line in (data / "toy.item").read_text(encoding="utf-8").splitlines()[1:]:
        item, _, rest = line.partition("\t")
        if item in ("i3", "i4"):
            lines.append(f"n{item[1:]}\t{rest}")
            shutil.copy(data / "images" / f"{item}.png", folder / "images" / f"n{item[1:]}.png")
    (folder / "spring.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vector_ids.txt").write_text("n3\nn4\n")
    for kind in ("text", "image"):
        np.save(folder / f"{kind}.npy", np.load(data / f"{kind}.npy")[[3, 4]])
    return folder / "spring.item"


@pytest.mark.parametrize("model", ["SASRecContent", "Molar", "Molar joint", "HLLM"])
def test_a_new_item_that_looks_like_an_old_one_is_ranked_beside_it(finished, spring, model):
    recommender = finished(model)
    extended = with_new_items(recommender, spring)
    new, old = extended.item_ids(["n3", "n4"]), extended.item_ids(["i3", "i4"])
    vectors = extended.item_vectors()
    width = recommender.model.items.projection.out_features if model.startswith("Molar") else vectors.shape[1]
    np.testing.assert_allclose(vectors[new][:, :width], vectors[old][:, :width], atol=1e-5)
    np.testing.assert_array_equal(vectors[: recommender.n_items], recommender.item_vectors())
    users = np.arange(1, 30)
    top = extended.top_k(42, users=users, mask_history=False)
    assert (np.sort(top.items, axis=1) == np.arange(1, 43)).all()
    before = recommender.top_k(40, users=users, mask_history=False)
    for row in range(len(users)):
        assert [item for item in top.items[row] if item < recommender.n_items] == before.items[row].tolist()
    assert extended.title(int(new[0])) == "The horror film number 3"
    assert recommender.n_items == 41


def test_the_id_half_of_a_new_item_is_that_of_a_mean_item(finished, spring):
    recommender = finished("Molar")
    extended = with_new_items(recommender, spring)
    width = recommender.model.items.projection.out_features
    ids = recommender.item_vectors()[1:, width:]
    assert ids.shape[1] > 0
    np.testing.assert_allclose(extended.item_vectors()[-2:, width:], ids.mean(0).expand(2, -1), atol=1e-6)


def test_new_items_are_worded_as_the_runs_own_are(finished, spring):
    """The columns of the new file, their order and those that the run has not, change nothing."""
    recommender = finished("Molar")
    expected = with_new_items(recommender, spring).item_vectors()[-2:]
    rows = [line.split("\t") for line in spring.read_text(encoding="utf-8").splitlines()]
    shuffled = [[item, kind, "notes:token_seq" if not place else "a gift", title]
                for place, (item, title, kind) in enumerate(rows)]  # fmt: skip
    spring.write_text("".join("\t".join(row) + "\n" for row in shuffled), encoding="utf-8")
    assert torch.equal(with_new_items(recommender, spring).item_vectors()[-2:], expected)
    spring.write_text("".join("\t".join(row[:2]) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"spring\.item: the text of known items needs the column 'class'; there are: title$"
    ):
        with_new_items(recommender, spring)


def test_a_new_item_has_a_title_card_where_the_runs_own_have(tmp_path, toy_config):
    lines = "item_id:token\tmovie_title:token_seq\nm\tAlien\n"
    more = "item_id:token\tnotes:token_seq\tmovie_title:token_seq\ns\tnew\tAlien\n"
    for name, text in (("ml-100k", lines), ("spring", more)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.item").write_text(text, encoding="utf-8")
    config = toy_config("SASRec", image_dir=None, text_fields=[])
    config["dataset"], config["data_path"] = "ml-100k", str(tmp_path / "ml-100k")
    source = ContentSource.from_config(config)
    new = source.of_other_items(config, tmp_path / "spring" / "spring.item")
    assert new.image("s").size == source.image("m").size == (WIDTH, HEIGHT)
    assert new.text("s") == source.text("m") == "Title: Alien", "though no setting says what a text is made of"
    config["dataset"], config["data_path"] = "spring", str(tmp_path / "spring")
    other = ContentSource.from_config(config, ["image"])
    assert other.of_other_items(config, tmp_path / "ml-100k" / "ml-100k.item").image("m") is None
    (tmp_path / "spring" / "spring.item").write_text(lines.replace("movie_title", "title"), encoding="utf-8")
    with pytest.raises(DataError, match="needs the column 'movie_title'"):
        source.of_other_items(config, tmp_path / "spring" / "spring.item")


def test_a_file_that_goes_on_depends_on_what_new_items_look_like(finished, spring):
    recommender, request = finished("SASRecContent"), Request(users="u1", new_items=spring)
    before = _identity_of(with_new_items(recommender, spring), request)
    assert _identity_of(with_new_items(recommender, spring), request) == before
    vectors = np.load(spring.with_name("text.npy"))
    np.save(spring.with_name("text.npy"), vectors[::-1])
    after = _identity_of(with_new_items(recommender, spring), request)
    assert {name for name in before if before[name] != after[name]} == {"new_item_vectors"}


def test_a_new_item_is_encoded_once(finished, spring):
    recommender = finished("Molar")
    item = spring.read_text(encoding="utf-8").replace("film number 3", "song of frogs")
    spring.write_text(item, encoding="utf-8")

    def values() -> int:
        with Store(artifact_dir(recommender.config) / "artifacts.sqlite") as store:
            return store.count()

    before = values()
    with_new_items(recommender, spring)
    assert values() == before + 1  # the other one is known by what it looks like
    with_new_items(recommender, spring)
    assert values() == before + 1


def test_new_items_are_recommended_and_similar_as_any_other(finished, spring, capsys):
    recommender = finished("SASRecContent")
    table = recommend(recommender, 2, users=["u1", "u2"], new_items=spring, allow=["n3", "n4"])
    assert set(table["item"]) == {"n3", "n4"}
    assert set(table["title"]) == {"The horror film number 3", "The action film number 4"}
    extended = with_new_items(recommender, spring)
    assert extended.similar(extended.item_ids(["n3"]), 1).items[0, 0] == extended.item_ids(["i3"])[0]
    arguments = ["recommend", str(recommender.run.run_dir), "--users=u1", f"--new_items={spring}", "--allow=n3"]
    assert main(arguments) == 0
    assert "n3" in capsys.readouterr().out


def test_what_cannot_be_ranked_is_said_in_a_line(finished, spring):
    with pytest.raises(ConfigError, match=r"^SASRec knows items by their ids.*Molar, SASRecContent and HLLM"):
        with_new_items(finished("SASRec"), spring)
    recommender = finished("SASRecContent")
    with pytest.raises(DataError, match=r"no such file; new items are given as an \.item file"):
        with_new_items(recommender, spring.with_suffix(".csv"))
    extended = with_new_items(recommender, spring)
    with pytest.raises(DataError, match="item 'n3' is new: it can be recommended, and no history"):
        extended.top_k(3, histories=[extended.item_ids(["i1", "n3"])])
    own = spring.read_text(encoding="utf-8").replace("n3\t", "i3\t")
    spring.write_text(own, encoding="utf-8")
    with pytest.raises(DataError, match="item 'i3' is one of the run's own"):
        with_new_items(recommender, spring)
    spring.write_text(own.partition("\n")[0] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no item below the header"):
        with_new_items(recommender, spring)


def test_preferences_are_the_reasons_of_mllm_msr(finished):
    recommender = finished("MLLMMSR")
    table = recommend(recommender, 2, users=["u1", "u2"], known="test", reasons=True)
    assert list(table.columns) == ["user", "rank", "item", "score", "title", "reason"]
    user = int(recommender.user_ids(["u1"])[0])
    history = recommender.histories_of(np.array([user]), "test").items.tolist()
    preferences = recommender.dataset.inputs.preferences
    assert table["reason"][0] == preferences.of(user, history[-10:])
    assert any(genre in table["reason"][0] for genre in ("action", "comedy", "drama", "horror"))


def test_profiles_are_the_reasons_of_mllmrec(finished, capsys):
    recommender = finished("MLLMRec")
    table = recommend(recommender, 1, users=["u1", "u2"], reasons=True)
    assert table["reason"].str.len().min() > 10
    assert table["reason"][0] != table["reason"][1]
    assert main(["recommend", str(recommender.run.run_dir), "--users=u1", "--k=1", "--reasons"]) == 0
    assert f"u1: {table['reason'][0][:30]}" in capsys.readouterr().out
