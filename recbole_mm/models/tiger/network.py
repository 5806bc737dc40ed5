"""Encoder and decoder over codes: one pass serves every prefix of a history (section 3.2 of TIGER)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def after_items(items: int, width: int, device: torch.device) -> Tensor:
    """Return which of `width` tokens of each of `items` items one of them may not read: True for those of later items.

    Returns:
        (items * width, items * width) bool.

    Example:
        >>> after_items(2, 1, torch.device("cpu"))
        tensor([[False,  True],
                [False, False]])
    """
    place = torch.arange(items * width, device=device) // width
    return place[:, None] < place[None, :]


class DecoderLayer(nn.Module):
    """A pre-norm layer that reads the codes before in each path, then the history, shared by all paths of a row.

    Args:
        width: d.
        heads: attention heads, which divide the width.
        inner: width of the feed-forward part.
        dropout: on every branch and on attention.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.of_path = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.of_history = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.inner = nn.Sequential(
            nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, paths: Tensor, memory: Tensor, later: Tensor | None, padding: Tensor | None) -> Tensor:
        """Return the layer's output.

        Args:
            paths: (B, P, k, d), k tokens of each of P paths.
            memory: (B, M, d), the history's tokens.
            later: (P * k, M) bool, True where a token may not read one of the history; None for all it may.
            padding: (B, M) bool, True for tokens that are none.

        Returns:
            (B, P, k, d).
        """
        length = paths.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=paths.device).triu(1)
        own = self.norms[0](paths).flatten(0, 1)
        found = self.of_path(own, own, own, attn_mask=future, need_weights=False)[0]
        paths = paths + self.dropout(found).view_as(paths)
        asked = self.norms[1](paths).flatten(1, 2)
        found = self.of_history(asked, memory, memory, attn_mask=later, key_padding_mask=padding, need_weights=False)[0]
        paths = paths + self.dropout(found).view_as(paths)
        return paths + self.inner(self.norms[2](paths))


class Decoder(nn.Module):
    """Layers of `DecoderLayer`, and a norm after the last.

    Args:
        count: number of layers; the others as of `DecoderLayer`.
    """

    def __init__(self, count: int, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(count))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, paths: Tensor, memory: Tensor, later: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Paths (B, P, k, d) and the history (B, M, d) -> states (B, P, k, d); see `DecoderLayer`."""
        for layer in self.layers:
            paths = layer(paths, memory, later, padding)
        return self.norm(paths)


def encoder(count: int, width: int, heads: int, inner: int, dropout: float) -> nn.TransformerEncoder:
    """Build torch's pre-norm encoder of `count` layers, with a norm after the last."""
    layer = nn.TransformerEncoderLayer(width, heads, inner, dropout, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, count, nn.LayerNorm(width), enable_nested_tensor=False)
