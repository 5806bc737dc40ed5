"""From what a converter has read to a dataset folder, and the summary of what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from recbole_mm.config import properties_dir
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.datasets.folder import IMAGES, write_folder, write_table
from recbole_mm.datasets.images import ImageFolder, index_images, is_safe_id
from recbole_mm.datasets.values import MISSING, written_twice
from recbole_mm.errors import DataError
from recbole_mm.utils.files import atomic_write

WITH_TITLE_CARDS = "ml-100k"
"""The dataset whose images, where it has no posters, are drawn by the package: nothing here may turn that off."""


INTER_TYPES = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
"""The usual columns of interactions, in the order they are written."""


@dataclass(frozen=True)
class Table:
    """A table and RecBole's type of each of its columns, in the order they are written."""

    rows: pd.DataFrame
    types: Mapping[str, str]

    @classmethod
    def of(cls, rows: pd.DataFrame, types: Mapping[str, str] = INTER_TYPES) -> Table:
        """A table with those of `types` that `rows` has."""
        return cls(rows, {column: kind for column, kind in types.items() if column in rows})


@dataclass(frozen=True)
class RawDataset:
    """What a converter has read.

    Attributes:
        inter: columns `user_id`, `item_id` (categories of str), perhaps `rating`, and `timestamp` (int64), in the order
            of the source: models that need an order sort by time and keep this order among equal times.
        item: the catalogue, with column `item_id`; None where the source has none.
        user: columns `user_id` and what is known of users, or None.
        images: the image files.
        text_fields: columns of `item` that describe an item in words, the most telling first.
        features: columns of `item` that RecBole's feature models embed (`selected_features`).
        files: names of the raw files read, for the YAML's comment.
        settings: of the dataset's YAML, apart from columns and images.
        splits: name of a split -> its rows of `inter`, where the source is split already.
        extra_files: file name -> function that writes this file of vectors or lists, given its path.
        fetch: downloads images into the dataset folder, once that is written, and returns a line for the summary.
        source: folder of raw files.
        converter: name of the converter.
        notes: lines for the summary, such as how many lines were dropped.
    """

    inter: Table
    item: Table | None = None
    user: Table | None = None
    images: ImageFolder = field(default_factory=ImageFolder)
    text_fields: Sequence[str] = ()
    features: Sequence[str] = ()
    files: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    splits: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    extra_files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    fetch: Callable[[Path], str] | None = None
    source: Path = Path()
    converter: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """Counts of what a conversion wrote. `str()` is one line of counts, then one line per note.

    Attributes:
        name: dataset name.
        out: dataset folder.
        users, items, interactions: distinct users and items in `.inter`, and its lines.
        catalogue: lines of `.item`.
        images: image files in the dataset folder.
        items_with_image, items_with_text: of `items`.
        image_share, text_share: shares (0 to 1) of interactions whose item has an image, or text.
        not_in_catalogue: items in `.inter` that `.item` does not list.
        never_interacted: items in `.item` that `.inter` does not name.
        notes: remarks, a line each.
    """

    name: str
    out: Path
    users: int
    items: int
    interactions: int
    catalogue: int
    images: int
    items_with_image: int
    items_with_text: int
    image_share: float
    text_share: float
    not_in_catalogue: int
    never_interacted: int
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        line = (
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions; "
            f"images of {self.items_with_image:,} items ({self.image_share:.2%} of interactions), "
            f"text of {self.items_with_text:,} ({self.text_share:.2%}); written to {self.out}"
        )
        return "\n".join([line, *(f"  {note}" for note in self.notes)])


