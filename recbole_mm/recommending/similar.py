"""The items that are most alike to a model: by the cosine of the vectors that it scores with.

A model without item vectors shows what it makes of items by its scores: an item's vector is then its score for each of
some users, in units of that user's spread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.evaluation.dot_product import ScoreBlocks
from recbole_mm.evaluation.rank_counting import top_columns
from recbole_mm.evaluation.scoring import Block

PROFILE_USERS = 256
"""Users whose scores describe an item, spread evenly over all."""


class ItemSimilarity:
    """Cosines of item vectors; equal ones in the order of the items' ids.

    Args:
        vectors: (N, d), row 0 for padding.
        memory_mb: bound in MiB of the cosines that are held at once.

    Example:
        >>> vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1], [0.0, 1.0]])
        >>> ItemSimilarity(vectors).top_k(np.array([1]), 2)[0]
        array([[2, 3]])
    """

    def __init__(self, vectors: Tensor, memory_mb: float = 256) -> None:
        self.vectors = F.normalize(vectors.detach().float(), dim=1)
        self._blocks = ScoreBlocks(self.vectors, memory_mb)

    def top_k(self, items: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and cosines (n, k) of the items most like each of `items` (n,), itself left out.

        Args:
            items: ids.
            k: of each; where there are fewer the rest is 0, with -inf.
            allowed: (m,) ids to choose from, ascending; None for all.
        """
        found, values = np.zeros((len(items), k), dtype=np.int64), np.full((len(items), k), -np.inf)
        columns = None if allowed is None else torch.from_numpy(allowed).to(self.vectors.device)
        for start in range(0, len(items), self._blocks.rows):
            asked = torch.from_numpy(items[start : start + self._blocks.rows]).to(self.vectors.device)
            scores = self._blocks(self.vectors[asked])
            scores[:, 0] = -torch.inf
            scores[torch.arange(len(asked)), asked] = -torch.inf
            scores = scores if columns is None else scores[:, columns]
            best = top_columns(scores, min(k, scores.shape[1]))
            cosines = scores.gather(1, best).cpu().numpy()
            ids = best.cpu().numpy() if allowed is None else allowed[best.cpu().numpy()]
            there = np.isfinite(cosines)
            rows = slice(start, start + len(asked))
            found[rows, : ids.shape[1]] = np.where(there, ids, 0)
            values[rows, : ids.shape[1]] = np.where(there, cosines, -np.inf)
        return found, values


def profiles_of(blocks: Iterable[Block]) -> Tensor:
    """Return (N, users) float32: of each item its score for each of some users, less the user's mean, in units of its
    spread.

    Args:
        blocks: scores of all items for those users, whose rows are put one below the other.
    """
    tables = []
    for _, scores in blocks:
        bounded = torch.nan_to_num(scores.double(), neginf=-1e9, posinf=1e9)[:, 1:]
        centred = bounded - bounded.mean(1, keepdim=True)
        tables.append((centred / centred.std(1, keepdim=True).clamp_min(1e-12)).float())
    return F.pad(torch.cat(tables).T, (0, 0, 1, 0)).contiguous()
