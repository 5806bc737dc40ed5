"""The kinds of slices of a run: what the setting `slices` asks for, found in its data before it trains.

`popularity`: by the number of training interactions of the target; `history`: by the number of the user's interactions
before it; `modality`: `image` and `text`, by whether the target has one; a column of `.item` or `.user`: by its values.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from recbole.utils import FeatureType

from recbole_mm.data.atomic import read_header
from recbole_mm.data.content_source import MODALITIES, ContentSource
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.splits import TEST
from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.slices import Slices
from recbole_mm.utils.spelling import did_you_mean

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

KINDS = ("popularity", "history", "modality")
"""Entries of `slices` that are no columns."""

POPULARITY = {"unseen": 0, "1-4": 1, "5-19": 5, "20-99": 20, "100+": 100}
HISTORY = {"0": 0, "1-4": 1, "5-9": 5, "10-19": 10, "20-49": 20, "50+": 50}
"""Part -> the smallest number that belongs to it."""

PRESENT, MISSING, OTHER, NONE = "present", "missing", "(other)", "(none)"
MOST_VALUES = 10
"""Parts of a column's values, `OTHER` included; `NONE`, where the column is empty, comes on top."""
QUANTILES = 4
LONGEST = 80
"""Letters of a value that count; longer ones that begin alike are one part."""

_LIKE_THE_REST = re.compile(r"\(+(other|none)\)+")
_SUFFIXES = {"float": FeatureType.FLOAT, "token": FeatureType.TOKEN}


@dataclass(frozen=True)
class Column:
    """A column that `slices` names.

    Attributes:
        source: `item` or `user`.
        name: of the column.
        is_number: whether its values are numbers.
    """

    source: str
    name: str
    is_number: bool


def check_slices(config: Config) -> None:
    """Check the names of `slices`, of which the data's files are asked for their columns alone.

    Raises:
        ConfigError: a name is none, or that of several columns.
        DataError: a file's first line is malformed.
    """
    columns_of(config)


def columns_of(config: Config, entries: Sequence[str] | None = None) -> list[Column]:
    """The columns that entries of `slices` name, by default all of them; raises as `check_slices`."""
    wanted = [entry for entry in (config["slices"] or () if entries is None else entries) if entry not in KINDS]
    if not wanted:
        return []
    files = {source: _file(config, source) for source in ("item", "user")}
    separator = config["field_separator"] or "\t"
    ids = {config["ITEM_ID_FIELD"], config["USER_ID_FIELD"]}
    there = {
        (source, name): kind
        for source, path in files.items()
        if path.is_file()
        for name, kind in read_header(path, separator, config["encoding"])
        if name not in ids
    }
    return list(dict.fromkeys(_column(entry, there, config["dataset"]) for entry in wanted))


def entry_of(kind: str) -> str:
    """Return the entry of `slices` that brings a kind of slices.

    Example:
        >>> entry_of("image"), entry_of("history"), entry_of("item.class")
        ('modality', 'history', 'item.class')
    """
    return "modality" if kind in MODALITIES else kind


def kinds_of(config: Config, entry: str) -> list[str]:
    """Return the names of the kinds that an entry of `slices` brings, where the run has them.

    Args:
        config: the run's settings.
        entry: of `slices`, or the name of a kind.

    Raises:
        ConfigError, DataError: see `check_slices`.
    """
    if entry == "modality":
        return list(MODALITIES)
    if entry in KINDS or entry in MODALITIES:
        return [entry]
    return [f"{column.source}.{column.name}" for column in columns_of(config, [entry])]


def _file(config: Config, source: str) -> Path:
    return Path(config["data_path"]) / f"{config['dataset']}.{source}"


def _column(entry: str, there: dict[tuple[str, str], FeatureType], dataset: str) -> Column:
    """The column that an entry means: `age`, `user.age`, `age:float`."""
    name, _, given = entry.rpartition(":")
    if given not in _SUFFIXES or not name:
        name, given = entry, ""
    matches = [key for key in there if name in (key[1], ".".join(key))]
    if not matches:
        known = [*KINDS, *(column for _, column in there), *(f"{key[0]}.{key[1]}" for key in there)]
        raise ConfigError(
            f"slices: {name!r} is none of {', '.join(KINDS)}, nor a column of {dataset}.item or {dataset}.user"
            f"{did_you_mean(name, known)}"
        )
    if len(matches) > 1:
        raise ConfigError(f"slices: {name!r} is a column of both files; give item.{name} or user.{name}")
    (key,) = matches
    kind = _SUFFIXES.get(given, there[key])
    return Column(*key, kind == FeatureType.FLOAT)


