"""From raw downloads to a dataset folder of RecBole atomic files and images: `recbole-mm prepare SOURCE`.

    >>> from recbole_mm.datasets import CONVERTERS
    >>> list(CONVERTERS)
    ['csv', 'movielens', 'hm', 'microlens', 'pixelrec', 'sequences', 'amazon', 'mmrec']

One module per source holds its subclass of `base.Converter`. They are imported when `CONVERTERS` is first read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_mm.datasets.base import Converter

_SOURCES = ("tables", "movielens", "hm", "microlens", "pixelrec", "sequences", "amazon", "mmrec")
"""Modules of sources, in the order in which `recbole-mm prepare --help` lists them."""


class _Converters(Mapping[str, "type[Converter]"]):
    """The subclasses of `Converter` by name, in the order of `_SOURCES`."""

    @cached_property
    def _classes(self) -> dict[str, type[Converter]]:
        from recbole_mm.datasets.base import Converter

        modules = [importlib.import_module(f"recbole_mm.datasets.{module}").__name__ for module in _SOURCES]
        of_module = {converter.__module__: converter for converter in Converter.__subclasses__()}
        return {of_module[module].name: of_module[module] for module in modules}

    def __getitem__(self, name: str) -> type[Converter]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


CONVERTERS: Mapping[str, type[Converter]] = _Converters()
