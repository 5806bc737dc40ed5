"""A search over the weights of three parts as a triangle, in SVG: each corner is one part alone, the middle all alike.

Colors are darkest for the best score, and every point bears its number, so that nothing is told by color alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.files import write_text

WIDTH, HEIGHT = 640, 600
SIDE, TOP = 460, 96
RADIUS = 17
LIGHT, DARK = (222, 235, 247), (8, 48, 107)
"""Colors of the worst and the best score."""

STYLE = (
    "text{font:14px sans-serif;fill:#222}.title{font-size:17px}"
    "@media(prefers-color-scheme:dark){.paper{fill:#1b1b1b}text{fill:#eee}}"
)
"""Of a file of its own; a page has its own style."""

Weights = Mapping[str, float]


def write_triangle(path: Path, title: str, points: Sequence[tuple[Weights, float]], metric: str, bigger: bool) -> None:
    """Draw scores of mixtures of three parts and write the picture.

    Args:
        path: SVG file to write.
        title: text above.
        points: weights by part, the same three parts each time and not all 0, and a score; of several with the same
            shares the mean is drawn. At least one.
        metric: name of the scores.
        bigger: whether a larger score is better.
    """
    paper = f'<style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    write_text(path, triangle(title, points, metric, bigger, paper) + "\n")


def triangle(title: str, points: Sequence[tuple[Weights, float]], metric: str, bigger: bool, paper: str = "") -> str:
    """Return the picture as SVG, to stand in a page; the arguments are those of `write_triangle`, and what it is on.

    Example:
        >>> svg = triangle("t", [({"a": 1, "b": 0, "c": 0}, 0.5), ({"a": 1, "b": 1, "c": 1}, 0.25)], "ndcg@10", True)
        >>> svg.count("<circle"), "best: a" in svg
        (2, True)
    """
    names = list(points[0][0])
    means = _means(names, points)
    low, high = min(means.values()), max(means.values())
    best = max(means, key=lambda shares: means[shares] if bigger else -means[shares])
    corners = [_place(shares) for shares in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))]
    outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    parts = [
        f'<path fill="none" stroke="#888" d="M{outline}Z"/>',
        _text(WIDTH / 2, 28, title, "title"),
        _text(WIDTH / 2, 52, f"{metric}: {low:.4f} to {high:.4f}; best: {_named(names, best)}"),
        *(_text(x, y, f"{name} alone") for name, (x, y) in zip(names, _beyond(corners), strict=True)),
    ]
    for shares, score in sorted(means.items(), key=lambda entry: entry[1] if bigger else -entry[1]):
        share = 0.5 if high == low else (score - low) / (high - low)
        parts.append(_spot(shares, score, share if bigger else 1 - share, _named(names, shares)))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return f"{head}<title>{_safe(title)}</title>{paper}{''.join(parts)}</svg>"


def _means(names: Sequence[str], points: Sequence[tuple[Weights, float]]) -> dict[tuple[float, ...], float]:
    """Mean score by shares of the parts, which add up to 1."""
    scores: dict[tuple[float, ...], list[float]] = {}
    for weights, score in points:
        total = sum(weights[name] for name in names)
        scores.setdefault(tuple(round(weights[name] / total, 6) for name in names), []).append(score)
    return {shares: statistics.fmean(found) for shares, found in scores.items()}


def _place(shares: Sequence[float]) -> tuple[float, float]:
    """Where a mixture stands: the first part's corner is above, the second one's left, the third one's right."""
    x = WIDTH / 2 + SIDE * (shares[2] - shares[1]) / 2
    return x, TOP + SIDE * math.sqrt(3) / 2 * (1 - shares[0])


def _beyond(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the names of the corners stand."""
    (x, y), *below = corners
    return [(x, y - 26), *((x, y + 52) for x, y in below)]


def _spot(shares: Sequence[float], score: float, share: float, name: str) -> str:
    x, y = _place(shares)
    color = "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(LIGHT, DARK))
    circle = f'<circle stroke="#555" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="#{color}"><title>'
    return f"{circle}{_safe(name)}: {score:.4f}</title></circle>" + _text(x, y + RADIUS + 15, f"{score:.4f}")


def _named(names: Sequence[str], shares: Sequence[float]) -> str:
    """The parts of a mixture and their shares.

    >>> _named(["a", "b", "c"], (1.0, 0.0, 0.0)), _named(["a", "b", "c"], (0.25, 0.75, 0.0))
    ('a', 'a 25 %, b 75 %')
    """
    found = {name: share for name, share in zip(names, shares) if share}
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.items())


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'<text{marked} text-anchor="middle" x="{x:.1f}" y="{y:.1f}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(one_line(text))
