"""Losses against their formulas, written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recbole_mm.models.losses import alignment_loss, pointwise_loss, sampled_softmax_loss, softmax_loss


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def test_pointwise_loss_is_equation_6(rng):
    positive, negative = torch.randn(2, 7, generator=rng)
    x = torch.sigmoid(torch.cat([positive, negative]))
    y = torch.cat([torch.ones(7), torch.zeros(7)])
    expected = -(y * x.log() + (1 - y) * (1 - x).log()).mean()
    torch.testing.assert_close(pointwise_loss(positive, negative), expected)
    assert torch.isfinite(pointwise_loss(torch.tensor([-1e4]), torch.tensor([1e4])))


def test_softmax_loss_leaves_padding_out(rng):
    states, items = torch.randn(5, 3, generator=rng), torch.randn(8, 3, generator=rng)
    targets = torch.tensor([1, 7, 3, 3, 2])
    items[0] = 100.0  # would win every softmax
    expected = F.cross_entropy((states @ items.T)[:, 1:], targets - 1)
    torch.testing.assert_close(softmax_loss(states, targets, items), expected)


def test_sampled_softmax_ignores_a_negative_that_is_the_target(rng):
    states, positives, negatives = (torch.randn(n, 3, generator=rng) for n in (2, 2, 4))
    collision = torch.zeros(2, 4, dtype=torch.bool)
    collision[0, 1] = True
    scores = states @ negatives.T
    first = -torch.log_softmax(torch.cat([(states[0] @ positives[0])[None], scores[0, [0, 2, 3]]]), 0)[0]
    second = -torch.log_softmax(torch.cat([(states[1] @ positives[1])[None], scores[1]]), 0)[0]
    torch.testing.assert_close(sampled_softmax_loss(states, positives, negatives, collision), (first + second) / 2)


def test_alignment_loss_is_equation_4(rng):
    content, identity = torch.randn(2, 4, 6, generator=rng)
    tau = 0.2
    total = 0.0
    for u in range(4):
        for a, b in ((identity, content), (content, identity)):
            s = [F.cosine_similarity(a[u], b[j], dim=0) / tau for j in range(4)]
            total -= torch.log(torch.exp(s[u]) / sum(map(torch.exp, s)))
    torch.testing.assert_close(alignment_loss(content, identity, torch.arange(4), tau), total / 4)


def test_alignment_in_groups_compares_within_each_group(rng, monkeypatch):
    content, identity = torch.randn(2, 5, 6, generator=rng)
    owners = torch.arange(5)
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.tensor([3, 0, 4, 1, 2]))
    first = alignment_loss(content[[3, 0, 4]], identity[[3, 0, 4]], owners[:3], 0.2)
    second = alignment_loss(content[[1, 2]], identity[[1, 2]], owners[:2], 0.2)
    expected = (3 * first + 2 * second) / 5
    torch.testing.assert_close(alignment_loss(content, identity, owners, 0.2, instances=3), expected)


def test_states_of_one_user_are_no_negatives_of_each_other(rng):
    content, identity = torch.randn(2, 3, 6, generator=rng)
    tau, others = 0.3, {0: [0, 2], 1: [1, 2], 2: [0, 1, 2]}  # rows 0 and 1 belong to one user
    total = 0.0
    for u, candidates in others.items():
        for a, b in ((identity, content), (content, identity)):
            s = {j: torch.exp(F.cosine_similarity(a[u], b[j], dim=0) / tau) for j in candidates}
            total -= torch.log(s[u] / sum(s.values()))
    torch.testing.assert_close(alignment_loss(content, identity, torch.tensor([4, 4, 9]), tau), total / 3)
