"""What the commands share: the program's name, and how settings and lists are read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from recbole_mm.errors import ConfigError
from recbole_mm.utils.paths import expanded

PROGRAM = "recbole-mm"


def split_arguments(arguments: Sequence[str], required: Sequence[str] = ("config_files",)) -> dict[str, Any]:
    """Split `--key=value`, `--key value` and `--key` (True) into a dict of key to text.

    A key may be written with hyphens. Only the first `=` splits, and a value may start with one hyphen (`--x -1`).

    Args:
        arguments: of the command line.
        required: keys that must have a value where they are given.

    Raises:
        ConfigError: an argument is not of this form, a key is given twice with different values, or one of `required`
            has none.

    Example:
        >>> split_arguments(["--model=Molar", "--learning-rate", "1e-4", "--resume"])
        {'model': 'Molar', 'learning_rate': '1e-4', 'resume': True}
    """
    settings: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument[2:].partition("=")
        key = name.replace("-", "_")
        if not argument.startswith("--") or not re.fullmatch(r"[A-Za-z]\w*", key):
            raise ConfigError(f"argument {argument!r} is not of the form --key=value; quote values that hold spaces")
        given: Any = value
        if not equals:
            given = remaining.pop(0) if remaining and not remaining[0].startswith("--") else True
        if key in settings and settings[key] != given:
            raise ConfigError(f"--{key} is given twice, as {settings[key]} and as {given}; give it once")
        settings[key] = given
    for key in required:
        if settings.get(key) is True:
            raise ConfigError(f"--{key} needs a value, as in --{key}=...")
    return settings


def run_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments of `recbole-mm run` as those of `recbole_mm.run`: model, dataset, config_files, command_line.

    Raises:
        ConfigError: see `split_arguments`.
    """
    settings = split_arguments(arguments, ("model", "dataset", "config_files"))
    named = {key: settings.pop(key, None) for key in ("model", "dataset")}
    return {**named, "config_files": split_paths(settings.pop("config_files", "")), "command_line": settings}


def split_paths(text: str) -> list[str]:
    """`a.yaml b.yaml` as a list, as RecBole writes it; the name of an existing file may hold spaces."""
    return [text] if os.path.isfile(expanded(text)) else text.split()


def split_names(text: str | None) -> list[str] | None:
    """`A, B` as a list; None where nothing is given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
