"""Full-sequence batches: every training target once, histories that are true prefixes, negatives never chosen."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS, FullSequenceLoader, NegativeSampler
from recbole_mm.errors import ConfigError


@pytest.fixture
def train(toy_config):
    return create_dataset(toy_config("SASRec", MAX_ITEM_LIST_LENGTH=4)).build()[0]


def pairs(loader) -> Counter:
    """(user, history item, target) of every position of an epoch."""
    seen = Counter()
    for batch in loader:
        mask = batch[TARGET_MASK]
        users = batch["user_id"][:, None].expand_as(mask)
        seen.update(zip(users[mask].tolist(), batch["item_id_list"][mask].tolist(), batch[TARGETS][mask].tolist()))
    return seen


def test_every_training_target_is_seen_once_per_epoch_behind_its_predecessor(train):
    rows = train.inter_feat[:]
    last = rows["item_id_list"][torch.arange(len(rows)), rows["item_length"] - 1]
    expected = Counter(zip(rows["user_id"].tolist(), last.tolist(), rows["item_id"].tolist()))
    loader = FullSequenceLoader(train, batch_size=16, seed=1)
    for _ in range(3):
        assert pairs(loader) == expected


def test_windows_move_between_epochs_and_stay_within_the_limit(train):
    loader = FullSequenceLoader(train, batch_size=64, seed=1)
    epochs = [[tuple(row) for batch in loader for row in batch["item_id_list"].tolist()] for _ in range(2)]
    assert max(len(row) for epoch in epochs for row in epoch) <= 4
    assert set(epochs[0]) != set(epochs[1])


def test_batches_count_targets(train):
    loader = FullSequenceLoader(train, batch_size=20, seed=3)
    sizes = [int(batch[TARGET_MASK].sum()) for batch in loader]
    assert sum(sizes) == len(train)
    assert max(sizes) <= 20 + 4
    loader.epoch = 0
    assert len(loader) == len(sizes)


def test_sequences_of_like_length_share_a_batch(toy_config):
    train = create_dataset(toy_config("SASRec", MAX_ITEM_LIST_LENGTH=50)).build()[0]
    widths, order = {}, []
    for epoch in range(2):
        loader = FullSequenceLoader(train, batch_size=30, seed=3)
        loader.epoch = epoch
        masks = [batch[TARGET_MASK] for batch in loader]
        widths[epoch] = [mask.shape[1] for mask in masks]
        order.append(sorted(widths[epoch]))
        assert all(bool(mask[:, -1].any()) for mask in masks)
        lengths = torch.cat([mask.sum(1) for mask in masks])
        padded = sum(mask.numel() for mask in masks)
        assert lengths.sum() > 0.85 * padded
        assert len(lengths) * lengths.max() > 1.5 * padded  # which one width for all would not reach
    assert widths[0] != order[0]  # not from short to long
    assert widths[0] != widths[1]


def test_state_is_the_epoch_alone(train):
    first = FullSequenceLoader(train, batch_size=32, seed=5, negatives=True)
    list(first)
    state = first.state_dict()
    second = FullSequenceLoader(train, batch_size=32, seed=5, negatives=True)
    second.load_state_dict(state)
    for a, b in zip(first, second, strict=True):
        for field in a:
            assert torch.equal(a[field], b[field]), field


def test_negatives_are_never_training_items_of_the_user(train):
    chosen = {}
    for user, item, history in zip(*(train.inter_feat[f].tolist() for f in ("user_id", "item_id", "item_id_list"))):
        chosen.setdefault(user, set()).update([item, *history])
    for batch in FullSequenceLoader(train, batch_size=32, seed=5, negatives=True):
        for user, mask, negatives in zip(batch["user_id"].tolist(), batch[TARGET_MASK], batch[NEGATIVES]):
            drawn = negatives[mask].tolist()
            assert all(1 <= n < train.item_num for n in drawn)
            assert not chosen[user] & set(drawn)
            assert not negatives[~mask].any()


def test_negatives_are_uniform_over_the_rest():
    sampler = NegativeSampler(np.array([1, 1, 2]), np.array([1, 2, 3]), item_num=6)
    drawn = Counter(sampler.sample(np.full(3000, 1), np.random.default_rng(0)).tolist())
    assert set(drawn) == {3, 4, 5}
    assert max(drawn.values()) < 1.2 * min(drawn.values())


def test_a_user_without_negatives_is_named():
    with pytest.raises(ConfigError, match="user 1 has chosen all 3 items"):
        NegativeSampler(np.array([1, 1, 1]), np.array([1, 2, 3]), item_num=4)


@pytest.mark.parametrize(("way", "group"), [("TS", "user"), ("RS", "none"), ("RS", "user")])
def test_every_split_gives_training_targets_alone(toy_config, way, group):
    arguments = {"split": {way: [0.8, 0.1, 0.1]}, "order": "TO", "group_by": group, "mode": "full"}
    train = create_dataset(toy_config("SASRec", eval_args=arguments)).build()[0]
    rows = train.inter_feat[:]
    last = rows["item_id_list"][torch.arange(len(rows)), rows["item_length"] - 1]
    expected = Counter(zip(rows["user_id"].tolist(), last.tolist(), rows["item_id"].tolist()))
    assert pairs(FullSequenceLoader(train, batch_size=16, seed=1)) == expected
    assert sum(expected.values()) < len(train.rows.targets)
