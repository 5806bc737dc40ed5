"""Ranks every item for every held-out case of a model: exactly, in bounded memory, with as little work as possible.

    users = EvalUsers(interaction, positives=CSR(...), history=CSR(...), user_ids=ids)
    struct = rank_users(model, users, item_num, collector=RankingCollector(config))
    Evaluator(config).evaluate(struct)                      # RecBole's own metrics

`collector.py` states the rule for equal scores.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator.collector import DataStruct
from torch import nn

from recbole_mm.errors import DataError
from recbole_mm.evaluation.candidates import FILES, Cases, draw, read_candidates, write_candidates
from recbole_mm.evaluation.collector import RankingCollector, TrainCounts
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.sampled import SampledCandidates
from recbole_mm.evaluation.scoring import Scorer
from recbole_mm.models.base import RerankingModel
from recbole_mm.utils.process_group import current_workers
from recbole_mm.utils.progress import progress

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["CSR", "EvalUsers", "RankingData", "SampledCandidates", "TrainCounts", "rank_users"]


@dataclass
class EvalUsers:
    """The cases to rank in one phase; a row is one case: a user, or a user at one point in time.

    Attributes:
        interaction: the model's input; indexing it with a numpy array of rows gives their `Interaction`.
        positives: (n rows) the items that each row should rank high. Repeated ones count once.
        history: (n rows) items that are masked; None masks nothing. A positive is never masked.
        user_ids: (n,) RecBole's user id of each row.
        candidates: (n rows) rank only these instead of all items; nothing else is masked then.
        user_tokens: (user_num,) ids of the data files by RecBole's ids, for messages and tables.
        barred: (b,) items that are ranked for nobody, none of them in the history; None for none.
        known: (n,) number of interactions that are known of each row's user, repeated ones counted.

    Example:
        >>> users = Interaction({"user_id": torch.tensor([1, 2])})
        >>> positives, history = CSR.from_lists([[3], [1, 1, 2]]), CSR.from_lists([[1], [2, 4]])
        >>> held_out = EvalUsers(users, positives, history, np.array([1, 2]))
        >>> held_out.tidy(item_num=5)
        >>> held_out.positives.items, held_out.history.items
        (array([3, 1, 2]), array([1, 4]))
    """

    interaction: Any
    positives: CSR
    history: CSR | None
    user_ids: np.ndarray
    candidates: SampledCandidates | None = None
    user_tokens: Sequence[str] | np.ndarray | None = None
    barred: np.ndarray | None = None
    known: np.ndarray | None = None
    _tidied: tuple[CSR, CSR | None, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.positives)

    @property
    def names(self) -> np.ndarray:
        """(n,) user of each row: its token where `user_tokens` is given, or else RecBole's id."""
        return self.user_ids if self.user_tokens is None else np.asarray(self.user_tokens)[self.user_ids]

    def tidy(self, item_num: int) -> None:
        """Sort the items of each row, drop repeated ones and the padding item, and the positives from the history.

        Raises:
            DataError: a row has no positive, or an item id is out of range.
        """
        if self._tidied and self._tidied[:2] == (self.positives, self.history) and self._tidied[2] == item_num:
            return
        for name, lists in (("positives", self.positives), ("history", self.history)):
            if lists is None:
                continue
            if len(lists) != len(self.user_ids):
                raise ValueError(f"{name} has {len(lists)} rows, user_ids {len(self.user_ids)}")
            if len(lists.items) and not 0 <= lists.items.min() <= lists.items.max() < item_num:
                raise DataError(f"{name}: item ids must be from 1 to {item_num - 1}, found {lists.items.max()}")
        self.positives = self.positives.distinct(item_num)
        if empty := int((self.positives.lengths == 0).sum()):
            raise DataError(f"{empty} of {len(self)} cases to rank have no held-out item; leave them out")
        if self.history is not None:
            self.history = self.history.distinct(item_num).without(self.positives, item_num)
        self._tidied = (self.positives, self.history, item_num)


