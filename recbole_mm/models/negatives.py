"""Negatives of sampled losses: uniform over the items that a target may have as negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_mm.errors import ConfigError
from recbole_mm.models.whole_batch import Rows, shared_random

LARGEST_DRAW = 2**62
"""What is drawn is taken modulo a number of items; against this one, the lower items' advantage is nothing."""


def negatives_of_targets(excluded: Tensor, owners: Tensor, n_items: int, count: int) -> Tensor:
    """Draw negatives for each target, uniform with repetition over all items but its excluded ones.

    Drawn for the targets of all workers alike, so that each has what it would have in one process.

    Args:
        excluded: int64 (B, m) ids of items that are no negatives of a target, in any order; 0 is none.
        owners: int64 (n,) the row of `excluded` for each target.
        n_items: number of item ids, padding included.
        count: negatives of each target.

    Returns:
        int64 (n, count) ids, none of them padding.

    Raises:
        ConfigError: nothing is left to draw for a target.

    Example:
        >>> negatives_of_targets(torch.tensor([[1, 3, 0]]), torch.tensor([0, 0]), 5, 40).unique()
        tensor([2, 4])
    """
    rows = Rows(len(owners))
    with shared_random():
        drawn = torch.randint(LARGEST_DRAW, (rows.total, count), device=excluded.device)
    places, free = _free_items(excluded, n_items)
    if bool((free < 1).any()):
        raise ConfigError(
            f"a training sequence has all {n_items - 1} items, so no negative is left to draw; set negatives_exclude: "
            "target"
        )
    nth, places = rows.own(drawn) % free[owners, None], places[owners]
    skipped = nth >= places if places.shape[1] == 1 else torch.searchsorted(places, nth, right=True)
    return nth + 1 + skipped


def _free_items(excluded: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    """Return how many free items are before each excluded one, ascending, and how many there are.

    Returns:
        (B, m) int64, beyond all numbers of free items where there is no further excluded item; (B,) int64.
    """
    ordered = excluded.sort(dim=1).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ordered = ordered.masked_fill(again | (ordered == 0), n_items).sort(dim=1).values
    taken = ordered < n_items
    before = ordered - 1 - torch.arange(ordered.shape[1], device=ordered.device)
    return before.masked_fill(~taken, n_items), n_items - 1 - taken.sum(1)


def negatives_of_batch(n_items: int, count: int, device: torch.device) -> Tensor:
    """Draw negatives that all targets of a batch share, on all workers: int64 (count,), uniform with repetition."""
    with shared_random():
        return torch.randint(1, n_items, (count,), device=device)
