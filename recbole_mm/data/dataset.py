"""RecBole datasets that keep interactions flat and carry the items' raw text and images.

`create_dataset` gives any RecBole or recbole_mm model its dataset: the class RecBole would take, with loading,
ordering, filtering, splitting and sequence building replaced by exact and fast ones, and with the items' `content`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset_content import ContentMixin
from recbole_mm.data.histories import HistoriesMixin
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.data.loading import LoadingMixin
from recbole_mm.data.splits import (
    TEST,
    TRAIN,
    VALID,
    Rows,
    Split,
    keeps_popular,
    popular_rows,
    training_rows_first,
)
from recbole_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def create_dataset(config: Config) -> MultimodalDataset:
    """The dataset of `config`, of the kind its model needs, loaded and filtered but not yet split.

    Raises:
        DataError: the dataset's files are missing or malformed.
        ConfigError: `eval_args` does not fit the model.
    """
    split, kind = Split.of(config), dataset_class(config)
    if split.holds_out_items and issubclass(kind, SequenceMixin) and not issubclass(kind, FlatSequenceMixin):
        raise ConfigError(
            f"eval_args: split: cold_items: {config['model']} cuts samples of its own, which would hold held-out "
            "items; choose another model"
        )
    dataset = kind(config)
    dataset.inputs = ModelInputs(model=config["model"])
    return dataset


def dataset_class(config: Config) -> type[Dataset]:
    """RecBole's class for the model of `config`, with what is done differently here mixed in front of it."""
    upstream = upstream_class(config)
    mixin = FlatDatasetMixin
    if issubclass(upstream, SequentialDataset):
        mixin = FlatSequenceMixin if _builds_plain_sequences(upstream) else SequenceMixin
    return type(f"Multimodal{upstream.__name__}", (mixin, upstream), {})


def upstream_class(config: Config) -> type[Dataset]:
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
    return issubclass(upstream, SequentialDataset) and upstream.data_augmentation is SequentialDataset.data_augmentation


