"""Recommendations are those of the evaluation's ranking, for users of the data and for new ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import CheckpointError, ConfigError, DataError
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.registry import find_model, list_models
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import KNOWLEDGE, TOY_FEATURES, TOY_SETTINGS, write_toy

K = 10
CANDIDATES = {"metrics": ["NDCG", "ItemCoverage"], "topk": [K], "valid_metric": "NDCG@10"}
"""With a metric over recommended items, the evaluation lists them."""

ANSWERING = {
    "rerank_k": 4,
    "mllm_image_pixels": 28 * 28,
    "max_text_tokens": 12,
    "sft_tuning": "none",
    "first_stage": "SASRec",
    "first_stage_config": {"epochs": 1},
    "eval_step": 0,
    "epochs": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"full_sequence": True},
    "BPR": {},
    "LightGCN": {},
    "EASE": {},
    "MultiVAE": {"train_batch_size": 64},
    "Pop": {},
    "NeuMF": {},
    "FPMC": {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
    "SASRecContent": {"item_features": TOY_FEATURES},
    "Molar": {"mllm": "tiny", "mllm_image_pixels": 28 * 28, "max_text_tokens": 12},
    "TALLRec": {**ANSWERING, "tallrec_rating_field": None},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`finished(model)` -> Recommender of a run of one epoch; each is run once."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_toy(folder / "data")
    settings = {**TOY_SETTINGS, **CANDIDATES, "data_path": str(data), "checkpoint_dir": str(folder / "saved")}

    @cache
    def of(model: str) -> Recommender:
        given = {**settings, "epochs": 1, **MODELS[model]}
        return Recommender(open_run(recbole_mm.run(model, "toy", config_dict=given).run_dir))

    return of


def evaluated(recommender: Recommender) -> tuple[np.ndarray, np.ndarray]:
    """Users and top items of the evaluation's test."""
    run = recommender.run
    struct = run.splits.test.rank(run.model, run.config)
    return run.splits.test.users.user_ids, struct.get("rec.items").numpy()


@pytest.mark.parametrize("model", MODELS)
def test_recommendations_are_the_evaluations(finished, model):
    recommender = finished(model)
    users, items = evaluated(recommender)
    top = recommender.top_k(K, users=users, known="test")
    np.testing.assert_array_equal(top.items, items)
    assert (np.diff(top.scores, axis=1) <= 0).all()
    later = recommender.top_k(K, users=users)
    for row, user in enumerate(users):
        assert not set(later.items[row]) & set(recommender.histories_of(np.array([user])).items)


@pytest.mark.parametrize("candidates", ["interacted", "cold"])
def test_held_out_items_are_ranked_as_the_evaluation_does(toy_path, tmp_path, candidates):
    given = {
        **TOY_SETTINGS,
        **{"metrics": ["NDCG", "ItemCoverage"], "topk": [4], "valid_metric": "NDCG@4"},
        "data_path": str(toy_path),
        "checkpoint_dir": str(tmp_path),
        "item_features": TOY_FEATURES,
        "eval_args": {"split": {"cold_items": [0.7, 0.1, 0.2]}, "order": "TO", "mode": "full"},
        "candidates": candidates,
    }
    recommender = Recommender(assemble(Config("SASRecContent", "toy", config_dict=given), tmp_path, Stages()))
    users, items = evaluated(recommender)
    cases = recommender.run.splits.test.users.interaction
    ours = recommender._scores.inputs(users, None, "test")
    same = (ours["item_id_list"] == cases["item_id_list"]).all(1).numpy()  # the others are asked for at an earlier time
    assert same.sum() > 10
    np.testing.assert_array_equal(recommender.top_k(4, users=users[same], known="test").items, items[same])
    assert recommender.top_k(4, users=users).items.all()
    plain = create_dataset(Config("SASRecContent", "toy", config_dict=given))
    in_time = plain.inter_feat.iloc[plain._time_order()]
    tokens = (plain.field2id_token[name][in_time[name]].tolist() for name in ("user_id", "item_id"))
    chosen: dict[str, list[str]] = {}
    for user, item in zip(*tokens, strict=True):
        chosen.setdefault(user, []).append(item)
    known = recommender.histories_of(users, "all")
    for user, items in zip(recommender.user_tokens[users], np.split(known.items, known.offsets[1:-1]), strict=True):
        assert recommender.item_tokens[items].tolist() == chosen[user]


