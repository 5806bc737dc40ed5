"""What the benchmarks share: a quiet configuration and a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import recbole_mm  # noqa: F401  (applies the compatibility shims)


def quiet_config(model: str, dataset: str, **settings):
    """A Config that logs warnings only; settings of None are left to their defaults."""
    from recbole_mm.config import Config

    given = {key: value for key, value in settings.items() if value is not None}
    return Config(model, dataset, config_dict={"state": "WARNING", "show_progress": False, **given})


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with padded cells."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
