"""Trials as lines over parallel axes, one per setting and one for the score: a PNG, drawn with matplotlib.

A line is a trial, from dark blue (worst) to yellow (best); the better ones are drawn last. Logarithmic ranges have
logarithmic axes, choices stand apart equally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_mm.experiments.tune.plan import format_value
from recbole_mm.experiments.tune.space import Range, Space

AXIS = "#888888"
MOST_TICKS = 6
LONGEST = 18


def parallel_coordinates(
    path: Path,
    title: str,
    space: Space,
    trials: Sequence[tuple[Mapping[str, float | int], float]],
    metric: str,
    bigger: bool,
) -> None:
    """Draw trials and write the picture.

    Args:
        path: PNG file to write.
        title: text above.
        space: an axis for each of its settings.
        trials: point and score of each; at least one.
        metric: name of the scores.
        bigger: whether a larger score is better.
    """
    from matplotlib import colormaps  # half a second, which a search without a picture to draw does without
    from matplotlib.figure import Figure

    names = [*space.ranges, metric]
    figure = Figure(figsize=(max(6, 1.8 * len(names)), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlim=(-0.6, len(names) - 0.8), ylim=(-0.03, 1.03), frame_on=False)
    axes.set_title(title, loc="left", pad=14)
    scores = [score for _, score in trials]
    low, high = min(scores), max(scores)
    for point, score in sorted(trials, key=lambda trial: trial[1] if bigger else -trial[1]):
        rank = _share(score, low, high)
        shares = [*(_place(range_, point[key]) for key, range_ in space.ranges.items()), rank]
        axes.plot(shares, color=colormaps["viridis"](rank if bigger else 1 - rank), linewidth=1.8)
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for column, name in enumerate(names):
        axes.plot([column, column], [0, 1], color=AXIS, linewidth=1)
        for share, words in _ticks(space.ranges[name]) if name in space.ranges else _score_ticks(low, high):
            axes.plot(column, share, marker="_", color=AXIS)
            beside: dict[str, Any] = {"xytext": (-6, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(_short(words), (column, share), fontsize="small", bbox=behind, zorder=3, **beside)
    axes.set_xticks(range(len(names)), [_short(name) for name in names])
    axes.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.set_yticks([])
    figure.savefig(path)


def _place(range_: Range, drawn: float | int) -> float:
    """Where on its axis a drawn value stands, from 0 to 1."""
    if range_.kind == "choice":
        return _share(drawn, 0, len(range_.values) - 1)
    low, high = range_.values
    if range_.kind == "loguniform":
        return _share(math.log(drawn), math.log(low), math.log(high))
    return _share(drawn, low, high)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _ticks(range_: Range) -> list[tuple[float, str]]:
    """Places of an axis that have a text: each choice, or values from end to end."""
    if range_.kind == "choice":
        every = -(-len(range_.values) // MOST_TICKS)
        return [(_place(range_, k), format_value(value)) for k, value in enumerate(range_.values) if k % every == 0]
    low, high = range_.values
    if range_.kind == "randint" and high - low < MOST_TICKS:
        return [(_place(range_, value), str(value)) for value in range(low, high + 1)]
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    if range_.kind == "loguniform":
        return [(share, f"{math.exp(math.log(low) + share * math.log(high / low)):.2g}") for share in shares]
    return [(share, f"{low + share * (high - low):.3g}") for share in shares]


def _score_ticks(low: float, high: float) -> list[tuple[float, str]]:
    if low == high:
        return [(0.5, f"{low:.4f}")]
    return [(share, f"{low + share * (high - low):.4f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
