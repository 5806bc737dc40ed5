"""The files that a dataset is read from: where they may be, and what they hold; runs on other data are other runs."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any

from recbole_mm.errors import ConfigError, DataError

ATOMIC_SUFFIXES = (".inter", ".item", ".user", ".kg", ".link", ".net")
DIGITS = 12


def atomic_files(folder: Path, dataset: str, additional: Iterable[str] | None = ()) -> dict[str, str]:
    """What RecBole's atomic files of a dataset hold, `<dataset>.inter`, `<dataset>.item`, ... and parts of them.

    Images are not among them: what is made of an image is kept by its content in the artifact store.

    Args:
        folder: of the dataset.
        dataset: its name.
        additional: the setting `additional_feat_suffix`.

    Returns:
        Name -> digest, sorted; {} where there is no such folder.
    """
    names = [path.name for path in folder.glob("*") if path.suffix in ATOMIC_SUFFIXES]
    names += [f"{dataset}.{suffix}" for suffix in additional or ()]
    return _digests(folder, (name for name in names if name.startswith(f"{dataset}.")))


def feature_files(folder: Path, item_features: Any) -> dict[str, str]:
    """What the files of `item_features` hold.

    Args:
        folder: of the dataset.
        item_features: the setting, not checked yet.

    Returns:
        Name, as the setting gives it -> digest, sorted.
    """
    specs = item_features.values() if isinstance(item_features, dict) else ()
    files = (spec.get(key) for spec in specs if isinstance(spec, dict) for key in ("file", "ids"))
    return _digests(folder, (name for name in files if isinstance(name, str)))


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The beginning of the SHA-256 of those that are there."""
    found = {name: folder / name for name in sorted(set(names))}
    states = {name: (path.resolve(), path.stat()) for name, path in found.items() if path.is_file()}
    return {name: _digest(path, state.st_size, state.st_mtime_ns) for name, (path, state) in states.items()}


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """Of a file that has not changed since it was read last, which its size and time tell."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


# --- where they may be -----------------------------------------------------------------------------------------------


def leaves(folder: Path, given: str) -> bool:
    """Whether a path that is read from a folder leads out of it: absolute, through `..`, `~` or a symbolic link."""
    if "\0" in given or given.startswith("~") or PureWindowsPath(given).drive:
        return True
    return not (folder / given).resolve().is_relative_to(folder.resolve())


def check_dataset_yaml(path: Path, layer: Mapping[str, Any]) -> None:
    """Make sure that the YAML which came with a dataset speaks of the files in its own folder alone.

    It is read because somebody named the dataset, not because they read it: what it says may neither send other files
    of this machine to a text server or into a result, nor choose a model that is loaded here.

    Args:
        path: of the YAML file, in the dataset's folder.
        layer: what it says.

    Raises:
        ConfigError: it names a file outside of its folder, or a model.
    """
    for name, given in _paths(layer):
        if leaves(path.parent, given):
            raise ConfigError(
                f"{path}: {name}: {given!r} leads out of the dataset's folder, which the data's own YAML may not; if "
                "it is meant, give it on the command line or in a file of --config_files"
            )
    for name, parts in _name_parts(layer):
        bad = [part for part in parts if set(str(part)) & set("/\\\0")]
        if bad:
            raise ConfigError(f"{path}: {name}: {bad[0]!r} is no part of a file's name, which has no separator in it")
    for name, spec in _feature_specs(layer):
        if spec.get("encoder") not in (None, "mllm"):
            raise ConfigError(
                f"{path}: {name}.encoder: {spec['encoder']!r} names a model, which the data's own YAML may not; give "
                "item_features on the command line or in a file of --config_files"
            )


def check_atomic_files(folder: Path, dataset: str) -> None:
    """Make sure that no file of a dataset is a symbolic link to a place outside of its folder.

    Raises:
        DataError: one is.
    """
    for path in sorted(folder.glob(f"{glob.escape(dataset)}.*")):
        if path.is_symlink() and leaves(folder, path.name):
            raise DataError(
                f"{path}: a symbolic link that leaves the dataset's folder; put the file itself there, or make the "
                "folder the link"
            )


def _feature_specs(layer: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    features = layer.get("item_features")
    for name, spec in (features if isinstance(features, Mapping) else {}).items():
        if isinstance(spec, Mapping):
            yield f"item_features.{name}", spec


def _paths(layer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every setting that is a path, and its value."""
    places = [("", layer, ("image_dir", "image_zip"))]
    places += [(f"{name}.", spec, ("file", "ids")) for name, spec in _feature_specs(layer)]
    for prefix, settings, keys in places:
        for key in keys:
            if settings.get(key) is not None:
                yield prefix + key, str(settings[key])


def _name_parts(layer: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[Any]]]:
    """Every setting that makes up names of files, `<dataset>.<part>`, and its parts."""
    for key in ("load_col", "unload_col", "unused_col", "additional_feat_suffix", "benchmark_filename"):
        value = layer.get(key)
        if isinstance(value, (str, list, Mapping)):  # anything else is refused by its kind
            yield key, [value] if isinstance(value, str) else value