def rank_users(
    model: nn.Module,
    eval_users: EvalUsers,
    item_num: int,
    *,
    collector: RankingCollector,
    memory_mb: float = 256,
    batch_size: int = 4096,
    device: torch.device | str | None = None,
    item_features: Interaction | None = None,
    show_progress: bool = False,
) -> DataStruct:
    """Score all candidates of every row and collect what RecBole's ranking metrics need.

    Item vectors of dot-product models (see `dot_product.py`) are computed once; other models are asked through
    `full_sort_predict`, and those without it through `predict`.

    Several workers (`utils.process_group`) share the batches of rows, cut as one process would cut them, so that each
    score is computed as it would be there, to the last bit; what they collect is put together, and all return it.

    Args:
        model: RecBole's or ours; in evaluation mode while it is ranked.
        eval_users: the cases. Their lists are sorted in place.
        item_num: number of item ids, padding 0 included.
        collector: receives the scores.
        memory_mb: bound in MiB of one block of scores; a single row is always possible.
        batch_size: bound of the rows that go through the model at once, and of the (row, item) pairs of a `predict`.
        device: the model's device; None for that of its parameters.
        item_features: one row per item id, for models whose `predict` reads more of an item than its id.
        show_progress: whether to report progress.

    Raises:
        RecboleMMError: a score is NaN, or the model gives another number of scores than there are items.
        DataError: see `EvalUsers.tidy`.
    """
    eval_users.tidy(item_num)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _choosing(model, eval_users.barred, item_num):
            scorer = Scorer(
                model,
                eval_users.interaction,
                item_num,
                device=device,
                memory_mb=memory_mb,
                batch_size=batch_size,
                item_features=item_features,
            )
            if eval_users.candidates is None:
                _rank_all(scorer, eval_users, collector, show_progress)
            else:
                _rank_candidates(scorer, eval_users, eval_users.candidates.items, collector, show_progress)
    finally:
        model.train(was_training)
    if (workers := current_workers()) is not None:
        collector.put_together(workers.sum)
    return collector.result()


def _choosing(model: nn.Module, barred: np.ndarray | None, item_num: int) -> AbstractContextManager[None]:
    """Have a reranker choose the items that it asks about among those that are ranked."""
    if barred is None or not isinstance(model, RerankingModel):
        return nullcontext()
    return model.choosing_from(np.setdiff1d(np.arange(1, item_num), barred))


def _own(batches: Sequence[T]) -> Sequence[T]:
    """Those of the batches that this process ranks: all, unless it is one of several workers."""
    workers = current_workers()
    return batches if workers is None else workers.share(batches)


def _rank_all(scorer: Scorer, users: EvalUsers, collector: RankingCollector, show_progress: bool) -> None:
    masked = np.ones(len(users), dtype=np.int64) + (0 if users.history is None else users.history.lengths)
    masked += 0 if users.barred is None else len(users.barred)
    collector.begin(users.positives, masked=masked, width=scorer.item_num, names=users.names)
    # Rows with equally many positives together: a block is read as often as its richest row has positives.
    batches = _own(scorer.batches(scorer.order(-users.positives.lengths)))
    scored = progress(scorer.all_items(batches), "Evaluating", total=len(batches), unit="batch", show=show_progress)
    for blocks in scored:
        for rows, scores in blocks:
            mask(scores, rows, users.history)
            if users.barred is not None:
                scores[:, torch.from_numpy(users.barred).to(scores.device)] = -torch.inf
            collector.collect(scores, rows)


def mask(scores: torch.Tensor, rows: np.ndarray, history: CSR | None) -> None:
    """Set the padding item and the items in the rows' histories to -inf, in place.

    Args:
        scores: (B, N), contiguous.
        rows: (B,) rows of `history`.
    """
    scores[:, 0] = -torch.inf
    if history is not None:
        places = np.repeat(np.arange(len(rows)) * scores.shape[1], history.lengths_of(rows))
        places += history.items[history.positions(rows)]
        scores.view(-1).index_fill_(0, torch.from_numpy(places).to(scores.device), -torch.inf)


