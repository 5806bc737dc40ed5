"""Users' histories in time order, before the data is split: texts and fine-tuning data are made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset, SequentialDataset

from recbole_mm.config.resolved import Config
from recbole_mm.data.splits import TRAIN, group_offsets
from recbole_mm.errors import ConfigError

EARLIEST = 1e8
"""Unix seconds of March 1973: a column that ends before holds positions, not times."""
MILLISECONDS = 1e11
"""Unix seconds of the year 5138: a column that goes beyond counts in milliseconds."""


def ticks_per_second(times: np.ndarray) -> int | None:
    """Return the unit of a time column: 1 for seconds, 1000 for milliseconds, None where it holds positions.

    Args:
        times: (M,) of training rows.

    Example:
        >>> ticks_per_second(np.array([1.6e9])), ticks_per_second(np.array([1.6e12])), ticks_per_second(np.array([7.0]))
        (1, 1000, None)
    """
    latest = times.max(initial=0.0)
    if latest < EARLIEST:
        return None
    return 1000 if latest > MILLISECONDS else 1


@dataclass(frozen=True)
class Timelines:
    """All rows of every user, held-out ones included: for texts that evaluation asks for, never for training.

    Attributes:
        users: int64 (U,), all users, in the order of their tokens.
        items: int64 (M,), users one after the other; within a user the training rows, then those of validation, then
            those of the test, each in time order.
        offsets: int64 (U + 1,), start of each user's rows, with M at the end.
        phases: int8 (M,) of TRAIN, VALID and TEST.
        times: float64 (M,) as the dataset's files have them; None where there is no time column.
    """

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    phases: np.ndarray
    times: np.ndarray | None


class HistoriesMixin(Dataset):
    """Gives a dataset `user_histories` and `user_timelines`; mixed into `FlatDatasetMixin`, whose split it follows."""

    config: Config
    inter_feat: Any
    split: Any
    _time_order: Callable[[], np.ndarray]
    _row_phases: Callable[[], np.ndarray]
    _row_labels: Callable[[], np.ndarray]

    def training_sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Every user's training items in time order, as `user_histories` gives them, without the users' ids."""
        _, items, offsets = self.user_histories()
        return items, offsets

    def user_histories(self, held_out: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every user's training items in time order: all that may be learnt from before the data is split.

        To be called before `build`. The users come in the order of their tokens, not of RecBole's numbers, which depend
        on the rows that are held out. Files of a split made beforehand (`benchmark_filename`): the first one is what is
        trained on, in time order where it has times and they are loaded, else as it stands.

        Args:
            held_out: give the validation and test rows too. Nothing of them may ever reach training; this is for
                showing what happens if it does.

        Returns:
            users: int64 (U,), the users that have such rows.
            items: int64 (M,), users one after the other.
            offsets: int64 (U + 1,), start of each user's items, with M at the end.

        Raises:
            ConfigError: the files hold samples, or interactions labelled 0.
        """
        rows, offsets = self._history_rows(held_out)
        users, items = self._ids(rows)
        return users[offsets[:-1]], items, offsets

    def user_history_times(self, held_out: bool = False) -> np.ndarray | None:
        """The times of the rows of `user_histories`: float64 (M,); None where no time column is loaded."""
        if self.time_field not in self.inter_feat:
            return None
        rows, _ = self._history_rows(held_out)
        return self.inter_feat[self.time_field].to_numpy()[rows].astype(np.float64)

    def _history_rows(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order of users' tokens and of time, and where each user's begin."""
        order = self._rows_in_order()
        rows = order if held_out else order[self._phases_of(order) == TRAIN]
        place = self._places(rows)
        by_token = np.argsort(place, kind="stable")
        return rows[by_token], group_offsets(place[by_token])

    def user_timelines(self) -> Timelines:
        """Every user's rows with the phase and the time of each. To be called before `build`, as `user_histories` is,
        whose items are those of phase TRAIN here, in the same order.

        Raises:
            ConfigError: as for `user_histories`.
        """
        if self.split.holds_out_items:
            raise ConfigError(
                f"eval_args: split: cold_items: {self.config['model']} reads users' histories up to each held-out item "
                "in the order of time, which such a split has not; choose another model"
            )
        order = self._rows_in_order()
        phases = self._phases_of(order)
        place = self._places(order)
        by_phase = np.lexsort((phases, place))  # stable: the time order stays within a phase
        rows = order[by_phase]
        offsets = group_offsets(place[by_phase])
        users, items = self._ids(rows)
        times = self.inter_feat[self.time_field].to_numpy()[rows] if self.time_field in self.inter_feat else None
        return Timelines(
            users[offsets[:-1]],
            items,
            offsets,
            phases[by_phase].astype(np.int8),
            None if times is None else times.astype(np.float64),
        )

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Place of each row's user among all users in the order of their tokens: int64 (M,)."""
        tokens = np.asarray(self.field2id_token[self.uid_field])
        rank = np.empty(len(tokens), dtype=np.int64)
        rank[np.argsort(tokens, kind="stable")] = np.arange(len(tokens))
        return rank[self.inter_feat[self.uid_field].to_numpy()[rows]]

    def _ids(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of rows, int64 (M,) each."""
        columns = [self.inter_feat[field].to_numpy()[rows] for field in (self.uid_field, self.iid_field)]
        users, items = (column.astype(np.int64) for column in columns)
        return users, items

    def _rows_in_order(self) -> np.ndarray:
        """Rows in time order within each user, where there are times; else as they stand in the files."""
        by_time = self.benchmark_filename_list is None and self.config["eval_args"]["order"] == "TO"
        return self._time_order() if by_time or self.time_field in self.inter_feat else np.arange(len(self.inter_feat))

    def _phases_of(self, order: np.ndarray) -> np.ndarray:
        """(M,) phase of each of the rows, taken in `order`."""
        if self.benchmark_filename_list is not None and isinstance(self, SequentialDataset):
            raise ConfigError(
                "benchmark_filename: the files of a sequential model hold samples, not users' interactions; what "
                "is learnt from these beforehand needs one .inter file, or a model that is not sequential"
            )
        if not self._row_labels().all():
            raise ConfigError(
                "threshold, LABEL_FIELD: what is learnt from users' histories beforehand takes every interaction as "
                "chosen; leave the others out, as in val_interval: {rating: '[4,inf)'}"
            )
        return self._row_phases()[order]
