"""Splits of interactions into training, validation and test: RecBole's `eval_args`, for every kind of model alike.

The same rows are held out whatever the model, by exact times. A user's first interaction is never held out where rows
are in the order of time: no model of sequences could rank it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from recbole.data.dataset import Dataset

from recbole_mm.config.resolved import Config
from recbole_mm.config.split import SplitArguments
from recbole_mm.errors import ConfigError

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class Rows:
    """All interactions of a dataset that has been split, in its order, whichever part it is.

    Attributes:
        users, items: int64 (M,), RecBole's ids; each user's rows are one run, in the order of time if there is one.
        phases: int8 (M,) of TRAIN, VALID and TEST.
        in_time: whether that is the order of the split.
        positive: bool (M,), False where the row's label means that the user does not want the item.
        ends: int64 (M,) of a split that holds out items, where each user's training rows come first: end of each row's
            history, which starts with the user's rows and holds training rows alone. None: it ends at the row itself.
        places: int64 (M,) of such a split: each row's place in the order of the split without it.

    Example:
        >>> phases, users, items = np.array([TRAIN, VALID, TEST]), np.array([1, 1, 1]), np.array([5, 6, 7])
        >>> rows = Rows(users, items, phases, in_time=True, positive=np.ones(3, dtype=bool))
        >>> rows.of_phase(TEST), rows.known_at(TEST)
        (array([2]), array([0, 1]))
    """

    users: np.ndarray
    items: np.ndarray
    phases: np.ndarray
    in_time: bool
    positive: np.ndarray
    ends: np.ndarray | None = None
    places: np.ndarray | None = None

    @cached_property
    def in_order(self) -> np.ndarray:
        """All rows in the order of the split, int64 (M,): rows held out with their items stand behind others here."""
        return np.arange(len(self.users)) if self.places is None else np.argsort(self.places)

    @cached_property
    def history_ends(self) -> np.ndarray:
        """int64 (M,): end of each row's history."""
        return np.arange(len(self.users)) if self.ends is None else self.ends

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 (M,): the first row of each row's user."""
        offsets = group_offsets(self.users)
        return np.repeat(offsets[:-1], np.diff(offsets))

    @cached_property
    def targets(self) -> np.ndarray:
        """Rows that have a history: int64, ascending."""
        return np.flatnonzero(self.starts < self.history_ends)

    @cached_property
    def never_asked(self) -> np.ndarray:
        """bool (M,): rows that are neither learnt from nor held out: those without a history, after the training data.
        They are known, where no items are held out."""
        return (self.starts == self.history_ends) & (self.phases != TRAIN) & self.in_time

    def of_phase(self, phase: int) -> np.ndarray:
        """Rows that are learnt from, or held out, in a phase: int64, ascending."""
        return np.flatnonzero((self.phases == phase) & ~self.never_asked)

    def known_at(self, phase: int) -> np.ndarray:
        """Rows that are known of users of whom the held-out ones of a phase are asked for: int64, ascending."""
        if self.ends is not None:  # a held-out item is in no history
            return np.flatnonzero(self.phases == TRAIN)
        return np.flatnonzero((self.phases < phase) | ((self.phases == phase) & self.never_asked))