def write_dataset(raw: RawDataset, out: Path, name: str, link: bool, force: bool) -> Summary:
    """Write `raw` as the dataset folder `out`: atomic files, `<name>.yaml`, `images/` and `extra_files`.

    Where the source has no images, those already in `<out>/images` are the dataset's, and the YAML that was written
    before they were there is replaced unasked.

    Args:
        raw: what was read.
        out: dataset folder, which `folder.check_target` has accepted.
        name: dataset name.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset in `out`.

    Raises:
        DataError: interactions and catalogue share no item; `out` cannot be written or holds another dataset.
    """
    if raw.images.root is None and (out / IMAGES).is_dir():
        note = f"images already in {out / IMAGES} were kept as they are"
        raw = replace(raw, images=index_images(out / IMAGES), notes=[*raw.notes, note])
    counts = raw.inter.rows["item_id"].value_counts(sort=False)
    counts = counts[counts > 0]
    counts.index = counts.index.astype(str)
    catalogue = pd.Index([]) if raw.item is None else pd.Index(raw.item.rows["item_id"].astype(str))
    if raw.item is not None and not counts.index.isin(catalogue).any():
        raise DataError(
            f"{raw.source}: none of the {len(counts)} item ids in the interactions, such as {counts.index[0]!r}, is "
            f"in the catalogue, which has {catalogue[0]!r}; do the files belong together?"
        )
    known = counts.index.union(catalogue, sort=False)
    users = pd.Index(raw.inter.rows["user_id"].unique()).astype(str)
    if raw.user is not None:
        users = users.union(pd.Index(raw.user.rows["user_id"].astype(str)), sort=False)
    raw = replace(
        raw, notes=[*raw.notes, *_written_alike(raw.source, known, "item"), *_written_alike(raw.source, users, "user")]
    )
    images = raw.images.of(filter(is_safe_id, known))
    write_folder(
        out,
        name,
        lambda folder: _write_tables(folder, name, raw, bool(images)),
        images,
        link,
        force,
        (lambda: _yaml_text(name, raw, has_images=False).encode()) if images else None,
    )
    return _summarise(raw, out, name, counts, catalogue, known, images)


def _written_alike(source: Path, tokens: pd.Index, what: str) -> list[str]:
    """A note where two ids differ in leading zeros alone.

    Raises:
        DataError: two ids are one number, or one text, in two ways of writing that nobody means to be different.
    """
    alike, padded = written_twice(tokens)
    for first, second in alike[:1]:
        raise DataError(
            f"{source}: the {what} ids {first!r} and {second!r} are one id written in two ways ({len(alike):,} such "
            "pairs); write them alike"
        )
    return [
        f"{len(padded):,} {what} ids differ from another one in leading zeros alone, such as {first!r} and {second!r}: "
        "they are taken to be different"
        for first, second in padded[:1]
    ]


def _write_tables(folder: Path, name: str, raw: RawDataset, has_images: bool) -> None:
    tables = {"inter": raw.inter, "item": raw.item, "user": raw.user}
    tables |= {f"{split}.inter": Table(rows, raw.inter.types) for split, rows in raw.splits.items()}
    for suffix, table in tables.items():
        if table is not None:
            write_table(folder / f"{name}.{suffix}", table.rows, table.types)
    for file, write in raw.extra_files.items():
        write(folder / file)
    with atomic_write(folder / f"{name}.yaml") as draft:
        draft.write_text(_yaml_text(name, raw, has_images), encoding="utf-8", newline="\n")


def _yaml_text(name: str, raw: RawDataset, has_images: bool) -> str:
    """The dataset's YAML, with a leading comment."""
    comment = [
        f"recbole-mm run --model=Molar --dataset={name} --data_path=<the folder that holds this one>",
        f"Written by `recbole-mm prepare {raw.converter}` from {', '.join(raw.files)}.",
        "It is read whenever this dataset is run: it wins over the settings that the package has for a dataset of this",
        "name, and --config_files and the command line win over it.",
    ]
    settings = _settings(name, raw, has_images)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=118)
    return "".join(f"# {line}\n" for line in comment) + text


def _settings(name: str, raw: RawDataset, has_images: bool) -> dict[str, object]:
    """What the dataset's YAML says."""
    fields = [column for column in ("user_id", "item_id", "rating", "timestamp") if column in raw.inter.types]
    load: dict[str, list[str]] = {"inter": fields}
    if raw.item is not None and raw.features:
        load["item"] = ["item_id", *raw.features]
    settings: dict[str, object] = {
        "load_col": load,
        **({"selected_features": list(raw.features)} if raw.features else {}),
        "text_fields": list(raw.text_fields),
    }
    if has_images:
        settings |= {"image_dir": IMAGES, "modalities": ["image", "text"]}
    elif name != WITH_TITLE_CARDS:
        settings |= {"image_dir": None, "modalities": ["text"]}
    return {**settings, **raw.settings}


