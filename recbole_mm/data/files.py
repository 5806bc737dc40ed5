"""The files that a dataset is read from, and what they hold: runs on other data are other runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

ATOMIC_SUFFIXES = (".inter", ".item", ".user", ".kg", ".link", ".net")
DIGITS = 12


def atomic_files(folder: Path, dataset: str) -> dict[str, str]:
    """What RecBole's atomic files of a dataset hold, `<dataset>.inter`, `<dataset>.item`, ... and parts of them.

    Images are not among them: what is made of an image is kept by its content in the artifact store.

    Returns:
        Name -> digest, sorted; {} where there is no such folder.
    """
    names = (path.name for path in folder.glob("*") if path.suffix in ATOMIC_SUFFIXES)
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
