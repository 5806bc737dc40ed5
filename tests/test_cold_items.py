"""`split: {cold_items: ...}`: items held out with all of their interactions, of which nothing reaches training."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.splits import TEST, TRAIN, VALID, Split
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.splits import split
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.runs.folder import first_run_dir
from recbole_mm.training.checkpoint import load_tree
from tests.conftest import TOY_SETTINGS, write_toy
from tests.test_contract import MODELS, QUICK, artifact_keys, run, sentence_encoder  # noqa: F401

COLD = {"split": {"cold_items": [0.7, 0.1, 0.2]}, "order": "TO", "mode": "full"}


LABELED = {"metrics": ["AUC"], "valid_metric": "AUC"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("cold"))


def config_on(data, model: str, **changes) -> Config:
    settings = {**TOY_SETTINGS, "data_path": str(data), "eval_args": COLD, **changes}
    return Config(model, "toy", config_dict=settings)


def table(data) -> list[tuple[str, str, float]]:
    rows = [line.split("\t") for line in (data / "toy" / "toy.inter").read_text().splitlines()[1:]]
    return [(row[0], row[1], float(row[3])) for row in rows]


def held_out(data) -> dict[str, int]:
    """Item -> phase."""
    items = sorted({item for _, item, _ in table(data)})
    return dict(zip(items, Split("cold_items", [0.7, 0.1, 0.2], True, True, 2020).item_phases(len(items))))


@pytest.mark.parametrize("model", ["Pop", "BPR", "SASRec", "GRU4Rec"])
def test_every_kind_of_model_holds_out_the_same_items(data, model):
    phases = held_out(data)
    assert sorted(phases.values()).count(TEST) == 8
    dataset = create_dataset(config_on(data, model))
    parts = dataset.build()
    tokens = dataset.field2id_token["item_id"]
    assert [phases[token] == TRAIN for token in tokens[1:]] == [True] * 28 + [False] * 12, "they have the last ids"
    assert dataset.train_item_num == 29
    first = {}
    for user, item, time in table(data):
        if phases[item] == TRAIN:
            first[user] = min(time, first.get(user, np.inf))
    expected = [[], [], []]
    for user, item, time in table(data):
        if phases[item] == TRAIN or time > first.get(user, np.inf):
            expected[phases[item]].append((user, item))
    for phase, part in enumerate(parts):
        users, items = (dataset.field2id_token[name][part.inter_feat[name].numpy()] for name in ("user_id", "item_id"))
        mine = sorted(zip(users, items))
        if model in ("SASRec", "GRU4Rec") and phase == TRAIN:
            assert set(mine) < set(expected[TRAIN]), "a first row is no target"
        else:
            assert mine == sorted(expected[phase])


def test_histories_are_what_was_before_without_any_held_out_item(data):
    config, phases = config_on(data, "SASRec", MAX_ITEM_LIST_LENGTH=3), held_out(data)
    splits = split(config, create_dataset(config), config.model_class)
    dataset = splits.train_dataset
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    rows = table(data)
    for part, phase in ((splits.valid, VALID), (splits.test, TEST)):
        cases = part.users
        assert len(cases) > 5
        batch = cases.interaction[np.arange(len(cases))]
        for place in range(len(cases)):
            user = users[cases.user_ids[place]]
            (target,) = items[cases.positives.take(np.array([place])).items]
            (time,) = [when for who, item, when in rows if (who, item) == (user, target)]
            warm = sorted((when, item) for who, item, when in rows if who == user and phases[item] == TRAIN)
            before = [item for when, item in warm if when < time]
            length = int(batch["item_length"][place])
            assert items[batch["item_id_list"][place, :length].numpy()].tolist() == before[-3:]
            assert batch["item_id_list"][place, length:].sum() == 0
            assert phases[target] == phase
            assert cases.known[place] == len(before)
            masked = cases.history.take(np.array([place])).items
            assert sorted(items[masked]) == sorted(item for _, item in warm), "as for a general model"


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("SASRec", {"full_sequence": True, "loss_type": "BPR"}),
        ("BPR", {}),
        ("BPR", {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}}),
    ],
)
def test_held_out_items_are_no_negatives(data, model, changes):
    config = config_on(data, model, **changes)
    kind = full_sequence_class(config.model_class) if model == "SASRec" else config.model_class
    splits = split(config, create_dataset(config), kind)
    name = "neg_id_list" if model == "SASRec" else "neg_item_id"
    for _, batch in itertools.product(range(5), splits.train):
        assert batch[name].max() < splits.train_dataset.train_item_num
        assert batch[name].max() > 20
    assert splits.test.train_counts.items[splits.train_dataset.train_item_num :].sum() == 0


def test_a_softmax_over_all_items_leaves_them_out(data, tmp_path):
    settings = {**TOY_SETTINGS, "data_path": str(data), "checkpoint_dir": str(tmp_path), "eval_args": COLD}
    trained = recbole_mm.run("SASRec", "toy", config_dict={**settings, "full_sequence": True})
    first = trained.model.n_train_items
    torch.manual_seed(0)
    weights = trained.model.item_embedding.weight
    batch = next(iter(trained.splits.train))
    trained.model.calculate_loss(batch).backward()
    assert weights.grad[1:first].abs().sum(1).min() > 0
    assert weights.grad[first:].abs().max() == 0


def brute_ranks(finished, candidates: list[int]) -> dict[str, list[int]]:
    users = finished.splits.test.users
    found = {}
    for row in range(len(users)):
        scores = finished.model.full_sort_predict(users.interaction[np.array([row])]).detach().reshape(-1).numpy()
        for target in users.positives.take(np.array([row])).items:
            rank = sum(scores[item] >= scores[target] for item in candidates if item != target) + 1
            found.setdefault(str(users.names[row]), []).append(rank)
    return {user: sorted(ranks) for user, ranks in found.items()}


def test_candidates_are_all_items_or_the_held_out_ones(data, tmp_path):
    settings = {**TOY_SETTINGS, "data_path": str(data), "checkpoint_dir": str(tmp_path), "eval_args": COLD}
    alone = recbole_mm.run("SASRec", "toy", config_dict={**settings, "candidates": "cold"})
    tokens, phases = alone.dataset.item_tokens(), held_out(data)
    cold = [item for item in range(1, len(tokens)) if phases[tokens[item]] == TEST]
    assert len(cold) == 8
    ranks = {}
    for row in read_per_user(alone.run_dir).to_pylist():
        ranks.setdefault(row["user_id"], []).extend(row["ranks"])
    assert {user: sorted(mine) for user, mine in ranks.items()} == brute_ranks(alone, cold)
    assert alone.beside["Pop"]["recall@5"] == 0, "all alike, so the others are ahead"
    of_all = recbole_mm.run("SASRec", "toy", config_dict=settings)
    assert of_all.run_dir != alone.run_dir
    assert of_all.test_result["ndcg@10"] < alone.test_result["ndcg@10"]
    assert set(of_all.slices["popularity"]) == {"unseen"}


def leak_data(folder: Path, other: bool) -> Path:
    """`toy` whose held-out rows belong to others, at other times; every item stays in the file."""
    write_toy(folder)
    path = folder / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    phases, rows = held_out(folder), [line.split("\t") for line in lines]
    users = sorted({row[0] for row in rows})
    if other:
        for row in rows:
            if phases[row[1]] != TRAIN:
                row[0] = users[(users.index(row[0]) + 7) % len(users)]
                row[3] = str(float(row[3]) + 70_000)
        dropped = [row for row in rows if phases[row[1]] == TEST and row[0] == "u3"][:2]
        rows = [row for row in rows if row not in dropped]
    assert {row[1] for row in rows} == set(phases)
    assert {row[0] for row in rows if phases[row[1]] == TRAIN} == set(users)
    path.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    return folder


@pytest.mark.parametrize(
    "variant",
    [
        "BPR",
        "LightGCN",
        "SASRec",
        "SASRec full",
        "Molar sasrec",
        "MLLMRec",
        pytest.param("FREEDOM", marks=pytest.mark.slow),
    ],
)
def test_nothing_of_held_out_items_interactions_reaches_training(variant, tmp_path):
    trained, keys, asked = [], [], []
    for name, other in (("a", False), ("b", True)):
        where, saved = leak_data(tmp_path / name, other), tmp_path / name / "saved"
        settings = {**TOY_SETTINGS, **QUICK, **MODELS[variant], "data_path": str(where), "eval_step": 0}
        outcome = run(variant, settings, checkpoint_dir=str(saved), eval_args=COLD)
        trained.append(load_tree(outcome.run_dir / "checkpoint.safetensors")["weights"]["state_dict"])
        keys.append(artifact_keys(saved / "artifacts" / "artifacts.sqlite"))
        asked.append(outcome.splits.test.users.positives.items.tolist())
    assert asked[0] != asked[1]
    assert keys[0] == keys[1]
    for parameter in trained[0]:
        assert torch.equal(trained[0][parameter], trained[1][parameter]), parameter


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("BPR", {"eval_args": {"mode": "full"}, "candidates": "cold"}, "candidates: cold ranks the items of"),
        ("BPR", {"eval_args": {**COLD, "mode": "uni20"}, "candidates": "cold"}, "give eval_args.mode: full"),
        ("BPR", {"positives": "popular"}, "positives: popular chooses the last"),
        ("BPR", {"eval_args": {"split": {"cold_items": 0.1}}}, r"0.1 is not accepted; give \[0.8,0.1,0.1\]"),
        ("BPR", {"eval_args": {"split": {"cold_item": [8, 1, 1]}}}, "give LS, RS, TS or cold_items"),
        ("BPR", {"eval_args": {"split": {"cold_items": [0, 1, 1]}}}, "leaves nothing to train on"),
        ("SASRec", {"eval_args": {**COLD, "order": "RO"}}, "a sequential model needs eval_args.order: TO"),
        ("DIEN", {**LABELED, "eval_args": {**COLD, "mode": "labeled"}}, "DIEN cuts samples of its own"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(data, model, changes, message):
    with pytest.raises(ConfigError, match=message) as refused:
        create_dataset(config_on(data, model, **changes))
    assert "\n" not in str(refused.value)


def test_the_draw_goes_by_the_seed_and_the_items_names_alone(data, tmp_path):
    other = write_toy(tmp_path)
    path = other / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]) + "\n")

    def cold(folder, **changes):
        dataset = create_dataset(config_on(folder, "Pop", **changes))
        return set(dataset.item_tokens()[dataset.train_item_num :])

    assert cold(data) == cold(other) == {item for item, phase in held_out(data).items() if phase != TRAIN}
    assert cold(data, seed=3) != cold(data)
    shuffled = create_dataset(config_on(data, "BPR", eval_args={**COLD, "order": "RO"}))
    assert sum(len(part.own_rows) for part in shuffled.build()) == len(table(data)), "everybody is asked"


def test_a_run_of_a_reranker_among_cold_items_is_none_of_the_rule_of_before(toy_config):
    """It chose among all items then, so its result was another one."""
    cold = {"candidates": "cold", "eval_args": {"split": {"cold_items": [0.8, 0.1, 0.1]}}, "modalities": ["text"]}
    reranker = toy_config("TALLRec", **cold)
    now = first_run_dir(reranker)
    del reranker.final_config_dict["rerank_rule"]
    assert first_run_dir(reranker) != now
    assert toy_config("SASRec", **cold)["rerank_rule"] is None
    assert toy_config("TALLRec", modalities=["text"])["rerank_rule"] is None
