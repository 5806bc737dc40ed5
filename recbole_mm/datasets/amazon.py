"""Amazon reviews and product metadata (McAuley Lab), the releases of 2014, 2018 and 2023.

Raw layout, in one folder, for a category such as Baby or Video_Games:

    reviews     2014  reviews_<category>_5.json.gz, reviews_<category>.json.gz, ratings_<category>.csv
                2018  <category>_5.json.gz, <category>.json.gz, <category>.csv
                2023  <category>.jsonl.gz, <category>.csv.gz
    metadata    meta_<category>.json.gz (2014, 2018) or meta_<category>.jsonl.gz (2023)

All may be unpacked. Files are recognized by these names, their columns by what is in them. Files are streamed: memory
grows with what stays, plus some 40 bytes per review while the k-core is counted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from recbole_mm.datasets.amazon_items import COLUMNS, TEXT_FIELDS, read_products
from recbole_mm.datasets.amazon_reviews import read_reviews
from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import Converter, Option
from recbole_mm.datasets.download import Limits, download_images, plan
from recbole_mm.datasets.files import find_file
from recbole_mm.datasets.folder import IMAGES
from recbole_mm.errors import DataError

IMAGE_URLS = "image_urls.csv"
IMAGE_FAILURES = "image_failures.csv"
DEFAULT_CORE = 5
FEATURES = ("brand", "categories")

_META = re.compile(r"meta_(?P<category>.+)\.jsonl?(\.gz)?")
_REVIEWS = re.compile(r"(?:reviews_|ratings_)?(?P<category>[^.]+?)(?P<core>_5)?\.(?P<kind>json|jsonl|csv)(?:\.gz)?")


@dataclass(frozen=True)
class Sources:
    """The files of one category."""

    category: str
    reviews: Path
    metadata: Path


class Amazon(Converter):
    """Reviews and products of one of Amazon's categories."""

    name = "amazon"
    options = (
        Option("--category", "category, such as Baby, when --source holds more than one", "NAME"),
        Option("--reviews", "file of reviews or ratings in --source, in place of the one found", "FILE"),
        Option("--k_core", "least number of interactions of every user and item (5); 0 keeps all", "K"),
        Option("--images", "fetch the products' pictures; a stopped download goes on where it was"),
        Option("--rate", "pictures asked for per second from one host (10)", "N"),
        Option("--allow_private", "fetch pictures from this machine's own network too, such as a mirror"),
    )

    def read(
        self,
        category: str | None = None,
        reviews: str | None = None,
        k_core: int | str | None = None,
        images: bool = False,
        rate: float | str | None = None,
        allow_private: bool = False,
    ) -> RawDataset:
        """Read reviews and metadata.

        Args:
            category: which category, where the folder holds several.
            reviews: file of reviews or ratings in the folder, where several of the category are there.
            k_core: least number of interactions of every user and item, 5 by default; 0 keeps all.
            images: fetch the products' pictures into `<out>/images`; what is there is not fetched again.
            rate: requests a second to each host, 10 by default.
            allow_private: fetch pictures from addresses that are not public too.

        Raises:
            DataError: a file is missing or malformed, or nothing is left of it.
        """
        core = _whole_number("--k_core", k_core, DEFAULT_CORE)
        limits = Limits(public_only=not allow_private)
        if rate is not None:
            limits = replace(limits, rate=_positive("--rate", rate))
        files = find_sources(self.source, category, reviews, core)
        found = read_reviews(files.reviews, core)
        wanted = found.table["item_id"].cat.categories
        products = read_products(files.metadata, set(wanted))
        order = {item: place for place, item in enumerate(wanted)}
        table = products.table.iloc[products.table["item_id"].map(order).argsort(kind="stable")].reset_index(drop=True)
        urls = {item: products.urls[item] for item in table["item_id"] if item in products.urls}
        kept = f"{len(found.table):,} of {found.read:,} reviews stay"
        self.notes += [kept + (f" in the {core}-core" if core > 1 else ""), *found.notes]
        for count, what in (
            (found.repeated, "repeated reviews of a product by the same user were dropped; the earliest stays"),
            (products.repeated, f"repeated products of {files.metadata.name} were dropped"),
            (
                products.differing,
                "of these say something else than the line that stays, which is the one with more text",
            ),
            (products.garbled, "titles that hold page code were left empty"),
        ):
            if count:
                self.notes.append(f"{count:,} {what}")
        if urls and not images and not (self.out / IMAGES).is_dir():
            self.notes.append(f"{IMAGE_URLS} holds the URLs of {len(urls):,} pictures; --images fetches them")
        interval = f"[{core},inf)" if core > 1 else None
        return RawDataset(
            inter=Table.of(found.table),
            item=Table.of(table, COLUMNS),
            text_fields=[column for column in TEXT_FIELDS if column in table],
            features=[column for column in FEATURES if column in table],
            files=(files.reviews.name, files.metadata.name),
            settings={"user_inter_num_interval": interval, "item_inter_num_interval": interval},
            extra_files={IMAGE_URLS: partial(write_urls, urls=urls)},
            fetch=partial(fetch_images, urls=urls, limits=limits) if images else None,
        )


