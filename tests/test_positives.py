"""`positives: popular`: the sequences of MLLM-MSR's released code, and how a run that uses them is marked."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import recbole_mm
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.splits import popular_rows
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.splits import split
from recbole_mm.runs.folder import read_result
from recbole_mm.runs.leakage import held_out_seen

SAMPLED = {"eval_args": {"mode": "uni20"}, "metrics": ["GAUC", "Hit", "MRR"], "topk": [5], "valid_metric": "GAUC"}


def by_hand(users, items, times, most):
    """Rows that are kept, by the definition: per user the most frequent items, the later ones of equal ones."""
    count = {item: items.count(item) for item in items}
    kept = []
    for user in set(users):
        mine = [row for row in range(len(users)) if users[row] == user]
        mine.sort(key=lambda row: (count[items[row]], times[row]), reverse=True)
        kept += mine[:most]
    return sorted(kept)


@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_the_most_popular_items_of_a_user_are_kept(most):
    rng = np.random.default_rng(most)
    pairs = [(user, item) for user in range(30) for item in rng.permutation(25)[: rng.integers(1, 12)]]
    pairs = [pairs[place] for place in rng.permutation(len(pairs))]
    users, items = [user for user, _ in pairs], [int(item) for _, item in pairs]
    times = rng.permutation(len(pairs))
    order = np.lexsort((times, users))
    kept = popular_rows(np.array(users), np.array(items), order, most)
    assert kept.tolist() == by_hand(users, items, times.tolist(), most)


def held_out(dataset, model_class, config):
    """(user, item, history) of every test case, by token."""
    data = split(config, dataset, model_class).test
    users, items = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    cases = data.users
    cases.tidy(dataset.item_num)
    return {
        users[user]: (
            [items[i] for i in cases.positives.items[cases.positives.offsets[row] : cases.positives.offsets[row + 1]]],
            {items[i] for i in cases.history.items[cases.history.offsets[row] : cases.history.offsets[row + 1]]},
        )
        for row, user in enumerate(cases.user_ids)
    }


@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_the_last_of_the_kept_items_is_held_out_and_all_items_stay_candidates(toy_config, model):
    last = toy_config(model)
    config = toy_config(model, positives="popular", MAX_ITEM_LIST_LENGTH=4)
    everything, dataset = create_dataset(last), create_dataset(config)
    assert dataset.item_num == everything.item_num
    assert list(dataset.item_tokens()) == list(everything.item_tokens())
    table = everything.inter_feat
    kept = popular_rows(
        table["user_id"].to_numpy(), table["item_id"].to_numpy(), np.lexsort((table["timestamp"], table["user_id"])), 5
    )
    expected = {}
    for user, group in table.iloc[kept].sort_values("timestamp").groupby("user_id"):
        items = [everything.item_tokens()[item] for item in group["item_id"]]
        expected[everything.field2id_token["user_id"][user]] = ([items[-1]], set(items[:-1]))
    assert held_out(dataset, config.model_class, config) == expected


def test_pop_does_better_on_popular_positives(toy_settings):
    settings = {**toy_settings, **SAMPLED, "MAX_ITEM_LIST_LENGTH": 2}
    of = {
        positives: recbole_mm.run("Pop", "toy", config_dict={**settings, "positives": positives})
        for positives in ("last", "popular")
    }
    assert of["popular"].test_result["gauc"] > of["last"].test_result["gauc"] + 0.1


def test_a_run_of_popular_positives_says_so(toy_settings, caplog):
    with caplog.at_level(logging.WARNING):
        run = recbole_mm.run("Pop", "toy", config_dict={**toy_settings, "positives": "popular"})
    (text,) = read_result(run.run_dir)["sees_held_out"]
    assert text.startswith("positives: popular: each user's items, the held-out ones among them")
    assert f"SEES HELD-OUT DATA: {text}" in caplog.text
    assert held_out_seen(run.config, run.config.model_class) == [text]
    assert read_result(run.run_dir)["protocol"]["positives"] == "popular"


def test_shuffled_or_given_splits_have_no_last_item_to_choose(toy_config):
    config = toy_config("Pop", positives="popular", eval_args={"order": "RO"})
    with pytest.raises(ConfigError, match=r"needs eval_args.order: TO and no benchmark_filename"):
        create_dataset(config)
    with pytest.raises(ConfigError, match="positives: 'best' is not accepted"):
        toy_config("Pop", positives="best")
