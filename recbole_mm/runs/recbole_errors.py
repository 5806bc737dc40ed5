"""Exceptions of RecBole's own code on settings or data that it cannot work with, as one-line errors."""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from recbole_mm.errors import ConfigError

logger = logging.getLogger(__name__)

_OF_SETTINGS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


@contextmanager
def one_line_errors(model: str) -> Iterator[None]:
    """Turn an exception that RecBole's code raises, or a library that it calls, into a `ConfigError`.

    RecBole checks few of its settings, so that `n_layers: abc` or a column that is not there ends somewhere inside it.
    What is raised by any other code passes as it is, and so does what no setting can bring about.

    Args:
        model: name of the model, for the message.
    """
    try:
        yield
    except _OF_SETTINGS as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            reason = " ".join(str(error).split()) or "there is none left"
            raise ConfigError(f"{model}: not enough memory: {reason}; lower its sizes or train_batch_size") from error
        frames = list(traceback.walk_tb(error.__traceback__))
        while frames and _is_of_a_library(frames[-1][0]):
            frames.pop()
        if not frames or not _module(frames[-1][0]).startswith("recbole."):
            raise
        logger.debug("where RecBole stopped:", exc_info=True)
        where = f"{_module(frames[-1][0])}, line {frames[-1][1]}"
        raise ConfigError(
            f"{model} does not accept these settings or this data: {type(error).__name__}: "
            f"{' '.join(str(error).split())} ({where}; --state=DEBUG shows the traceback)"
        ) from error


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_of_a_library(frame: FrameType) -> bool:
    """Whether it is code that was installed, Python's own or a package other than RecBole and this one."""
    file = Path(frame.f_code.co_filename)
    installed = file.is_relative_to(STANDARD_LIBRARY) or "site-packages" in file.parts or file.name.startswith("<")
    return installed and _module(frame).split(".")[0] not in ("recbole", "recbole_mm", "__main__")
