"""What a model reads of those it recommends to: users of the data, histories, or both.

A model of sequences is given each history with a row of padding behind it, which stands for the unknown next item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.data.splits import TEST
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.csr import CSR, offsets_of

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

KNOWN = ("all", "test")
"""What is known of a user of the data: every interaction, or those before the test items, which the evaluation knew."""


class UserInteractions:
    """What is known of the users of a dataset: which of its rows are theirs.

    Args:
        dataset: of a run, split.
        known: one of `KNOWN`.

    Raises:
        ConfigError: another value of `known`; or the dataset has samples instead of users' interactions.
    """

    def __init__(self, dataset: MultimodalDataset, known: str) -> None:
        if known not in KNOWN:
            raise ConfigError(f"known: {known!r} is not accepted; give {' or '.join(KNOWN)}")
        if dataset.benchmark_filename_list is not None and isinstance(dataset, SequentialDataset):
            raise ConfigError(
                f"{dataset.dataset_name}: its files hold samples with histories of their own (benchmark_filename), not "
                "users' interactions, so that nothing is known of a user; give histories"
            )
        rows = dataset.rows
        order = rows.in_order if known == "all" else rows.known_at(TEST)
        order = order[np.argsort(rows.users[order], kind="stable")]
        self.items = rows.items
        self.by_user = CSR(np.searchsorted(rows.users[order], np.arange(dataset.user_num + 1)), order)

    def rows_of(self, users: np.ndarray) -> CSR:
        """Return the rows of users (n,), the earliest first."""
        return self.by_user.take(users)

    def histories_of(self, users: np.ndarray) -> CSR:
        """Return the items of users (n,), the earliest first."""
        rows = self.rows_of(users)
        return CSR(rows.offsets, self.items[rows.items])


def flat_columns(dataset: MultimodalDataset) -> dict[str, torch.Tensor]:
    """Return the columns (M, ...) of a sequential dataset's interactions, in the order of `dataset.rows`."""
    samples = dataset.inter_feat
    if isinstance(samples, SequenceSamples):
        return dict(samples.flat)
    return {dataset.iid_field: torch.from_numpy(dataset.rows.items)}


def sequence_inputs(
    dataset: MultimodalDataset, columns: dict[str, torch.Tensor], rows: CSR, users: np.ndarray | None
) -> SequenceSamples:
    """Build the input of a sequential model from histories.

    Args:
        dataset: of the run.
        columns: field -> values (M, ...), item ids among them.
        rows: each history's rows of `columns`, the earliest first; none may be empty. The last
            `MAX_ITEM_LIST_LENGTH` are read.
        users: (n,) RecBole's ids; None for users that no training knows, of whom there is no id to read.
    """
    config, longest = dataset.config, dataset.config["MAX_ITEM_LIST_LENGTH"]
    lengths = np.minimum(rows.lengths, longest)
    read = CSR(offsets_of(lengths), np.zeros(lengths.sum(), dtype=np.int64))
    last = np.repeat(rows.offsets[1:] - lengths - read.offsets[:-1], lengths) + np.arange(lengths.sum())
    targets = read.offsets[1:] + np.arange(len(rows))  # one row of padding behind each history
    places = np.full(len(last) + len(rows), -1)
    places[np.setdiff1d(np.arange(len(places)), targets, assume_unique=True)] = rows.items[last]
    taken = torch.from_numpy(places)
    fields = {name: _with_padding(values, taken) for name, values in columns.items() if name != dataset.uid_field}
    if users is not None:
        owners = torch.zeros(len(places), dtype=torch.int64)
        owners[targets] = torch.from_numpy(np.asarray(users, dtype=np.int64))
        fields[dataset.uid_field] = owners
    return SequenceSamples(
        fields,
        targets - lengths,
        targets,
        user_field=dataset.uid_field,
        list_suffix=config["LIST_SUFFIX"],
        length_field=config["ITEM_LIST_LENGTH_FIELD"],
        max_len=longest,
    )


def _with_padding(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the values at places, and zeros where a place is -1."""
    there = (places >= 0).reshape(-1, *[1] * (values.dim() - 1))
    return values[places.clamp(min=0)] * there.to(values.dtype)


def user_inputs(dataset: MultimodalDataset, users: np.ndarray) -> Interaction:
    """Build the input of a model of users and items, with the features of users."""
    return dataset.join(Interaction({dataset.uid_field: torch.from_numpy(np.asarray(users, dtype=np.int64))}))


class MultiHotHistories:
    """Histories as the input of a general model that scores by them alone: 0 and 1 for every item.

    Args:
        histories: item ids of each row.
        item_num: N, padding included.
    """

    def __init__(self, histories: CSR, item_num: int) -> None:
        self.histories = histories.distinct(item_num)
        self.item_num = item_num

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """Return some rows, (B, N) float32 of 0 and 1."""
        taken = self.histories.take(rows)
        table = torch.zeros(len(rows), self.item_num)
        table[torch.from_numpy(taken.rows), torch.from_numpy(taken.items)] = 1
        return table


def with_negatives(columns: dict[str, torch.Tensor], model: Any, dataset: MultimodalDataset) -> dict[str, torch.Tensor]:
    """Return the columns with padding for DIEN's negatives, which its loss reads and its score passes over."""
    if type(model).__name__ != "DIEN":
        return columns
    name = f"{dataset.config['NEG_PREFIX']}{dataset.iid_field}"
    return {**columns, name: torch.zeros_like(columns[dataset.iid_field])}
