"""Sampled candidates: drawn by the stated law, ranked by the same rule as all items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.collector import RANKS, RankingCollector
from recbole_mm.evaluation.ranking import CSR, EvalUsers, SampledCandidates, rank_users

USERS, ITEMS = 40, 60


def rows_of(lists):
    return [lists.items[start:stop].tolist() for start, stop in zip(lists.offsets[:-1], lists.offsets[1:])]


def draw(positives, known, per_positive, seed=0, weights=None, item_num=ITEMS):
    return rows_of(SampledCandidates.draw(positives, known, item_num, per_positive, seed=seed, weights=weights).items)


def random_lists(seed, low, high):
    rng = np.random.default_rng(seed)
    return CSR.from_lists(
        [rng.choice(np.arange(1, ITEMS), rng.integers(low, high), replace=False) for _ in range(USERS)]
    )


@pytest.mark.parametrize("per_positive", [1, 7, 25])
def test_candidates_are_the_positives_and_as_many_unknown_items_as_there_are(per_positive):
    positives, known = random_lists(0, 1, 4), random_lists(1, 0, 50)
    for mine, candidates, seen in zip(rows_of(positives), draw(positives, known, per_positive), rows_of(known)):
        unknown = set(range(1, ITEMS)) - set(mine) - set(seen)
        negatives = set(candidates) - set(mine)
        assert candidates == sorted(set(candidates))
        assert set(mine) <= set(candidates)
        assert negatives <= unknown
        assert len(negatives) == min(per_positive * len(mine), len(unknown))


def test_the_draw_depends_on_the_seed_alone():
    positives, known = random_lists(0, 1, 4), random_lists(1, 0, 20)
    assert draw(positives, known, 5) == draw(positives, known, 5)
    assert draw(positives, known, 5) != draw(positives, known, 5, seed=1)


@pytest.mark.parametrize("known", [0, 6], ids=["by rejection", "mostly exactly"])
def test_every_item_is_drawn_by_its_weight_and_without_replacement(known, monkeypatch):
    if known:
        monkeypatch.setattr("recbole_mm.evaluation.sampled.REJECTION_ROUNDS", 1)
    weights = np.array([5.0, 0.0, 1.0, 2.0, 3.0, 4.0] + [1.0] * known)
    rows = 30_000
    positives = CSR.from_lists([[1]] * rows)
    history = CSR.from_lists([list(range(6, 6 + known))] * rows)
    drawn = draw(positives, history, 2, weights=weights, item_num=len(weights))
    # P(i among the first two) = p_i + sum over j of p_j p_i / (1 - p_j), with p = .1, .2, .3, .4 for items 2 to 5
    p = np.array([0.1, 0.2, 0.3, 0.4])
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    found = np.bincount(np.concatenate(drawn), minlength=6)[2:6] / rows
    assert found == pytest.approx(expected, abs=0.015)
    assert all(len(row) == 3 and row[0] == 1 for row in drawn)


def test_weights_must_leave_something_to_draw():
    with pytest.raises(ConfigError, match="one of them above 0"):
        draw(random_lists(0, 1, 2), None, 3, weights=np.eye(ITEMS)[0])


class Products(torch.nn.Module):
    ITEM_ID = "item_id"

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.users = torch.randint(-2, 3, (USERS, 3), generator=draw).float()  # whole numbers: exact, and full of ties
        self.items = torch.randint(-2, 3, (ITEMS, 3), generator=draw).float()
        self.batches = []

    def predict(self, interaction):
        self.batches.append(len(interaction))
        return (self.users[interaction["user_id"]] * self.items[interaction["item_id"]]).sum(1)


class ByHalves(Products):
    def user_vectors(self, interaction):
        return self.users[interaction["user_id"]]

    def item_vectors(self):
        return self.items


@pytest.mark.parametrize("model_class", [Products, ByHalves])
@pytest.mark.parametrize("batch_size", [1, 50, 4096])
def test_ranks_among_the_candidates_follow_the_rule(model_class, batch_size):
    model = model_class()
    positives = random_lists(0, 1, 4)
    candidates = SampledCandidates.draw(positives, random_lists(1, 0, 55), ITEMS, 6, seed=3)
    interaction = Interaction({"user_id": torch.arange(USERS), "item_id": torch.zeros(USERS, dtype=torch.long)})
    users = EvalUsers(interaction, positives, None, np.arange(USERS), candidates)
    config = {"metrics": ["NDCG", "GAUC"], "topk": [5], "metric_decimal_place": 8}
    struct = rank_users(model, users, ITEMS, collector=RankingCollector(config), batch_size=batch_size)
    scores = (model.users @ model.items.T).tolist()
    expected = []
    for row, (mine, listed) in enumerate(zip(rows_of(users.positives), rows_of(candidates.items))):
        by_rule = sorted(listed, key=lambda i, score=scores[row], mine=mine: (-score[i], i in mine, i))
        expected += [by_rule.index(i) + 1 for i in mine]
    assert struct.get(RANKS).tolist() == expected
    assert struct.get("rec.meanrank")[:, 1].tolist() == candidates.items.lengths.tolist()
    assert 0 < Evaluator(config).evaluate(struct)["gauc"] < 1
    assert max(model.batches, default=0) <= batch_size


def test_lists_of_sampled_items_hold_item_ids():
    model = Products()
    positives = random_lists(0, 1, 2)
    candidates = SampledCandidates.draw(positives, None, ITEMS, 9, seed=3)
    users = EvalUsers(Interaction({"user_id": torch.arange(USERS)}), positives, None, np.arange(USERS), candidates)
    collector = RankingCollector({"metrics": ["ItemCoverage"], "topk": [4]}, item_num=ITEMS)
    lists = rank_users(model, users, ITEMS, collector=collector).get("rec.items").tolist()
    scores = (model.users @ model.items.T).tolist()
    for row, listed in enumerate(rows_of(candidates.items)):
        assert lists[row] == sorted(listed, key=lambda i, score=scores[row]: (-score[i], i))[:4]