class Split(SplitArguments):
    """The split of `eval_args`, applied to interactions.

    Example:
        >>> split = Split("LS", "valid_and_test", in_time=True, by_user=True, seed=2020)
        >>> split.phases(np.array([1, 1, 1, 1]), times=np.array([3.0, 1.0, 2.0, 4.0])).tolist()
        [1, 0, 0, 2]
    """

    @classmethod
    def of(cls, config: Config) -> Split:
        """Returns the split of a run.

        Raises:
            ConfigError: `eval_args` do not fit together, or do not fit a sequential model.
        """
        return cls.from_arguments(config["eval_args"], config["MODEL_TYPE"], config["seed"])

    def holds_out(self, phase: int) -> bool:
        """Returns whether `eval_args` ask for validation or test at all."""
        if self.way == "LS":
            return self.value in ("valid_and_test", "valid_only" if phase == VALID else "test_only")
        return self.value[phase] > 0

    @property
    def holds_out_items(self) -> bool:
        """Whether all interactions with some items are held out."""
        return self.way == "cold_items"

    def item_phases(self, count: int) -> np.ndarray:
        """Phase of every item, drawn by the seed: int8 (count,), items in the order of their tokens."""
        phases = np.empty(count, dtype=np.int8)
        order = np.random.default_rng(self.seed).permutation(count)
        phases[order] = split_by_ratio(np.array([0, count]), self.value)
        return phases

    def row_order(self, times: np.ndarray | None, count: int) -> np.ndarray:
        """All rows in the order of the split, across users: int64 (M,).

        By exact time, and of equal times the file's order decides; or shuffled, by the seed alone.

        Args:
            times: float64 (M,); not read, and may be None, where `in_time` is False.
            count: M.
        """
        if not self.in_time:
            return np.random.default_rng(self.seed).permutation(count)
        assert times is not None
        return np.argsort(times, kind="stable")

    def phases(self, users: np.ndarray, times: np.ndarray | None) -> np.ndarray:
        """Phase of every row: int8 (M,) of TRAIN, VALID and TEST.

        Args:
            users: (M,) of each row, in the order of the file.
            times: float64 (M,); not read, and may be None, where `in_time` is False.
        """
        order = self.row_order(times, len(users))
        found = np.empty(len(users), dtype=np.int8)
        if self.way == "RS" and not self.by_user:
            found[order] = self._over_all(users[order])
            return found
        by_user = order[np.argsort(users[order], kind="stable")]
        offsets = group_offsets(users[by_user])
        if self.way == "LS":
            found[by_user] = leave_one_out(offsets, self.value)
        elif self.way == "RS":
            found[by_user] = split_by_ratio(offsets, self.value)
        else:
            assert times is not None
            found[by_user] = split_by_time(offsets, times[by_user], self.value)
        return found

    def _over_all(self, users: np.ndarray) -> np.ndarray:
        """Phase of each row where all are cut together: shares are counted over the rows that can be held out, and a
        first row is in the phase of what comes before it."""
        held = ~first_of_each(users) if self.in_time else np.ones(len(users), dtype=bool)
        phases = np.zeros(len(users), dtype=np.int8)
        phases[held] = split_by_ratio(np.array([0, held.sum()]), self.value)
        return np.maximum.accumulate(phases)


def group_offsets(users: np.ndarray) -> np.ndarray:
    """Start of each user's run of rows in `users` (M,), which is sorted; with M appended: int64 (U + 1,)."""
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1)) if len(users) else np.empty(0, dtype=np.int64)
    return np.append(starts, len(users)).astype(np.int64)


def first_of_each(users: np.ndarray) -> np.ndarray:
    """bool (M,): whether a row is the first one of its user."""
    first = np.zeros(len(users), dtype=bool)
    first[np.unique(users, return_index=True)[1]] = True
    return first


def training_rows_first(users: np.ndarray, phases: np.ndarray, in_time: bool) -> tuple[np.ndarray, np.ndarray]:
    """The order in which each user's training rows come first, then those of validation, then those of the test.

    Args:
        users: (M,) sorted; each one's rows in the order of the split.
        phases: int8 (M,).
        in_time: whether that is the order of time: a history then ends where its row was, else it is all of the user's.

    Returns:
        The order, int64 (M,), and in it the end of each row's history of training rows, int64 (M,).

    Example:
        >>> training_rows_first(np.array([1, 1, 1]), np.array([TRAIN, TEST, TRAIN]), in_time=True)
        (array([0, 2, 1]), array([0, 1, 1]))
    """
    offsets = group_offsets(users)
    lengths = np.diff(offsets)
    starts = np.repeat(offsets[:-1], lengths)
    training = phases == TRAIN
    before = np.cumsum(training) - training
    before -= before[starts]
    if not in_time:
        all_of_user = np.bincount(np.repeat(np.arange(len(lengths)), lengths), training, len(lengths)).astype(np.int64)
        before = np.where(training, before, np.repeat(all_of_user, lengths))
    order = np.lexsort((phases, users))
    return order, (starts + before)[order]


def leave_one_out(offsets: np.ndarray, mode: str = "valid_and_test") -> np.ndarray:
    """Phase of every row when each user's last rows are held out.

    Counted over interactions, for general and sequential models alike, as RecBole does for general models: a user's
    first row is always training data; with two rows only the test row is held out.

    Args:
        offsets: starts of the users' rows, int64 (U + 1,); rows are in time order within a user.
        mode: RecBole's `LS` value: `valid_and_test`, `valid_only` or `test_only`.

    Returns:
        int8 (M,) of TRAIN, VALID and TEST.
    """
    held_out = {"valid_and_test": [TEST, VALID], "valid_only": [VALID], "test_only": [TEST]}[mode]
    phases = np.zeros(offsets[-1], dtype=np.int8)
    lengths = np.diff(offsets)
    for back, phase in enumerate(held_out, start=1):
        enough = lengths > back
        phases[offsets[1:][enough] - back] = phase
    return phases


