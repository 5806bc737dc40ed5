"""Writes atomic files, and puts a finished dataset folder in place: all of it or nothing, over no other dataset."""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_mm.data.names import CONTROL
from recbole_mm.datasets.images import put_images, same_images
from recbole_mm.errors import DataError
from recbole_mm.utils.files import atomic_write, scratch_folder

IMAGES = "images"
_NAME = re.compile(r"\w[\w.+-]*")
SPLITS = ("train", "valid", "test")
"""Names of the atomic files `<name>.<split>.inter` of a source that comes with its own split."""

_LINES_AT_ONCE = 100_000
_TYPES = ("token", "token_seq", "float", "float_seq")
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
    """Refuse a target that is wrong whatever is written there.

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
    """Write a dataset folder next to `out`, then move it into place. What killed conversions left there is removed.

    A folder that already holds exactly this dataset is left untouched; files in it that belong to no dataset are kept.

    Args:
        out: dataset folder.
        name: dataset name.
        write_tables: writes the atomic files, the YAML and the source's other files into the folder it is given.
        images: item id -> file to be put into `<out>/images`; if these are the files there, or none, the folder stays.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset of the same name.
        earlier_yaml: gives a YAML that may be replaced without `force`: the one of this dataset before its images came.

    Raises:
        DataError: `out` holds a different version of this dataset and `force` is not set; nothing can be written there.
    """
    in_place = {file.resolve().parent for file in images.values()} == {(out / IMAGES).resolve()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out.parent, f".{out.name}.") as scratch:
            staging = scratch / "new"  # its permissions are those of any folder, scratch's are for this user alone
            staging.mkdir()
            write_tables(staging)
            keep_images = in_place or not images or same_images(images, out / IMAGES)
            if not force:
                _refuse_different(out, name, staging, keep_images, earlier_yaml)
            if not keep_images:
                put_images(images, staging / IMAGES, link)
            _install(staging, out, name, keep_images)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None


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
    retired = staging.with_name("retired")
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
    """Names of the files that a dataset of this name may have, and of the other files that this one has."""
    owned = [f"{name}.{suffix}" for suffix in _OWNED]
    return owned + sorted(path.name for path in staging.iterdir() if path.is_file() and path.name not in owned)


# -------------------------------------------------------------------------------------------------------- atomic files


def clean_text(column: pd.Series) -> pd.Series:
    """Text that is safe inside an atomic file: control characters become one space, ends are stripped."""
    text = column.astype(str).str.replace(f"{CONTROL}+", " ", regex=True).str.strip()
    return text.mask(text.str.startswith('"'), " " + text)


def write_table(path: Path, table: pd.DataFrame, types: Mapping[str, str]) -> None:
    """Write one atomic file. Missing numbers become empty fields; whole numbers are written without a decimal point.

    A field never holds a tab, a line break or another control character (each becomes a space), and never begins with a
    double quote (a space is put before it): RecBole parses atomic files as quoted CSV, where such a field would swallow
    the lines after it. The file is UTF-8 with `\\n` line ends.

    Args:
        path: of the file.
        table: the rows.
        types: column of `table` -> one of RecBole's four types, in the order they are written.

    Raises:
        DiskError: the file cannot be written (disk full, no permission).
        ValueError: an unknown type, or an id that an atomic file cannot hold as it is.
    """
    unknown = [kind for kind in types.values() if kind not in _TYPES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not an atomic type; known: {', '.join(_TYPES)}")
    for field in set(types) & {"user_id", "item_id"}:
        tokens = pd.Series(table[field].unique()).astype(str)
        changed = tokens[clean_text(tokens) != tokens]
        if len(changed):
            raise ValueError(f"{field} {changed.iloc[0]!r} cannot stand in an atomic file; its source must refuse it")
    columns = [_renderer(table[field]) for field in types]
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(f"{field}:{kind}" for field, kind in types.items()) + "\n")
        for start in range(0, len(table), _LINES_AT_ONCE):
            block = zip(*(render(slice(start, start + _LINES_AT_ONCE)) for render in columns), strict=True)
            file.writelines("\t".join(fields) + "\n" for fields in block)


def _renderer(column: pd.Series) -> Callable[[slice], list[str]]:
    """Gives the fields of some rows of a column as text; 31 million lines never exist as text all at once."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = clean_text(column.cat.categories.to_series()).to_numpy(dtype=object)
        codes = column.cat.codes.to_numpy()
        return lambda rows: names[codes[rows]].tolist()
    if not pd.api.types.is_numeric_dtype(column):
        return lambda rows: clean_text(column.iloc[rows]).tolist()
    values = column.to_numpy()
    # Beyond 2**53 a float is written with its exponent; casting it to int64 would overflow at 2**63.
    if values.dtype.kind in "iu" or ((values % 1 == 0) & (np.abs(values) <= 2**53)).all():
        return lambda rows: list(map(str, values[rows].astype(np.int64).tolist()))
    return lambda rows: ["" if value != value else repr(value) for value in values[rows].tolist()]
