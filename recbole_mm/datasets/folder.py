"""Puts a finished dataset folder in place: all of it or nothing, and never over another dataset unless told to."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from recbole_mm.datasets.images import put_images, same_images
from recbole_mm.errors import DataError

IMAGES = "images"
_NAME = re.compile(r"\w[\w.+-]*")
SPLITS = ("train", "valid", "test")
"""Names of the atomic files `<name>.<split>.inter` of a source that comes with its own split."""

_OWNED = ("inter", *(f"{split}.inter" for split in SPLITS), "item", "user", "yaml")


def dataset_name(out: Path, name: str | None) -> str:
    """`name`, or the name of the folder, which is what RecBole calls the dataset.

    Raises:
        DataError: it cannot be a file name.
    """
    name = out.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name a dataset: use letters, digits, '-', '_', '+' and '.'; choose with --name"
        )
    return name


def check_target(out: Path, name: str, source: Path, force: bool) -> None:
    """Refuse a target that can be told to be wrong before anything is read.

    Raises:
        DataError: `out` is a file, is `source` itself, or holds the atomic files of another dataset.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out is the dataset folder to write")
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: --out is the folder of raw files itself; choose another one")
    own = {f"{name}.inter", *(f"{name}.{split}.inter" for split in SPLITS)}
    others = sorted(path.name for path in out.glob("*.inter") if path.name not in own) if out.is_dir() else []
    if others and not force:
        raise DataError(
            f"{out}: already holds another dataset ({others[0]}); choose another --out, or --force to add to it"
        )


def write_folder(
    out: Path,
    name: str,
    write_tables: Callable[[Path], None],
    images: Mapping[str, Path],
    link: bool,
    force: bool,
    earlier_yaml: Callable[[], bytes] | None = None,
) -> None:
    """Write a dataset folder beside `out`, then move it into place.

    A folder that already holds exactly this dataset is left untouched; files in it that belong to no dataset are kept.

    Args:
        out: dataset folder.
        name: dataset name.
        write_tables: writes the atomic files, the YAML and whatever else the source has into the folder it is given.
        images: item id -> file to be put into `<out>/images`; if these are the files there, or none, the folder stays.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset of the same name.
        earlier_yaml: gives a YAML that may be replaced without `force`: the one of this dataset before its images came.

    Raises:
        DataError: `out` holds a different version of this dataset and `force` is not set; nothing can be written there.
    """
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    in_place = {file.resolve().parent for file in images.values()} == {(out / IMAGES).resolve()}
    try:
        staging.mkdir(parents=True)
        write_tables(staging)
        keep_images = in_place or not images or same_images(images, out / IMAGES)
        if not force:
            _refuse_different(out, name, staging, keep_images, earlier_yaml)
        if not keep_images:
            put_images(images, staging / IMAGES, link)
        _install(staging, out, name, keep_images)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_different(
    out: Path, name: str, staging: Path, keep_images: bool, earlier_yaml: Callable[[], bytes] | None
) -> None:
    for old, new in ((out / file, staging / file) for file in _files(name, staging)):
        if old.exists() and not (new.exists() and filecmp.cmp(old, new, shallow=False)):
            if old.suffix == ".yaml" and earlier_yaml is not None and old.read_bytes() == earlier_yaml():
                continue
            raise DataError(f"{out}: holds a different {old.name}; choose another --out, or replace it with --force")
    if (out / IMAGES).exists() and not keep_images:
        raise DataError(f"{out / IMAGES}: holds different images; choose another --out, or replace them with --force")


def _install(staging: Path, out: Path, name: str, keep_images: bool) -> None:
    if not out.exists():
        os.rename(staging, out)
        return
    retired = staging / "retired"
    retired.mkdir()
    if not keep_images and (out / IMAGES).exists():
        os.rename(out / IMAGES, retired / IMAGES)
    if (staging / IMAGES).exists():
        os.rename(staging / IMAGES, out / IMAGES)
    # The interactions go last: RecBole finds no dataset until everything else is there.
    for file in sorted(_files(name, staging), key=lambda file: file.endswith(".inter")):
        old, new = out / file, staging / file
        if new.exists():
            os.replace(new, old)
        elif old.exists():
            os.rename(old, retired / old.name)


def _files(name: str, staging: Path) -> list[str]:
    """Names of the files that a dataset of this name may have, and of those that this one has beside them."""
    owned = [f"{name}.{suffix}" for suffix in _OWNED]
    return owned + sorted(path.name for path in staging.iterdir() if path.is_file() and path.name not in owned)
