"""Losses that several sequential recommenders share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.models.cross_entropy import linear_cross_entropy
from recbole_mm.models.whole_batch import shared_random


def pointwise_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the binary cross-entropy of a positive and a negative logit per target (Molar, Eq. 3 and 6: y = [1, 0]).

    Args:
        positive, negative: logits (n,).

    Returns:
        Mean over the 2n logits, a scalar.

    Example:
        >>> pointwise_loss(torch.zeros(3), torch.zeros(3))
        tensor(0.6931)
    """
    return (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2


def softmax_loss(states: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """Return the cross-entropy over all items but the padding item 0, a scalar.

    Args:
        states: (n, d).
        targets: item ids (n,).
        items: item vectors (N, d).
    """
    return linear_cross_entropy(states, items[1:], targets - 1)


def sampled_softmax_loss(states: Tensor, positives: Tensor, negatives: Tensor, collision: Tensor) -> Tensor:
    """Return the cross-entropy of each target against negatives that the batch shares, a scalar.

    Args:
        states: (n, d); positives: vector of each target (n, d); negatives: vectors (k, d).
        collision: bool (n, k), True where a negative is the target itself, which is left out.
    """
    positive = (states * positives).sum(-1, keepdim=True)
    scores = (states @ negatives.T).masked_fill(collision, float("-inf"))
    first = torch.zeros(len(states), dtype=torch.long, device=states.device)
    return F.cross_entropy(torch.cat([positive, scores], dim=1), first)


def alignment_loss(
    content: Tensor, identity: Tensor, owners: Tensor, temperature: float, instances: int | None = None
) -> Tensor:
    """Return the two-way InfoNCE between two views of the same users (Molar, Eq. 4), of cosines over `temperature`.

    A row's comparative instances are rows of the same batch: all of them, or the K of a random group that it is in.
    Rows of the same owner are further states of the same user, so they are no negatives of each other and are left out.

    Args:
        content, identity: user vectors (n, d) of the content and the ID model; row i of both is the same user state.
        owners: user id of each row (n,).
        temperature: tau.
        instances: K; None compares all n.

    Returns:
        Sum of both directions, averaged over rows, a scalar.
    """
    if instances is not None and instances < len(owners):
        with shared_random():
            groups = torch.randperm(len(owners), device=owners.device).split(instances)
        parts = [alignment_loss(content[g], identity[g], owners[g], temperature) * len(g) for g in groups]
        return torch.stack(parts).sum() / len(owners)
    similarity = F.normalize(content, dim=-1) @ F.normalize(identity, dim=-1).T / temperature
    same_owner = owners[:, None] == owners[None, :]
    same_owner.fill_diagonal_(False)
    similarity = similarity.masked_fill(same_owner, float("-inf"))
    rows = torch.arange(len(owners), device=owners.device)
    return F.cross_entropy(similarity.T, rows) + F.cross_entropy(similarity, rows)
