"""Figures as SVG: lines, intervals, bars and shares, each with a title and a table of its numbers.

Colors are classes of `page.html`, where light and dark pages choose them; lines also differ by dashes and marks.
Every text goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from recbole_mm.reporting.blocks import Cell, Figure, Grid
from recbole_mm.utils.escaping import one_line

WIDTH = 720
LEFT, RIGHT, TOP = 64, 20, 12
PLOT_HEIGHT = 240
ROW = 24
LABEL_WIDTH = 240
CHARACTER = 7.2
"""Width of a letter, for cutting labels; the tables have them whole."""

COLORS = 6
"""Classes `c0`, `c1`, ... of the page; the series behind them begin again."""

MOST_TICKS = 6
MOST_MARKS = 40
"""Points of a line that are marked; of a longer one the last is."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A row of a figure of intervals.

    Attributes:
        label: of the row.
        value: the point.
        low, high: ends of its interval; None where there is none.
        series: number of its color.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0


def line_figure(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    from_zero: bool = False,
    is_joined: bool = True,
) -> Figure:
    """Draw lines.

    Args:
        title, x_label, y_label: plain texts.
        series: name -> points (x, y), x ascending; at least one point in all. Values that are not finite are left out.
        log_x: logarithmic x, of values above 0.
        from_zero: y begins at 0.
        is_joined: lines join the points.

    Example:
        >>> line_figure("Loss", "epoch", "loss", {"<b>": [(1, 0.5), (2, 0.25)]}).svg.count("&lt;b&gt;")
        1
    """
    shown = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    every = [point for points in shown.values() for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_ticks = _powers(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = ticks(min([0.0, *ys] if from_zero else ys), max(ys))
    x_low, x_high, y_low, y_high = min(x_ticks[0], *xs), max(x_ticks[-1], *xs), y_ticks[0], y_ticks[-1]
    place: Callable[[float], float] = math.log if log_x else float
    at_x = _scale(place(x_low), place(x_high), LEFT, WIDTH - RIGHT)
    at_y = _scale(y_low, y_high, TOP + PLOT_HEIGHT, TOP)
    parts = [_horizontal(at_y(tick), number(tick)) for tick in y_ticks]
    bottom = TOP + PLOT_HEIGHT
    parts += [_text(at_x(place(tick)), bottom + 18, number(tick), "middle") for tick in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, f"{x_label} (up: {y_label})", "middle"))
    for place_of, (name, points) in enumerate(shown.items()):
        spots = [(at_x(place(x)), at_y(y)) for x, y in points]
        parts += _line(spots, place_of) if is_joined else [_mark(x, y, place_of) for x, y in spots]
        parts.append(_legend(bottom + 60 + ROW * place_of, name, place_of))
    cells: list[list[Cell]] = [[name, number(x), y] for name, points in shown.items() for x, y in points]
    grid = Grid(title, ["", x_label, y_label], cells)
    return Figure(title, _svg(title, bottom + 54 + ROW * len(shown), parts), grid)


def interval_figure(title: str, unit: str, rows: Sequence[Interval], has_zero: bool = False) -> Figure:
    """Draw a row for each value, with its interval: a forest plot.

    Args:
        title: of the figure.
        unit: what the values are.
        rows: at least one.
        has_zero: whether a line marks 0.
    """
    rows = [_finite(row) for row in rows]
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    scale = ticks(min([*ends, *([0.0] if has_zero else [])]), max([*ends, *([0.0] if has_zero else [])]))
    at_x = _scale(scale[0], scale[-1], LABEL_WIDTH, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = [_vertical(at_x(tick), TOP, bottom, tick == 0 and has_zero) for tick in scale]
    parts += [_text(at_x(tick), bottom + 18, number(tick), "middle") for tick in scale]
    parts.append(_text((LABEL_WIDTH + WIDTH - RIGHT) / 2, bottom + 38, unit, "middle"))
    for place, row in enumerate(rows):
        y = TOP + ROW * (place + 0.5)
        parts.append(_text(LABEL_WIDTH - 10, y + 4, row.label, "end", LABEL_WIDTH))
        if row.low is not None and row.high is not None:
            parts.append(
                Markup('<path class="line c{}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(
                    row.series % COLORS, at_x(row.low), y, at_x(row.high)
                )
            )
        parts.append(_mark(at_x(row.value), y, row.series))
    cells: list[list[Cell]] = [[row.label, row.value, row.low, row.high] for row in rows]
    grid = Grid(title, ["", unit, "95% interval from", "to"], cells)
    return Figure(title, _svg(title, bottom + 50, parts), grid)


def bar_figure(title: str, unit: str, rows: Sequence[tuple[str, float]]) -> Figure:
    """Draw a bar to the right for each value, none below 0."""
    longest = max([value for _, value in rows], default=0.0) or 1.0
    at_x = _scale(0.0, longest, LABEL_WIDTH, WIDTH - RIGHT - 80)
    parts = []
    for place, (label, value) in enumerate(rows):
        y = TOP + ROW * place
        parts.append(_text(LABEL_WIDTH - 10, y + 16, label, "end", LABEL_WIDTH))
        parts.append(_bar(LABEL_WIDTH, y, at_x(value) - LABEL_WIDTH, 0))
        parts.append(_text(at_x(value) + 6, y + 16, number(value), "start"))
    grid = Grid(title, ["", unit], [list(row) for row in rows])
    return Figure(title, _svg(title, TOP + ROW * len(rows) + 8, parts), grid)


def share_figure(title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Draw how a whole is shared out, in each row.

    Args:
        title: of the figure.
        names: of the shares.
        rows: label, and a number for each name; a row of zeros is empty.
    """
    parts = []
    for place, (label, values) in enumerate(rows):
        y, x, total = TOP + ROW * place, float(LABEL_WIDTH), sum(values) or 1.0
        parts.append(_text(LABEL_WIDTH - 10, y + 16, label, "end", LABEL_WIDTH))
        for series, value in enumerate(values):
            width = (WIDTH - RIGHT - LABEL_WIDTH) * value / total
            parts.append(_bar(x, y, width, series))
            if width > 44:
                parts.append(_text(x + width / 2, y + 16, f"{value / total:.0%}", "middle", on_bar=True))
            x += width
    bottom = TOP + ROW * len(rows)
    parts += [_legend(bottom + 22 + ROW * place, name, place, is_bar=True) for place, name in enumerate(names)]
    grid = Grid(title, ["", *names], [[label, *values] for label, values in rows])
    return Figure(title, _svg(title, bottom + 18 + ROW * len(names), parts), grid)


def _finite(row: Interval) -> Interval:
    """The row without an interval that has no ends, as that of a test of equal differences."""
    ends = [end for end in (row.low, row.high) if end is not None and math.isfinite(end)]
    return row if len(ends) == 2 else replace(row, low=None, high=None)


# ---- scales ----


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, at most `MOST_TICKS` + 2, whose first and last hold all values between.

    Example:
        >>> ticks(0.013, 0.058)
        [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    """
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def number(value: float) -> str:
    """Write a number of an axis or a bar in a few letters.

    Example:
        >>> number(0.0125), number(1200.0), number(3.0)
        ('0.0125', '1,200', '3')
    """
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


# ---- parts ----


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg role="img" viewBox="0 0 {} {:.0f}"><title>{}</title>').format(WIDTH, height, one_line(title))
    return opening + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str, width: float = 0, on_bar: bool = False) -> Markup:
    line = one_line(text)
    most = int((width - 16) / CHARACTER) if width else len(line)
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    written = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>')
    return written.format(x, y, anchor, Markup(' class="on"') if on_bar else "", line)


def _horizontal(y: float, label: str) -> Markup:
    rule = Markup('<path class="rule" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
    return rule + _text(LEFT - 8, y + 4, label, "end")


def _vertical(x: float, top: float, bottom: float, is_zero: bool) -> Markup:
    kind = "zero" if is_zero else "rule"
    return Markup('<path class="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(kind, x, top, bottom)


def _line(spots: Sequence[Point], series: int) -> list[Markup]:
    if not spots:
        return []
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    drawn = Markup('<path class="line c{0} d{0}" d="M{1}"/>').format(series % COLORS, path)
    marked = spots if len(spots) <= MOST_MARKS else [spots[-1]]
    return [drawn, *(_mark(x, y, series) for x, y in marked)]


def _mark(x: float, y: float, series: int) -> Markup:
    """A dot, a square or a diamond, so that colors alone tell nothing."""
    shape = series % 3
    if shape == 0:
        return Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(series % COLORS, x, y)
    turn = Markup(' transform="rotate(45 {:.1f} {:.1f})"').format(x, y) if shape == 2 else ""
    return Markup('<rect class="dot c{}" x="{:.1f}" y="{:.1f}" width="7" height="7"{}/>').format(
        series % COLORS, x - 3.5, y - 3.5, turn
    )


def _bar(x: float, y: float, width: float, series: int) -> Markup:
    return Markup('<rect class="bar b{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
        series % COLORS, x, y + 3, max(0.0, width), ROW - 6
    )


def _legend(y: float, name: str, series: int, is_bar: bool = False) -> Markup:
    if is_bar:
        sample = _bar(LEFT, y - 12, 24, series)
    else:
        line = Markup('<path class="line c{0} d{0}" d="M{1} {2:.1f}h24"/>').format(series % COLORS, LEFT, y)
        sample = line + _mark(LEFT + 12, y, series)
    return sample + _text(LEFT + 34, y + 4, name, "start", WIDTH - LEFT - 34)
