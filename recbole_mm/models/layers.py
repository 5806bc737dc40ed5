"""Tensor pieces that several models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def standardise(vectors: Tensor, like: Tensor | None = None) -> Tensor:
    """Give the items that have a vector zero mean and unit spread; LLM states share one large common direction.

    Args:
        vectors: (n_items, h); all-zero rows (padding, items without content) stay zero.
        like: (m, h) vectors of other items, whose mean and spread are taken in place of their own.
    """
    mean, spread = moments(vectors if like is None else like)
    return centred(vectors, mean, spread)


def moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the spread (h,) of the items that have a vector; 0 and 1 where none has.

    Args:
        vectors: (n_items, h); all-zero rows do not count.
    """
    known = vectors.abs().sum(1) > 0
    if not known.any():
        return torch.zeros_like(vectors[0]), torch.ones_like(vectors[0])
    return vectors[known].mean(0), vectors[known].std(0, correction=0).clamp_min(1e-6)


def centred(vectors: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Return (vectors - mean) / spread of vectors (..., h); all-zero ones stay zero."""
    return torch.where((vectors.abs().sum(-1) > 0).unsqueeze(-1), (vectors - mean) / spread, 0.0)


class ModalityDropout(nn.Module):
    """Has items go without a modality in training, so that a model does not rely on any: `modality_dropout`.

    Each time that training reads an item, each of its modalities is gone with this probability, for itself: its vector
    is the zeros of an item that never had it. What is left is not scaled, as it is not where it is missing indeed. In
    evaluation nothing is dropped.

    Args:
        rate: the probability, from 0 to below 1.

    Example:
        >>> ModalityDropout(0.5).eval()(torch.ones(3, 2)).sum().item()
        6.0
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors (..., d) of one modality, in training with zeros in the place of those that are dropped."""
        if not (self.training and self.rate):
            return vectors
        return vectors * (torch.rand(vectors.shape[:-1], device=vectors.device) >= self.rate).unsqueeze(-1)


def linear(width_in: int, width_out: int, bias: bool = True) -> nn.Linear:
    """Build a linear map, Xavier uniform; its bias, if it has one, starts at 0."""
    layer = nn.Linear(width_in, width_out, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
