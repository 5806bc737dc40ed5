"""Finds the images of items in a raw download and puts them into the dataset folder, without opening one."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recbole_mm.data.decode import IMAGE_SUFFIXES
from recbole_mm.data.names import NameIndex
from recbole_mm.errors import DataError
from recbole_mm.utils.progress import progress


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder, by item id (the file name without its suffix).

    Attributes:
        root: the folder, or None where there is none.
        files: item id -> file; of several files of one item that with the preferred suffix.
        empty: files of 0 bytes, which are no images and are left out of `files`.
        repeated: further files of an item that has one.
        others: suffixes of files that no image is named like, and how many have them.

    Example:
        >>> _ = (tmp_path / "7.jpg").write_bytes(b"..."), (tmp_path / "8.tif").write_bytes(b"...")
        >>> found = index_images(tmp_path)
        >>> list(found.of(["7", "8"])), found.others
        (['7'], Counter({'.tif': 1}))
    """

    root: Path | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    empty: int = 0
    repeated: int = 0
    others: Mapping[str, int] = field(default_factory=dict)

    def of(self, item_ids: Iterable[str]) -> dict[str, Path]:
        """The files of those items that have one, in whichever Unicode form they are named, by item id.

        Raises:
            DataError: an item's name is there in two other forms.
        """
        index = NameIndex(self.files, str(self.root))
        found = ((item_id, index.find(item_id)) for item_id in item_ids)
        return {item_id: file for item_id, file in found if file is not None}


def find_images(source: Path, chosen: str | None, names: Iterable[str], option: str) -> ImageFolder:
    """Index the folder the user chose, else the first of `names` that exists in `source` (glob patterns).

    Subfolders one level down are searched too (Kaggle's `images/010/0108775015.jpg`).

    Raises:
        DataError: the chosen folder does not exist or holds no image.
    """
    if chosen is not None:
        root = next((path for path in (source / chosen, Path(chosen)) if path.is_dir()), None)
        if root is None:
            raise DataError(f"{option} {chosen}: no such folder, neither in {source} nor in the working directory")
        found = index_images(root)
        if not found.files:
            raise DataError(f"{root}: no image in it; files are named <item_id>.jpg ({', '.join(IMAGE_SUFFIXES)})")
        return found
    for name in names:
        for root in sorted(path for path in source.glob(name) if path.is_dir()):
            return index_images(root)
    return ImageFolder()


def index_images(root: Path) -> ImageFolder:
    """Index the image files of `root` and of its subfolders, one level down."""
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    empty = repeated = 0
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    folders = [Path(entry.path) for entry in listed if entry.is_dir()]
    for folder in (root, *folders):
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(entry.name)
                if not entry.is_file():
                    continue
                if suffix.lower() not in IMAGE_SUFFIXES:
                    others[suffix.lower()] += not stem.startswith(".")
                elif entry.stat().st_size == 0:
                    empty += 1
                else:
                    repeated += stem in files
                    if stem not in files or _rank(suffix) < _rank(files[stem].suffix):
                        files[stem] = Path(entry.path)
    return ImageFolder(root, files, empty, repeated, +others)


def is_safe_id(item_id: str) -> bool:
    """Whether an item id can be a file name: no path separator, no `..`, no leading dot."""
    return not (item_id.startswith(".") or ".." in item_id or any(sign in item_id for sign in "/\\\x00"))


def put_images(images: Mapping[str, Path], target: Path, link: bool) -> None:
    """Copy or link each image to `<target>/<item_id><suffix>`, keeping its modification time.

    Args:
        images: item id -> file; ids satisfy `is_safe_id`.
        target: folder, created if absent.
        link: hard link where the file system allows it. Symbolic links are never made: images are only read where they
            lie inside the dataset folder.

    Raises:
        DataError: a file cannot be read or written.
    """
    target.mkdir(parents=True, exist_ok=True)
    verb = "linking images" if link else "copying images"
    for item_id, file in progress(images.items(), verb, total=len(images), unit="image"):
        copy = target / f"{item_id}{file.suffix.lower()}"
        try:
            if not (link and _hard_link(file, copy)):
                shutil.copyfile(file, copy)
                status = file.stat()
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        except OSError as error:
            raise DataError(f"{file}: cannot be put into {target} ({error.strerror or error})") from None


def same_images(images: Mapping[str, Path], target: Path) -> bool:
    """Whether `target` already holds exactly these images, judged by name, size and modification time."""
    if not target.is_dir():
        return False
    wanted = {f"{item_id}{file.suffix.lower()}": _signature(file) for item_id, file in images.items()}
    with os.scandir(target) as entries:
        there = {entry.name: _signature(Path(entry.path)) for entry in entries if entry.is_file()}
    return wanted == there


def _hard_link(file: Path, copy: Path) -> bool:
    try:
        os.link(file.resolve(), copy)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _signature(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _rank(suffix: str) -> int:
    return IMAGE_SUFFIXES.index(suffix.lower())
