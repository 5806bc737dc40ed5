"""Paths that a user gives, in a file, as an argument or at a prompt: `~` is the home folder everywhere."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

LONGEST_NAME = 255
"""Bytes of a file's name."""


def expanded(value: Any) -> Any:
    """Replace a leading `~` or `~name` of a text by that home folder; other values are returned as they are.

    >>> expanded("a/b"), expanded(None), expanded("~/b") == os.path.join(os.path.expanduser("~"), "b")
    ('a/b', None, True)
    """
    return os.path.expanduser(value) if isinstance(value, str) else value


def is_path(text: str) -> bool:
    """Return whether a file system can have such a path."""
    return "\0" not in text and all(len(os.fsencode(name)) <= LONGEST_NAME for name in Path(text).parts)


def given_path(text: str) -> Path:
    """Convert an argument that is a path, for `argparse`.

    Raises:
        argparse.ArgumentTypeError: a file system cannot have such a path.
    """
    path = expanded(text)
    if not text or not is_path(path):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is not a path, whose names have at most {LONGEST_NAME} bytes")
    return Path(path)
