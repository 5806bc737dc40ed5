"""Reads a catalogue of JSON lines: an item a line, every value as it is written, or an error that names the line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from recbole_mm.datasets.amazon_records import read_records
from recbole_mm.datasets.values import id_fault
from recbole_mm.errors import DataError

_WHOLE = re.compile(r"-?\d+", re.ASCII)


class Digits(str):
    """A number of a JSON file as it is written there, so that none is rounded."""

    __slots__ = ()


@dataclass(frozen=True)
class Item:
    """One line of the catalogue.

    Attributes:
        line: its number.
        values: key -> text, number or list of them; "" for null.
    """

    line: int
    values: Mapping[str, str | list[str]]


def read_items(path: Path, id_key: str, notes: list[str]) -> dict[str, Item]:
    """The items of a file of JSON lines by id, in its order; repeated identical lines are dropped, and noted.

    Args:
        path: the file; `.gz` is unpacked on the way.
        id_key: key of the id, a text or a whole number, which is no part of `Item.values`.
        notes: gets lines for the summary of the conversion.

    Raises:
        DataError: the file is missing, empty, damaged or not UTF-8; a line is no JSON object; a key is there twice; an
            id is missing, cannot be one (`id_fault`) or was listed before with other content; a value is neither plain
            nor a list of texts and numbers, or is a list on some lines alone. The message names the line.

    Example:
        >>> _ = (tmp_path / "items.jsonl").write_text('{"item_id": 7, "title": "Hat", "tags": ["red"], "price": 2.50}')
        >>> read_items(tmp_path / "items.jsonl", "item_id", [])["7"].values
        {'title': 'Hat', 'tags': ['red'], 'price': '2.50'}
    """
    items: dict[str, Item] = {}
    forms: dict[str, tuple[bool, int]] = {}
    repeated = 0
    for number, text in read_records(path):
        try:
            record = _record(text)
            token = _item_id(id_key, record)
            values = {key: _value(key, value) for key, value in record.items() if key != id_key}
            _check_forms(forms, number, values)
            first = items.setdefault(token, Item(number, values))
            if first.values != values:
                raise ValueError(
                    f"{id_key} {token!r} was already listed on line {first.line} with other content; remove one"
                )
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        repeated += first.line != number
    if repeated:
        notes.append(f"{repeated:,} repeated identical lines of {path.name} were dropped")
    counts = Counter(key for item in items.values() for key in item.values)
    if some := [f"{key} ({count:,})" for key, count in counts.items() if count < len(items)]:
        notes.append(f"keys that not all of the {len(items):,} items of {path.name} have: {', '.join(some)}")
    return items


def _check_forms(forms: dict[str, tuple[bool, int]], number: int, values: Mapping[str, str | list[str]]) -> None:
    """Make sure that a key is a list on every line or on none; `forms` holds what it is, and where it was so first."""
    for key, value in values.items():
        if value == "":
            continue
        is_list, line = forms.setdefault(key, (isinstance(value, list), number))
        if is_list != isinstance(value, list):
            here, there = ("one value", "a list") if is_list else ("a list", "one value")
            raise ValueError(f"{key} is {here}, and {there} on line {line}; write it alike")


def _record(text: str) -> dict[str, Any]:
    """The JSON object of a line, its numbers as `Digits`; what it is not raises ValueError."""
    try:
        record = json.loads(
            text, parse_int=Digits, parse_float=Digits, parse_constant=_no_number, object_pairs_hook=_unique
        )
        json.dumps(record, ensure_ascii=False).encode()  # what half a surrogate pair cannot be
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg.removesuffix(' at')} at character {error.pos + 1})") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"{_kind(record)} where an object in braces is expected")
    return record


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; write null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} is there twice")
        record[key] = value
    return record


def _item_id(key: str, record: Mapping[str, Any]) -> str:
    if key not in record:
        raise ValueError(f"no {key} among {', '.join(record) or 'no keys'}; name the key of ids with --item")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_kind(value)}; an id is a text or a whole number")
    if isinstance(value, Digits) and not _WHOLE.fullmatch(value):
        raise ValueError(f"{key} {value} is not a whole number")
    token = str(value).strip()
    if reason := id_fault(token):
        raise ValueError(f"{key}{f' {token!r}' if token else ''} {reason}")
    return token


def _value(key: str, value: Any) -> str | list[str]:
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        raise ValueError(f"{key} is an object; a value is a text, a number, true, false, null or a list of texts")
    if isinstance(value, list):
        for entry in value:
            if not isinstance(entry, str) or not entry.strip():
                what = "an empty text" if isinstance(entry, str) else _kind(entry)
                raise ValueError(f"{key} is a list with {what} in it; a list holds texts and numbers")
        return [str(entry).strip() for entry in value] or ""
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a text", Digits: "a number"}
    return names.get(type(value), "null")
