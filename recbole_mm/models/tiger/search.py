"""Ranks all items by beam search over the tree of their codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recbole_mm.models.tiger.codes import CodeTree

FAR = 1000.0
"""What an item loses for each code that was not reached; a log-likelihood never goes below -FAR."""


def item_scores(
    tree: CodeTree, next_codes: Callable[[Tensor], Tensor], rows: int, beam: int | None, device: torch.device
) -> Tensor:
    """Score all items: log p(c_1) + ... + log p(c_K | c_1 .. c_(K-1)) for those that the search reaches.

    From each level, the `beam` most likely prefixes that items have are followed. An item whose prefix of l codes is
    dropped scores the log-likelihood of that prefix less FAR * (K - l): it comes after all items that are reached, and
    after those that are dropped later; items that share the dropped prefix are equal.

    Args:
        tree: of the items' codes.
        next_codes: of prefixes (B, P, l) int64 of l codes, l from 0, the log-probabilities (B, P, C) of each next code.
        rows: B.
        beam: prefixes that are followed; None follows all, which reaches every item.
        device: of the scores.

    Returns:
        (B, n) float32.

    Example:
        >>> tree = CodeTree(np.array([[0, 1], [1, 0], [0, 0]]))
        >>> item_scores(tree, lambda given: torch.full((1, given.shape[1], 2), 0.5).log(), 1, None, torch.device("cpu"))
        tensor([[-1.3863, -1.3863, -1.3863]])
    """
    depth = len(tree.paths)
    nothing = torch.zeros((rows, 1, 0), dtype=torch.int64, device=device)
    found = next_codes(nothing)[:, 0][:, _on(device, tree.paths[0][:, 0])]
    scores = _less(found[:, _on(device, tree.of_items[0])], depth - 1)
    for level in range(1, depth):
        width = found.shape[1]
        kept = found.topk(min(beam or width, width), dim=1).indices
        following = next_codes(_on(device, tree.paths[level - 1])[kept])
        place = torch.full_like(found, -1, dtype=torch.int64)
        place.scatter_(1, kept, torch.arange(kept.shape[1], device=device).expand_as(kept))
        parents, codes = _on(device, tree.parents[level]), _on(device, tree.paths[level][:, -1])
        slots = place[:, parents]
        gained = following.flatten(1).gather(1, slots.clamp_min(0) * following.shape[2] + codes)
        found = torch.where(slots >= 0, found[:, parents] + gained, -torch.inf)
        reached = found[:, _on(device, tree.of_items[level])]
        scores = torch.where(reached > -torch.inf, _less(reached, depth - level - 1), scores)
    return scores


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(device)


def _less(scores: Tensor, codes: int) -> Tensor:
    """Log-likelihoods of prefixes that lack so many codes, as scores."""
    return scores.clamp_min(1 - FAR) - FAR * codes
