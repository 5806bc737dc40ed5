"""Writes RecBole's atomic files and the dataset folder's own YAML, so that RecBole and `recbole_mm` read the same text.

A field never holds a tab, a line break or another control character (each becomes a space), and never begins with a
double quote (a space is put before it): RecBole parses atomic files as quoted CSV, where such a field would swallow the
lines after it. Files are UTF-8 with `\\n` line ends, written under a temporary name and then moved into place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from recbole_mm.data.names import CONTROL
from recbole_mm.utils.files import atomic_write

_LINES_AT_ONCE = 100_000
_TYPES = ("token", "token_seq", "float", "float_seq")


def clean_text(column: pd.Series) -> pd.Series:
    """Text that is safe inside an atomic file: control characters become one space, ends are stripped."""
    text = column.astype(str).str.replace(f"{CONTROL}+", " ", regex=True).str.strip()
    return text.mask(text.str.startswith('"'), " " + text)


def write_inter(folder: Path, name: str, table: pd.DataFrame, types: Mapping[str, str]) -> Path:
    """Write `<folder>/<name>.inter`. Columns are those of `types`, in its order; each type is one of RecBole's four."""
    return write_table(folder / f"{name}.inter", table, types)


def write_item(folder: Path, name: str, table: pd.DataFrame, types: Mapping[str, str]) -> Path:
    """Write `<folder>/<name>.item`, as `write_inter`."""
    return write_table(folder / f"{name}.item", table, types)


def write_user(folder: Path, name: str, table: pd.DataFrame, types: Mapping[str, str]) -> Path:
    """Write `<folder>/<name>.user`, as `write_inter`."""
    return write_table(folder / f"{name}.user", table, types)


def write_table(path: Path, table: pd.DataFrame, types: Mapping[str, str]) -> Path:
    """Write one atomic file. Missing numbers become empty fields; whole numbers are written without a decimal point.

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
    return path


def write_yaml(folder: Path, name: str, comment: Sequence[str], settings: Mapping[str, object]) -> Path:
    """Write `<folder>/<name>.yaml`: `comment` as leading comment lines, then `settings` in their order.

    Raises:
        DiskError: the file cannot be written.
    """
    path = folder / f"{name}.yaml"
    text = yaml_text(comment, settings)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
    return path


def yaml_text(comment: Sequence[str], settings: Mapping[str, object]) -> str:
    """What `write_yaml` writes."""
    text = "".join(f"# {line}\n" for line in comment)
    return text + yaml.safe_dump(
        dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=None, width=118
    )


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
