"""Trials as lines over parallel axes, one per setting and one for the score: a PNG, drawn with Pillow.

A line is a trial, from dark blue (worst) to yellow (best); the better ones are drawn last. Logarithmic ranges have
logarithmic axes, choices stand apart equally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from recbole_mm.experiments.tune.plan import written
from recbole_mm.experiments.tune.space import Range, Space

OVERSAMPLED = 2
STEP, LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 150, 90, 90, 84, 320, 40
INK, AXIS = "#222222", "#888888"
COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # of viridis, told apart in grey
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
    names = [*space.ranges, metric]
    size = LEFT + RIGHT + STEP * (len(names) - 1), TOP + HEIGHT + BOTTOM
    image = Image.new("RGB", (size[0] * OVERSAMPLED, size[1] * OVERSAMPLED), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13 * OVERSAMPLED)
    scores = [score for _, score in trials]
    low, high = min(scores), max(scores)

    def at(column: int, share: float) -> tuple[float, float]:
        return (LEFT + STEP * column) * OVERSAMPLED, (TOP + HEIGHT * (1 - share)) * OVERSAMPLED

    def text(x: float, y: float, words: str, anchor: str) -> None:
        draw.text((x, y), words, INK, font=font, anchor=anchor, stroke_width=2 * OVERSAMPLED, stroke_fill="white")

    for point, score in sorted(trials, key=lambda trial: trial[1] if bigger else -trial[1]):
        rank = _share(score, low, high)
        shares = [*(_place(range_, point[key]) for key, range_ in space.ranges.items()), rank]
        line = [at(column, share) for column, share in enumerate(shares)]
        draw.line(line, _color(rank if bigger else 1 - rank), 2 * OVERSAMPLED, joint="curve")
    for column, name in enumerate(names):
        ticks = _ticks(space.ranges[name]) if name in space.ranges else _score_ticks(low, high)
        draw.line([at(column, 0), at(column, 1)], AXIS, OVERSAMPLED)
        x, top = at(column, 1)
        text(x, top - 26 * OVERSAMPLED, _short(name), "mm")
        for share, words in ticks:
            x, y = at(column, share)
            draw.line([(x - 4 * OVERSAMPLED, y), (x, y)], AXIS, OVERSAMPLED)
            text(x - 7 * OVERSAMPLED, y, _short(words), "rm")
    text(16 * OVERSAMPLED, 20 * OVERSAMPLED, title, "lm")
    image.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


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
        return [(_place(range_, k), written(value)) for k, value in enumerate(range_.values) if k % every == 0]
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


def _color(share: float) -> tuple[int, int, int]:
    """Between the colors, by how good a trial is from 0 to 1."""
    place = share * (len(COLORS) - 1)
    below = min(int(place), len(COLORS) - 2)
    part = place - below
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(COLORS[below], COLORS[below + 1]))
    return red, green, blue


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
