"""From raw downloads to a dataset folder of RecBole atomic files and images: `recbole-mm prepare SOURCE`.

    >>> from recbole_mm.datasets import CONVERTERS
    >>> list(CONVERTERS)
    ['csv', 'movielens', 'hm', 'microlens', 'pixelrec', 'sequences', 'jsonl', 'amazon', 'mmrec']

One module per source holds its subclass of `base.Converter`, and is imported when that is looked up in `CONVERTERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_mm.datasets.base import Converter

_SOURCES = {
    "csv": (
        "tables:Tables",
        "tables of your own: a CSV of users, items and times, perhaps one of items, perhaps images",
    ),
    "movielens": (
        "movielens:MovieLens",
        "MovieLens 100K, 1M, 10M and the later CSV releases (GroupLens), with posters if you have them",
    ),
    "hm": ("hm:HM", "H&M Personalized Fashion Recommendations (Kaggle 2022) or a sample of it"),
    "microlens": (
        "microlens:MicroLens",
        "MicroLens short videos: pairs.csv (timestamps) or pairs.tsv (order only), titles, covers",
    ),
    "pixelrec": (
        "pixelrec:PixelRec",
        "PixelRec image covers: an interaction CSV, an item information CSV, a folder of covers",
    ),
    "sequences": (
        "sequences:Sequences",
        "a file with a line per user: user item item ..., in order, separated by spaces or tabs",
    ),
    "jsonl": (
        "jsonl:JsonLines",
        "items.jsonl, an item a line, with sequences.tsv, a line per user, in order, and pictures if there are",
    ),
    "amazon": (
        "amazon:Amazon",
        "Amazon reviews and product metadata of 2014, 2018 or 2023 (McAuley Lab), with pictures if wanted",
    ),
    "mmrec": ("mmrec:MMRec", "precomputed image_feat.npy, text_feat.npy and an .inter file with x_label, the split"),
}
"""Source -> module and class, and its line in `recbole-mm prepare --help`, which imports no converter."""

HELP: Mapping[str, str] = {name: help for name, (_, help) in _SOURCES.items()}
"""Source -> its line of help."""


class _Converters(Mapping[str, "type[Converter]"]):
    """The subclasses of `Converter` by the name of their source."""

    def __getitem__(self, name: str) -> type[Converter]:
        module, _, kind = _SOURCES[name][0].partition(":")
        return getattr(importlib.import_module(f"recbole_mm.datasets.{module}"), kind)

    def __iter__(self) -> Iterator[str]:
        return iter(_SOURCES)

    def __len__(self) -> int:
        return len(_SOURCES)


CONVERTERS: Mapping[str, type[Converter]] = _Converters()
