"""Sources of item images' bytes: a folder, a zip file, or a column of paths (drawn ones: `title_cards`)."""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from recbole_mm.data.decode import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from recbole_mm.data.names import NameIndex
from recbole_mm.errors import DataError, ImageError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024


class ImageSource(ABC):
    """Bytes of item images by item id (the token in `.item`).

    Args:
        index: item id -> path of its file, or the title that it is drawn from.
        kind: what is counted, such as `files in images/`.
        lacking: why an item has no image, such as `no image in images/`.
    """

    def __init__(self, index: Mapping[str, str] | NameIndex[str], kind: str, lacking: str) -> None:
        self._index = index
        self._kind = kind
        self._lacking = lacking

    def has(self, item_id: str) -> bool:
        """Whether there is an image file for the item; it may still prove broken."""
        return self._find(item_id) is not None

    def names(self) -> Iterable[str]:
        """All item ids that have an image."""
        return iter(self._index)

    def read(self, item_id: str) -> bytes:
        """The file's bytes.

        Raises:
            ImageError: there is none, or it cannot be read.
        """
        found = self._find(item_id)
        if found is None:
            raise ImageError(f"item {item_id}: {self._lacking}")
        return self._read(item_id, found)

    def _find(self, item_id: str) -> str | None:
        return self._index.find(item_id) if isinstance(self._index, NameIndex) else self._index.get(item_id)

    @abstractmethod
    def _read(self, item_id: str, found: str) -> bytes:
        """The image of an item, from its value in the index."""

    def __str__(self) -> str:
        return f"{len(self._index):,} {self._kind}"


class ImagesWithout(ImageSource):
    """The images of another source as if it had none of some items.

    Args:
        images: the other source.
        ids: of those items.
    """

    def __init__(self, images: ImageSource, ids: Container[str]) -> None:
        super().__init__(images._index, images._kind, images._lacking)
        self._images, self._ids = images, ids

    def names(self) -> Iterable[str]:
        """All item ids that have an image."""
        return (name for name in self._images.names() if name not in self._ids)

    def _find(self, item_id: str) -> str | None:
        return None if item_id in self._ids else self._images._find(item_id)

    def _read(self, item_id: str, found: str) -> bytes:
        return self._images._read(item_id, found)


def _index_by_stem(paths: Iterable[str], where: str) -> NameIndex[str]:
    """File stem -> path for image files; of several files with one stem the first in sorted order is kept."""
    index: dict[str, str] = {}
    others: Counter[str] = Counter()
    duplicates = 0
    for path in sorted(paths):
        stem, suffix = os.path.splitext(PurePosixPath(path).name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            others[suffix.lower()] += not stem.startswith(".")
            continue
        if index.setdefault(stem, path) != path:
            duplicates += 1
    if duplicates:
        logger.warning(
            "%s: %d image files repeat the name of another one; the first in sorted order is used", where, duplicates
        )
    if passed_over := others.total():
        level = logging.WARNING if UNREAD_SUFFIXES.intersection(others) else logging.INFO
        listed = ", ".join(f"{suffix or 'none'}: {count:,}" for suffix, count in others.most_common(5) if count)
        logger.log(level, "%s: %d files do not count as images by their names (%s)", where, passed_over, listed)
    return NameIndex(index, where)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _read_file(path: str, name: str) -> bytes:
    # Not blocking: a name that turned into a pipe since it was listed must not hang the run.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{name}: not a regular file")
            _check_bytes(status.st_size, name)
            return file.read()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error})") from error


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {size:,} bytes, over the limit of {MAX_FILE_BYTES:,} for one image file")


class FolderImages(ImageSource):
    """`<item_id>.jpg`, or with another of `IMAGE_SUFFIXES`, anywhere below a folder, listed once.

    Args:
        root: the folder of images.
        within: symbolic links must end inside this folder (default: `root`); those that leave it are not followed.

    Raises:
        DataError: `root` is not a folder, or is itself a link that leaves `within`.

    Example:
        >>> _ = (tmp_path / "7.jpg").write_bytes(b"...")
        >>> source = FolderImages(tmp_path)
        >>> source.has("7"), source.has("8"), source.read("7")
        (True, False, b'...')
    """

    def __init__(self, root: Path | str, within: Path | str | None = None):
        self.root = str(root)
        if not os.path.isdir(self.root):
            raise DataError(
                f"image folder {self.root} does not exist; set image_dir to the folder that holds the images"
            )
        self._boundary = os.path.realpath(self.root if within is None else within)
        if not _is_inside(os.path.realpath(self.root), self._boundary):
            raise DataError(
                f"image folder {self.root} leaves the dataset folder {self._boundary}; "
                "if that is meant, give image_dir as an absolute path on the command line or in a config file"
            )
        self._left: list[str] = []
        super().__init__(_index_by_stem(self._list(), self.root), f"files in {self.root}", f"no image in {self.root}")
        if self._left:
            logger.warning(
                "%s: %d symbolic links leave %s and are not followed: %s",
                self.root, len(self._left), self._boundary, ", ".join(sorted(self._left)[:5]),
            )  # fmt: skip

    def _list(self) -> Iterator[str]:
        """Paths of all files relative to the root, '/' between folders; links that leave the boundary are noted."""
        for folder, subfolders, files in os.walk(self.root):
            for name in subfolders:
                self._stays_inside(os.path.join(folder, name))
            for name in files:
                path = os.path.join(folder, name)
                if self._stays_inside(path):
                    yield os.path.relpath(path, self.root).replace(os.sep, "/")

    def _stays_inside(self, path: str) -> bool:
        if not os.path.islink(path) or _is_inside(os.path.realpath(path), self._boundary):
            return True
        self._left.append(path)
        return False

    def _read(self, item_id: str, found: str) -> bytes:
        path = os.path.join(self.root, found)
        return _read_file(path, f"item {item_id}, {path}")