class FlatDatasetMixin(LoadingMixin, ContentMixin, HistoriesMixin):
    """Loading, filtering, order and split of every dataset here; mixed in front of one of RecBole's dataset classes."""

    inter_feat: Any
    user_feat: Any
    item2entity: dict[str, str]
    entity2item: dict[str, str]
    rows: Rows
    """All interactions, whichever part they are in; since the dataset was split."""
    own_rows: np.ndarray
    """Of a part: those of `rows` that it holds, or that are its samples' targets."""
    item_phases: np.ndarray | None = None
    """(item_num,) int8 phase of each item where the split holds out items; -1 for padding and what nobody chose."""
    _split_rows: tuple[pd.DataFrame, Config, tuple[np.ndarray, Rows]] | None = None
    """What `split_rows` returned, and the table and settings that it is of."""

    @property
    def train_item_num(self) -> int:
        """Number of item ids that training may draw or compare with, padding included: ids below it. Items that the
        split holds out have the ids from there on."""
        return self.item_num if self.item_phases is None else 1 + int((self.item_phases == TRAIN).sum())

    def _load_data(self, token: str, dataset_path: str) -> None:
        if self.benchmark_filename_list is not None and self.config["missing_modality"] == "drop":
            raise ConfigError(
                "missing_modality: drop cannot be had with benchmark_filename, whose split is given: use mask, or "
                "split anew with --benchmark_filename=~"
            )
        super()._load_data(token, dataset_path)

    # -------------------------------------------------------------- filtering

    def _data_filtering(self) -> None:
        if self.config["missing_modality"] == "drop":
            self._drop_items_without_content()
        super()._data_filtering()

    def _remap_ID_all(self) -> None:
        """RecBole's; `positives: popular` then drops rows, when all items have their numbers and stay candidates."""
        self._drop_never_interacted()
        if self.benchmark_filename_list is not None and isinstance(self, KnowledgeBasedDataset):
            self._cut_links()
        if self.split.holds_out_items and self.benchmark_filename_list is None:
            self._number_held_out_items_last(super()._remap_ID_all)
        else:
            super()._remap_ID_all()
        if keeps_popular(self.config):
            self._keep_popular(self.config["MAX_ITEM_LIST_LENGTH"] + 1)

    def _number_held_out_items_last(self, number: Callable[[], None]) -> None:
        """Draw the items that are held out, and give ids so that theirs come after those of all others.

        Args:
            number: gives ids in the order of the table's rows.
        """
        tokens, items = np.unique(self.inter_feat[self.iid_field].to_numpy().astype(str), return_inverse=True)
        phases = self.split.item_phases(len(tokens))
        order = np.argsort(phases[items] != TRAIN, kind="stable")
        self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
        number()
        self.inter_feat = self.inter_feat.iloc[np.argsort(order)].reset_index(drop=True)
        names = np.asarray(self.field2id_token[self.iid_field]).astype(str)
        at = np.minimum(np.searchsorted(tokens, names), len(tokens) - 1)
        self.item_phases = np.where(tokens[at] == names, phases[at], -1).astype(np.int8)
        self.item_phases[0] = -1
        assert (self.item_phases[1 : self.train_item_num] == TRAIN).all()

    def _keep_popular(self, most: int) -> None:
        """Keep at most so many interactions of each user, those with popular items (see `popular_rows`)."""
        users, items = (self.inter_feat[field].to_numpy() for field in (self.uid_field, self.iid_field))
        kept = popular_rows(users, items, self._time_order(), most)
        logger.info("positives: popular keeps %d of %d interactions, at most %d of a user", len(kept), len(users), most)
        self.inter_feat = self.inter_feat.iloc[kept].reset_index(drop=True)

    def _cut_links(self) -> None:
        """Keep the links of items and entities that are there, as `_filter_link` does where no split is given."""
        items, entities = self._get_rec_item_token(), self._get_entity_token()
        kept = {item: entity for item, entity in self.item2entity.items() if item in items and entity in entities}
        self.item2entity, self.entity2item = kept, {entity: item for item, entity in kept.items()}

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
        self._drop_never_interacted()  # before the links of a knowledge graph are cut to the items that are left

    def _filter_link(self) -> None:
        """RecBole's, which leaves out the interactions with items that no entity of the graph is linked to."""
        before = len(self.inter_feat)
        super()._filter_link()
        if left_out := before - len(self.inter_feat):
            logger.warning("%d of %d interactions are left out: .link has no entity for their items", left_out, before)

    # ------------------------------------------------------- order and split

    @cached_property
    def split(self) -> Split:
        """The split of `eval_args`."""
        return Split.of(self.config)

    def _times(self) -> np.ndarray:
        """float64 (M,) exact time of each row: RecBole rounds them to float32 (steps of 128 s today) when it splits."""
        if self.time_field not in self.inter_feat:
            raise DataError(
                f"dataset {self.dataset_name!r}: ordering by time needs the column {self.time_field!r} in .inter "
                "and in load_col; data that has only an order can use the position as its time"
            )
        return self.inter_feat[self.time_field].to_numpy()

    def _time_order(self) -> np.ndarray:
        """Rows by user and exact time; of equal times the file's order decides."""
        return np.lexsort((self._times(), self.inter_feat[self.uid_field].to_numpy()))

    def _split_order(self) -> np.ndarray:
        """Rows by user, and each user's in the order of the split; as they stand where the split is given."""
        if self.benchmark_filename_list is not None:
            return np.arange(len(self.inter_feat))
        if self.split.in_time:
            return self._time_order()
        order = self.split.row_order(None, len(self.inter_feat))
        return order[np.argsort(self.inter_feat[self.uid_field].to_numpy()[order], kind="stable")]

    def _row_phases(self) -> np.ndarray:
        """Phase of each row of the table as it stands, int8 (M,)."""
        if self.benchmark_filename_list is not None:
            ends = np.cumsum(self.file_size_list)
            return np.searchsorted(ends, np.arange(len(self.inter_feat)), side="right").astype(np.int8)
        if self.item_phases is not None:
            return self.item_phases[self.inter_feat[self.iid_field].to_numpy()]
        times = self._times() if self.split.in_time else None
        return self.split.phases(self.inter_feat[self.uid_field].to_numpy(), times)

    def _row_labels(self) -> np.ndarray:
        """bool (M,): rows that are not labelled 0."""
        if self.label_field not in self.inter_feat:
            return np.ones(len(self.inter_feat), dtype=bool)
        return self.inter_feat[self.label_field].to_numpy() > 0

    def split_rows(self) -> tuple[np.ndarray, Rows]:
        """The order that `build` puts the table into, int64 (M,), and the rows in that order with their phases.

        A run asks thrice, and they are computed once for a table as it stands.
        """
        known = self._split_rows
        if known is None or known[0] is not self.inter_feat or known[1] is not self.config:
            known = self._split_rows = (self.inter_feat, self.config, self._computed_split_rows())
        return known[2]

    def _computed_split_rows(self) -> tuple[np.ndarray, Rows]:
        order, ends, places = self._split_order(), None, None
        in_time = self.split.in_time and self.benchmark_filename_list is None
        if self.item_phases is not None:
            users = self.inter_feat[self.uid_field].to_numpy()[order]
            places, ends = training_rows_first(users, self._row_phases()[order], in_time)
            order = order[places]
        users, items = (self.inter_feat[field].to_numpy()[order] for field in (self.uid_field, self.iid_field))
        return order, Rows(users, items, self._row_phases()[order], in_time, self._row_labels()[order], ends, places)

    def build(self) -> list[Dataset]:
        """Training, validation and test datasets by `eval_args`; the same rows whatever the kind of model."""
        order, self.rows = self.split_rows()
        self._split_rows = None  # nor the table that it holds
        self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
        self._change_feat_format()
        self._drop_unused_col()
        return [self.part(self.rows_of_part(self.rows, phase)) for phase in (TRAIN, VALID, TEST)]

    def rows_of_part(self, rows: Rows, phase: int) -> np.ndarray:
        """The rows that are trained on, or held out, in a phase: int64, ascending."""
        return rows.of_phase(phase)

    def _drop_unused_col(self) -> None:
        """RecBole's, which ends in an AttributeError or a KeyError on what is not loaded or cannot be spared."""
        for name, fields in (self.config["unused_col"] or {}).items():
            if getattr(self, f"{name}_feat", None) is None:
                raise ConfigError(f"unused_col: no file {self.dataset_name}.{name} is loaded; leave {name!r} out")
            for field in {self.uid_field, self.iid_field} & set(fields):
                raise ConfigError(f"unused_col: {name}: no model can do without {field!r}; leave it out")
        super()._drop_unused_col()

    def part(self, rows: np.ndarray) -> Dataset:
        """A copy of this dataset, which has been split, that holds only the interactions `rows`, int64 ascending."""
        part = self.copy(self.inter_feat[rows])
        part.own_rows = rows
        return part


