"""Ids and times of raw files: which texts are ids, and which times they mean, exactly.

Times are numbers in any one unit, or days and times of day as ISO 8601 writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from recbole_mm.data.names import CONTROL, one_form

MISSING = frozenset(
    {"nan", "-nan", "NaN", "-NaN", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaT", "None", "null", "NULL"}
)
"""Texts that programs write in place of a missing value."""

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


# --------------------------------------------------------------------------------------------------------------- times

NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?\s*", re.ASCII)
EXPECTED = "is not a number or a time such as 2024-05-31 18:30:00"

_MOMENT = re.compile(
    r"(?P<day>\d{4}(?P<mark>[-/]?)\d\d(?P=mark)\d\d)"
    r"(?:[T ](?P<clock>\d\d(?:(?P<colon>:?)\d\d(?:(?P=colon)\d\d)?)?)(?:[.,](?P<fraction>\d{1,12}))?"
    r"\s*(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LIMIT = 2**63
_EXACT = 2**53  # float64 holds every whole number up to here
_UNITS = ("days", "YYYYMMDD", "seconds", "milliseconds", "microseconds", "nanoseconds")
_EDGES = (1e4, 1e5, 1.9e7, 2.1e7, 3e8, 1e10, 3e11, 1e13, 3e14, 1e16, 3e17, 1e19)
"""Lowest and highest size of a present-day date (1980 to 2200 or so) in each of `_UNITS`."""


class Time(NamedTuple):
    """The meaning of a text: a number, or a second since 1970 (UTC where no zone is named); and how it is written."""

    value: Decimal
    form: str


def read_time(text: str) -> Time | None:
    """The time that a text means, exactly; None where it means none.

    >>> read_time("1970-01-02 00:00:00.25+01:00").value
    Decimal('82800.25')
    """
    if NUMBER.fullmatch(text):
        number = Decimal(text.strip())
        return Time(number, "a number") if abs(number) < _LIMIT else None
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, zone = match["day"].replace("/", "-"), match["clock"], match["zone"]
    if match["fraction"] and len(clock.replace(":", "")) < 6:  # of a minute or an hour
        return None
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{(zone or '').upper().replace('UTC', 'Z')}" if clock else day)
    except ValueError:  # such as 30 February
        return None
    seconds = ((moment if zone else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(seconds=1)
    form = "a day" if clock is None else "a time with a zone" if zone else "a time"
    return Time(seconds + Decimal(f"0.{match['fraction'] or 0}"), form)


def settle(values: np.ndarray | Sequence[Decimal]) -> tuple[np.ndarray, bool]:
    """Times as they are written: int64 where all are whole, else float64, always in their exact order.

    Args:
        values: int64 (n,), or n exact numbers.

    Returns:
        The values, and False; or, where float64 would round a whole one or make one of two different ones, the rank of
        each among the different ones (0, 1, ...) and True.
    """
    if isinstance(values, np.ndarray):
        if (np.abs(values) <= _EXACT).all() or (values.astype(np.float64).astype(np.int64) == values).all():
            return values, False
        return np.unique(values, return_inverse=True)[1].astype(np.int64), True
    floats = np.array(values, dtype=np.float64)
    if (floats % 1 == 0).all() and all(value == value.to_integral_value() for value in values):
        return settle(np.array([int(value) for value in values], dtype=np.int64))
    if len(np.unique(floats)) == len(values):
        return floats, False
    ordered = sorted(set(values))
    if len(np.unique(floats)) == len(ordered):
        return floats, False
    place = {value: rank for rank, value in enumerate(ordered)}
    return np.array([place[value] for value in values], dtype=np.int64), True


def units_of(values: np.ndarray) -> list[str]:
    """The units in which all of these times but zeros would be dates of our days; several, and they are mixed.

    Times that are dates in no unit, such as seconds since the beginning of a log, leave the question open: [].
    """
    bands = np.searchsorted(_EDGES, values[values != 0], side="right")
    return [_UNITS[band // 2] for band in np.unique(bands)] if (bands % 2).all() else []


def first_fault(texts: Iterable[tuple[int, str]]) -> tuple[int, str, str] | None:
    """The first line of a column of times that is none, else the first that is not written as those before.

    Args:
        texts: lines and their times.

    Returns:
        Line, text and reason; None where all fit together.
    """
    forms: dict[str, tuple[int, str]] = {}
    units: dict[str, tuple[int, str]] = {}
    for line, text in texts:
        time = read_time(text)
        if time is None:
            too_large = NUMBER.fullmatch(text) is not None
            return line, text, "is missing" if not text.strip() else "is too large" if too_large else EXPECTED
        forms.setdefault(time.form, (line, text))
        if time.form == "a number":
            for unit in units_of(np.array([float(time.value)])):
                units.setdefault(unit, (line, text))
    for kinds, what in ((forms, ""), (units, "of the size of ")):
        if len(kinds) > 1:
            (first, (first_line, first_text)), (second, (line, text)) = list(kinds.items())[:2]
            reason = (
                f"is {what}{second}, but line {first_line} has {first_text!r}, {what}{first}; write all times alike"
            )
            return line, text, reason
    return None
