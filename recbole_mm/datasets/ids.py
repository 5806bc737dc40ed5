"""What an id of a user or an item may be, so that it stands in an atomic file as it stood in the source."""

from __future__ import annotations

import re
from collections.abc import Iterable

from recbole_mm.data.names import CONTROL, one_form

MISSING = frozenset(
    {"nan", "-nan", "NaN", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaT", "None", "null", "NULL"}
)
"""What programs write where they have no value."""

_UNUSABLE = re.compile(rf'{CONTROL}|^"')
_WHOLE = re.compile(r"(\d+)\.0+", re.ASCII)


def id_fault(token: str) -> str | None:
    """Why a token cannot be an id, or None.

    >>> id_fault("0108775015"), id_fault("nan")
    (None, 'stands for a missing value; leave the line out, or give the id another name')
    """
    if not token.strip():
        return "is missing"
    if _UNUSABLE.search(token):
        return "holds a control character or begins with a quote"
    if token != token.strip():
        return "has a blank at its end"
    if token in MISSING:
        return "stands for a missing value; leave the line out, or give the id another name"
    return None


def written_twice(tokens: Iterable[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Ids that may be one, written in two ways.

    Returns:
        Pairs such as `7` and `7.0`, or of two Unicode forms, which no source means to be different; and pairs such as
        `7` and `007`, which may be.
    """
    alike: list[tuple[str, str]] = []
    padded: list[tuple[str, str]] = []
    by_value: dict[str, str] = {}
    by_number: dict[str, str] = {}
    for token in tokens:
        match = _WHOLE.fullmatch(token)
        value = match[1] if match else one_form(token)
        first = by_value.setdefault(value, token)
        if first != token:
            alike.append((first, token))
        elif value.isascii() and value.isdigit():
            first = by_number.setdefault(value.lstrip("0"), token)
            if first != token:
                padded.append((min(first, token, key=len), max(first, token, key=len)))
    return alike, padded
