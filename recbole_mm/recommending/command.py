"""`recommend` and `similar`: from a run's folder to a table, or to a file of any size."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_mm.errors import ConfigError
from recbole_mm.recommending.new_items import with_new_items
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.output import Row, check_output, write_chunks
from recbole_mm.recommending.reasons import Reasons, reasons_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.recommending.requests import Batch, listed, of_histories, of_users, read_histories
from recbole_mm.recommending.top_k import TopK
from recbole_mm.runs.folder import WEIGHTS, Run
from recbole_mm.utils.files import file_digest
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.progress import progress

ALL = "all"

Source = str | os.PathLike[str] | Run | Recommender


@dataclass(frozen=True)
class Request:
    """What is recommended, and to whom.

    Attributes:
        k: items of each list.
        users: ids of users of the data, or `all`.
        histories: name -> item ids, or a file (see `requests.py`).
        allow, exclude: item ids, as a list, `a,b` or a file.
        mask_history: never recommend an item of the history; None: as the run was evaluated.
        known: `all` interactions of users, or those before the `test` items.
        reasons: say why, where the run has words for it.
        skip_unknown: leave items of histories out that the run does not know; else they are an error.
        new_items: an `.item` file of items that came after training, to be ranked, too.
    """

    k: int = 10
    users: str | Sequence[str] | None = None
    histories: str | os.PathLike[str] | Mapping[str, Sequence[str]] | Sequence[Sequence[str]] | None = None
    allow: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    mask_history: bool | None = None
    known: str = "all"
    reasons: bool = False
    skip_unknown: bool = False
    new_items: str | os.PathLike[str] | None = None

    def batches(self, recommender: Recommender) -> Iterator[Batch]:
        """Yield whom to recommend to.

        Raises:
            ConfigError: both users and histories are given, or none.
        """
        if (self.users is None) == (self.histories is None):
            raise ConfigError("give either users of the data or histories, to recommend to")
        if self.histories is None:
            yield from of_users(recommender, None if _is_all(self.users) else listed(self.users), self.known)
        else:
            yield from of_histories(recommender, self._given_histories(), self.skip_unknown)

    def _given_histories(self) -> Iterator[tuple[str, Sequence[str], str]]:
        given = self.histories
        if isinstance(given, (str, os.PathLike)):
            yield from read_histories(Path(given))
            return
        assert given is not None
        named = given if isinstance(given, Mapping) else {str(place): one for place, one in enumerate(given, 1)}
        for name, items in named.items():
            if isinstance(items, str) or not isinstance(items, Iterable):
                raise ConfigError(f"history {name}: {items!r} is no list of items; give histories=[['i7', 'i9']]")
            yield name, [str(item) for item in items], f"history {name}"


def _is_all(given: Any) -> bool:
    return isinstance(given, str) and given == ALL


def opened(run: Source, model: type | None = None, changed: Mapping[str, Any] | None = None) -> Recommender:
    """Return the recommender of a run, given as its folder, as what `recbole_mm.run` returned, or as itself."""
    if isinstance(run, Recommender):
        return run
    return Recommender(run if isinstance(run, Run) else open_run(run, model, changed))


def recommend(
    run: Source,
    k: int = 10,
    *,
    users: str | Sequence[str] | None = None,
    histories: str | os.PathLike[str] | Mapping[str, Sequence[str]] | Sequence[Sequence[str]] | None = None,
    allow: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    mask_history: bool | None = None,
    known: str = "all",
    reasons: bool = False,
    skip_unknown: bool = False,
    new_items: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    model: type | None = None,
    changed: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> pd.DataFrame | Path:
    """Recommend items by a finished run.

    Args:
        run: its folder, what `recbole_mm.run` or `load` returned, or a `Recommender`.
        k, users, histories, allow, exclude, mask_history, known, reasons, skip_unknown, new_items: see `Request`.
        out: a file, `.csv`, `.jsonl` or `.parquet`, written a chunk at a time; an interrupted one goes on.
        model: the model's class, where it was never registered.
        changed: settings of the run with other values, such as `data_path`.
        show_progress: whether to report progress.

    Returns:
        A table with the columns `user`, `rank`, `item`, `score`, `title` where items have one, and `reason` where it is
        asked for; or the path of the file.

    Raises:
        RecboleMMError: one line that says what is wrong.

    Example:
        >>> recbole_mm.recommend("saved/SASRec-shop-1a2b3c4d", users=["ann"])             # doctest: +SKIP
        >>> recbole_mm.recommend("saved/SASRec-shop-1a2b3c4d", histories=[["i7", "i9"]])  # doctest: +SKIP
    """
    request = Request(k, users, histories, allow, exclude, mask_history, known, reasons, skip_unknown, new_items)
    if out is not None:
        check_output(Path(expanded(os.fspath(out))))
    recommender = opened(run, model, changed)
    if new_items is not None:
        recommender = with_new_items(recommender, new_items)
    make = _row_maker(recommender, request)
    batches = request.batches(recommender)
    return _output(recommender, out, batches, make, request, show_progress)


def similar(
    run: Source,
    items: str | Sequence[str],
    k: int = 10,
    *,
    allow: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    model: type | None = None,
    changed: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> pd.DataFrame | Path:
    """Find the items most alike to a finished run's model.

    Args:
        run, k, allow, exclude, out, model, changed, show_progress: as for `recommend`.
        items: ids of items, or `all`.

    Returns:
        A table with the columns `of`, `rank`, `item`, `score` (a cosine) and `title`; or the path of the file.

    Raises:
        RecboleMMError: one line that says what is wrong.
    """
    if out is not None:
        check_output(Path(expanded(os.fspath(out))))
    recommender = opened(run, model, changed)
    recommender.check_k(k)
    ids = np.arange(1, recommender.n_items) if _is_all(items) else recommender.item_ids(listed(items) or [])
    request = Request(k, allow=allow, exclude=exclude)
    limits = _limits(recommender, request)

    def make(batch: Batch) -> list[Row]:
        assert batch.ids is not None
        return _rows(recommender, "of", batch.names, recommender.similar(batch.ids, k, **limits))

    batches = (
        Batch([str(token) for token in recommender.item_tokens[part]], part)
        for part in np.split(ids, range(4096, len(ids), 4096))
    )
    return _output(recommender, out, batches, make, request, show_progress, first="of", items=ids.tolist())


def _row_maker(recommender: Recommender, request: Request) -> Callable[[Batch], list[Row]]:
    limits, why = _limits(recommender, request), reasons_of(recommender) if request.reasons else None

    def make(batch: Batch) -> list[Row]:
        top = recommender.top_k(
            request.k,
            users=batch.ids,
            histories=batch.histories,
            mask_history=request.mask_history,
            known=request.known,
            **limits,
        )
        return _rows(recommender, "user", batch.names, top, _reasons(recommender, why, batch, request.known))

    recommender.check_k(request.k)
    return make


def _reasons(recommender: Recommender, why: Reasons | None, batch: Batch, known: str) -> Sequence[str | None] | None:
    if why is None:
        return None
    if batch.histories is not None:
        return why(batch.ids, batch.histories)
    assert batch.ids is not None
    return why(batch.ids, recommender.histories_of(batch.ids, known))


def _limits(recommender: Recommender, request: Request) -> dict[str, np.ndarray | None]:
    """Return the items that are allowed and excluded as RecBole's ids."""
    given = {"allow": listed(request.allow), "exclude": listed(request.exclude)}
    return {name: None if tokens is None else recommender.item_ids(tokens) for name, tokens in given.items()}


