"""Ranks by counting, and top-k lists with a fixed order of ties.

Sorting 80,000 scores to learn where one of them stands is wasted work: its rank is the number of scores that beat it,
plus one. Counting reads the scores once and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# On a CPU the comparison result should still be in the cache when it is summed up.
CPU_SCRATCH_BYTES = 8 << 20
GPU_SCRATCH_BYTES = 64 << 20
# Counts are sums of ones in the dtype of the scores: exact below 2 ** 24 in float32.
MAX_COLUMNS = 1 << 24


def scratch_for(scores: torch.Tensor) -> torch.Tensor:
    """Return a buffer of a few rows of `scores` ((B, N), floating), to be reused from one block to the next."""
    budget = CPU_SCRATCH_BYTES if scores.device.type == "cpu" else GPU_SCRATCH_BYTES
    rows = max(1, budget // (scores.shape[1] * scores.element_size()))
    return torch.empty((min(rows, scores.shape[0]), scores.shape[1]), dtype=scores.dtype, device=scores.device)


def count_at_least(scores: torch.Tensor, thresholds: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Count the scores of row b that are >= thresholds[b, p]: (B, P) int64.

    Args:
        scores: (B, N) floating, without NaN.
        thresholds: (B, P), same dtype.
        scratch: (some rows, N), same dtype; overwritten.

    Raises:
        ValueError: 2 ** 24 columns or more.

    Example:
        >>> scores = torch.tensor([[0.1, 0.5, 0.5, 0.9]])
        >>> count_at_least(scores, torch.tensor([[0.5, 0.9]]), scratch_for(scores))
        tensor([[3, 1]])
    """
    return _count(torch.ge, scores, thresholds, scratch)


def count_above(scores: torch.Tensor, thresholds: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Count the scores of row b that are > thresholds[b, p]: (B, P) int64. See `count_at_least`."""
    return _count(torch.gt, scores, thresholds, scratch)


def _count(
    compare: Callable[..., torch.Tensor], scores: torch.Tensor, thresholds: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    if scores.shape[1] >= MAX_COLUMNS:
        raise ValueError(f"counting is exact below {MAX_COLUMNS} columns, got {scores.shape[1]}")
    counts = torch.empty((thresholds.shape[1], len(scores)), dtype=scores.dtype, device=scores.device)
    for start in range(0, len(scores), len(scratch)):
        chunk = scores[start : start + len(scratch)]
        flags = scratch[: len(chunk)]
        for place in range(len(counts)):
            # Comparing into floats and summing floats is several times faster than bool, which is summed unvectorized.
            compare(chunk, thresholds[start : start + len(chunk), place : place + 1], out=flags)
            torch.sum(flags, dim=1, out=counts[place, start : start + len(chunk)])
    return counts.T.to(torch.int64)


def rows_with_nan(scores: torch.Tensor) -> torch.Tensor:
    """Return the rows (m,) of `scores` ((B, N)) that hold a NaN; `amax` passes NaN on, at the price of one read."""
    return torch.isnan(scores.amax(dim=1)).nonzero().squeeze(1)


def top_columns(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the columns (B, k) int64 of the k highest scores of each row, best first, lower columns first in ties.

    Args:
        scores: (B, N) floating, without NaN; N >= k.

    Raises:
        ValueError: fewer than k columns.
    """
    width = scores.shape[1]
    if k > width:
        raise ValueError(f"cannot list the top {k} of {width} columns")
    values, columns = torch.topk(scores, min(k + 1, width), dim=1)
    # `topk` orders equal scores as it likes. Where the first k + 1 differ, there is only one answer.
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    columns = columns[:, :k].contiguous()
    if len(tied):
        columns[tied] = _top_columns_of_ties(scores[tied], values[tied, k - 1 : k], k)
    return columns


def _top_columns_of_ties(scores: torch.Tensor, threshold: torch.Tensor, k: int) -> torch.Tensor:
    """`top_columns` of rows with equal scores; `threshold` (B, 1) is each row's k-th highest score.

    All scores above the threshold are in; of those that equal it, the lowest columns fill the rest.
    """
    above, equal = scores > threshold, scores == threshold
    free = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= free))
    columns = chosen.nonzero()[:, 1].view(len(scores), k)
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
