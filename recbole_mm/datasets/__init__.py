"""From raw downloads to a dataset folder of RecBole atomic files and images: `recbole-mm prepare SOURCE`.

    >>> from recbole_mm.datasets import CONVERTERS
    >>> sorted(CONVERTERS)
    ['amazon', 'csv', 'hm', 'microlens', 'mmrec', 'movielens', 'pixelrec', 'sequences']

One module per source. Nothing heavy is imported until a converter runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from recbole_mm.utils.paths import expanded, given_path

if TYPE_CHECKING:
    from recbole_mm.datasets.assemble import Summary


@dataclass(frozen=True)
class Option:
    """One command line option of a converter; `flag` without its dashes is the keyword `convert` receives."""

    flag: str
    help: str
    metavar: str | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        if self.metavar is None:
            parser.add_argument(self.flag, action="store_true", help=self.help)
        else:
            kind = given_path if self.metavar in ("DIR", "FILE") else str
            parser.add_argument(self.flag, metavar=self.metavar, default=None, type=kind, help=self.help)


COMMON_OPTIONS = (
    Option("--name", "name of the dataset (default: the name of the --out folder, where RecBole looks for it)", "NAME"),
    Option("--link", "hard-link images instead of copying them, where the file system allows it"),
    Option("--force", "replace a different dataset that --out already holds"),
)


@dataclass(frozen=True)
class Converter:
    """A source of raw data that can be turned into a dataset folder.

    Attributes:
        name: what the user types after `recbole-mm prepare`.
        help: one line for `--help`.
        module: module holding `convert(source, out, **options) -> Summary`; imported when first used.
        options: what this source takes beside `COMMON_OPTIONS`.
    """

    name: str
    help: str
    module: str
    options: tuple[Option, ...] = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare this converter's options on `parser`; `--source` and `--out` are the caller's."""
        for option in (*self.options, *COMMON_OPTIONS):
            option.add_to(parser)

    def convert(self, source: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Summary:
        """Read the raw files in `source` and write the dataset folder `out`.

        Raises:
            DataError: the raw files are missing, malformed or inconsistent, or `out` holds another dataset.
        """
        module = importlib.import_module(self.module)
        given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        return module.convert(Path(expanded(os.fspath(source))), Path(expanded(os.fspath(out))), **given)


_IMAGES = Option("--images", "folder of images named <item_id>.jpg, when it is not found in --source", "DIR")
_INTERACTIONS = Option("--interactions", "file of interactions, when --source holds more than one", "FILE")
_ITEMS = Option("--items", "file of item texts, when --source holds more than one", "FILE")

CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        converter.name: converter
        for converter in (
            Converter(
                "csv",
                "tables of your own: a CSV of users, items and times, perhaps one of items, perhaps images",
                "recbole_mm.datasets.tables",
                (
                    _INTERACTIONS,
                    _ITEMS,
                    _IMAGES,
                    Option("--user", "column of users, when it has none of the usual names", "COLUMN"),
                    Option("--item", "column of items, in both files", "COLUMN"),
                    Option(
                        "--time", "column of times; date,time joins two; none takes the order of the lines", "COLUMN"
                    ),
                    Option("--texts", "columns of items that models read (default: all columns of words)", "A,B"),
                    Option("--categories", "columns of items for RecBole's feature models, such as brand", "A,B"),
                ),
            ),
            Converter(
                "movielens",
                "MovieLens 100K, 1M, 10M and the later CSV releases (GroupLens), with posters if you have them",
                "recbole_mm.datasets.movielens",
                (Option("--posters", "folder of posters named <item_id>.jpg (default: posters/ in --source)", "DIR"),),
            ),
            Converter(
                "hm",
                "H&M Personalized Fashion Recommendations (Kaggle 2022) or a sample of it",
                "recbole_mm.datasets.hm",
                (
                    Option(
                        "--transactions",
                        "file of purchases in --source (default: inter_2y_core.csv, else transactions_train.csv)",
                        "FILE",
                    ),
                    _IMAGES,
                ),
            ),
            Converter(
                "microlens",
                "MicroLens short videos: pairs.csv (timestamps) or pairs.tsv (order only), titles, covers",
                "recbole_mm.datasets.microlens",
                (_INTERACTIONS, _ITEMS, _IMAGES),
            ),
            Converter(
                "pixelrec",
                "PixelRec image covers: an interaction CSV, an item information CSV, a folder of covers",
                "recbole_mm.datasets.pixelrec",
                (_INTERACTIONS, _ITEMS, _IMAGES),
            ),
            Converter(
                "sequences",
                "a file with a line per user: user item item ..., in order, separated by spaces or tabs",
                "recbole_mm.datasets.sequences",
                (_INTERACTIONS,),
            ),
            Converter(
                "amazon",
                "Amazon reviews and product metadata of 2014, 2018 or 2023 (McAuley Lab), with pictures if wanted",
                "recbole_mm.datasets.amazon",
                (
                    Option("--category", "category, such as Baby, when --source holds more than one", "NAME"),
                    Option("--reviews", "file of reviews or ratings in --source, in place of the one found", "FILE"),
                    Option("--k_core", "least number of interactions of every user and item (5); 0 keeps all", "K"),
                    Option("--images", "fetch the products' pictures; a stopped download goes on where it was"),
                    Option("--rate", "pictures asked for per second from one host (10)", "N"),
                    Option("--allow_private", "fetch pictures from this machine's own network too, such as a mirror"),
                ),
            ),
            Converter(
                "mmrec",
                "precomputed image_feat.npy, text_feat.npy and an .inter file with x_label, the split",
                "recbole_mm.datasets.mmrec",
                (_INTERACTIONS, _ITEMS, _IMAGES),
            ),
        )
    }
)
