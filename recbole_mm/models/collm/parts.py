"""A piece of CoLLM: the map of collaborative vectors to words."""

from __future__ import annotations

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
