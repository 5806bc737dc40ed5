"""Training batches of whole sequences: one forward pass per sequence, a target at every position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_mm.data.dataset import FlatSequenceMixin
from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.errors import ConfigError
from recbole_mm.utils.arrays import sorted_distinct

TARGETS = "target_id_list"
NEGATIVES = "neg_id_list"
TARGET_MASK = "target_mask"
"""Fields of a full-sequence batch in addition to RecBole's `item_id_list` and `item_length`, each (B, W)."""


class NegativeSampler:
    """Uniform negatives that the user never chose in training. Held-out items may be drawn: they are not known yet.

    Args:
        users, items: training pairs, int64 (M,).
        item_num: number of items with padding; 1 .. item_num - 1 are drawn.

    Example:
        >>> users, items = np.array([1, 1]), np.array([1, 2])
        >>> NegativeSampler(users, items, item_num=4).sample(users, np.random.default_rng(0))
        array([3, 3])
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, item_num: int) -> None:
        self.item_num = item_num
        self.known = sorted_distinct(users.astype(np.int64) * item_num + items)
        chosen = np.bincount(self.known // item_num)
        if chosen.max(initial=0) >= item_num - 1:
            raise ConfigError(
                f"user {int(chosen.argmax())} has chosen all {item_num - 1} items in training, so no negative is left; "
                "filter such users with user_inter_num_interval"
            )

    def sample(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One negative for each entry of `users` (any shape): int64 of the same shape."""
        drawn = rng.integers(1, self.item_num, size=users.shape)
        retry = np.ones(users.shape, dtype=bool)
        while True:
            keys = users[retry] * np.int64(self.item_num) + drawn[retry]
            at = np.searchsorted(self.known, keys)
            taken = self.known[np.minimum(at, len(self.known) - 1)] == keys
            if not taken.any():
                return drawn
            retry[retry] = taken
            drawn[retry] = rng.integers(1, self.item_num, size=int(taken.sum()))


class FullSequenceLoader:
    """Cuts every user's training sequence into windows and batches them by number of targets.

    Each training target is seen once per epoch, as with RecBole's prefixes, and `train_batch_size` counts targets, as
    RecBole's does, so an epoch makes the same number of optimizer steps. A sequence longer than `MAX_ITEM_LIST_LENGTH`
    is cut into windows at a place drawn anew every epoch, so that no target always sits at a window's start. Windows of
    like length share a batch, padded to the longest of them.

    Everything drawn depends on (seed, epoch) alone, so the loader's whole state is the epoch's number.

    Args:
        dataset: training part of a sequential dataset built here.
        batch_size: targets per batch.
        seed: of the order, the cuts and the negatives.
        shuffle: whether to draw a new order every epoch.
        negatives: whether each target gets a negative, `neg_id_list` (B, W).

    Raises:
        ConfigError: the split is one whose training rows are not a prefix of each user's sequence.
    """

    def __init__(
        self, dataset: FlatSequenceMixin, *, batch_size: int, seed: int, shuffle: bool = True, negatives: bool = False
    ) -> None:
        samples = dataset.inter_feat
        if not isinstance(samples, SequenceSamples):
            raise ConfigError(
                "training on full sequences needs one .inter file of users' interactions: split anew with "
                "--benchmark_filename=~, or choose a model that is trained on samples"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.max_len = samples.max_len
        self.items = samples.flat[dataset.iid_field].numpy()
        self.users = samples.flat[dataset.uid_field].numpy()
        self.length_field = samples.length_field
        self.list_field = dataset.iid_field + samples.list_suffix
        self.user_field = dataset.uid_field
        targets = samples.targets.numpy()
        starts = dataset.rows.starts[targets]
        first_of_user = np.flatnonzero(np.diff(starts, prepend=-1))
        self.first = starts[first_of_user]
        self.counts = np.diff(np.append(first_of_user, len(targets)))
        self.n_targets = len(targets)
        if not np.array_equal(
            np.repeat(self.first + 1 - first_of_user, self.counts) + np.arange(len(targets)), targets
        ):
            raise ConfigError(
                "training on full sequences needs training rows that are a prefix of each user's sequence"
            )
        rows = np.concatenate([self.first, targets])
        self.sampler = (
            NegativeSampler(self.users[rows], self.items[rows], dataset.train_item_num)
            if negatives and len(rows)
            else None
        )

    def state_dict(self) -> dict[str, int]:
        """The epoch's number, which the order, the cuts and the negatives follow from."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the epoch of a `state_dict`."""
        self.epoch = state["epoch"]

    def __len__(self) -> int:
        """Number of batches of the coming epoch."""
        return len(self._plan()[2])

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])

    def _plan(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """This epoch's windows (first input row, number of targets) and the windows of each batch."""
        rng = self._rng()
        starts, lengths = self._windows(rng)
        return starts, lengths, self._batches(lengths, rng)

    def _windows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First input row and number of targets of every window, each int64 (n_windows,)."""
        limit = self.max_len
        head = np.where(self.counts > limit, rng.integers(1, limit + 1, size=len(self.counts)), self.counts)
        tails = -(-(self.counts - head) // limit)
        owner = np.repeat(np.arange(len(self.counts)), tails + 1)
        ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(tails + 1) - (tails + 1), tails + 1)
        offset = np.where(ordinal == 0, 0, head[owner] + (ordinal - 1) * limit)
        length = np.minimum(np.where(ordinal == 0, head[owner], limit), self.counts[owner] - offset)
        return self.first[owner] + offset, length

    def _batches(self, lengths: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Windows of each batch: shuffled, then ordered by length within pools of 16 batches, then cut by targets."""
        order = rng.permutation(len(lengths)) if self.shuffle else np.arange(len(lengths))
        pool = (np.cumsum(lengths[order]) - 1) // (16 * self.batch_size)
        order = order[np.lexsort((lengths[order], pool))]
        cuts = np.flatnonzero(np.diff((np.cumsum(lengths[order]) - 1) // self.batch_size)) + 1
        batches = np.split(order, cuts)
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def __iter__(self) -> Iterator[Interaction]:
        starts, lengths, batches = self._plan()
        negatives = np.random.default_rng([self.seed, self.epoch, 1])
        for batch in batches:
            yield self._cut(starts[batch], lengths[batch], negatives)
        self.epoch += 1

    def _cut(self, starts: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> Interaction:
        position = np.arange(lengths.max())
        inside = position < lengths[:, None]
        rows = np.where(inside, starts[:, None] + position, 0)
        users = self.users[starts]
        fields = {
            self.user_field: users,
            self.list_field: self.items[rows] * inside,
            TARGETS: np.where(inside, self.items[np.where(inside, rows + 1, 0)], 0),
            TARGET_MASK: inside,
            self.length_field: lengths,
        }
        if self.sampler is not None:
            drawn = self.sampler.sample(np.repeat(users, lengths), rng)
            fields[NEGATIVES] = np.zeros(inside.shape, dtype=np.int64)
            fields[NEGATIVES][inside] = drawn
        return Interaction({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fields.items()})