def fetch_images(out: Path, urls: Mapping[str, str], limits: Limits) -> str:
    """Download the pictures that `<out>/images` lacks; returns what `DownloadReport` says in one line."""
    print(plan(urls, out / IMAGES, out / IMAGE_FAILURES, limits), flush=True)
    return str(download_images(urls, out / IMAGES, out / IMAGE_FAILURES, limits))


def find_sources(source: Path, category: str | None, reviews: str | None, k_core: int) -> Sources:
    """The files of reviews and metadata of a category.

    Of several files of reviews, the published 5-core is taken for a k-core of 5 or more, else ratings without texts,
    else all reviews.

    Raises:
        DataError: there are none, or those of several categories.
    """
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    metadata = {match["category"]: source / name for name in names if (match := _META.fullmatch(name))}
    if not metadata:
        raise DataError(f"{source}: no meta_<category>.json[.gz] (2014, 2018) or .jsonl[.gz] (2023), the metadata")
    chosen = [found for found in metadata if category is None or _plain(found) == _plain(category)]
    if len(chosen) != 1:
        there = ", ".join(sorted(metadata))
        what = "several categories; choose one with --category" if not category else f"no metadata of {category!r}"
        raise DataError(f"{source}: {what}: {there}")
    (found,) = chosen
    if reviews is not None:
        path = find_file(source, reviews, (), "--reviews")
        assert path is not None  # without a pattern it is the chosen one, or an error
        return Sources(found, path, metadata[found])
    fitting = [
        (_preference(match, k_core), name)
        for name in names
        if (match := _REVIEWS.fullmatch(name)) and not _META.fullmatch(name) and match["category"] == found
    ]
    if not fitting:
        raise DataError(
            f"{source}: no reviews of {found}; looked for reviews_{found}_5.json, reviews_{found}.json, "
            f"ratings_{found}.csv (2014), {found}_5.json, {found}.json, {found}.csv (2018), {found}.jsonl (2023) or .gz"
        )
    return Sources(found, source / min(fitting)[1], metadata[found])


def write_urls(path: Path, urls: Mapping[str, str]) -> None:
    """Write `item_id,url` lines, for any downloader."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("item_id", "url"))
        writer.writerows(urls.items())


def _preference(match: re.Match[str], k_core: int) -> int:
    if match["core"]:
        return 0 if k_core >= 5 else 3
    return 1 if match["kind"] == "csv" else 2


def _plain(category: str) -> str:
    return re.sub(r"[\W_]+|\band\b", "", category.lower().replace("_", " "))


def _whole_number(option: str, value: int | str | None, default: int) -> int:
    if value is None:
        return default
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise DataError(f"{option} {value}: a whole number from 0 on is expected")
    return number


def _positive(option: str, value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1000:
        raise DataError(f"{option} {value}: a number of requests a second is expected, above 0 and at most 1000")
    return number