def split_by_ratio(
    offsets: np.ndarray,
    ratios: Sequence[float],
    calculate_split_ids: Callable[..., Sequence[int]] = Dataset._calcu_split_ids,
) -> np.ndarray:
    """Phase of every row when each user's rows are cut in their order by `ratios` (RecBole's `RS`).

    Args:
        offsets: starts of the users' rows, int64 (U + 1,); [0, M] cuts all of them together.
        ratios: three numbers, the first above 0; they need not add up to one.
        calculate_split_ids: RecBole's, so that rounding is RecBole's.

    Returns:
        int8 (M,) of TRAIN, VALID and TEST.
    """
    total = sum(ratios)
    ratios = [ratio / total for ratio in ratios]
    phases = np.zeros(offsets[-1], dtype=np.int8)
    lengths = np.diff(offsets)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    for length in np.unique(lengths):
        cuts = calculate_split_ids(None, tot=int(length), ratios=ratios)
        rows = np.flatnonzero(np.repeat(lengths == length, lengths))
        phases[rows] = np.searchsorted(np.asarray(cuts), position[rows], side="right")
    return phases


def split_by_time(offsets: np.ndarray, times: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Phase of every row when all rows after one point in time are the test (RecBole's `TS`).

    The point is the quantile of the times after which the last of `ratios` comes; equal times are never parted. Of
    each user's rows up to it, the first ones are for training and the rest for validation, by the other two.

    Args:
        offsets: starts of the users' rows, int64 (U + 1,); rows are in time order within a user.
        times: float64 (M,).
        ratios: three numbers, the first above 0; they need not add up to one.

    Returns:
        int8 (M,) of TRAIN, VALID and TEST. A user's first row is TRAIN, or TEST after the point.
    """
    total = sum(ratios)
    train, valid, test = (ratio / total for ratio in ratios)
    share = train / (train + valid)
    lengths = np.diff(offsets)
    place = np.arange(len(times)) - np.repeat(offsets[:-1], lengths)
    if not (place > 0).any():
        return np.zeros(len(times), dtype=np.int8)
    before = times <= np.percentile(times[place > 0], 100 * (1 - test))
    targets = np.add.reduceat((before & (place > 0)).astype(np.int64), offsets[:-1])
    trained = np.floor(targets * share + 1e-9).astype(np.int64)  # 3 of 4 and not 2, whatever 3 / 4 of the shares is
    return np.where(before, np.where(place > np.repeat(trained, lengths), VALID, TRAIN), TEST).astype(np.int8)


def keeps_popular(config: Config) -> bool:
    """Whether `positives` is `popular`: the sequences of MLLM-MSR's released preprocessing, to reproduce its figures.

    That preprocessing keeps of each user the few items that most interactions of the file name, puts them in time
    order, and takes the last one as the positive. So held-out items are popular ones, chosen by a count that includes
    the held-out interactions themselves; its negatives are drawn from all items. A ranker that knows popularity alone
    then does well.

    Raises:
        ConfigError: the data has no last item of a user to choose: it is shuffled, or its split is given.
    """
    if config["positives"] != "popular":
        return False
    if config["benchmark_filename"] or config["eval_args"]["order"] != "TO":
        raise ConfigError(
            "positives: popular needs eval_args.order: TO and no benchmark_filename; give these, or positives: last"
        )
    return True


def popular_rows(users: np.ndarray, items: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """Each user's rows of the items that most rows of all users name.

    Args:
        users, items: int64 (M,), whole numbers from 0, of each row.
        order: int64 (M,), the rows by user and time; of a user's equally popular items, the later ones are kept.
        most: rows to keep of a user; one with fewer keeps them all.

    Returns:
        int64, ascending.

    Example:
        >>> popular_rows(np.array([1, 1, 1, 2]), np.array([5, 6, 7, 7]), np.array([0, 1, 2, 3]), most=2)
        array([1, 2, 3])
    """
    count = np.bincount(items)[items]
    later = np.empty(len(order), dtype=np.int64)
    later[order] = np.arange(len(order))
    by_user = np.lexsort((-later, -count, users))
    sorted_users = users[by_user]
    place = np.arange(len(by_user)) - np.searchsorted(sorted_users, sorted_users)
    return np.sort(by_user[place < most])
