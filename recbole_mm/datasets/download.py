"""Fetches items' pictures by a list of URLs; may be killed at any time, and goes on where it was.

The files in the folder alone show what has been fetched: a picture is decoded before it is kept, written under a
temporary name and then moved into place. What failed for good (no such page, not a picture) is remembered in a CSV file
of failures, and asked for again only once its line, or the file, is gone.
"""

from __future__ import annotations

import csv
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import filelock
import requests

from recbole_mm.data.decode import decode_image, suffix_of
from recbole_mm.datasets.fetch import Fetcher, FetchFailed, Limits, Stopped, check_url, open_session
from recbole_mm.datasets.images import index_images, is_safe_id
from recbole_mm.errors import DataError, ImageError
from recbole_mm.utils.files import atomic_write
from recbole_mm.utils.progress import duration, progress

__all__ = ["DownloadReport", "Failure", "Limits", "download_images", "plan", "read_failures"]

COLUMNS = ("item_id", "url", "reason", "final")
_PARTIAL = ".partial"
_LONGEST_NAME = 200  # bytes; file systems allow 255, the suffixes take some


@dataclass(frozen=True)
class Failure:
    """A picture that could not be had; `final`: asking again would be in vain."""

    item_id: str
    url: str
    reason: str
    final: bool


@dataclass(frozen=True)
class DownloadReport:
    """Counts and failures of a download. `str()` is one line.

    Attributes:
        fetched: pictures that are new.
        there: pictures that were there before.
        failed: what could not be had, from earlier runs too.
        list_of_failures: the CSV file that names them.
    """

    fetched: int
    there: int
    failed: tuple[Failure, ...]
    list_of_failures: Path

    def __str__(self) -> str:
        line = f"pictures: {self.fetched:,} fetched, {self.there:,} were there, {len(self.failed):,} failed"
        if not self.failed:
            return line
        reasons = Counter(failure.reason for failure in self.failed).most_common(4)
        line += f" ({', '.join(f'{reason}: {count:,}' for reason, count in reasons)}), see {self.list_of_failures}"
        again = sum(not failure.final for failure in self.failed)
        return line + (f"; the same command tries {again:,} of them again" if again else "")


@dataclass(frozen=True)
class _Work:
    """Jobs to do, number of pictures that are there, and failures that stay."""

    jobs: Mapping[str, str]
    there: int
    final: Mapping[str, Failure]


def plan(urls: Mapping[str, str], folder: Path, failures: Path, limits: Limits) -> str:
    """The plan of `download_images` with these arguments, in one line."""
    work = _work(urls, folder, failures)
    hosts = Counter(_host(url) for url in work.jobs.values())
    line = f"pictures: {len(urls):,} URLs; {work.there:,} are in {folder}"
    if work.final:
        line += f", {len(work.final):,} failed for good ({failures.name})"
    if not work.jobs:
        return f"{line}; none to fetch"
    least = duration(max(hosts.values()) / limits.rate)
    names = ", ".join(host for host, _ in hosts.most_common(3)) + (", ..." if len(hosts) > 3 else "")
    return (
        f"{line}; {len(work.jobs):,} to fetch from {names}, {limits.threads} at a time and at most {limits.rate:g} a "
        f"second from a host: {least} or more. Stop it when you like; the same command goes on"
    )


