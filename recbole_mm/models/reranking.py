"""Base of expensive models that rerank the best items of a cheap one: the choice of the items, and one scale for all.

The cheap model scores every item of a case. The `rerank_k` best of those that can be recommended at all are asked
about, and their scores are the expensive model's probabilities; every other item's score is below 0, in the cheap
model's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_mm.config.kinds import or_null, size
from recbole_mm.config.schema import Setting
from recbole_mm.data.splits import TRAIN
from recbole_mm.models.base import RerankingModel

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

SCORES_AT_ONCE = 1 << 23
"""Scores of the cheap model that are held at once: 64 MB."""

LARGEST = 1e30


class RerankingRecommender(RerankingModel):
    """Base of models that are asked about a few items of each case. Reads `rerank_k` and `mask_history`.

    A subclass has `first_scores`, `probabilities` and, where its answers do not depend on what the cheap model ranks
    first, `answers_any`.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("rerank_k", or_null(size(1)), meaning="Items of each case that are asked about. Null: all."),
    )
    known_items: Tensor
    known_offsets: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.rerank_k: int | None = config["rerank_k"]
        self.mask_history = bool(config["mask_history"])
        self._remember_training_items(dataset)

    def _remember_training_items(self, dataset) -> None:
        """Keep each user's training items, as offsets into one array."""
        trained = dataset.rows.phases == TRAIN
        users, items = dataset.rows.users[trained], dataset.rows.items[trained]
        order = np.argsort(users, kind="stable")
        offsets = np.searchsorted(users[order], np.arange(dataset.user_num + 1))
        self.register_buffer("known_items", torch.from_numpy(items[order].astype(np.int64)), persistent=False)
        self.register_buffer("known_offsets", torch.from_numpy(offsets.astype(np.int64)), persistent=False)

    # ------------------------------------------------------------------------------------------------------ scoring

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items (B, n_items) float64."""
        table = []
        for start in range(0, len(interaction), self._rows_at_once):
            cases = rows_of(interaction, slice(start, start + self._rows_at_once))
            scores, asked = self._filtered(cases)
            owners, items = asked.nonzero(as_tuple=True)
            scores[owners, items] = self._asked(cases, owners, items)
            table.append(scores)
        return torch.cat(table)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's own item (B,) float64: the one of `full_sort_predict`, or, for a class that
        `answers_any`, its probability whether or not it would be reranked (padding: -1)."""
        wanted = interaction[self.ITEM_ID]
        first, case = self._distinct_cases(interaction)
        scores = torch.full((len(wanted),), -1.0, dtype=torch.float64, device=wanted.device)
        for start in range(0, len(first), self._rows_at_once):
            cases = rows_of(interaction, first[start : start + self._rows_at_once])
            mine = (case >= start) & (case < start + self._rows_at_once)
            owners, items = case[mine] - start, wanted[mine]
            if self.answers_any:
                found, asked = scores[mine], items > 0
            else:
                table, reranked = self._filtered(cases)
                found, asked = table[owners, items], reranked[owners, items]
            found[asked] = self._asked(cases, owners[asked], items[asked])
            scores[mine] = found
        return scores

    @property
    def _rows_at_once(self) -> int:
        return max(1, SCORES_AT_ONCE // self.n_items)

    def _distinct_cases(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Return one row for each distinct user and history, and for each row the place of its own among them."""
        fields = [interaction[name] for name in (self.USER_ID, self.ITEM_SEQ_LEN, self.ITEM_SEQ)]
        distinct, case = torch.cat([values.view(len(values), -1) for values in fields], 1).unique(
            dim=0, return_inverse=True
        )
        rows = torch.arange(len(case), device=case.device)
        first = torch.full((len(distinct),), len(case), device=case.device)
        return first.scatter_reduce(0, case, rows, "amin"), case

    def _asked(self, cases: Interaction, owners: Tensor, items: Tensor) -> Tensor:
        if len(items) == 0:
            return torch.zeros(0, dtype=torch.float64, device=items.device)
        return self.probabilities(cases, owners, items)

    def _filtered(self, cases: Interaction) -> tuple[Tensor, Tensor]:
        """Return scores (B, n_items) float64 in (-1, 0) by the cheap model, and a mask of the items to rerank."""
        scores = self.first_scores(cases)
        if not self.asks_now():
            return softsign_below_zero(scores), torch.zeros_like(scores, dtype=torch.bool)
        return softsign_below_zero(scores), first_of_each_row(scores, self._candidates(cases), self.rerank_k)

    def _candidates(self, cases: Interaction) -> Tensor:
        """Return a mask (B, n_items) of the items that can be recommended; with `mask_history` those of the history
        cannot, including a held-out item in it: only the evaluation knows that it is held out."""
        allowed = torch.ones(len(cases), self.n_items, dtype=torch.bool, device=self.known_items.device)
        allowed[:, 0] = False
        if self.mask_history:
            users = cases[self.USER_ID]
            counts = self.known_offsets[users + 1] - self.known_offsets[users]
            rows = torch.arange(len(users), device=users.device).repeat_interleave(counts)
            begins = (self.known_offsets[users] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
            allowed[rows, self.known_items[begins + torch.arange(len(rows), device=rows.device)]] = False
            allowed.scatter_(1, cases[self.ITEM_SEQ], False)
        return allowed

    def histories(self, cases: Interaction) -> list[np.ndarray]:
        """Return the items of each case's history, the earliest first."""
        items, lengths = cases[self.ITEM_SEQ].cpu().numpy(), cases[self.ITEM_SEQ_LEN].tolist()
        return [row[:length] for row, length in zip(items, lengths)]

    # ------------------------------------------------------------------------------------------------------- saving

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the weights without those that never change."""
        weights = super().state_dict(*args, **kwargs)
        return {name: value for name, value in weights.items() if not self.never_changes(name)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` returned.

        Raises:
            RuntimeError: weights are missing or unknown.
        """
        report = super().load_state_dict(state_dict, strict=False, assign=assign)
        lacking = [name for name in report.missing_keys if not self.never_changes(name)]
        if strict and (lacking or report.unexpected_keys):
            raise RuntimeError(f"missing weights: {lacking}, unknown weights: {report.unexpected_keys}")
        return report


def rows_of(interaction: Interaction, index: slice | Tensor) -> Interaction:
    """Return some rows of an interaction."""
    return Interaction({name: values[index] for name, values in interaction.interaction.items()})


def softsign_below_zero(scores: Tensor) -> Tensor:
    """Map scores to (-1, 0), below every probability, in the same order."""
    bounded = scores.clamp(-LARGEST, LARGEST)  # infinite over infinite is no number
    return (bounded / (1 + bounded.abs()) - 1) / 2


def first_of_each_row(scores: Tensor, allowed: Tensor, count: int | None) -> Tensor:
    """Mark the allowed columns with a row's highest scores; of equal scores the first columns.

    Args:
        scores: (B, N).
        allowed: bool (B, N).
        count: number of columns per row, or all allowed ones where those are fewer; None for all allowed ones.

    Returns:
        bool (B, N).

    Example:
        >>> first_of_each_row(torch.tensor([[3.0, 9.0, 5.0]]), torch.tensor([[True, False, True]]), count=1)
        tensor([[False, False,  True]])
    """
    if count is None or count >= scores.shape[1]:
        return allowed
    masked = scores.masked_fill(~allowed, -torch.inf)
    least = masked.topk(count, dim=1).values[:, -1:]
    above = masked > least
    level = (masked == least) & allowed
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))
