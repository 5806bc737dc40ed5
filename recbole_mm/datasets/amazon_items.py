"""Amazon's metadata of products as a catalogue in plain words, and the URL of each product's picture."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_mm.datasets.amazon_records import parse_record, read_records
from recbole_mm.errors import DataError
from recbole_mm.utils.progress import progress

COLUMNS = {
    "item_id": "token",
    "title": "token_seq",
    "brand": "token",  # names of several words stay one token
    "categories": "token_seq",
    "price": "float",
    "features": "token_seq",
    "description": "token_seq",
}
"""Columns of `.item` and their types; all but the first are left out where no product has a value."""

TEXT_FIELDS = ("title", "brand", "categories", "features", "description")

_FIRST_ASIN = re.compile(r"""\{\s*['"]asin['"]\s*:\s*['"](\w+)['"]""")
_HTML_NAMES = (
    "a abbr address article aside audio b big blockquote body br button center cite code dd del div dl dt em fieldset "
    "figure font footer form frame h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins label li link map meta "
    "nav noscript object ol option p param pre q s section select small source span strike strong sub sup svg table "
    "tbody td textarea tfoot th thead title tr tt u ul video"
)
# Names of tags are listed so that "<medium" and "<3" stay; what is never closed goes on to the end, in linear time.
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)"
    rf"|</?(?:{'|'.join(_HTML_NAMES.split())})\b[^<>]*>",
    re.S | re.I,
)
_SCRIPT_IN_TEXT = "getTime()"  # pages of 2018 whose script stands where the title should
_PRICE = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")
_NO_IMAGE = "/no-img"  # the placeholder that 2014 gives for products without a picture
_LONGEST_TEXT = 200_000


@dataclass(frozen=True)
class Products:
    """The wanted products as their metadata describe them.

    Attributes:
        table: columns of `COLUMNS` of which any product has a value, in its order; each product once.
        urls: item id -> URL of its picture, for those that have one.
        repeated: further lines of a product already listed.
        differing: those of them that differ; the description with more text counts, in any order of lines.
        garbled: titles that were page code, and were left empty.
    """

    table: pd.DataFrame
    urls: Mapping[str, str]
    repeated: int
    differing: int
    garbled: int


@dataclass(frozen=True)
class _Described:
    """One line's description of a product."""

    columns: Mapping[str, Any]
    url: str | None
    garbled: bool

    def fullness(self) -> tuple[int, str]:
        """Orders descriptions: more text first, and never by which line comes first."""
        text = repr((self.columns, self.url))
        return len(text), text


def read_products(path: Path, wanted: Collection[str]) -> Products:
    """The lines of a metadata file that describe the products `wanted`; others are not kept.

    Raises:
        DataError: the file is malformed, naming the line, or describes none of the wanted products.
    """
    found: dict[str, _Described] = {}
    repeated = differing = 0
    example = ""
    for number, text in progress(read_records(path), "reading metadata", unit="line"):
        start = _FIRST_ASIN.match(text)  # 2014: saves parsing the literals of products that are not wanted
        if start is not None and start[1] not in wanted and '"parent_asin"' not in text:
            example = example or start[1]
            continue
        record = parse_record(path, number, text)
        item = record.get("parent_asin") or record.get("asin")
        if not isinstance(item, str):
            raise DataError(f"{path}, line {number}: no asin (2014, 2018) and no parent_asin (2023); not metadata?")
        example = example or item
        if item not in wanted:
            continue
        product = _Described(describe(record), image_url(record), _SCRIPT_IN_TEXT in str(record.get("title")))
        if item in found:
            repeated += 1
            differing += product != found[item]
            product = max(product, found[item], key=_Described.fullness)
        found[item] = product
    if not found:
        raise DataError(
            f"{path}: describes none of the {len(wanted):,} products of the reviews, such as {min(wanted)!r}, "
            f"but {example!r}; do the files belong together?"
        )
    table = pd.DataFrame({"item_id": list(found)})
    rows = [product.columns for product in found.values()]
    for column in COLUMNS:
        if column == "item_id":
            continue
        values = [row[column] for row in rows]
        if column == "price":
            if not all(math.isnan(value) for value in values):
                table[column] = np.asarray(values)
        elif any(values) or column == "title":
            table[column] = values
    urls = {item: product.url for item, product in found.items() if product.url}
    return Products(table, urls, repeated, differing, sum(product.garbled for product in found.values()))


def describe(record: Mapping[str, Any]) -> dict[str, Any]:
    """One product's columns, without `item_id`: plain text, "" where there is none, and the price or NaN.

    >>> describe({"title": "Soft <b>Bib</b> &amp; Spoon", "categories": [["Baby", "Feeding"]]})["categories"]
    'Baby > Feeding'
    """
    return {
        "title": plain_text(record.get("title")),
        "brand": plain_text(record.get("brand") or record.get("store")),
        "categories": category_paths(record.get("categories") or record.get("category")),
        "price": price_of(record.get("price")),
        "features": plain_text(record.get("features") or record.get("feature")),
        "description": plain_text(record.get("description")),
    }


def plain_text(value: Any) -> str:
    """Text, or the texts of a list, without HTML, on one line. Page code and what is no text become "".

    >>> plain_text(["Sizes <3 years.", "<p class='x'>Wash&nbsp;cold</p>"])
    'Sizes <3 years. Wash cold'
    """
    text = " ".join(part for part in _strings(value))
    if _SCRIPT_IN_TEXT in text:
        return ""
    # Entities twice: 2018 holds pages that were escaped before they were stored.
    text = html.unescape(html.unescape(text[:_LONGEST_TEXT]))
    return " ".join(_MARKUP.sub(" ", text).split())


def category_paths(value: Any) -> str:
    """`[[A, B], [A, C, D]]` or `[A, B]` as `A > B | A > C > D`; a path that another one continues is left out."""
    if isinstance(value, str):
        return plain_text(value)
    if not isinstance(value, list | tuple):
        return ""
    nested = [entry for entry in value if isinstance(entry, list | tuple)] or [value]
    paths = [tuple(name for name in map(plain_text, _strings(path)) if name) for path in nested]
    paths = [path for path in dict.fromkeys(paths) if path]
    whole = [path for path in paths if not any(other != path and other[: len(path)] == path for other in paths)]
    return " | ".join(" > ".join(path) for path in whole)


def price_of(value: Any) -> float:
    """Dollars; NaN for a range, a sentence, or nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) and value >= 0 else math.nan
    match = _PRICE.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else math.nan


def image_url(record: Mapping[str, Any]) -> str | None:
    """URL of the product's main picture, of some 500 pixels where there is a choice (2023's `large`)."""
    candidates: list[Any] = [record.get("imUrl")]
    for key in ("imageURLHighRes", "imageURL", "image"):
        candidates.extend(_strings(record.get(key)))
    pictures = [entry for entry in _list(record.get("images")) if isinstance(entry, Mapping)]
    for picture in sorted(pictures, key=lambda entry: entry.get("variant") != "MAIN"):  # stable
        candidates.extend(picture.get(size) for size in ("large", "hi_res", "thumb"))
    for url in candidates:
        if isinstance(url, str) and url.strip() and _NO_IMAGE not in url:
            return url.strip()
    return None


def _strings(value: Any) -> Iterable[str]:
    return [part for part in _list(value) if isinstance(part, str)]


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