def test_ties_are_the_evaluations(finished):
    recommender = finished("Pop")
    users, items = evaluated(recommender)
    top = recommender.top_k(K, users=users, known="test")
    assert (np.diff(top.scores, axis=1) == 0).any()
    np.testing.assert_array_equal(top.items, items)


def test_a_reranker_asks_about_the_best_that_are_allowed(finished):
    recommender = finished("TALLRec")
    users, allow = np.arange(1, 20), np.arange(3, 40, 2)
    top = recommender.top_k(10, users=users, allow=allow, mask_history=False)
    assert ((top.scores >= 0).sum(1) == 4).all()  # its probabilities; rerank_k is 4
    with torch.no_grad():
        first = recommender.model.first_scores(recommender._scores.inputs(users, None)[np.arange(19)].to("cpu"))
    best = allow[first[:, torch.from_numpy(allow)].argsort(1, descending=True)[:, :4].numpy()]
    assert np.array_equal(np.sort(top.items[:, :4], axis=1), np.sort(best, axis=1))
    assert recommender.model._choosable is None


def test_a_reranker_asks_about_training_items_that_another_history_does_not_hold(finished):
    recommender = finished("TALLRec")
    users = np.arange(1, 20)
    histories = [[int(recommender.histories_of(np.array([user])).items[-1])] for user in users]
    top = recommender.top_k(39, users=users, histories=histories)
    assert ((top.scores >= 0).sum(1) == 4).all()
    alone = recommender.top_k(39, histories=histories)
    np.testing.assert_array_equal(top.items, alone.items)
    chosen = [
        set(row) & set(recommender.histories_of(np.array([user])).items) for row, user in zip(top.items[:, :4], users)
    ]
    assert any(chosen)
    assert recommender.model.mask_history


@pytest.mark.parametrize("model", ["SASRec", "Molar", "SASRecContent", "TALLRec"])
def test_a_history_is_read_as_that_of_a_user(finished, model):
    recommender = finished(model)
    users = np.arange(1, 20)
    users = users[recommender.histories_of(users, "test").lengths <= recommender.config["MAX_ITEM_LIST_LENGTH"]]
    top = recommender.top_k(5, users=users, known="test")
    again = recommender.top_k(5, histories=recommender.histories_of(users, "test"))
    np.testing.assert_array_equal(top.items, again.items)
    np.testing.assert_allclose(top.scores, again.scores, rtol=1e-5)


@pytest.mark.parametrize("model", ["EASE", "MultiVAE", "Pop"])
def test_general_models_that_need_no_user_read_histories(finished, model):
    recommender = finished(model)
    rows = recommender.dataset.rows
    users = np.arange(1, 8)
    trained = [rows.items[(rows.users == user) & (rows.phases == 0)] for user in users]
    ours = recommender.top_k(5, histories=trained, mask_history=False)
    theirs = recommender.top_k(5, users=users, mask_history=False)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4)
    np.testing.assert_array_equal(ours.items, theirs.items)


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "FPMC"])
def test_models_of_trained_users_refuse_new_ones(finished, model):
    with pytest.raises(ConfigError, match=rf"^{model} recommends to users that it was trained on.*SASRec.*EASE"):
        finished(model).top_k(5, histories=[[1, 2]])


def test_a_trained_user_may_bring_a_history(finished):
    recommender = finished("FPMC")
    users = np.arange(1, 5)
    known = recommender.histories_of(users)
    np.testing.assert_array_equal(
        recommender.top_k(5, users=users).items, recommender.top_k(5, users=users, histories=known).items
    )


def test_lists_hold_what_is_allowed_and_nothing_else(finished):
    recommender, users = finished("SASRec"), np.arange(1, 20)
    everything = recommender.top_k(recommender.n_items - 1, users=users, mask_history=False)
    allowed, excluded = np.array([3, 7, 9, 20]), np.array([9])
    top = recommender.top_k(5, users=users, allow=allowed, exclude=excluded, mask_history=False)
    for row in range(len(users)):
        expected = [item for item in everything.items[row] if item in (3, 7, 20)]
        assert [item for item, _ in top.row(row)] == expected
        assert top.items[row, 3:].tolist() == [0, 0]
    known = recommender.top_k(recommender.n_items - 1, users=users)
    histories = recommender.histories_of(users)
    for row, user_history in enumerate(np.split(histories.items, histories.offsets[1:-1])):
        assert len(known.row(row)) == recommender.n_items - 1 - len(set(user_history))


