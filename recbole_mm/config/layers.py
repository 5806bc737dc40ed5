"""The layers of settings beneath what a user gives: where they are, how they merge, and which names they know."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import ModelType

from recbole_mm.config import properties_dir
from recbole_mm.config.dataset_files import check_atomic_files, check_dataset_yaml
from recbole_mm.config.schema import UNSET, declared_by
from recbole_mm.config.settings import OF_AN_ITEM
from recbole_mm.config.yaml_settings import plain, read_yaml
from recbole_mm.errors import ConfigError

DATA_ENV = "RECBOLE_MM_DATA"
"""Environment variable that takes the place of RecBole's `dataset/` as the folder of dataset folders."""

RECBOLE_DIR = Path(recbole.__file__).parent
RECBOLE_PROPERTIES = RECBOLE_DIR / "properties"
_NOT_DATASETS = ("sample", "url", "kg_url")  # files of RecBole's properties/dataset/ that describe no dataset


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers of settings into a new dict that shares nothing with them; a later layer wins key by key.

    `eval_args` is merged one level deeper: a change of `mode` alone keeps the split and the order of the protocol.
    """
    return _merge_deeper(("eval_args",), layers)


def merge_defaults(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """As `merge`, for the layers beneath the user's, where `load_col` too is merged, by atomic file.

    A dataset's settings that load columns of `.item` keep the `.kg` and `.link` that a knowledge model's quick start
    loads; what a user gives as `load_col` replaces it all, as in RecBole.
    """
    return _merge_deeper(("eval_args", "load_col"), layers)


def _merge_deeper(deeper: tuple[str, ...], layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if key in deeper and isinstance(below, dict) and isinstance(value, Mapping):
                value = below | dict(value)
            merged[key] = value if isinstance(value, Enum) else plain(key, value)
    return merged


def default_layers(model: str, model_class: Any, dataset: str) -> dict[str, Any]:
    """RecBole's and our property files for a model and a dataset, merged in the order `config/resolved.py` states.

    `load_col` is left out of RecBole's sample settings: which columns are needed follows from the protocol.
    """
    ours = properties_dir()
    sample = sample_settings()
    sample.pop("load_col")
    theirs_of_model, ours_of_model = model_settings(model, model_class)
    starts = RECBOLE_PROPERTIES / "quick_start_config"
    return merge_defaults(
        optional_yaml(RECBOLE_PROPERTIES, "overall"),
        sample,
        optional_yaml(ours, "overall"),
        {"data_path": os.environ[DATA_ENV]} if os.environ.get(DATA_ENV) else {},
        theirs_of_model,
        {} if dataset in _NOT_DATASETS else optional_yaml(RECBOLE_PROPERTIES / "dataset", dataset),
        *(optional_yaml(starts, name) for name in quick_starts(model, model_class, dataset)),
        {key: one.default for key, one in declared_by(model_class).items() if one.default is not UNSET},
        ours_of_model,
        optional_yaml(ours / "dataset", dataset),
    )


def model_settings(model: str, model_class: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """What RecBole's and our property files say of a model."""
    folders = (RECBOLE_PROPERTIES / "model", properties_dir() / "model")
    described = _described_as(model, model_class, folders)
    paths = [model_yaml(folder, described) for folder in folders]
    theirs, ours = ({} if path is None else read_yaml(path) for path in paths)
    return theirs, ours


def sample_settings() -> dict[str, Any]:
    """RecBole's settings of a dataset nobody has described."""
    return optional_yaml(RECBOLE_PROPERTIES / "dataset", "sample")


def quick_starts(model: str, model_class: Any, dataset: str) -> list[str]:
    """Names of RecBole's quick-start files for a model, in order; which ones is decided as in RecBole's own Config."""
    on_ml_100k = dataset == "ml-100k"
    if model_class.type in (ModelType.CONTEXT, ModelType.DECISIONTREE):
        return ["context-aware"] + ["context-aware_ml-100k"] * on_ml_100k
    if model_class.type == ModelType.KNOWLEDGE:
        return ["knowledge_base"]
    if model_class.type != ModelType.SEQUENTIAL:
        return []
    if model in ("DIN", "DIEN"):
        return ["sequential_DIN"] + ["sequential_DIN_on_ml-100k"] * on_ml_100k
    if model in ("GRU4RecKG", "KSR"):
        return ["sequential_embedding_model"]
    with_features = model in ("GRU4RecF", "SASRecF", "FDSA", "S3Rec")
    return ["sequential"] + ["special_sequential_on_ml-100k"] * (on_ml_100k and with_features)


def optional_yaml(folder: Path, name: str) -> dict[str, Any]:
    """The settings of `<folder>/<name>.yaml`, or {} if there is no such file."""
    path = folder / f"{name}.yaml"
    return read_yaml(path) if path.is_file() else {}


def model_yaml(folder: Path, model: str) -> Path | None:
    """`<folder>/<model>.yaml`; case does not matter where none fits exactly (RecBole's LightGBM has lightgbm.yaml)."""
    fitting = [path for path in folder.glob("*.yaml") if path.stem.lower() == model.lower()]
    return min(fitting, key=lambda path: (path.stem != model, path.name), default=None)


def _described_as(model: str, model_class: type, folders: Iterable[Path]) -> str:
    """The model's name if a folder describes it, else its nearest base's: a subclass of SASRec starts as SASRec."""
    names = [model, *(base.__name__ for base in model_class.__mro__)]
    return next((name for name in names if any(model_yaml(folder, name) for folder in folders)), model)


def dataset_dir(root: str | Path, dataset: str) -> Path:
    """`<root>/<dataset>`; for ml-100k, where that holds no interactions, the copy inside the RecBole wheel."""
    folder = Path(root) / dataset
    bundled = RECBOLE_DIR / "dataset_example" / dataset
    if dataset == "ml-100k" and not (folder / "ml-100k.inter").is_file() and bundled.is_dir():
        return bundled
    return folder


def dataset_folder_layer(root: str | Path, dataset: str, of_recbole: Iterable[str]) -> dict[str, Any]:
    """`<dataset>.yaml` in the dataset's own folder; it comes with the data and may speak of nothing else.

    It names no file outside of the folder, no model, no server and no environment variable.

    Args:
        root: folder of dataset folders.
        dataset: its name.
        of_recbole: RecBole's settings of a dataset.

    Raises:
        ConfigError: it speaks of something else.
    """
    path = dataset_dir(root, dataset) / f"{dataset}.yaml"
    check_atomic_files(path.parent, dataset)
    if not path.is_file():
        return {}
    layer = read_yaml(path)
    foreign = sorted(set(layer) - {*of_recbole, *sample_settings(), *OF_AN_ITEM})
    if foreign:
        raise ConfigError(f"{path}: {foreign[0]!r} does not describe the data; move it to a file of --config_files")
    check_dataset_yaml(path, layer)
    return layer