def download_images(urls: Mapping[str, str], folder: Path, failures: Path, limits: Limits) -> DownloadReport:
    """Fetch the pictures that `folder` lacks, as `<item_id><suffix by content>`.

    Args:
        urls: item id -> URL. Ids that cannot be file names are failures.
        folder: where pictures go; created if absent.
        failures: CSV file of failures, rewritten; removed where nothing failed.
        limits: bounds.

    Raises:
        DataError: another process fetches into this folder, or it cannot be written.
        KeyboardInterrupt: with a message of how many pictures are there.
    """
    lock = filelock.FileLock(failures.with_name(f".{failures.stem}.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            return _download(urls, folder, failures, limits)
    except filelock.Timeout:
        raise DataError(f"{folder}: another process is fetching into it; wait for its end, or stop it") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None


def read_failures(path: Path) -> dict[str, Failure]:
    """The failures of a CSV file by item id; {} without one. A line that a kill cut short is passed over."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS)]
    except FileNotFoundError:
        return {}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it to try all of its pictures again") from None
    return {row[0]: Failure(row[0], row[1], row[2], row[3] == "yes") for row in rows if row != list(COLUMNS)}


# ------------------------------------------------------------------------------------------------------------ the work


def _work(urls: Mapping[str, str], folder: Path, failures: Path) -> _Work:
    present = index_images(folder).of(urls) if folder.is_dir() else {}
    known = read_failures(failures)
    final: dict[str, Failure] = {}
    jobs: dict[str, str] = {}
    for item, url in urls.items():
        before = known.get(item)
        if item in present:
            continue
        if not _can_be_named(item):
            final[item] = Failure(item, url, "its id cannot be a file name", final=True)
        elif before is not None and before.final and before.url == url:
            final[item] = before
        else:
            jobs[item] = url
    return _Work(jobs, len(present), final)


def _can_be_named(item: str) -> bool:
    return bool(item) and is_safe_id(item) and item.isprintable() and len(os.fsencode(item)) <= _LONGEST_NAME


def _host(url: str) -> str:
    try:
        return check_url(url)
    except FetchFailed:
        return "no host"


def _download(urls: Mapping[str, str], folder: Path, failures: Path, limits: Limits) -> DownloadReport:
    for left in folder.glob(f".*{_PARTIAL}"):
        left.unlink(missing_ok=True)
    work = _work(urls, folder, failures)
    failed = dict(work.final)
    _write_failures(failures, failed)
    fetched = 0
    bar = progress(_outcomes(work.jobs, folder, limits), "fetching pictures", total=len(work.jobs), unit="picture")
    try:
        with open(failures, "a", encoding="utf-8", newline="") as file:
            for outcome in bar:
                if isinstance(outcome, Failure):
                    failed[outcome.item_id] = outcome
                    csv.writer(file, lineterminator="\n").writerow(_row(outcome))
                    file.flush()
                    bar.note(f"{len(failed):,} failed")
                else:
                    fetched += 1
    except KeyboardInterrupt:
        there = work.there + fetched
        raise KeyboardInterrupt(
            f"interrupted: {there:,} of {len(urls):,} pictures are in {folder}; the same command fetches the rest"
        ) from None
    _write_failures(failures, failed)
    if not failed:
        failures.unlink()
    return DownloadReport(fetched, work.there, tuple(failed.values()), failures)


def _outcomes(jobs: Mapping[str, str], folder: Path, limits: Limits) -> Iterator[Failure | str]:
    """The outcome of each job, as it ends: its item id, or why there is no picture."""
    stop = threading.Event()
    fetcher = Fetcher(limits, stop)
    waiting = iter(jobs.items())
    lock = threading.Lock()
    ended: SimpleQueue[Failure | str | BaseException | None] = SimpleQueue()

    def work() -> None:
        session = open_session(limits.public_only)
        try:
            while not stop.is_set():
                with lock:
                    job = next(waiting, None)
                if job is None:
                    break
                ended.put(_fetch_one(fetcher, session, *job, folder))
        except Stopped:
            pass
        except BaseException as error:  # a full disk, or a fault of ours: the reader raises it
            ended.put(error)
        finally:
            session.close()
            ended.put(None)

    # Daemons: a thread that waits for a silent server does not keep a stopped process alive.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(limits.threads, len(jobs)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            outcome = ended.get()
            if outcome is None:
                running -= 1
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                yield outcome
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=1)


def _fetch_one(fetcher: Fetcher, session: requests.Session, item: str, url: str, folder: Path) -> Failure | str:
    try:
        for again in (True, False):
            data = fetcher.fetch(session, url)
            suffix = suffix_of(data)
            if suffix is None:
                raise FetchFailed("not a picture" if data else "empty", final=True)
            try:
                decode_image(data, item)
                break
            except ImageError as error:
                # Once more: without a declared length, a dropped connection looks like a short file.
                if not again:
                    raise FetchFailed(str(error).removeprefix(f"{item}: "), final=True) from None
    except FetchFailed as failed:
        return Failure(item, url, failed.reason, failed.final)
    partial = folder / f".{item}{_PARTIAL}"
    try:
        partial.write_bytes(data)
        os.replace(partial, folder / f"{item}{suffix}")
    finally:
        partial.unlink(missing_ok=True)
    return item


def _row(failure: Failure) -> tuple[str, str, str, str]:
    return failure.item_id, failure.url, failure.reason, "yes" if failure.final else "no"


def _write_failures(path: Path, failed: Mapping[str, Failure]) -> None:
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_row, failed.values()))
