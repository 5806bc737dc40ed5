"""`Converter`, the base class of all sources: their options, and the one way from raw files to a dataset folder."""

from __future__ import annotations

import argparse
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from recbole_mm.datasets.assemble import RawDataset, Summary, write_dataset
from recbole_mm.datasets.files import CSV, Layout, find_file
from recbole_mm.datasets.folder import check_target, dataset_name
from recbole_mm.datasets.images import ImageFolder, find_images
from recbole_mm.datasets.raw import Column, read_catalogue, read_table
from recbole_mm.errors import DataError
from recbole_mm.utils.paths import expanded, given_path


@dataclass(frozen=True)
class Option:
    """One command line option of a source.

    Attributes:
        flag: without its dashes, the keyword that `Converter.read` or `Converter.convert` receives.
        help: what `--help` says of it.
        metavar: `DIR` or `FILE` for a path, another word for a text, None for a switch.
    """

    flag: str
    help: str
    metavar: str | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the option on a parser."""
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
"""Arguments of `Converter.convert`."""

INTERACTIONS = Option("--interactions", "file of interactions, when --source holds more than one", "FILE")
ITEMS = Option("--items", "file of item texts, when --source holds more than one", "FILE")
IMAGES = Option("--images", "folder of images named <item_id>.jpg, when it is not found in --source", "DIR")
"""Arguments that several sources have in common."""


class Converter(ABC):
    """A source of raw data that can be turned into a dataset folder; an object of it is one conversion.

    A subclass has a module of its own, whose docstring shows the layout of the raw files, and implements `read`.

    Attributes:
        name: of the source, as in `recbole-mm prepare NAME`.
        options: keyword arguments of `read`, as command line options.
        takes_file: whether `source` may be a file instead of a folder.
        source: folder of raw files, or the file.
        out: the dataset folder.
        notes: lines that `read` appends for the reader of the summary, such as how many lines were dropped.

    Example:
        >>> from recbole_mm.datasets import CONVERTERS
        >>> (tmp_path / "raw").mkdir()
        >>> _ = (tmp_path / "raw" / "orders.csv").write_text("user,item,time\\nann,hat,1\\nann,cap,2\\n")
        >>> summary = CONVERTERS["csv"].convert(tmp_path / "raw", tmp_path / "shop")
        >>> summary.users, summary.items, (tmp_path / "shop" / "shop.inter").exists()
        (1, 2, True)
    """

    name: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    takes_file: ClassVar[bool] = False

    def __init__(self, source: Path, out: Path) -> None:
        self.source = source
        self.out = out
        self.notes: list[str] = []

    @abstractmethod
    def read(self, *args: Any, **options: Any) -> RawDataset:
        """Read the raw files.

        Args:
            args: none.
            options: keyword arguments by the names of `self.options`; paths as text, numbers perhaps as text.

        Raises:
            DataError: a file is missing, malformed or ambiguous; the message names the file, and the line.
        """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare this source's options on `parser`, but for `--source` and `--out`."""
        for option in (*cls.options, *COMMON_OPTIONS):
            option.add_to(parser)

    @classmethod
    def convert(
        cls,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        name: str | None = None,
        link: bool = False,
        force: bool = False,
        **options: Any,
    ) -> Summary:
        """Read the raw files in `source` and write the dataset folder `out`.

        Args:
            source: folder of raw files.
            out: dataset folder to write.
            name: dataset name, the name of `out` by default.
            link: hard-link images instead of copying them, where possible.
            force: replace a different dataset in `out`.
            options: of this source, as `recbole-mm prepare SOURCE --help` lists them.

        Raises:
            DataError: the raw files are missing, malformed or inconsistent, or `out` holds another dataset.
            DiskError: `out` cannot be written.
        """
        conversion = cls(Path(expanded(os.fspath(source))), Path(expanded(os.fspath(out))))
        folder = conversion.source
        if cls.takes_file and folder.is_file():
            folder = folder.parent
        elif not folder.is_dir():
            raise DataError(f"{folder}: no such folder; --source is the folder the raw files were unpacked into")
        name = dataset_name(conversion.out, name)
        check_target(conversion.out, name, folder, force)
        given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        raw = conversion.read(**given)
        raw = replace(raw, source=folder, converter=cls.name, notes=conversion.notes)
        summary = write_dataset(raw, conversion.out, name, link, force)
        if raw.fetch is None:
            return summary
        # The tables are there before the pictures: a killed download leaves a whole dataset.
        raw = replace(raw, notes=[*raw.notes, raw.fetch(conversion.out)])
        return write_dataset(raw, conversion.out, name, link, force)

    # ---------------------------------------------------------------------------------------- for `read` of subclasses

    def find(self, chosen: str | None, patterns: Sequence[str], option: str) -> Path | None:
        """A file of `source`, as `find_file` finds it."""
        return find_file(self.source, chosen, patterns, option)

    def images(self, chosen: str | None, names: Iterable[str], option: str = "--images") -> ImageFolder:
        """The image files of `source`, as `find_images` finds them."""
        return find_images(self.source, chosen, names, option)

    def table(self, path: Path, columns: Mapping[str, Column], layout: Layout = CSV) -> pd.DataFrame:
        """The wanted columns of a file, as `read_table` reads them."""
        return read_table(path, columns, self.notes, layout)

    def catalogue(
        self, path: Path, columns: Mapping[str, Column], layout: Layout = CSV, id_field: str = "item_id"
    ) -> pd.DataFrame:
        """The wanted columns of a file that lists each id once, as `read_catalogue` reads them."""
        return read_catalogue(path, columns, self.notes, layout, id_field)
