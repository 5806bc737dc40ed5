"""Interactions as flat arrays, and the sequential samples that are cut from them batch by batch.

RecBole expands every prefix of every user into one row of `MAX_ITEM_LIST_LENGTH` values for every field before training
starts. Here the rows stay as they are, ordered by user and time, and a sample is three numbers: where its history
starts, where its target is, and whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from recbole.data.interaction import Interaction


class SequenceSamples(Interaction):
    """RecBole's sequential fields, cut on demand from flat columns.

    Indexing with rows gives an ordinary `Interaction` with RecBole's fields: the target row's own values,
    `<field>_list` (n, max_len) padded on the right with zeros, and the history length. Indexing with a field name gives
    that column for all samples; the `_list` columns are materialised then, which only a few RecBole models ask for.

    Args:
        columns: field -> tensor (M, ...), rows ordered by user, then time.
        starts: first row of each sample's history, int64 (n,).
        targets: target row of each sample, int64 (n,); the history is `[starts, targets)` and never empty.
        ends: int64 (n,), where histories end before the row of their target: `[starts, ends)`.
        user_field: name of the user id field, which gets no list.
        list_suffix, length_field: RecBole's `LIST_SUFFIX` and `ITEM_LIST_LENGTH_FIELD`.
        max_len: RecBole's `MAX_ITEM_LIST_LENGTH`.

    Example:
        >>> columns = {"user_id": torch.tensor([1, 1, 1]), "item_id": torch.tensor([5, 6, 7])}
        >>> names = {"user_field": "user_id", "list_suffix": "_list", "length_field": "item_length"}
        >>> samples = SequenceSamples(columns, np.array([0, 0]), np.array([1, 2]), **names, max_len=3)
        >>> samples[[1]]["item_id_list"], samples[[1]]["item_id"]
        (tensor([[5, 6, 0]]), tensor([7]))
    """

    def __init__(
        self,
        columns: Mapping[str, torch.Tensor],
        starts: np.ndarray,
        targets: np.ndarray,
        ends: np.ndarray | None = None,
        *,
        user_field: str,
        list_suffix: str,
        length_field: str,
        max_len: int,
    ) -> None:
        self.flat = dict(columns)
        self.starts = torch.from_numpy(np.ascontiguousarray(starts, dtype=np.int64))
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64))
        self.ends = self.targets if ends is None else torch.from_numpy(np.ascontiguousarray(ends, dtype=np.int64))
        self.user_field = user_field
        self.list_suffix = list_suffix
        self.length_field = length_field
        self.max_len = max_len
        self.length = len(self.targets)
        self.unlisted = {user_field}

    @property
    def columns(self) -> list[str]:
        """Names of all fields, RecBole's order: the target's own, the length, the lists."""
        return [*self.flat, self.length_field, *(field + self.list_suffix for field in self._listed())]

    def _listed(self) -> list[str]:
        return [field for field in self.flat if field not in self.unlisted]

    def drop(self, column: str) -> None:
        """Leave a field out, with its list; or a list alone.

        Raises:
            ValueError: there is no such field.
        """
        field = column.removesuffix(self.list_suffix)
        if column in self.flat:
            del self.flat[column]
        elif column.endswith(self.list_suffix) and field in self._listed():
            self.unlisted.add(field)
        else:
            raise ValueError(f"Column [{column}] is not in [{self}].")

    @property
    def interaction(self) -> dict[str, torch.Tensor]:
        """Every field of every sample, materialised: what RecBole code that wants the whole table gets."""
        return self._cut(slice(None))

    def subset(self, rows: np.ndarray) -> SequenceSamples:
        """The samples `rows`, sharing the flat columns."""
        part = SequenceSamples(
            self.flat,
            self.starts.numpy()[rows],
            self.targets.numpy()[rows],
            self.ends.numpy()[rows],
            user_field=self.user_field,
            list_suffix=self.list_suffix,
            length_field=self.length_field,
            max_len=self.max_len,
        )
        part.unlisted = set(self.unlisted)
        return part

    def _history(self, field: str, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Values of `field` over each history: (n, max_len, ...), zeros on the right."""
        position = torch.arange(self.max_len)
        inside = position < lengths[:, None]
        values = self.flat[field][torch.where(inside, starts[:, None] + position, 0)]
        return values * inside.reshape(inside.shape + (1,) * (values.dim() - 2)).to(values.dtype)

    def _cut(self, index) -> dict[str, torch.Tensor]:
        starts, targets = self.starts[index], self.targets[index]
        lengths = self.ends[index] - starts
        fields = {field: values[targets] for field, values in self.flat.items()}
        fields[self.length_field] = lengths
        for field in self._listed():
            fields[field + self.list_suffix] = self._history(field, starts, lengths)
        return fields

    def __getitem__(self, index):
        if isinstance(index, str):
            if index in self.flat:
                return self.flat[index][self.targets]
            if index == self.length_field:
                return self.ends - self.starts
            field = index.removesuffix(self.list_suffix)
            if index.endswith(self.list_suffix) and field in self._listed():
                return self._history(field, self.starts, self.ends - self.starts)
            raise KeyError(index)
        if isinstance(index, (int, np.integer)):
            return Interaction({name: values[0] for name, values in self._cut([int(index)]).items()})
        if isinstance(index, (list, np.ndarray, range)):
            index = torch.as_tensor(np.asarray(index))
            index = index if index.dtype == torch.bool else index.long()
        return Interaction(self._cut(index))

    def __contains__(self, field: str) -> bool:
        return field in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def _reindex(self, index) -> None:
        """Put the samples into another order, in place; RecBole's `shuffle` and `sort` end here."""
        index = torch.as_tensor(index)
        self.starts, self.targets, self.ends = self.starts[index], self.targets[index], self.ends[index]

    def sort(self, by, ascending=True) -> None:
        """RecBole's, over the columns that it is asked to sort by alone.

        Args:
            by: a field, or several of which the first counts most.
            ascending: for all of them, or one for each.
        """
        names = [by] if isinstance(by, str) else list(by)
        place = "\0place"
        keys = Interaction({**{name: self[name] for name in names}, place: torch.arange(self.length)})
        keys.sort(names, ascending)
        self._reindex(keys[place])

    def __setitem__(self, field: str, value: torch.Tensor) -> None:
        raise TypeError("sequential samples are cut from flat columns: change a cut batch, not the samples")

    def __str__(self) -> str:
        return (
            f"{self.length} sequential samples over {len(next(iter(self.flat.values())))} interactions: {self.columns}"
        )
