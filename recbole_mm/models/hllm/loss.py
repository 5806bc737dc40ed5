"""HLLM's loss, which of the shared negatives to leave out of it, and how to notice that it has nothing left to do."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.errors import RecboleMMError
from recbole_mm.models.whole_batch import whole_batch

logger = logging.getLogger(__name__)

COLLAPSED_SHARE = 0.5
"""Item vectors count as collapsed where more than this share of pairs of different content is alike."""

PROBED_TARGETS = 256
"""Targets of a batch that this share is measured on."""

WARN_AFTER = 50
"""Batches in a row after which a collapse is worth a warning; an LLM that starts untrained can pass through one."""


class CollapseError(RecboleMMError):
    """The item LLM gives almost all items the same vector, and has done so for too long."""


def shared_infonce(states: Tensor, positives: Tensor, negatives: Tensor, scale: Tensor, excluded: Tensor) -> Tensor:
    """InfoNCE of each state against its own positive and negatives that all states share.

    Args:
        states, positives: (n, d), of length 1.
        negatives: (k, d), of length 1.
        scale: what cosines are multiplied by, a scalar.
        excluded: bool (n, k), True where a negative does not count for a state.

    Returns:
        Mean over states, a scalar. A state without negatives adds 0.
    """
    positive = scale * (states * positives).sum(-1, keepdim=True)
    # Masked after scaling: infinity times 0 would be the scale's gradient.
    negative = (scale * (states @ negatives.T)).masked_fill(excluded, float("-inf"))
    first = torch.zeros(len(states), dtype=torch.long, device=states.device)
    return F.cross_entropy(torch.cat([positive, negative], dim=1), first)


def exclude_similar(similarity: Tensor, same: Tensor, above: float, keep: int) -> Tensor:
    """Negatives that are too similar to a state's positive, or the same, but never all of the others.

    Args:
        similarity: cosine of positives and negatives (n, k).
        same: bool (n, k), True where both are the same item or content; always excluded.
        above: exclude what is more similar than this.
        keep: negatives of each state that stay, if so many are not the same: the least similar ones. Without them, a
            model that gives all items one vector would have no negatives, hence no loss and no way back.
    """
    similar = similarity > above
    others = similarity.masked_fill(same, float("inf"))
    least = others.topk(min(keep, similarity.shape[1]), dim=1, largest=False).indices
    return similar.scatter(1, least, False) | same


def alike_share(similarity: Tensor, same: Tensor, above: float) -> float:
    """Share of pairs of different content (not `same`) whose cosine is above `above`; 0 without such pairs.

    Of the pairs of all workers, where the rows are a part of a batch.
    """
    alike, different = whole_batch((~same & (similarity > above)).sum(1), (~same).sum(1))
    return float(alike.sum() / different.sum().clamp_min(1))


class CollapseWatch(nn.Module):
    """Counts batches in a row whose item vectors have collapsed; warns, and in the end stops the run.

    A module, though it has no weights, so that the count is part of a checkpoint.

    Args:
        patience: batches in a row after which it raises; None only warns.
    """

    def __init__(self, patience: int | None) -> None:
        super().__init__()
        self.patience = patience
        self.collapsed = 0

    def see(self, share: float) -> None:
        """Take note of one batch's `alike_share`.

        Raises:
            CollapseError: the last `patience` batches had collapsed.
        """
        self.collapsed = self.collapsed + 1 if share > COLLAPSED_SHARE else 0
        if self.collapsed == WARN_AFTER:
            logger.warning(
                "HLLM: for %d batches, %.0f %% of different items have had almost the same vector: the loss has little "
                "to tell them apart by. A lower learning_rate often helps",
                *(self.collapsed, 100 * share),
            )
        if self.patience is not None and self.collapsed >= self.patience:
            raise CollapseError(
                f"HLLM: {share:.0%} of different items have had almost the same vector for {self.collapsed} batches in "
                "a row: training has collapsed. Lower learning_rate, or raise collapse_patience to go on"
            )