def _rank_candidates(
    scorer: Scorer, users: EvalUsers, candidates: CSR, collector: RankingCollector, show_progress: bool
) -> None:
    lengths = candidates.lengths
    width = int(lengths.max())
    found = np.searchsorted(candidates.keys(scorer.item_num), users.positives.keys(scorer.item_num))
    columns = CSR(users.positives.offsets, found - candidates.offsets[users.positives.rows])
    collector.begin(columns, masked=width - lengths, width=width, names=users.names)
    order = scorer.order(np.zeros(len(users), dtype=np.int64))
    step = max(1, scorer.batch_size // width)
    starts = _own(range(0, len(users), step))
    for start in progress(starts, "Evaluating", unit="batch", show=show_progress):
        rows = order[start : start + step]
        inside = np.arange(width) < lengths[rows, None]
        items = np.zeros(inside.shape, dtype=np.int64)
        items[inside] = candidates.items[candidates.positions(rows)]
        scores = scorer.of_items(rows, torch.from_numpy(items))
        scores[torch.from_numpy(~inside).to(scores.device)] = -torch.inf
        collector.collect(scores, rows, items)


@dataclass
class RankingData:
    """One phase's cases and their dataset: the argument of a trainer's `evaluate`.

    Attributes:
        users: the cases.
        dataset: the phase's part of the dataset, with the numbers of items and users, item features and ids.
        mode: RecBole's `eval_args.mode`: `full`, `uni<n>` (n uniformly sampled negatives per positive) or `pop<n>`
            (sampled by their count in the training data).
        train_counts: for `pop<n>` and for metrics over popularity.
        phase: valid or test; each has a separate draw.
    """

    users: EvalUsers
    dataset: MultimodalDataset
    mode: str = "full"
    train_counts: TrainCounts | None = None
    phase: str = "test"

    def __len__(self) -> int:
        return len(self.users)

    def rank(
        self, model: nn.Module, config: Config, device: torch.device | str | None = None, show_progress: bool = False
    ) -> DataStruct:
        """`rank_users` with the settings of `config`: metrics, topk, eval_memory_mb, eval_batch_size, seed and
        save_rankings.

        Raises:
            ConfigError: an unknown mode, or `pop<n>` without training counts.
        """
        item_num, users = self.dataset.item_num, self.users
        if users.user_tokens is None:
            users.user_tokens = self.dataset.field2id_token[self.dataset.uid_field]
        if self.mode != "full" and users.candidates is None:
            self.sample(config["seed"])
        collector = RankingCollector(
            config,
            item_num=item_num,
            user_num=self.dataset.user_num,
            train_counts=self.train_counts,
            rankings=self.phase == "test" and config["save_rankings"] is not None,
        )
        return rank_users(
            model,
            users,
            item_num,
            collector=collector,
            memory_mb=config["eval_memory_mb"] or 256,
            batch_size=config["eval_batch_size"],
            device=device,
            item_features=self.dataset.get_item_feature(),
            show_progress=show_progress,
        )

    def sample(self, seed: int, run_dir: Path | None = None) -> None:
        """Set the candidates of a sampled `mode`: those that the run's folder holds, or else a draw, stored there.

        The folder of a finished run without candidates, of a version that did not store them, is not changed.

        Args:
            seed: the run's seed.
            run_dir: its folder; None stores nothing.

        Raises:
            ConfigError: an unknown mode, or `pop<n>` without training counts.
            DataError: what is stored cannot be read, or does not fit the data.
        """
        names = (self.dataset.field2id_token[field] for field in (self.dataset.uid_field, self.dataset.iid_field))
        cases = Cases(self.users, *names)
        path = None if run_dir is None else run_dir / FILES[self.phase]
        if path is not None and path.is_file():
            found = read_candidates(path, cases)
        else:
            counts = None if self.train_counts is None else self.train_counts.items
            found = draw(cases, self.mode, self.phase, seed, counts)
            if path is not None and not (path.parent / "result.json").is_file():
                write_candidates(path, cases, found)
            elif path is not None:
                logger.warning("%s is not there: its candidates are drawn anew and may be others", path)
        self.users.candidates = cases.by_id(found)