def test_items_at_minus_infinity_are_listed_last_and_masked_ones_never(finished, monkeypatch):
    recommender = finished("Pop")
    monkeypatch.setattr(recommender.model, "item_cnt", recommender.model.item_cnt.double(), raising=False)
    hidden = recommender.model.item_cnt.clone()
    hidden[3:] = -torch.inf
    monkeypatch.setattr(recommender.model, "item_cnt", hidden, raising=False)
    top = recommender.top_k(5, histories=[[1]])
    assert top.items[0].tolist() == [2, 3, 4, 5, 6]
    assert np.isneginf(top.scores[0, 1:]).all()


def test_only_the_end_of_a_long_history_is_read_and_all_of_it_masked(finished):
    recommender = finished("SASRec")
    most = recommender.config["MAX_ITEM_LIST_LENGTH"]
    long = list(range(1, 21))
    masked = recommender.top_k(5, histories=[long])
    assert not set(masked.items[0]) & set(long)
    read = recommender.top_k(5, histories=[long[-most:]], exclude=np.array(long))
    np.testing.assert_array_equal(masked.items, read.items)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 5}, "give users of the data, or histories"),
        ({"k": 41, "users": [1]}, "k: 41 items cannot be recommended of 40; give 1 to 40"),
        ({"k": 0, "users": [1]}, "k: 0 items"),
        ({"k": 5, "histories": [[1], []]}, "history 2 is empty"),
        ({"k": 5, "histories": [[1] * 100_001]}, "a history of 100001 items is given; give the last 100000 at most"),
        ({"k": 5, "users": [1], "allow": [1], "exclude": [1]}, "no item is left to recommend"),
        ({"k": 5, "users": [1, 2], "histories": [[1]]}, "2 users and 1 histories are given"),
        ({"k": 5, "users": [999]}, "user ids are 1 to "),
        ({"k": 5, "histories": [[1, 0]]}, "item ids are 1 to 40 here, and 0 to 1 are given"),
        ({"k": 5, "histories": [[999]]}, "item ids are 1 to 40 here, and 999 to 999 are given"),
        ({"k": 5, "users": [1], "allow": [3, 999]}, "item ids are 1 to 40 here, and 3 to 999 are given"),
        ({"k": 5, "users": [1], "exclude": [-1]}, "item ids are 1 to 40 here, and -1 to -1 are given"),
        ({"k": 5, "users": [1], "known": "nothing"}, "known: 'nothing' is not accepted; give all or test"),
    ],
)
def test_bad_input_is_one_line(finished, given, said):
    with pytest.raises((ConfigError, DataError)) as error:
        finished("SASRec").top_k(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_ids_name_the_nearest(finished):
    recommender = finished("SASRec")
    with pytest.raises(DataError, match=r"^user 'u5O' \(and 1 more\) is not in the data of .*; did you mean 'u5"):
        recommender.user_ids(["u1", "u5O", "else"])
    with pytest.raises(DataError, match=r"^item 'j3' is not in the data"):
        recommender.item_ids(["j3"])
    assert recommender.user_tokens[recommender.user_ids(["u3"])].tolist() == ["u3"]
    assert recommender.title(int(recommender.item_ids(["i5"])[0])) == "The comedy film number 5"


def test_folders_that_are_no_finished_runs_are_one_line(finished, tmp_path, caplog):
    folder = finished("SASRec").run.run_dir
    with pytest.raises(CheckpointError, match="no such folder; did you mean"):
        open_run(folder.with_name(folder.name + "x"))
    with pytest.raises(CheckpointError, match=r"no config\.yaml; give the folder of a finished run"):
        open_run(tmp_path)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    with pytest.raises(CheckpointError, match=r"its run is not finished; go on with it: recbole-mm run --resume="):
        open_run(unfinished)
    missing = tmp_path / "missing"
    _copied(folder, missing, "model: SASRec", "model: Unheard")
    with pytest.raises(CheckpointError, match=r"its model 'Unheard' cannot be loaded here .*register_model"):
        open_run(missing)
    with pytest.raises(DataError, match=r"does not exist.*--data_path"):
        open_run(folder, changed={"data_path": str(tmp_path / "nowhere")})
    assert "has changed since" not in caplog.text
    earlier = tmp_path / "earlier"
    _copied(folder, earlier, "model: SASRec", "model: SASRec\nsplit_rule: 0")
    with pytest.raises(ConfigError, match="by the rule of an earlier version"):
        open_run(earlier)


def _copied(folder: Path, target: Path, text: str, instead: str) -> None:
    target.mkdir()
    for name in ("config.yaml", "result.json", "model.safetensors"):
        (target / name).write_bytes((folder / name).read_bytes())
    config = (target / "config.yaml").read_text(encoding="utf-8")
    assert text in config
    lines = [line for line in config.splitlines() if "crc32" not in line]
    (target / "config.yaml").write_text("\n".join(lines).replace(text, instead) + "\n", encoding="utf-8")


def test_a_moved_folder_is_opened(finished, tmp_path):
    folder = finished("SASRec").run.run_dir
    moved = tmp_path / "moved"
    _copied(folder, moved, "model: SASRec", "model: SASRec")
    np.testing.assert_array_equal(
        Recommender(open_run(moved)).top_k(5, users=np.array([3])).items,
        finished("SASRec").top_k(5, users=np.array([3])).items,
    )


# ---- every model ----

OF_RECBOLE: dict[str, dict[str, Any]] = {
    **{name: {"selected_features": ["class"]} for name in ("FDSA", "GRU4RecF", "SASRecF")},
    "S3Rec": {"train_stage": "pretrain", "item_attribute": "class"},
    "RaCT": {"train_stage": "actor_pretrain"},
    "NCL": {"num_clusters": 3},
    "NextItNet": {"dilations": [1, 2]},
}
READ_USERS = {"Caser", "FOSSIL", "FPMC", "HGN", "HRM", "NPE", "SHAN", "TransRec", "DIN", "DIEN"}
"""Models of sequences that read a vector of the user."""

FROM_HISTORIES = {"EASE", "ItemKNN", "MacridVAE", "MultiDAE", "MultiVAE", "Pop", "RaCT", "RecVAE", "SLIMElastic"}
NO_RANKING = {"ADMMSLIM", "Random", "DiffRec", "LDiffRec", "KTUP"}
"""Scores of these are drawn anew each time, in part or as a whole."""

WITHOUT = {"KSR", "GRU4RecKG", "KGAT", "KGIN", "MCCLK", "GRU4RecCPR", "SASRecCPR"}
"""They need pretrained vectors, or another package; or cannot be built on so few items."""

TYPES = ("sequential", "general", "knowledge", "context-aware")
EVERY = [entry.name for entry in list_models() if entry.origin == "RecBole" and entry.type in TYPES]


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in EVERY if name not in WITHOUT | NO_RANKING])
def test_every_model_of_recbole_recommends_what_it_ranks(model, toy_path, tmp_path):
    columns = {"load_col": {**TOY_SETTINGS["load_col"], **KNOWLEDGE["load_col"]}}
    given = {**TOY_SETTINGS, **CANDIDATES, **columns, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path)}
    entry = find_model(model)
    if entry.type == "context-aware":
        given |= {"eval_args": {"mode": "full"}, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    config = Config(model, "toy", config_dict={**given, **OF_RECBOLE.get(model, {})})
    recommender = Recommender(assemble(config, tmp_path, Stages()))
    users, items = evaluated(recommender)
    few = slice(0, 12)
    np.testing.assert_array_equal(recommender.top_k(K, users=users[few], known="test").items, items[few])
    assert recommender.similar(np.array([3]), 5).items.all()
    reads_histories = entry.type == "sequential" and model not in READ_USERS
    try:
        recommender.top_k(3, histories=[[1, 2, 3]])
    except ConfigError:
        assert not reads_histories
        assert model not in FROM_HISTORIES
    else:
        assert reads_histories or model in FROM_HISTORIES
