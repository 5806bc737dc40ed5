"""Pieces of CoLLM: the map of collaborative vectors to words, and a scale of scores for items above all others."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VectorMapper(nn.Module):
    """Collaborative vectors to input vectors of the LLM, users' and items' alike: d -> times * d -> hidden.

    Args:
        dimension: d.
        hidden: width of the LLM.
        times: the inner layer is so many times as wide as the vectors.
    """

    def __init__(self, dimension: int, hidden: int, times: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, times * dimension), nn.ReLU(), nn.Linear(times * dimension, hidden)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., d) -> (..., hidden)."""
        return self.layers(vectors)


def softsign_below_zero(scores: Tensor) -> Tensor:
    """Any scores in their order, in (-1, 0): below every probability."""
    return (scores / (1 + scores.abs()) - 1) / 2


def first_of_each_row(scores: Tensor, allowed: Tensor, count: int | None) -> Tensor:
    """Which of the allowed columns have a row's highest scores; of equal scores the first columns.

    Args:
        scores: (B, N).
        allowed: bool (B, N).
        count: so many per row, or all that are allowed where those are fewer; None for all of them.

    Returns:
        bool (B, N).
    """
    if count is None or count >= scores.shape[1]:
        return allowed
    masked = scores.masked_fill(~allowed, -torch.inf)
    least = masked.topk(count, dim=1).values[:, -1:]
    above = masked > least
    level = (masked == least) & allowed
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))
