"""Escapes text from data (ids, titles, names of rows, errors) where it could act as more than text.

One function for each place: a terminal or log, a cell of Markdown, of CSV, of LaTeX. Every table and log line of the
package goes through these. The escaped text shows the original, as far as the place can show it.
"""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, line separators, turns of the direction of writing, lone surrogates."""
_BREAKS = re.compile("[\t\n\x0b\x0c\r\x1c-\x1f\x85\u2028\u2029]+")
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a cell begins with that a spreadsheet computes; some take the wide forms, too."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)")

_MARKDOWN = (
    (re.compile(r"\\(?=[!-/:-@\[-`{-~]|$)"), r"\\\\"),
    (re.compile(r"\|"), r"\\|"),
    (re.compile(r"&(?=#?\w+;)"), "&amp;"),
    (re.compile(r"<(?=[A-Za-z/!?])"), "&lt;"),
    (re.compile(r"\]\("), r"]\\("),
)
"""What would open a cell, an entity, a tag, a link. The rest is left alone, for tables are read in terminals, too."""

_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "[": "{[}",  # behind \\ it would open an option
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "—": "---",
}


def printable(text: str) -> str:
    r"""Escape text for a terminal and a log: control characters and marks of writing direction are written out.

    Example:
        >>> printable("item \x1b[2J7")
        'item \\x1b[2J7'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    r"""Escape text as `printable` does, with a space for every line break and tab.

    Example:
        >>> one_line("first\nsecond")
        'first second'
    """
    return printable(_BREAKS.sub(" ", text))


def markdown(text: str) -> str:
    """Escape text for Markdown, in a table or not, so that it opens no tag, link, picture, cell or line.

    Example:
        >>> print(markdown("a|b <img src=x> p < 0.05"))
        a\\|b &lt;img src=x> p < 0.05
    """
    line = one_line(text)
    for opener, written in _MARKDOWN:
        line = opener.sub(written, line)
    return line


def csv_cell(value: Any) -> Any:
    """Escape a value for a CSV file that a spreadsheet opens: a `'` comes before text that it would compute.

    Example:
        >>> csv_cell("=HYPERLINK(1)"), csv_cell(-0.5), csv_cell("-0.5"), csv_cell("a-b")
        ("'=HYPERLINK(1)", -0.5, '-0.5', 'a-b')
    """
    if not isinstance(value, str):
        return value
    line = one_line(value)
    begins = line.lstrip().startswith(_FORMULA)
    return f"'{line}" if begins and not _NUMBER.fullmatch(line) else line


def latex(text: str) -> str:
    r"""Escape text for LaTeX: no command, and no empty line, which would end a paragraph.

    Example:
        >>> print(latex("50% of $x$\n\n\\input{y}"))
        50\% of \$x\$ \textbackslash{}input\{y\}
    """
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def encodable(text: str) -> str:
    """Returns a text with `?` for lone surrogates (bytes of a broken file), which have no UTF-8 form.

    Example:
        >>> encodable("caf\\udce9")
        'caf?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")
