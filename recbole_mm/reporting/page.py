"""Sections to one HTML file: no script, no address outside, every text escaped.

Jinja escapes whatever it is given but `Markup`, which `figures.py` alone makes; before that, control characters, turns
of the direction of writing and line breaks are written out, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recbole_mm.reporting.blocks import Section
from recbole_mm.utils.escaping import one_line

TEMPLATE = "page.html"


def to_html(title: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return the page.

    Args:
        title: plain text.
        sections: in their order; empty ones are left out.
        footer: plain text below all.

    Example:
        >>> from recbole_mm.reporting.blocks import Paragraph
        >>> page = to_html("Runs", [Section("Notes", [Paragraph("<script>alert(1)</script>")])])
        >>> "<script" in page, "&lt;script&gt;" in page
        (False, True)
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [section for section in sections if section.blocks]
    return environment.get_template(TEMPLATE).render(title=title, sections=shown, footer=footer)


def _shown(value: Any) -> Any:
    """Write a value as it is shown; what comes from data becomes one line of plain text."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return one_line(str(value))
