"""Base of expensive models that rerank the best items of a cheap one: the choice of the items, and one scale for all.

The cheap model scores every item of a case. The `rerank_k` best of those that can be recommended at all, or of those
that are ranked where these are fewer, are asked about, and their scores are the expensive model's probabilities; every
other item's score is below 0, in the cheap model's order.
With a `fusion_weight` w below 1 their scores are w * probability + (1 - w) * what the cheap model says of them,
scaled to 0 to 1 over the `rerank_k` items that a full ranking asks about: 0 leaves the cheap model's order as it is.
Sampled candidates that are asked about without being among them (`answers_any`) are on the same scale, so that a pair's
score does not depend on what was drawn beside it; a candidate that the cheap model ranks lower is below 0 on it.
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
from recbole_mm.inputs.answering.first_stage import SCORES_AT_ONCE
from recbole_mm.models.base import RerankingModel
from recbole_mm.models.fusion import Fusion, check_fusion
from recbole_mm.models.settings import FUSION_WEIGHT

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

LARGEST = 1e30

ANSWERS_ALONE = 1.0
"""`fusion_weight` that leaves the cheap model the choice of the items alone."""


class RerankingRecommender(RerankingModel):
    """Base of models that are asked about a few items of each case.

    Reads `rerank_k`, `fusion_weight` and `mask_history`.

    A subclass has `first_scores`, `probabilities` and, where its answers do not depend on what the cheap model ranks
    first, `answers_any`.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("rerank_k", or_null(size(1)), meaning="Items of each case that are asked about. Null: all."),
        Setting("fusion_weight", FUSION_WEIGHT, 1.0, "Weight of the answers against the cheap model's scores."),
    )
    known_items: Tensor
    known_offsets: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.rerank_k: int | None = config["rerank_k"]
        check_fusion(config)
        self.fusion = Fusion(config["fusion_weight"], default=ANSWERS_ALONE)
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
            first, asked = self._filtered(cases)
            owners, items = asked.nonzero(as_tuple=True)
            scores = softsign_below_zero(first)
            scores[owners, items] = self._fused(cases, owners, items, first, asked)
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
            table = None if self.answers_any and self.fusion.value == ANSWERS_ALONE else self._filtered(cases)
            if self.answers_any:
                found, asked = scores[mine], items > 0
            else:
                assert table is not None
                found, asked = softsign_below_zero(table[0])[owners, items], table[1][owners, items]
            found[asked] = self._fused(cases, owners[asked], items[asked], *(table or ()))
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

    def _fused(self, cases: Interaction, owners: Tensor, items: Tensor, *table: Tensor) -> Tensor:
        """Return the scores of items that are asked about (n,) float64.

        Args:
            cases: B of them.
            owners: (n,) case of each item.
            items: (n,).
            table: from `_filtered`; not read where the answers alone count.
        """
        weight = self.fusion.value
        if weight == ANSWERS_ALONE or len(items) == 0:
            return self._answers(cases, owners, items)
        cheap = share_of_range(*table)[owners, items]
        return cheap if weight == 0 else weight * self._answers(cases, owners, items) + (1 - weight) * cheap

    def _answers(self, cases: Interaction, owners: Tensor, items: Tensor) -> Tensor:
        given = [*(cases[name] for name in (self.USER_ID, self.ITEM_SEQ_LEN, self.ITEM_SEQ)), owners, items]
        return self.fusion.kept(given, lambda: self._asked(cases, owners, items))

    def _filtered(self, cases: Interaction) -> tuple[Tensor, Tensor]:
        """Return the cheap model's scores (B, n_items) float64, and a mask of the items to rerank."""
        scores = self.first_scores(cases)
        if not self.asks_now():
            return scores, torch.zeros_like(scores, dtype=torch.bool)
        return scores, first_of_each_row(scores, self._candidates(cases), self.rerank_k)

    def _candidates(self, cases: Interaction) -> Tensor:
        """Return a mask (B, n_items) of the items that can be recommended, among those that `choosing_from` leaves.

        With `mask_history` those of the history cannot, including a held-out item in it: only the evaluation knows that
        it is held out.
        """
        allowed = torch.ones(len(cases), self.n_items, dtype=torch.bool, device=self.known_items.device)
        if self._choosable is not None:
            allowed &= self._choosable.to(allowed.device)
        allowed[:, 0] = False
        if self.mask_history:
            allowed.scatter_(1, cases[self.ITEM_SEQ], False)
        if self.mask_history and self._knows_training_items:
            users = cases[self.USER_ID]
            counts = self.known_offsets[users + 1] - self.known_offsets[users]
            rows = torch.arange(len(users), device=users.device).repeat_interleave(counts)
            begins = (self.known_offsets[users] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
            allowed[rows, self.known_items[begins + torch.arange(len(rows), device=rows.device)]] = False
        return allowed

    def histories(self, cases: Interaction) -> list[np.ndarray]:
        """Return the items of each case's history, the earliest first."""
        items, lengths = cases[self.ITEM_SEQ].cpu().numpy(), cases[self.ITEM_SEQ_LEN].tolist()
        return [row[:length] for row, length in zip(items, lengths)]

    # --------------------------------------------------------------------------------------------- what is chosen

    def validation_choices(self) -> Mapping[str, Any]:
        """Return the values of `fusion_weight` to try, if it is `valid`."""
        return self.fusion.choices()

    def take_choice(self, value: Any, last: bool) -> None:
        """Take one of them."""
        self.fusion.take(value, last)

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


def share_of_range(scores: Tensor, chosen: Tensor) -> Tensor:
    """Map each row so that the lowest of its chosen scores becomes 0 and the highest 1, in the same order.

    Args:
        scores: (B, N).
        chosen: bool (B, N).

    Returns:
        (B, N); zeros in a row whose chosen scores are all alike.

    Example:
        >>> share_of_range(torch.tensor([[3.0, 9.0, 5.0, 4.0]]), torch.tensor([[True, False, True, True]]))
        tensor([[0.0000, 3.0000, 1.0000, 0.5000]])
    """
    bounded = scores.clamp(-LARGEST, LARGEST)
    low = bounded.masked_fill(~chosen, torch.inf).amin(1, keepdim=True)
    spread = bounded.masked_fill(~chosen, -torch.inf).amax(1, keepdim=True) - low
    return torch.where(spread > 0, (bounded - low) / spread, 0.0)


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
