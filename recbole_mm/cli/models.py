"""`recbole-mm models`: every model that `--model` accepts."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.errors import ConfigError
from recbole_mm.registry import list_models
from recbole_mm.utils.tables import columns


def main(arguments: Sequence[str]) -> int:
    """Print one line per model, cut to the width of a terminal and whole in a file.

    Raises:
        ConfigError: no line contains the filter.
    """
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} models", description="List every model that --model accepts.")
    parser.add_argument("filter", nargs="?", default="", help="show only lines that contain this, in any case")
    wanted = parser.parse_args(arguments).filter
    rows = [(entry.name, entry.type, entry.origin, entry.paper) for entry in list_models()]
    rows = [row for row in rows if wanted.lower() in " ".join(row).lower()]
    if not rows:
        raise ConfigError(f"no model's line contains {wanted!r}; `{PROGRAM} models` lists them all")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in columns(("NAME", "TYPE", "FROM", "PAPER"), rows).splitlines():
        print(line.rstrip()[:width])
    return 0
