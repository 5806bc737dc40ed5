"""Datasets that several runs of one command read: files are loaded once, and each run has a copy of its own."""

from __future__ import annotations

from copy import copy

from recbole.data.dataset import Dataset, SequentialDataset

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import OF_AN_ITEM, RANKED, named
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.data.dataset import create_dataset, dataset_class, upstream_class
from recbole_mm.data.inputs import ModelInputs

LOADING_KEYS = frozenset(
    {"data_path", "dataset", "seed", "encoding", "missing_modality", *RANKED}
    | {*named(lambda setting: setting.group == "data" and not setting.describes_items)}
)
"""Settings that decide what is loaded."""

LAZY = ("split", "missing", "content_source", "content", "content_at_test")
"""Properties of a dataset that follow from its config when they are first read."""


class Datasets:
    """Gives each config its dataset, and loads files once for all configs whose data settings are the same.

    General and sequential models share one, since a dataset is cut into samples only when it is split; items' content
    is read from `.item` later, by the config of each.

    Args:
        last: the config that comes last, after which nothing is kept in memory; None: all is kept.

    Example:
        >>> datasets = Datasets(last=config)                                  # doctest: +SKIP
        >>> first, own = datasets.of(first_stage_config), datasets.of(config)  # doctest: +SKIP
    """

    def __init__(self, last: Config | None = None) -> None:
        self._last = last
        self._loaded: dict[str, Dataset] = {}

    def of(self, config: Config) -> Dataset:
        """The dataset of `config`, not yet split; see `create_dataset` for errors."""
        key = _loading_settings(config)
        loaded = self._loaded.get(key)
        if config is self._last:
            self._loaded.clear()
            return create_dataset(config) if loaded is None else _copy_for(config, loaded)
        if loaded is None:
            loaded = self._loaded[key] = create_dataset(config)
        return _copy_for(config, loaded)


def _loading_settings(config: Config) -> str:
    drops = config["missing_modality"] == "drop"  # then the items that are left follow from their content
    keys = LOADING_KEYS | OF_AN_ITEM if drops else LOADING_KEYS
    upstream = upstream_class(config)
    plain = upstream in (Dataset, SequentialDataset) and config["benchmark_filename"] is None
    settings = {key: config[key] for key in sorted(keys)}
    return canonical({**settings, "kind": "interactions" if plain else upstream.__name__})


def _copy_for(config: Config, loaded: Dataset) -> Dataset:
    """A dataset that shares the tables of a loaded one, which nothing changes in place, under another config."""
    own = object.__new__(dataset_class(config))
    for name, value in vars(loaded).items():
        if name not in LAZY:
            vars(own)[name] = copy(value) if isinstance(value, (dict, list, set)) else value
    own.config, own.inputs = config, ModelInputs(model=config["model"])
    if isinstance(own, SequentialDataset):
        own.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        own.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
    return own
