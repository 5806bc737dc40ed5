"""Losses that several sequential recommenders share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.models.cross_entropy import linear_cross_entropy
from recbole_mm.models.whole_batch import shared_random, whole_batch


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
    scores = (states @ negatives.T).masked_fill(collision, float("-inf"))
    return softmax_of_sample((states * positives).sum(-1), scores)


def softmax_of_sample(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the cross-entropy of each target against a sample of other items, a scalar.

    Where the sample is all other items this is the cross-entropy over all. Scores are not corrected by how likely an
    item was drawn: uniform negatives are all equally likely.

    Args:
        positive: scores (n,) of the targets.
        negative: scores (n, k) of the sample; -inf leaves an item out.

    Example:
        >>> softmax_of_sample(torch.zeros(2), torch.zeros(2, 3))
        tensor(1.3863)
    """
    first = torch.zeros(len(positive), dtype=torch.long, device=positive.device)
    return F.cross_entropy(torch.cat([positive.unsqueeze(1), negative], dim=1), first)


def gbce_power(negatives: int, items: int, t: float) -> float:
    """Return beta of the generalised binary cross-entropy (gSASRec, Petrov and Macdonald, RecSys 2023).

    beta = a (t (1 - 1/a) + 1/a), where a is the share of the other items that is drawn, at most 1.

    Args:
        negatives: drawn for each target.
        items: number of items, padding not counted; at least 2.
        t: calibration, from 0 (beta = 1: the plain binary cross-entropy) to 1 (beta = a: calibrated probabilities).

    Example:
        >>> gbce_power(25, 101, 0.0), gbce_power(25, 101, 1.0), gbce_power(25, 101, 0.5)
        (1.0, 0.25, 0.625)
    """
    share = min(1.0, negatives / (items - 1))
    return share * (t * (1 - 1 / share) + 1 / share)


def gbce_loss(positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """Return the generalised binary cross-entropy: -(log sigmoid(s+)^beta + sum log(1 - sigmoid(s-))) / (k + 1).

    Args:
        positive: logits s+ (n,) of the targets.
        negative: logits s- (n, k) of sampled items; -inf leaves an item out, which k then does not count.
        beta: power of the positive probability, see `gbce_power`; 1 is the binary cross-entropy.

    Returns:
        Mean over the targets, a scalar.

    Example:
        >>> gbce_loss(torch.zeros(2), torch.zeros(2, 3), 1.0)
        tensor(0.6931)
    """
    count = 1 + (negative > float("-inf")).sum(1)
    return ((beta * F.softplus(-positive) + F.softplus(negative).sum(1)) / count).mean()


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


def info_nce(views: Tensor, others: Tensor, owners: Tensor, temperature: float) -> Tensor:
    """Return the one-way InfoNCE of cosines over `temperature`: each of `views` among `others` of the whole batch.

    Rows of the same owner are no negatives of each other.

    Args:
        views, others: vectors (n, d) of the same n users or items.
        owners: id of each row (n,).
        temperature: tau.

    Returns:
        Mean over rows, a scalar.

    Example:
        >>> info_nce(torch.ones(3, 2), torch.ones(3, 2), torch.tensor([1, 2, 2]), 0.2)
        tensor(0.8283)
    """
    views, others, owners = whole_batch(views, others, owners)
    similarity = F.normalize(views, dim=-1) @ F.normalize(others, dim=-1).T / temperature
    same_owner = owners[:, None] == owners[None, :]
    same_owner.fill_diagonal_(False)
    rows = torch.arange(len(owners), device=owners.device)
    return F.cross_entropy(similarity.masked_fill(same_owner, float("-inf")), rows)
