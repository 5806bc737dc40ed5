"""Loading of a dataset's files, and checks of them before RecBole fills in, drops or numbers anything.

RecBole takes the mean where a number is missing, keeps the first of two descriptions of an item, numbers a token where
a number is meant, and ranks items that only some extra file names. Here each of these is an error with the line, a
warning with a count, or does not happen.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, KnowledgeBasedDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.data.atomic import (
    SEQUENCES,
    check_ids,
    check_kind,
    drop_repeats,
    read_atomic,
    read_header,
    split_sequences,
)
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.utils.spelling import did_you_mean

logger = logging.getLogger(__name__)

_LIKE_A_TIME = re.compile(r"(?<![a-z])(?:date|day|ts)(?![a-z])|time(?:stamp)?(?![a-z])|_at$", re.IGNORECASE)
_IDS, _NUMBERS = (FeatureType.TOKEN,), (FeatureType.FLOAT,)
_ALIASES = ("alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id")
_NAME_COLUMNS = (
    *("threshold", "val_interval", "normalize_field", "preload_weight", "discretization", "numerical_features"),
    *_ALIASES,
)
"""Settings whose columns must be loaded."""
_SOURCES = ("inter", "item", "user", "kg", "link")
"""Suffixes of files that are not additional ones."""


def check_dataset(config: Config) -> list[Path]:
    """The dataset's files of interactions, found without reading them.

    Raises:
        DataError: one is not there; the message says where to get it, the nearest name, or where to put it.
    """
    token, folder = config["dataset"], Path(config["data_path"])
    parts = config["benchmark_filename"]
    files = [folder / f"{token}.{part}.inter" for part in parts] if parts else [folder / f"{token}.inter"]
    for file in files:
        if not file.is_file():
            hint = "; ".join(config[key] for key in ("source_url", "prepare_hint") if config[key])
            if not hint:
                known = {path.stem for path in (properties_dir() / "dataset").glob("*.yaml")}
                known |= {path.name for path in folder.parent.glob("*") if (path / f"{path.name}.inter").is_file()}
                hint = f"Put it there, or point --data_path at the folder above it{did_you_mean(token, sorted(known))}"
            raise DataError(f"dataset {token!r}: {file} does not exist. {hint}")
    return files


class LoadingMixin(Dataset):
    """Reads the files of a dataset; mixed in front of one of RecBole's dataset classes."""

    config: Config
    inter_feat: Any
    item_feat: Any
    user_feat: Any

    def _load_data(self, token: str, dataset_path: str) -> None:
        path = Path(dataset_path)
        self._owners: dict[str, str] = {}
        files = check_dataset(self.config)
        self._check_more_files(token, path)
        self._check_inter_columns(files)
        super()._load_data(token, dataset_path)
        if self.inter_feat.empty:
            raise DataError(f"{files[0]}: no interactions below the header")
        self._check_named_columns()
        if self.config["candidates"] == "catalogue" and self.item_feat is None:
            raise ConfigError(
                f"candidates: catalogue ranks what {token}.item lists, and it is not there or not loaded; load it, as "
                f"in load_col: {{inter: [...], item: [{self.iid_field}]}}"
            )
        for name, field in (("item", self.iid_field), ("user", self.uid_field)):
            self._check_all_described(path / f"{token}.{name}", getattr(self, f"{name}_feat"), field)

    # ------------------------------------------------------------- before

    def _check_more_files(self, token: str, path: Path) -> None:
        """Refuse settings that ask for a file, other than those of interactions, that is not there."""
        more = list(self.config["additional_feat_suffix"] or ())
        for suffix in more:
            if suffix in ("inter", "item", "user"):
                raise ConfigError(f"additional_feat_suffix: .{suffix} is read by itself; leave it out")
        if isinstance(self, KnowledgeBasedDataset):
            more += ["kg", "link"]
        for suffix in more:
            if not (path / f"{token}.{suffix}").is_file():
                asks = "additional_feat_suffix" if suffix not in ("kg", "link") else f"model {self.config['model']}"
                raise DataError(f"{path / f'{token}.{suffix}'}: no such file, which {asks} asks for")
            if self._get_load_and_unload_col(suffix)[0] == set():
                raise ConfigError(f'load_col: nothing is loaded of .{suffix}; add {{{suffix}: "*"}}, or its columns')

    def _check_inter_columns(self, files: list[Path]) -> None:
        """Refuse files without columns of users, items and times, or with them not loaded, or that disagree."""
        headers = [self._loaded(file, "inter") for file in files]
        for file, header in zip(files, headers):
            self._require(file, "inter", {"USER_ID_FIELD": self.uid_field, "ITEM_ID_FIELD": self.iid_field})
            if header != headers[0]:
                other = sorted({name for name, _ in set(header.items()) ^ set(headers[0].items())})
                raise DataError(f"{file}, line 1: column {other[0]!r} is not as in {files[0].name}; give each the same")
        if self.benchmark_filename_list is None and self.config["eval_args"]["order"] == "TO":
            self._check_time(files[0], headers[0])

    def _check_time(self, path: Path, loaded: dict[str, FeatureType]) -> None:
        """Refuse a file whose rows cannot be ordered by time; log which of several columns of times is used."""
        there = self._header(path)
        likely = [name for name in there if _LIKE_A_TIME.search(name) and name != self.time_field]
        if self.time_field not in loaded:
            hint = "load it (load_col)" if self.time_field in there else f"there are: {', '.join(there)}"
            if self.time_field not in there and likely:
                hint = f"if {' or '.join(likely)} is the time, say --TIME_FIELD={likely[0]} (its type must be float)"
            raise DataError(
                f"{path}, line 1: no column {self.time_field!r} to order by (eval_args.order: TO); {hint}; data that "
                "has only an order can use the position as its time"
            )
        if likely:
            others = ", ".join(map(repr, likely))
            logger.info("%s: rows are ordered by %r, not by %s (TIME_FIELD)", path, self.time_field, others)

    def _get_load_and_unload_col(self, source: Any) -> tuple[set[str] | None, set[str] | None]:
        try:
            return super()._get_load_and_unload_col(source)
        except ValueError:
            name = source.value if isinstance(source, FeatureSource) else source
            raise ConfigError(
                f"load_col and unload_col both name columns of .{name}; keep one of them (load_col: ~ loads all)"
            ) from None

    def _wanted(self, source: Any, name: str) -> bool:
        load, unload = self._get_load_and_unload_col(source)
        return (load is None or name in load) and (unload is None or name not in unload)

    def _loaded(self, path: Path, source: str) -> dict[str, FeatureType]:
        """Columns of a file that are loaded."""
        return {name: kind for name, kind in self._header(path).items() if self._wanted(source, name)}

    def _header(self, path: Path) -> dict[str, FeatureType]:
        """All columns of a file and their types."""
        return dict(read_header(path, self.config["field_separator"], self.config["encoding"]))

    def _require(self, path: Path, source: str, fields: dict[str, str]) -> None:
        """Refuse a file without the columns that every dataset needs: `fields`, by the setting that names them."""
        there = self._header(path)
        for key, name in fields.items():
            if name not in there:
                raise DataError(
                    f"{path}, line 1: no column {name!r} among {', '.join(there)}; rename it, or say --{key}=COLUMN"
                )
            if not self._wanted(source, name):
                others = [*fields.values(), *([self.time_field] if source == "inter" else [])]
                raise ConfigError(
                    f"load_col, unload_col: {name!r} of {path.name} is not loaded, which no model can do without; "
                    f"as in load_col: {{{source}: [{', '.join(others)}]}}"
                )

    # ------------------------------------------------------------ one file

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        path, where = Path(filepath), source.value if isinstance(source, FeatureSource) else source
        load, _ = self._get_load_and_unload_col(source)
        if load == set():
            return None
        types, ids = self._loaded(path, where), self._id_columns(where)
        if missing := sorted((load or set()) - set(types) - {self.time_field}):
            logger.warning(
                "load_col: %s has no column %s%s", path, ", ".join(missing), did_you_mean(missing[0], sorted(types))
            )
        if not types:
            return None
        self._require(path, where, ids)
        for name in types:
            self._check_one_owner(path, where, name)
        self._check_types(path, where, types)
        table, _ = read_atomic(path, self.config["field_separator"], types.__contains__, self.config["encoding"])
        if table.empty and where != "inter":
            raise DataError(f"{path}: no rows below the header")
        for name in ids.values():
            check_ids(path, table[name])
        self._check_empty_numbers(path, where, table, types)
        for key in self._keys(where, types):
            table = drop_repeats(path, table, key, self.config["encoding"])
        for name, kind in types.items():
            if where != "link":
                self.field2source[name] = source
                self.field2type[name] = kind
            if kind in SEQUENCES:
                table[name], self.field2seqlen[name] = self._split_sequences(path, table[name], kind)
            else:
                self.field2seqlen.setdefault(name, 1)
            if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                self.field2bucketnum[name] = 2
        return table.reset_index(drop=True)

    def _id_columns(self, source: str) -> dict[str, str]:
        """The columns of ids without which RecBole cannot use a file, by the setting that names each."""
        keys = {
            "inter": ("USER_ID_FIELD", "ITEM_ID_FIELD"),
            "item": ("ITEM_ID_FIELD",),
            "user": ("USER_ID_FIELD",),
            "kg": ("HEAD_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "TAIL_ENTITY_ID_FIELD"),
            "link": ("ITEM_ID_FIELD", "ENTITY_ID_FIELD"),
        }
        return {key: self.config[key] for key in keys.get(source, ())}

    def _keys(self, source: str, types: dict[str, FeatureType]) -> list[str]:
        """Columns of ids of which a row describes one: of a file with two of them, rows are relations."""
        if source in ("inter", "kg"):
            return []
        if source in ("item", "user", "link"):
            return list(self._id_columns(source).values())
        weights = [name for name in self.config["preload_weight"] or () if name in types]
        ids = [name for name in self._aliases() if types.get(name) == FeatureType.TOKEN]
        return weights or (ids if len(ids) == 1 else [])

    def _aliases(self) -> Iterator[str]:
        for key in _ALIASES:
            yield from self.config[key] or ()

    def _check_types(self, path: Path, source: str, types: dict[str, FeatureType]) -> None:
        """Refuse ids that are no tokens, and tokens where numbers are ordered or compared: RecBole numbers them."""
        accepted: dict[str, tuple[Iterable[FeatureType], str]] = {
            name: ((FeatureType.TOKEN, FeatureType.TOKEN_SEQ), "ids") for name in self._aliases()
        }
        if source == "inter":
            accepted |= {name: (_NUMBERS, "what threshold compares") for name in self.config["threshold"] or ()}
            accepted |= {self.time_field: (_NUMBERS, "times"), self.label_field: (_NUMBERS, "labels")}
        accepted |= {name: (_IDS, "ids") for name in self._id_columns(source).values()}
        for name, kind in types.items():
            if name in accepted:
                check_kind(path, name, kind, *accepted[name])
        if source not in _SOURCES:
            unnumbered = [name for name, kind in types.items() if "token" in kind.value and name not in accepted]
            if unnumbered:
                raise DataError(
                    f"{path}, line 1: RecBole does not number the tokens of column {unnumbered[0]!r}; list it in "
                    "alias_of_item_id or alias_of_user_id if it holds ids, or do not load it (load_col)"
                )
        field, sequence = self.config["field_separator"], self.config["seq_separator"]
        if field in sequence and (sequences := [name for name, kind in types.items() if kind in SEQUENCES]):
            raise ConfigError(
                f"seq_separator: {sequence!r} cannot stand inside a field of {path.name}, whose field_separator is "
                f"{field!r}; column {sequences[0]!r} needs another"
            )

    def _check_empty_numbers(self, path: Path, source: str, table: pd.DataFrame, types: dict[str, FeatureType]) -> None:
        """Refuse an empty number where order, labels or filters follow from it, else log it once a column."""
        deciding = (
            {self.time_field, self.label_field, *(self.config["threshold"] or ())} if source == "inter" else set()
        )
        deciding |= set(self.config["val_interval"] or ())
        for name, kind in types.items():
            if kind != FeatureType.FLOAT or not (empty := table[name].isna()).any():
                continue
            first = table.index[empty][0]
            if name in deciding:
                raise DataError(
                    f"{path}, line {first}: column {name} is empty ({empty.sum()} such lines), and order, labels or "
                    "filters follow from it; write a number, or remove the line"
                )
            logger.warning(
                "%s: column %s is empty on %d of %d lines, first on line %d; RecBole takes the column's mean there",
                path, name, empty.sum(), len(table), first,
            )  # fmt: skip

    def _check_one_owner(self, path: Path, source: str, name: str) -> None:
        """Refuse a column name that two files have: RecBole keeps one type, source and numbering by name."""
        if source == "link":  # which RecBole reads and does not keep
            return
        before = self._owners.setdefault(name, source)
        shared = {self.uid_field: {"inter", "user"}, self.iid_field: {"inter", "item"}}.get(name, set())
        if source == before or {before, source} <= shared:
            return
        alias = {self.uid_field: "alias_of_user_id", self.iid_field: "alias_of_item_id"}.get(name)
        hint = (
            f"rename it here, and add the new name to {alias}" if alias else "rename one, or do not load it (load_col)"
        )
        raise DataError(f"{path}, line 1: column {name!r} is one of .{before} already; {hint}")

    def _split_sequences(self, path: Path, column: pd.Series, kind: FeatureType) -> tuple[list[np.ndarray], int]:
        limit = (self.config["seq_len"] or {}).get(column.name)
        values = split_sequences(path, column, kind, self.config["seq_separator"], limit)
        return values, max(map(len, values), default=0)

    # -------------------------------------------------------------- after

    def _check_named_columns(self) -> None:
        """Refuse settings that name a column which is not loaded."""
        for key in _NAME_COLUMNS:
            given = self.config[key] or ()
            names = [*given, *(given.values() if key == "preload_weight" and given else ())]
            known = set(self.inter_feat) if key == "threshold" else set(self.field2type)
            for name in names:
                if name not in known:
                    raise ConfigError(
                        f"{key}: {name!r} is no loaded column{did_you_mean(name, sorted(known))} (load_col)"
                    )

    def _check_all_described(self, path: Path, table: pd.DataFrame | None, field: str) -> None:
        """Refuse interactions with users or items that their loaded file does not list, unless the settings ask
        for their removal: RecBole would fill in their columns."""
        if table is None or self.config["filter_inter_by_user_or_item"] is True:
            return
        ids = self.inter_feat[field]
        unknown = ids[~ids.isin(table[field])].unique()
        if len(unknown):
            raise DataError(
                f"{path}: {len(unknown)} {path.suffix[1:]} ids of the .inter file are not listed, such as "
                f"{unknown[0]!r}; add them, or drop their interactions with filter_inter_by_user_or_item: True"
            )

    def _drop_never_interacted(self) -> None:
        """Leave out rows, of any file, of items or users that are in no interaction: these are no candidates.

        `candidates: catalogue` keeps those that `.item` and `.user` list.
        """
        others = [feat_name for feat_name in self.feat_name_list if feat_name != "inter_feat"]
        if not others:
            return
        for name, field in (("item", self.iid_field), ("user", self.uid_field)):
            columns = {field, *(self.config[f"alias_of_{name}_id"] or ())}
            known = self._tokens(self.inter_feat, columns)
            own = getattr(self, f"{name}_feat")
            if self.config["candidates"] == "catalogue" and own is not None:
                known |= set(own[field])
            for feat_name in others:
                self._keep_tokens(feat_name, columns, known)

    def _tokens(self, table: pd.DataFrame, columns: set[str]) -> set[str]:
        found: set[str] = set()
        for column in columns & set(table):
            values = table[column]
            values = (
                pd.Series(np.concatenate(list(values))) if self.field2type[column] in SEQUENCES else values.dropna()
            )
            found.update(values.unique())
        return found

    def _keep_tokens(self, feat_name: str, columns: set[str], known: set[str]) -> None:
        """Drop rows of a table whose id is unknown, and unknown ids of its sequences."""
        table = getattr(self, feat_name)
        before, name = len(table), f".{feat_name.removesuffix('_feat')}"
        for column in sorted(columns & set(table)):
            if self.field2type[column] in SEQUENCES:
                table = table.assign(
                    **{column: [np.array([x for x in row if x in known], dtype=np.str_) for row in table[column]]}
                )
            else:
                table = table[table[column].isna() | table[column].isin(known)]
        if before and table.empty:
            raise DataError(f"{name}: none of its {before} rows names what .inter does")
        if len(table) < before:
            logger.info("%d of %d rows of %s are in no interaction", before - len(table), before, name)
        setattr(self, feat_name, table.reset_index(drop=True))