def _open_zip(path: str) -> zipfile.ZipFile:
    """The archive. Names whose encoding is not marked are UTF-8, as macOS writes them, else of code page 437."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


class ZipImages(ImageSource):
    """The same names as in a folder, read straight from a zip file; nothing is extracted. Safe for threads and forks.

    Raises:
        DataError: the file is missing or not a zip file.
    """

    def __init__(self, path: Path | str):
        self.path = str(path)
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        members = (info.filename for info in self._archive().infolist() if not info.is_dir())
        super().__init__(_index_by_stem(members, self.path), f"files in {self.path}", f"no image in {self.path}")

    def _archive(self) -> zipfile.ZipFile:
        """This process's handle: threads may share it (zipfile locks its reads), a forked child may not.

        Two threads that come first at once both open the file and one handle is dropped; a lock here could be inherited
        locked by a fork.
        """
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            try:
                self._handle = handle = (os.getpid(), _open_zip(self.path))
            except FileNotFoundError as error:
                raise DataError(f"image_zip {self.path} does not exist") from error
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"image_zip {self.path} cannot be opened as a zip file ({error})") from error
        return handle[1]

    def _read(self, item_id: str, found: str) -> bytes:
        name = f"item {item_id}, {found} in {self.path}"
        archive = self._archive()
        _check_bytes(archive.getinfo(found).file_size, name)
        try:
            return archive.read(found)
        except Exception as error:
            # zipfile lets its decompressors' own errors through (zlib.error, LZMAError, RuntimeError when encrypted).
            raise ImageError(f"{name}: cannot be read ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}


def _names_in(folder: str) -> NameIndex[str]:
    """Names in a folder, none where there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return NameIndex({name: name for name in names}, folder)


class ColumnImages(ImageSource):
    """Paths written in a column of `.item`, relative to `root`; every one must end inside `root`.

    Raises:
        DataError: a path is absolute, a URL, or leaves `root` (through `..` or a symbolic link); the message names the
            item id and the path. Paths to files that do not exist are allowed: their items have no image.
    """

    def __init__(self, root: Path | str, paths: Mapping[str, str]):
        self.root = str(root)
        if not os.path.isdir(self.root):
            raise DataError(f"image folder {self.root} does not exist; the paths in image_field are relative to it")
        self._real_root = os.path.realpath(self.root)
        # realpath walks every component: once per folder is enough for 300,000 files.
        self._real_folder = lru_cache(maxsize=None)(os.path.realpath)
        self._listed = lru_cache(maxsize=None)(_names_in)
        found = ((item_id, self._resolve(item_id, path)) for item_id, path in paths.items() if path)
        index = {item_id: path for item_id, path in found if path is not None}
        super().__init__(index, f"files named by a column, below {self.root}", f"no image below {self.root}")
        del self._real_folder, self._listed

    def _resolve(self, item_id: str, path: str) -> str | None:
        if "://" in path:
            raise DataError(f"item {item_id}: {path!r} is a URL; download the images and give relative paths")
        if "\0" in path:
            raise DataError(f"item {item_id}: the image path {path!r} holds a NUL character")
        if os.path.isabs(path) or PureWindowsPath(path).drive:
            raise DataError(f"item {item_id}: the image path {path!r} is absolute; give it relative to {self.root}")
        target = self._inside(item_id, path)
        if not os.path.isfile(target) and not path.isascii():
            target = self._inside(item_id, self._as_spelled(path))
        return target if os.path.isfile(target) else None

    def _inside(self, item_id: str, path: str) -> str:
        """The file that a path ends at, inside the root."""
        folder, name = os.path.split(os.path.join(self.root, path))
        target = os.path.join(self._real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(target):
            target = os.path.realpath(target)
        if not _is_inside(target, self._real_root):
            raise DataError(f"item {item_id}: the image path {path!r} leaves {self.root}; keep images inside it")
        return target

    def _as_spelled(self, path: str) -> str:
        """The path with every part in the Unicode form that the folder on the disk has."""
        spelled = ""
        for part in PurePosixPath(path).parts:
            found = None if part.isascii() else self._listed(os.path.join(self.root, spelled)).find(part)
            spelled = os.path.join(spelled, found or part)
        return spelled

    def _read(self, item_id: str, found: str) -> bytes:
        return _read_file(found, f"item {item_id}, {found}")
