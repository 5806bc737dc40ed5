"""Curves as a PNG, drawn with Pillow, which is installed anyway.

>>> line_plot(Path("x.png"), "Recall@20 on toy", "K", [5, 10], {"test": [(0.1, 0.1, 0.1), (0.2, 0.1, 0.3)]})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float, float]
"""Mean, least and largest value over the seeds."""

SIZE = (720, 440)
OVERSAMPLED = 3
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 44, 64
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers, too
INK, GRID = "#222222", "#dddddd"


def line_plot(
    path: Path, title: str, x_label: str, x_values: Sequence[float], curves: Mapping[str, Sequence[Point]]
) -> None:
    """Draw one curve per name, with a bar from the least to the largest value of each point.

    Args:
        path: PNG file to write; its folder is created.
        title, x_label: text above and below.
        x_values: where the points stand, rising; at least two.
        curves: name -> a point for each of `x_values`.
    """
    canvas = _Canvas(x_values, [value for points in curves.values() for point in points for value in point])
    canvas.axes(title, x_label)
    for place, (name, points) in enumerate(curves.items()):
        canvas.curve(points, COLORS[place % len(COLORS)])
        canvas.legend(place, name, COLORS[place % len(COLORS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.image.resize(SIZE, Image.Resampling.LANCZOS).save(path, optimize=True)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


class _Canvas:
    """The picture, `OVERSAMPLED` times as large as it will be, with positions given in final pixels."""

    def __init__(self, x_values: Sequence[float], y_values: Sequence[float]) -> None:
        self.image = Image.new("RGB", (SIZE[0] * OVERSAMPLED, SIZE[1] * OVERSAMPLED), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(14 * OVERSAMPLED)
        self.x_values, self.y_ticks = list(x_values), ticks(min(y_values), max(y_values))

    def x(self, value: float) -> float:
        low, high = self.x_values[0], self.x_values[-1]
        return LEFT + 20 + (SIZE[0] - LEFT - RIGHT - 40) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * (value - low) / (high - low)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1) -> None:
        scaled = [(x * OVERSAMPLED, y * OVERSAMPLED) for x, y in points]
        self.draw.line(scaled, color, round(width * OVERSAMPLED), joint="curve")

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        self.draw.text((x * OVERSAMPLED, y * OVERSAMPLED), text, INK, font=self.font, anchor=anchor)

    def axes(self, title: str, x_label: str) -> None:
        for tick in self.y_ticks:
            self.line([(LEFT, self.y(tick)), (SIZE[0] - RIGHT, self.y(tick))], GRID)
            self.text(LEFT - 8, self.y(tick), f"{tick:.4g}", "rm")
        bottom = SIZE[1] - BOTTOM
        for value in self.x_values:
            self.line([(self.x(value), bottom), (self.x(value), bottom + 5)], INK)
            self.text(self.x(value), bottom + 10, f"{value:g}", "ma")
        self.line([(LEFT, bottom), (SIZE[0] - RIGHT, bottom)], INK)
        self.text(LEFT, 16, title, "lm")
        self.text((LEFT + SIZE[0] - RIGHT) / 2, SIZE[1] - 14, x_label, "mm")

    def curve(self, points: Sequence[Point], color: str) -> None:
        self.line([(self.x(x), self.y(mean)) for x, (mean, _, _) in zip(self.x_values, points)], color, 2)
        for x, (mean, least, most) in zip(self.x_values, points):
            self.line([(self.x(x), self.y(least)), (self.x(x), self.y(most))], color, 1.5)
            at = self.x(x) * OVERSAMPLED, self.y(mean) * OVERSAMPLED
            self.draw.circle(at, 4 * OVERSAMPLED, color)

    def legend(self, place: int, name: str, color: str) -> None:
        right, middle = SIZE[0] - RIGHT - 110 * place, 16
        self.text(right, middle, name, "rm")
        start = right - 8 - self.draw.textlength(name, font=self.font) / OVERSAMPLED
        self.line([(start - 24, middle), (start, middle)], color, 2)
