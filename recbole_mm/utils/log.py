"""Where log lines go: the console, in color on a terminal, and `run.log` in the run's folder.

Some facts are logged in two forms: one line for people, and the long form that RecBole prints (a module tree, every
metric). The setting `log_style` chooses which form the console shows; `run.log` holds both, or with `recbole` what
RecBole prints alone. Lines in one form only are logged without a mark.

    logger.info("SASRec: 209,088 trainable parameters", extra=COMPACT)
    logger.info("%s", model, extra=LONG)
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

from tqdm import tqdm

from recbole_mm.errors import ConfigError
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.files import disk_errors, disk_reason

LOG_FILE = "run.log"
STYLES = ("compact", "recbole")
"""Values of `log_style`."""
COMPACT, LONG = {"style": "compact"}, {"style": "recbole"}
"""`extra` of a log call whose line belongs to one style."""
DETAIL = "DETAIL"
"""What `run.log` has in place of a level where the line is in the file alone."""

_COLORS = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[31m",
}
_RESET = "\x1b[0m"
_FILE_LINE = "%(asctime)s %(levelname)-7s %(message)s"
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+)")
_RECBOLE_COLORS = re.compile(r"(\x1b\[(?:(?:[01];)?3[0-7]|0)m)")


class _OwnFilter(logging.Filter):
    """Lets through lines of this package and of RecBole, which logs to the root logger, and others from WARNING on.

    Setting the root logger to INFO, as RecBole needs, would otherwise print every HTTP request and font lookup.

    Args:
        styles: lines marked with another style are dropped.
    """

    def __init__(self, *styles: str) -> None:
        super().__init__()
        self._styles = styles

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written."""
        package = record.name.split(".")[0]
        own = record.levelno >= logging.WARNING or package in ("root", "recbole", "recbole_mm")
        return own and getattr(record, "style", self._styles[0]) in self._styles


class _PlainFormatter(logging.Formatter):
    """Text without the colors RecBole puts into its messages, and without control characters that data may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without colors."""
        return printable(_RECBOLE_COLORS.sub("", super().format(record)))


class _DetailFormatter(_PlainFormatter):
    """Plain text in which lines that the console does not show are marked."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with `DETAIL` as the level of one that is in RecBole's style alone."""
        if getattr(record, "style", None) == LONG["style"]:
            record = logging.makeLogRecord({**vars(record), "levelname": DETAIL})
        return super().format(record)


def without_details(lines: list[str], shown: bool = True) -> tuple[list[str], bool]:
    """Return the lines of a `run.log` that the console of its run showed.

    Args:
        lines: of the file.
        shown: whether the line before them was shown; a record may have several lines.

    Returns:
        The lines, and whether the last of all is one of them.

    Example:
        >>> without_details(["2026-01-01 10:00:00,000 DETAIL  SASRec(", "  (loss)", "2026-01-01 10:00:00,001 INFO  x"])
        (['2026-01-01 10:00:00,001 INFO  x'], True)
    """
    kept = []
    for line in lines:
        if found := _RECORD.match(line):
            shown = found[1] != DETAIL
        if shown:
            kept.append(line)
    return kept, shown


class _ColorFormatter(logging.Formatter):
    """Text for a terminal: the line in the color of its level, RecBole's own colors kept."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line in the color of its level."""
        parts = _RECBOLE_COLORS.split(super().format(record))
        text = "".join(part if place % 2 else printable(part) for place, part in enumerate(parts))
        color = _COLORS.get(record.levelno)
        return f"{color}{text}{_RESET}" if color else text


class _ConsoleHandler(logging.StreamHandler):
    """Writes above a progress bar instead of into it; follows `sys.stderr` where that is replaced later."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line to standard error."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # logging's own convention: a line that cannot be written must not end the run
            self.handleError(record)


class _FileHandler(logging.FileHandler):
    """Goes on without the file once a disk has given up, and says so in a line instead of a traceback per line."""

    _gave_up = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a failing disk once, in a line on standard error."""
        error = sys.exc_info()[1]
        reason = None if error is None else disk_reason(error)
        if reason is None:
            super().handleError(record)
        elif not self._gave_up:
            self._gave_up = True
            tqdm.write(f"{self.baseFilename}: cannot be written: {reason}", file=sys.stderr)

    def close(self) -> None:
        """Close the file, whatever the disk says."""
        try:
            super().close()
        except OSError:  # what it could not write before, it tries again
            self.handleError(logging.makeLogRecord({}))


_installed: list[logging.Handler] = []


def init_logging(run_dir: str | os.PathLike | None, level: str | int | None = None, style: str | None = None) -> None:
    """Send log lines of `level` and above to standard error and to `<run_dir>/run.log`.

    Calling it again moves the log to the new folder; lines are never written twice. A log that exists is continued, so
    that a resumed run has its whole story in one file.

    Args:
        run_dir: the run's folder, which exists; None logs to the console only.
        level: a level's number or name in any case (RecBole's setting `state`); None is INFO.
        style: compact or recbole, the setting `log_style`; None is compact.

    Raises:
        ConfigError: there is no such level.
        DiskError: the file cannot be written.
    """
    number = _level_number(level)
    console = _console_handler()
    console.addFilter(_OwnFilter(style or "compact"))
    handlers = [console]
    if run_dir is not None:
        path = Path(run_dir) / LOG_FILE
        with disk_errors(path):
            file_handler = _FileHandler(path, mode="a", encoding="utf-8")
        if style == "recbole":
            file_handler.setFormatter(_PlainFormatter(_FILE_LINE))
            file_handler.addFilter(_OwnFilter("recbole"))
        else:
            file_handler.setFormatter(_DetailFormatter(_FILE_LINE))
            file_handler.addFilter(_OwnFilter(*STYLES))
        handlers.append(file_handler)
    close_logging()
    root = logging.getLogger()
    for handler in handlers:
        handler.setLevel(number)
        root.addHandler(handler)
        _installed.append(handler)
    root.setLevel(number)


def close_logging() -> None:
    """Remove and close what `init_logging` installed."""
    while _installed:
        handler = _installed.pop()
        logging.getLogger().removeHandler(handler)
        handler.close()


def _level_number(level: str | int | None) -> int:
    """A level's number; names as in `logging`, in any case."""
    if level is None:
        return logging.INFO
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"state: {level!r} is not accepted; give DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return number


def _console_handler() -> logging.Handler:
    handler = _ConsoleHandler()
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    text, clock = "%(asctime)s %(message)s", "%H:%M:%S"
    handler.setFormatter(_ColorFormatter(text, clock) if colored else _PlainFormatter(text, clock))
    return handler
