"""RecBole datasets that keep interactions flat and carry the items' raw text and images.

`create_dataset` gives any RecBole or recbole_mm model its dataset: the class RecBole would take, with loading,
ordering, filtering, splitting and sequence building replaced by exact and fast ones, and with `content` beside the ids.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType, ModelType

from recbole_mm.data.atomic import read_atomic, read_header
from recbole_mm.data.content import ContentSource, ItemContent
from recbole_mm.data.feature_fields import FeatureFieldsMixin
from recbole_mm.data.histories import HistoriesMixin
from recbole_mm.data.interactions import (
    TEST,
    TRAIN,
    VALID,
    SequenceSamples,
    group_offsets,
    leave_one_out,
    split_by_ratio,
)
from recbole_mm.data.item_table import did_you_mean
from recbole_mm.data.popular import keeps_popular, popular_only
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.layers import properties_dir

logger = logging.getLogger(__name__)


def create_dataset(config) -> Dataset:
    """The dataset of `config`, of the kind its model needs, loaded and filtered but not yet split.

    Raises:
        DataError: the dataset's files are missing or malformed.
    """
    upstream = _upstream_class(config)
    mixin = FlatSequenceMixin if _builds_plain_sequences(upstream) else FlatDatasetMixin
    return type(f"Multimodal{upstream.__name__}", (mixin, upstream), {})(config)


def _upstream_class(config) -> type[Dataset]:
    """The dataset class RecBole gives this model (recbole/data/utils.py:32)."""
    module = importlib.import_module("recbole.data.dataset")
    own = getattr(module, f"{config['model']}Dataset", None)
    if own is not None:
        return own
    return {ModelType.SEQUENTIAL: SequentialDataset, ModelType.KNOWLEDGE: KnowledgeBasedDataset}.get(
        config["MODEL_TYPE"], Dataset
    )


def _builds_plain_sequences(upstream: type[Dataset]) -> bool:
    """Whether the class augments as `SequentialDataset` does (DIEN's adds negatives of its own)."""
    return getattr(upstream, "data_augmentation", None) is SequentialDataset.data_augmentation


class FlatDatasetMixin(FeatureFieldsMixin, HistoriesMixin):
    """What every dataset here does differently from RecBole's; mixed in front of one of its dataset classes."""

    inter_feat: Any
    user_feat: Any
    provided: Mapping[str, Any] = {}

    # ---------------------------------------------------------------- loading

    def _load_data(self, token: str, dataset_path: str) -> None:
        if self.benchmark_filename_list is not None and self.config["missing_modality"] == "drop":
            raise ConfigError(
                "missing_modality: drop cannot be had with benchmark_filename, whose split is given: use mask, or "
                "split anew with --benchmark_filename=~"
            )
        path = Path(dataset_path)
        names = self.benchmark_filename_list or [None]
        first = path / (f"{token}.inter" if names[0] is None else f"{token}.{names[0]}.inter")
        if not first.is_file():
            raise DataError(f"dataset {token!r}: {first} does not exist. {self._where_to_get_it(token, path.parent)}")
        self._check_ids_are_loaded(first)
        super()._load_data(token, dataset_path)
        if self.inter_feat.empty:
            raise DataError(f"{first}: no interactions below the header")
        self._check_items_are_described(path / f"{token}.item")
        if self.config["candidates"] != "catalogue":
            self._drop_never_interacted()

    def _check_ids_are_loaded(self, path: Path) -> None:
        """The columns of users and items are there, and loaded."""
        there = [name for name, _ in read_header(path, self.config["field_separator"], self.config["encoding"])]
        load, unload = self._get_load_and_unload_col("inter")
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD"):
            name = self.config[key]
            if name not in there:
                raise DataError(
                    f"{path}, line 1: no column {name!r} among {', '.join(there)}; rename it, or say --{key}=COLUMN"
                )
            if (load is not None and name not in load) or (unload is not None and name in unload):
                raise ConfigError(
                    f"load_col, unload_col: {name!r} of {path.name} is not loaded, which no model can do without; "
                    f"as in load_col: {{inter: [{self.config['USER_ID_FIELD']}, {self.config['ITEM_ID_FIELD']}, "
                    f"{self.config['TIME_FIELD']}]}}"
                )

    def _where_to_get_it(self, token: str, folder: Path) -> str:
        """What to do about a dataset that is not there: where it comes from, the nearest name, or where to put it."""
        hints = [self.config[key] for key in ("source_url", "prepare_hint") if self.config[key]]
        if hints:
            return "; ".join(hints)
        known = {path.stem for path in (properties_dir() / "dataset").glob("*.yaml")}
        known |= {path.name for path in folder.glob("*") if (path / f"{path.name}.inter").is_file()}
        return f"Put it there, or point --data_path at the folder above it{did_you_mean(token, sorted(known))}"

    def _load_feat(self, filepath: str, source) -> pd.DataFrame | None:
        load, unload = self._get_load_and_unload_col(source)
        if load == set():
            return None

        def wanted(name: str) -> bool:
            return (load is None or name in load) and (unload is None or name not in unload)

        table, types = read_atomic(Path(filepath), self.config["field_separator"], wanted, self.config["encoding"])
        if not types:
            logger.warning("%s: none of the columns %s is there", filepath, sorted(load or ()))
            return None
        for name, kind in types.items():
            if source != "link":
                self.field2source[name] = source
                self.field2type[name] = kind
            if kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                table[name], self.field2seqlen[name] = self._split_sequences(table[name], name, kind)
            else:
                self.field2seqlen.setdefault(name, 1)
            if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                self.field2bucketnum[name] = 2
        return table

    def _split_sequences(self, column: pd.Series, name: str, kind: FeatureType) -> tuple[list[np.ndarray], int]:
        limit = (self.config["seq_len"] or {}).get(name)
        dtype = np.float64 if kind == FeatureType.FLOAT_SEQ else np.str_
        separator = self.config["seq_separator"]
        values = [
            np.array([part for part in text.split(separator) if part][:limit], dtype=dtype)
            for text in column.fillna("").tolist()
        ]
        return values, max(map(len, values), default=0)

    def _check_items_are_described(self, item_file: Path) -> None:
        """Interactions with items that `.item` does not list are an error unless the user asks for their removal."""
        if self.item_feat is None or self.config["filter_inter_by_user_or_item"] is True:
            return
        ids = self.inter_feat[self.iid_field].dropna()
        unknown = ids[~ids.isin(self.item_feat[self.iid_field])].unique()
        if len(unknown):
            raise DataError(
                f"{item_file}: {len(unknown)} item ids of the .inter file are not listed, such as {unknown[0]!r}; "
                "add them, or drop their interactions with filter_inter_by_user_or_item: True"
            )

    def _drop_never_interacted(self) -> None:
        """Items and users that no interaction names are no candidates (`candidates: catalogue` keeps them)."""
        for name, field in (("item_feat", self.iid_field), ("user_feat", self.uid_field)):
            table = getattr(self, name)
            if table is None:
                continue
            kept = table[table[field].isin(self.inter_feat[field])].reset_index(drop=True)
            if len(kept) < len(table):
                logger.info("%d of %d rows of .%s are in no interaction", len(table) - len(kept), len(table), name[:4])
            setattr(self, name, kept)

    # -------------------------------------------------------------- filtering

    def _data_filtering(self) -> None:
        if self.config["missing_modality"] == "drop":
            self._drop_items_without_content()
        super()._data_filtering()
        if self.config["candidates"] != "catalogue":
            self._drop_never_interacted()

    def _remap_ID_all(self) -> None:
        """RecBole's; `positives: popular` then drops rows, when all items have their numbers and stay candidates."""
        super()._remap_ID_all()
        if keeps_popular(self.config):
            self.inter_feat = popular_only(self, self._time_order(), self.config["MAX_ITEM_LIST_LENGTH"] + 1)

    def _drop_items_without_content(self) -> None:
        tokens = self.inter_feat[self.iid_field].unique()
        unusable = self.content_source.unusable(list(tokens))
        if not unusable:
            return
        dropped = self.inter_feat[self.iid_field].isin(unusable)
        logger.warning(
            "missing_modality: drop removes %d of %d items and %d of %d interactions, such as item %s",
            len(unusable), len(tokens), dropped.sum(), len(dropped), sorted(unusable)[0],
        )  # fmt: skip
        self.inter_feat = self.inter_feat[~dropped].reset_index(drop=True)
        if self.item_feat is not None:
            self.item_feat = self.item_feat[~self.item_feat[self.iid_field].isin(unusable)].reset_index(drop=True)

    def _remove_duplication(self) -> None:
        """RecBole's, with a stable sort: of equal times the file's order decides which one is kept."""
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        if self.time_field in self.inter_feat:
            self.inter_feat = self.inter_feat.sort_values(self.time_field, kind="stable")
        self.inter_feat = self.inter_feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep)

    def _filter_by_inter_num(self) -> None:
        """RecBole's k-core filter, counted by numpy instead of per row in Python; users and items of a round are
        counted before either is left out, which matters where an interval has an upper end."""
        intervals = {
            self.uid_field: self._parse_intervals_str(self.config["user_inter_num_interval"]),
            self.iid_field: self._parse_intervals_str(self.config["item_inter_num_interval"]),
        }
        codes = {field: pd.factorize(self.inter_feat[field])[0] for field in intervals}
        kept = np.ones(len(self.inter_feat), dtype=bool)
        while True:
            before = kept.copy()
            for field, interval in intervals.items():
                if interval:
                    counts = np.bincount(codes[field][before], minlength=codes[field].max(initial=-1) + 1)
                    kept &= np.asarray(self._within_intervals(counts, interval))[codes[field]]
            if np.array_equal(kept, before):
                break
        if not kept.any():
            raise DataError(
                f"dataset {self.dataset_name!r}: user_inter_num_interval {self.config['user_inter_num_interval']} and "
                f"item_inter_num_interval {self.config['item_inter_num_interval']} leave no interaction"
            )
        self.inter_feat = self.inter_feat[kept]

    # ------------------------------------------------------- order and split

    def _change_feat_format(self) -> None:
        """Order rows by user and exact time before RecBole rounds timestamps to float32 (steps of 128 s today).

        Rounding keeps order and every later sort is stable, so this order is the one that all models see.
        """
        if self.config["eval_args"]["order"] == "TO" and self.benchmark_filename_list is None:
            self.inter_feat = self.inter_feat.iloc[self._time_order()].reset_index(drop=True)
        super()._change_feat_format()

    def _time_order(self) -> np.ndarray:
        """Rows by user and exact time; of equal times the file's order decides."""
        if self.time_field not in self.inter_feat:
            raise DataError(
                f"dataset {self.dataset_name!r}: ordering by time needs the column {self.time_field!r} in .inter "
                "and in load_col; data that has only an order can use the position as its time"
            )
        return np.lexsort((self.inter_feat[self.time_field].to_numpy(), self.inter_feat[self.uid_field].to_numpy()))

    def _phases(self, users: np.ndarray) -> np.ndarray | None:
        """Phase of each row (see `interactions`), or None for a split that RecBole's own code makes."""
        arguments = self.config["eval_args"]
        ((mode, value),) = arguments["split"].items()
        own_samples = isinstance(self, SequentialDataset) and not isinstance(self, FlatSequenceMixin)
        if arguments["order"] != "TO" or self.benchmark_filename_list is not None or own_samples:
            return None
        if mode == "LS":
            try:
                return leave_one_out(group_offsets(users), value)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        if mode == "RS" and str(arguments["group_by"]).lower() == "user":
            return split_by_ratio(group_offsets(users), value, self._calcu_split_ids)
        return None

    def build(self) -> list[Dataset]:
        """Training, validation and test datasets by `eval_args`; the same rows whatever the kind of model."""
        users = np.sort(self.inter_feat[self.uid_field].to_numpy())
        phases = self._phases(users)
        if phases is None:
            return super().build()
        self._change_feat_format()
        self._drop_unused_col()
        return [self.copy(self._rows_of(np.flatnonzero(phases == phase))) for phase in (TRAIN, VALID, TEST)]

    def _drop_unused_col(self) -> None:
        """RecBole's, which ends in an AttributeError or a KeyError on what is not loaded or cannot be spared."""
        for name, fields in (self.config["unused_col"] or {}).items():
            if getattr(self, f"{name}_feat", None) is None:
                raise ConfigError(f"unused_col: no file {self.dataset_name}.{name} is loaded; leave {name!r} out")
            for field in {self.uid_field, self.iid_field} & set(fields):
                raise ConfigError(f"unused_col: {name}: no model can do without {field!r}; leave it out")
        super()._drop_unused_col()

    def _rows_of(self, rows: np.ndarray) -> Interaction:
        return self.inter_feat[rows]

    # -------------------------------------------------------------- content

    @cached_property
    def content_source(self) -> ContentSource:
        """Raw text and images by item token."""
        return ContentSource.from_config(self.config)

    @cached_property
    def content(self) -> ItemContent:
        """Raw text and images aligned to RecBole's item ids; `content[0]` is padding."""
        return ItemContent(self.content_source, self.field2id_token[self.iid_field])

    def item_feature(self, name: str) -> np.ndarray:
        """Feature `name` of `item_features`: float32 (item_num, d), row = RecBole's item id, row 0 zeros.

        Raises:
            ConfigError: there is no such feature.
        """
        features = self.provided.get("item_features", {})
        if name not in features:
            raise ConfigError(f"no item feature {name!r}; item_features has {sorted(features) or 'none'}")
        return features[name]

    def hand_over(self, provided: Mapping[str, Any]) -> None:
        """Set each of `provided` as an attribute: what a model reads beside interactions, such as `item_vectors`."""
        self.provided = dict(provided)
        for name, value in provided.items():
            setattr(self, name, value)

    def item_tokens(self) -> Sequence[str]:
        """The dataset's own item ids, index = RecBole's id; index 0 is `[PAD]`."""
        return self.field2id_token[self.iid_field]


