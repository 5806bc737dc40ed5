"""What the store keeps: texts and vectors as SQLite has them, and checksums by which damaged ones are noticed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from recbole_mm.errors import StoreError

Value = str | np.ndarray
"""A text, or a 1-D vector of float32 or float16."""

TEXT = "text"
VECTOR_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
NOT_FINITE = "the vector holds NaN or infinity"


class DamagedValueError(ValueError):
    """A stored value is not what was written."""


def checksum(key: str, dtype: str, raw: bytes) -> int:
    """CRC-32 of a value, its type and its key: a damaged index of SQLite may give the value of another key."""
    return zlib.crc32(raw, zlib.crc32(f"{key}\0{dtype}\0".encode("utf-8", "replace")))


def encode(stage: str, key: str, value: Value) -> tuple[str, str | bytes, int]:
    """Return (dtype, what SQLite stores, checksum).

    Raises:
        StoreError: a vector with NaN or infinity.
        TypeError: neither a text nor such a vector.
    """
    if isinstance(value, str):
        return TEXT, value, checksum(key, TEXT, value.encode())
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.name not in VECTOR_DTYPES:
        shown = f"{value.dtype} array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"artifact {key}: a value is a str or a 1-D float32 or float16 array, not a {shown}")
    if not np.isfinite(value).all():
        raise StoreError(f"{stage} {key} is not stored: {NOT_FINITE}")
    dtype = value.dtype.name
    raw = value.astype(VECTOR_DTYPES[dtype], copy=False).tobytes()
    return dtype, raw, checksum(key, dtype, raw)


def check(key: str, dtype: str, raw: bytes, expected: int | None) -> None:
    """Make sure that a value is the one that `encode` gave.

    Args:
        key, dtype, raw: as they are stored; a text in UTF-8.
        expected: its checksum; None for a value of a version that had none, of which less can be said.

    Raises:
        DamagedValueError: it is another value than was written, or none.
    """
    if expected is not None:
        if checksum(key, dtype, raw) != expected:
            raise DamagedValueError("its checksum does not match")
        return  # and it was a text, or a finite vector, when it was written
    try:
        value = decode(dtype, raw)
    except (KeyError, ValueError) as error:
        raise DamagedValueError(f"it is not a valid {dtype} value") from error
    if not isinstance(value, str) and not np.isfinite(value).all():
        raise DamagedValueError(NOT_FINITE)


def decode(dtype: str, raw: bytes) -> Value:
    """A value that was checked."""
    if dtype == TEXT:
        return raw.decode()
    vector_dtype = VECTOR_DTYPES[dtype]
    return np.frombuffer(raw, dtype=vector_dtype).astype(vector_dtype.newbyteorder("="), copy=True)