if TYPE_CHECKING:

    class MultimodalDataset(FlatDatasetMixin, Dataset):
        """The type of `create_dataset`'s result: RecBole's dataset of the model's kind behind one of the mixins."""


class SequenceMixin(FlatDatasetMixin):
    """Sequential datasets: a sample for every interaction that has one of the same user before it, in their order."""

    def _benchmark_presets(self) -> None:
        """RecBole's, which ends in an AttributeError where the files of a given split hold no samples."""
        lists = self.iid_field + self.config["LIST_SUFFIX"]
        if lists not in self.inter_feat:
            raise ConfigError(
                f"benchmark_filename: a model of sequences wants files of samples, with a column {lists}; these hold "
                "interactions: choose a general model, or split anew with --benchmark_filename=~"
            )
        super()._benchmark_presets()

    def rows_of_part(self, rows: Rows, phase: int) -> np.ndarray:
        """The rows that are targets in a phase: int64, ascending."""
        mine = rows.of_phase(phase)
        return mine if self.benchmark_filename_list is not None else mine[rows.starts[mine] < rows.history_ends[mine]]

    def part(self, rows: np.ndarray) -> Dataset:
        """A copy of this dataset that holds only the samples whose targets are `rows`, int64 ascending."""
        given = self.benchmark_filename_list is not None  # then the rows are samples
        part = self.copy(self._samples(rows if given else np.searchsorted(self.rows.targets, rows)))
        part.own_rows = rows
        return part

    def _samples(self, places: np.ndarray) -> Interaction:
        """Some of the samples, by their places among all."""
        return self.inter_feat[places]


class FlatSequenceMixin(SequenceMixin):
    """Sequential datasets whose rows stay flat, and whose samples are cut on demand (see `SequenceSamples`)."""

    def data_augmentation(self) -> None:
        """One sample for every row that has a row before it; its history is at most `MAX_ITEM_LIST_LENGTH` rows."""
        self._aug_presets()
        targets = self.rows.targets
        ends = self.rows.history_ends[targets]
        self.inter_feat = SequenceSamples(
            self.inter_feat.interaction,
            np.maximum(self.rows.starts[targets], ends - self.max_item_list_len),
            targets,
            ends,
            user_field=self.uid_field,
            list_suffix=self.config["LIST_SUFFIX"],
            length_field=self.item_list_length_field,
            max_len=self.max_item_list_len,
        )

    def _samples(self, places: np.ndarray) -> Interaction:
        samples = self.inter_feat  # of a given split: as its files hold them
        return samples.subset(places) if isinstance(samples, SequenceSamples) else super()._samples(places)