def _overridden(name: str, settings: Mapping[str, object]) -> list[str]:
    """A note where the dataset's YAML says something else than the one that the package has for it."""
    known = properties_dir() / "dataset" / f"{name}.yaml"
    if not known.is_file():
        return []
    ours = read_yaml(known)
    unlike = [key for key, value in settings.items() if key in ours and ours[key] != value]
    return [
        f"{name}.yaml says otherwise than the package's properties/dataset/{name}.yaml about {', '.join(unlike)}, and "
        "wins; the command in that file makes both agree, and --config_files=<that file> wins over it"
        for _ in unlike[:1]
    ]


def _summarise(
    raw: RawDataset,
    out: Path,
    name: str,
    counts: pd.Series,
    catalogue: pd.Index,
    known: pd.Index,
    images: Mapping[str, Path],
) -> Summary:
    with_image = counts.index.isin(list(images))
    with_text = counts.index.isin(_items_with_text(raw, catalogue))
    missing = int((~counts.index.isin(catalogue)).sum())
    unused = int((~catalogue.isin(counts.index)).sum())
    unsafe = sum(not is_safe_id(token) for token in known)
    notes = [*raw.notes, *_overridden(name, _settings(name, raw, bool(images)))]
    if raw.item is not None and missing:
        first = counts.index[~counts.index.isin(catalogue)][0]
        notes.append(
            f"{missing:,} items of the interactions are not in the catalogue, such as {first!r}: run with "
            "--filter_inter_by_user_or_item=True to leave them out"
        )
    if unused:
        notes.append(f"{unused:,} of {len(catalogue):,} items of the catalogue are in no interaction")
    if unsafe:
        notes.append(f"{unsafe:,} item ids cannot be file names ('/', '..' or a leading dot) and get no image")
    if raw.item is not None and raw.text_fields:
        words = raw.item.rows[list(raw.text_fields)]
        if missing_words := int(words.isin(MISSING).sum().sum()):
            notes.append(f"{missing_words:,} texts of items are 'nan', 'NA', 'None' or the like, and are kept as words")
    if raw.images.empty:
        notes.append(f"{raw.images.empty:,} image files are empty and were left out")
    if raw.images.repeated:
        notes.append(f"{raw.images.repeated:,} image files are further ones of an item that has one, and were left out")
    if raw.images.others:
        listed = ", ".join(f"{suffix or 'none'}: {count:,}" for suffix, count in raw.images.others.items())
        notes.append(f"files in {raw.images.root} that do not count as images by their names: {listed}")
    if raw.images.root is not None and len(images) < len(raw.images.files):
        unnamed = len(raw.images.files) - len(images)
        notes.append(f"{unnamed:,} files in {raw.images.root} are named after no item and were left out")
    if out.resolve().name != name:
        notes.append(f"RecBole looks for {name}/{name}.inter: rename the folder {out.resolve().name} to {name}")
    total = int(counts.sum())
    return Summary(
        name=name,
        out=out,
        users=int(raw.inter.rows["user_id"].nunique()),
        items=len(counts),
        interactions=total,
        catalogue=len(catalogue),
        images=len(images),
        items_with_image=int(with_image.sum()),
        items_with_text=int(with_text.sum()),
        image_share=float(counts[with_image].sum() / total),
        text_share=float(counts[with_text].sum() / total),
        not_in_catalogue=missing if raw.item is not None else 0,
        never_interacted=unused,
        notes=tuple(notes),
    )


def _items_with_text(raw: RawDataset, catalogue: pd.Index) -> np.ndarray:
    if raw.item is None:
        return np.array([], dtype=object)
    filled = np.zeros(len(catalogue), dtype=bool)
    for column in raw.text_fields:
        filled |= (raw.item.rows[column].astype(str).str.strip() != "").to_numpy()
    return catalogue[filled].to_numpy()