def _rows(
    recommender: Recommender,
    first: str,
    names: Sequence[str],
    top: TopK,
    reasons: Sequence[str | None] | None = None,
) -> list[Row]:
    found: list[Row] = []
    for place, name in enumerate(names):
        chosen = top.row(place)
        row: dict[str, Any] = {
            first: name,
            "item": [str(recommender.item_tokens[item]) for item, _ in chosen],
            "score": [score if np.isfinite(score) else None for _, score in chosen],
        }
        if recommender.title_field is not None:
            row["title"] = [recommender.title(item) for item, _ in chosen]
        if reasons is not None:
            row["reason"] = reasons[place] or ""
        found.append(row)
    return found


def _output(
    recommender: Recommender,
    out: str | os.PathLike[str] | None,
    batches: Iterable[Batch],
    make: Callable[[Batch], list[Row]],
    request: Request,
    show_progress: bool,
    first: str = "user",
    **identity: Any,
) -> pd.DataFrame | Path:
    titles = ["title"] if recommender.title_field is not None else []
    columns = [first, "rank", "item", "score", *titles, *(["reason"] if request.reasons else [])]
    if out is not None:
        chunks = progress((partial(make, batch) for batch in batches), "Recommending", unit="batch", show=show_progress)
        return write_chunks(
            Path(expanded(os.fspath(out))), chunks, columns, {**_identity_of(recommender, request), **identity}
        )
    table: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in batches:
        for row in make(batch):
            count = len(row["item"])
            for name in columns:
                values = range(1, count + 1) if name == "rank" else row[name]
                table[name] += [values] * count if isinstance(values, str) else values
    return pd.DataFrame(table)


def _identity_of(recommender: Recommender, request: Request) -> dict[str, Any]:
    """Return what the rows of a file depend on: the run's settings, weights and data, the request, and what its files
    hold."""
    inputs, runs = recommender.dataset.inputs, [recommender.run.run_dir]
    if "first_stage" in inputs.given() and inputs.first_stage is not None:
        runs.append(inputs.first_stage.folder)
    vectors = None if request.new_items is None else recommender.item_vectors()
    new = None if vectors is None else vectors[recommender.dataset.item_num :].cpu().numpy().tobytes()
    return {
        "settings": _content_of(recommender.config.as_dict()),
        "new_item_vectors": None if new is None else hashlib.sha256(new).hexdigest(),
        "weights": [file_digest(folder / WEIGHTS).hex() for folder in runs],
        "data": recommender.config.current_files(),
        **{field.name: _content_of(getattr(request, field.name)) for field in fields(Request)},
    }


def _content_of(given: Any) -> Any:
    """Return a value that changes if what is given does, or the file that it names."""
    if isinstance(given, (str, os.PathLike)):
        with suppress(OSError, ValueError):
            return file_digest(Path(expanded(os.fspath(given)))).hex()
        return str(given)
    if given is None or isinstance(given, (bool, int)):
        return given
    return hashlib.sha256(json.dumps(_plain(given)).encode()).hexdigest()


def _plain(given: Any) -> Any:
    """Return a value's parts as text, all of them: what numpy and pandas print of many leaves some out."""
    if isinstance(given, Mapping):
        return [[str(name), _plain(value)] for name, value in given.items()]
    return str(given) if isinstance(given, str) or not isinstance(given, Iterable) else [_plain(one) for one in given]
