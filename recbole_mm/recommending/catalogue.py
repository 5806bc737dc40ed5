"""The users and items of a finished run by the data's own ids (tokens), and what items are called."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_mm.data.content_source import read_item_table
from recbole_mm.data.item_facts import title_column
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import clean_text
from recbole_mm.errors import DataError
from recbole_mm.runs.folder import Run
from recbole_mm.utils.spelling import nearest_of_many

IDS_SHOWN = 3

Own = TypeVar("Own", bound="Catalogue")


class Catalogue:
    """Users and items of a run.

    Args:
        run: finished.

    Attributes:
        run, config, dataset: the run's.
        item_tokens, user_tokens: the data's ids by RecBole's ids; index 0 is padding.
        n_items: number of item ids, padding 0 included.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.dataset = run, run.config, run.dataset
        self.item_tokens = np.asarray(self.dataset.field2id_token[self.dataset.iid_field], dtype=object)
        self.user_tokens = np.asarray(self.dataset.field2id_token[self.dataset.uid_field], dtype=object)
        self.n_items: int = self.dataset.item_num
        self._item_ids: Mapping[str, int] = self.dataset.field2token_id[self.dataset.iid_field]
        self._new_titles: dict[int, str] = {}

    def user_ids(self, tokens: Sequence[str]) -> np.ndarray:
        """Return RecBole's ids (n,) of users.

        Raises:
            DataError: one is not in the run's data; names the nearest.
        """
        return self._ids("user", self.dataset.field2token_id[self.dataset.uid_field], tokens, self.user_tokens)

    def item_ids(self, tokens: Sequence[str]) -> np.ndarray:
        """Return RecBole's ids (n,) of items.

        Raises:
            DataError: one is not among those that the run ranks; names the nearest.
        """
        return self._ids("item", self._item_ids, tokens, self.item_tokens)

    def knows_item(self, token: str) -> bool:
        """Return whether the run ranks an item of this id."""
        return self._item_ids.get(str(token), 0) > 0

    def _ids(self, what: str, ids: Mapping[str, int], tokens: Sequence[str], known: np.ndarray) -> np.ndarray:
        found = np.array([ids.get(str(token), 0) for token in tokens], dtype=np.int64)
        if (found > 0).all():
            return found
        unknown = [str(token) for token, number in zip(tokens, found, strict=True) if number == 0]
        near = nearest_of_many(unknown[0], known[1:].tolist(), IDS_SHOWN)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DataError(f"{what} {unknown[0]!r}{more} is not in the data of {self.run.run_dir}{hint}")

    @cached_property
    def _table(self) -> ItemTable | None:
        path = Path(self.config["data_path"]) / f"{self.config['dataset']}.item"
        return read_item_table(self.config, path) if path.is_file() else None

    @cached_property
    def title_field(self) -> str | None:
        """The column of `.item` that names items; None where there is none."""
        return None if self._table is None else title_column(list(self._table.kinds))

    def title(self, item: int) -> str:
        """Return the title of an item in one line; "" where it has none."""
        if item in self._new_titles:
            return self._new_titles[item]
        if self._table is None or self.title_field is None:
            return ""
        return clean_text(self._table.value(str(self.item_tokens[item]), self.title_field))

    @property
    def content(self) -> Any:
        """Texts and images of the items (`ItemContent`), read when they are asked for."""
        return self.dataset.content

    def _with_new_items(self: Own, tokens: Sequence[str], titles: Sequence[str]) -> Own:
        """Return a copy with m more items behind the run's own; none of their tokens is one of the run's."""
        other = copy(self)
        places = range(self.n_items, self.n_items + len(tokens))
        other.n_items = self.n_items + len(tokens)
        other.item_tokens = np.concatenate([self.item_tokens, np.asarray(list(tokens), dtype=object)])
        other._item_ids = ChainMap(dict(zip(tokens, places, strict=True)), dict(self._item_ids))
        other._new_titles = dict(zip(places, titles, strict=True))
        return other