def slice_kinds(
    config: Config, dataset: MultimodalDataset, data: RankingData, entries: Sequence[str] | None = None
) -> list[Slices]:
    """The kinds of slices of one phase's cases, in the order of `slices`.

    Args:
        config: the run's settings.
        dataset: the whole dataset.
        data: the cases.
        entries: in place of those of `slices`.

    Raises:
        ConfigError: see `check_slices`.
        DataError: a column that is taken for numbers holds something else; names the user or item.
    """
    found: list[Slices] = []
    entries = config["slices"] or () if entries is None else entries
    for entry in entries:
        if entry == "popularity" and data.train_counts is not None:
            counts = data.train_counts.items
            found.append(Slices(entry, list(POPULARITY), of_items=_cut(counts, POPULARITY)))
        elif entry == "history" and data.users.known is not None:
            found.append(Slices(entry, list(HISTORY), of_cases=_cut(data.users.known, HISTORY)))
        elif entry == "modality":
            found += _modalities(config, dataset)
    return found + [_of_column(config, dataset, data, column) for column in columns_of(config, entries)]


def _cut(numbers: np.ndarray, parts: dict[str, int]) -> np.ndarray:
    return np.searchsorted(list(parts.values()), numbers, side="right") - 1


def _modalities(config: Config, dataset: MultimodalDataset) -> list[Slices]:
    """By image and by text, where the settings say what they are; a run that needs neither goes on without."""
    said = {
        "image": any(config[key] for key in ("image_dir", "image_field", "image_zip")),
        "text": any(config[key] for key in ("text_fields", "text_template")),
    }
    wanted = [name for name in MODALITIES if said[name] and name in (config["modalities"] or MODALITIES)]
    if not wanted:
        return []
    tokens = [str(token) for token in dataset.item_tokens()]
    try:
        built = "content_source" in vars(dataset)
        source = dataset.content_source if built else ContentSource.from_config(config, wanted)
        lacking = source.hiding(dataset.hidden(TEST)).missing(tokens[1:], wanted)
    except RecboleMMError as error:
        logger.warning("slices: no modality: %s", error)
        return []
    found = []
    for name in wanted:
        gone = set(lacking[name])
        parts = np.fromiter((token in gone for token in tokens), np.int64, len(tokens))
        found.append(Slices(name, [PRESENT, MISSING], of_items=parts))
    return found


def _of_column(config: Config, dataset: MultimodalDataset, data: RankingData, column: Column) -> Slices:
    field = config["ITEM_ID_FIELD"] if column.source == "item" else config["USER_ID_FIELD"]
    table = ItemTable.read(_file(config, column.source), field, config["field_separator"] or "\t", config["encoding"])
    tokens = [str(token) for token in dataset.field2id_token[field]]
    values = table.column(column.name)
    texts = [values.get(token, "").strip() for token in tokens]
    if column.is_number:
        parts, codes = _by_number(texts, f"{table.path}: column {column.name}", tokens)
    else:
        parts, codes = _by_value(texts)
    name = f"{column.source}.{column.name}"
    if column.source == "item":
        return Slices(name, parts, of_items=codes)
    return Slices(name, parts, of_cases=codes[data.users.user_ids])


def _by_value(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Parts by the commonest values among all items or users; the first text is that of padding."""
    texts = [text[:LONGEST] for text in texts]
    values, counts = np.unique([text for text in texts[1:] if text] or np.empty(0, str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = values[order[: MOST_VALUES if len(values) <= MOST_VALUES else MOST_VALUES - 1]].tolist()
    parts = [*map(name_of_value, kept), OTHER, NONE]
    place = {value: number for number, value in enumerate(kept)}
    codes = [place.get(text, len(kept)) if text else len(kept) + 1 for text in texts]
    return parts, np.asarray(codes, dtype=np.int64)


def name_of_value(value: str) -> str:
    """Return the name of a value's part, which is never that of the rest: `(other)` in the data is `((other))`.

    Example:
        >>> name_of_value("drama"), name_of_value("(other)"), name_of_value("((other))")
        ('drama', '((other))', '(((other)))')
    """
    return f"({value})" if _LIKE_THE_REST.fullmatch(value) else value


def _by_number(texts: Sequence[str], where: str, tokens: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Parts by quantiles of the values of all items or users, whose bounds are values; equal values are not parted."""
    numbers = np.full(len(texts), np.nan)
    for place, text in enumerate(texts):
        if text and place:
            numbers[place] = _number(text, where, tokens[place])
    known = numbers[~np.isnan(numbers)]
    shares = np.arange(1, QUANTILES) / QUANTILES
    bounds: Any = np.unique(np.quantile(known, shares, method="inverted_cdf")) if len(known) else np.zeros(1)
    texts = [f"{bound:.15g}" for bound in bounds]
    between = [f"above {low} to {high}" for low, high in itertools.pairwise(texts)]
    parts = [f"to {texts[0]}", *between, f"above {texts[-1]}", NONE]
    codes = np.searchsorted(bounds, numbers, side="left")
    return parts, np.where(np.isnan(numbers), len(parts) - 1, codes)


def _number(text: str, where: str, token: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise DataError(
            f"{where}: {text[:LONGEST]!r} of {token!r} is no number; give the column to slices as NAME:token"
        )
    return number