class FlatSequenceMixin(FlatDatasetMixin):
    """Sequential datasets: rows stay flat, samples are cut on demand (see `SequenceSamples`)."""

    def _benchmark_presets(self) -> None:
        """RecBole's, which ends in an AttributeError where the files of a given split hold no samples."""
        lists = self.iid_field + self.config["LIST_SUFFIX"]
        if lists not in self.inter_feat:
            raise ConfigError(
                f"benchmark_filename: a model of sequences wants files of samples, with a column {lists}; these hold "
                "interactions: choose a general model, or split anew with --benchmark_filename=~"
            )
        super()._benchmark_presets()

    def data_augmentation(self) -> None:
        """One sample for every row that has a row before it; its history is at most `MAX_ITEM_LIST_LENGTH` rows."""
        self._aug_presets()
        users = self.inter_feat[self.uid_field].numpy()
        offsets = group_offsets(users)
        first = np.repeat(offsets[:-1], np.diff(offsets))
        self.row_start = first
        targets = np.flatnonzero(np.arange(len(users)) > first)
        self.inter_feat = SequenceSamples(
            self.inter_feat.interaction,
            np.maximum(first[targets], targets - self.max_item_list_len),
            targets,
            user_field=self.uid_field,
            list_suffix=self.config["LIST_SUFFIX"],
            length_field=self.item_list_length_field,
            max_len=self.max_item_list_len,
        )

    def build(self) -> list[Dataset]:
        if self.config["eval_args"]["order"] != "TO":
            raise ConfigError("a sequential model needs eval_args.order: TO (time order)")
        return super().build()

    def sort(self, by, ascending=True) -> None:
        """RecBole sorts the samples again before other splits; they are in time order already."""

    def _rows_of(self, rows: np.ndarray) -> SequenceSamples:
        samples: SequenceSamples = self.inter_feat
        held = np.zeros(len(self.row_start), dtype=bool)
        held[rows] = True
        return samples.subset(np.flatnonzero(held[samples.targets.numpy()]))
