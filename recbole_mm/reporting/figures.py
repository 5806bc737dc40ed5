"""Figures as SVG: lines, intervals, bars and shares, each with a title and a table of its numbers.

Colors are classes of `page.html`, where light and dark pages choose them; lines also differ by dashes and marks.
Every text goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from recbole_mm.reporting.blocks import Cell, Figure, Grid
from recbole_mm.reporting.scales import number, powers, scale, ticks
from recbole_mm.utils.escaping import one_line

WIDTH = 900
LEFT, RIGHT, TOP = 64, 32, 12
PLOT_HEIGHT = 240
ROW = 24
LABEL_WIDTH, VALUE_WIDTH = 260, 64
CHARACTER = 6.8
"""Width of a letter, for cutting labels; the tables have them whole."""

COLORS = 6
"""Classes `c0`, `c1`, ... of the page; the series behind them begin again."""

MOST_MARKS = 40
"""Points of a line that are marked; of a longer one the last is."""

SMALLEST_SHARE = 32
"""Width in pixels of a share that has room for its number."""

VERDICTS, LEVELS = "v", "l"
"""Classes of the shares of a whole, with a number behind them."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A row of a figure of intervals.

    Attributes:
        label: of the row.
        value: the point.
        low, high: ends of its interval; None where there is none.
        series: number of its color.
        group: stands above the first of the rows that share it; "" for none.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0
    group: str = ""


@dataclass(frozen=True)
class Shares:
    """A row of a figure of shares.

    Attributes:
        label: of the row.
        values: a number for each share; all zeros are an empty row.
        group: as of an `Interval`.
    """

    label: str
    values: Sequence[float]
    group: str = ""


def line_figure(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    from_zero: bool = False,
    dotted: Collection[str] = (),
    stepped: Collection[str] = (),
    rings: Mapping[str, Point] | None = None,
) -> Figure:
    """Draw lines.

    Args:
        title, x_label, y_label: plain texts.
        series: name -> points (x, y), x ascending; at least one point in all. Values that are not finite are left out.
        log_x: logarithmic x, of values above 0.
        from_zero: y begins at 0.
        dotted: names of series whose points are not joined.
        stepped: names of series that keep a value until their next point.
        rings: name of a series -> its point with a ring around it.

    Example:
        >>> line_figure("Loss", "epoch", "loss", {"<b>": [(1, 0.5), (2, 0.25)], "c": [(1, 0.4)]}).svg.count("&lt;b&gt;")
        1
    """
    shown = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    every = [point for points in shown.values() for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    x_ticks = powers(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs), all(x == int(x) for x in xs))
    y_ticks = ticks(min([0.0, *ys] if from_zero else ys), max(ys))
    place: Callable[[float], float] = math.log if log_x else float
    at_x = scale(place(min(x_ticks[0], *xs)), place(max(x_ticks[-1], *xs)), LEFT, WIDTH - RIGHT)
    top, bottom = TOP + ROW, TOP + ROW + PLOT_HEIGHT
    at_y = scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [_text(LEFT, TOP + 4, y_label, "start", "soft")]
    parts += [_horizontal(at_y(tick), number(tick)) for tick in y_ticks]
    parts += [_text(at_x(place(tick)), bottom + 18, number(tick), "middle") for tick in x_ticks]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, x_label, "middle", "soft"))
    for color, (name, points) in enumerate(shown.items()):
        spots = [(at_x(place(x)), at_y(y)) for x, y in points]
        dots = [_mark(x, y, color) for x, y in spots]
        parts += dots if name in dotted else _line(spots, color, name in stepped)
        if ring := (rings or {}).get(name):
            parts.append(_ring(at_x(place(ring[0])), at_y(ring[1]), color))
        if len(shown) > 1 or rings:
            parts.append(_legend(bottom + 60 + ROW * color, name, color, is_line=name not in dotted))
    cells: list[list[Cell]] = [[name, number(x), y] for name, points in shown.items() for x, y in points]
    height = bottom + 54 + ROW * (len(shown) if len(shown) > 1 or rings else 0)
    return Figure(title, _svg(title, height, parts), Grid(title, ["", x_label, y_label], cells))


def interval_figure(
    title: str, unit: str, rows: Sequence[Interval], has_zero: bool = False, has_values: bool = False
) -> Figure:
    """Draw a row for each value, with its interval: a forest plot.

    Args:
        title: of the figure.
        unit: what the values are.
        rows: at least one; those of a group stand together.
        has_zero: whether a line marks 0.
        has_values: whether the values are written beside the rows.
    """
    rows = [_finite(row) for row in rows]
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    marks = ticks(min([*ends, *([0.0] if has_zero else [])]), max([*ends, *([0.0] if has_zero else [])]))
    right = WIDTH - RIGHT - (VALUE_WIDTH if has_values else 0)
    at_x = scale(marks[0], marks[-1], LABEL_WIDTH, right)
    places, bottom = _places([row.group for row in rows])
    grid = [_vertical(at_x(tick), TOP, bottom, tick == 0 and has_zero) for tick in marks]
    parts = [*grid, *(_text(at_x(tick), bottom + 18, number(tick), "middle") for tick in marks)]
    parts.append(_text((LABEL_WIDTH + right) / 2, bottom + 38, unit, "middle", "soft"))
    for row, (y, group) in zip(rows, places, strict=True):
        parts += [_group(y, group), _text(LABEL_WIDTH - 10, y + 16, row.label, "end", width=LABEL_WIDTH)]
        if row.low is not None and row.high is not None:
            parts.append(_whiskers(at_x(row.low), at_x(row.high), y + 12, row.series))
        parts.append(_mark(at_x(row.value), y + 12, row.series))
        if has_values:
            written = f"{row.value:+.4f}" if has_zero else f"{row.value:.4f}"
            parts.append(_text(WIDTH - RIGHT, y + 16, written, "end"))
    has_groups = any(row.group for row in rows)
    cells: list[list[Cell]] = [
        [*([row.group] if has_groups else []), row.label, row.value, row.low, row.high] for row in rows
    ]
    header = [*([""] if has_groups else []), "", unit, "95% interval from", "to"]
    return Figure(title, _svg(title, bottom + 50, parts), Grid(title, header, cells))


def bar_figure(title: str, unit: str, rows: Sequence[Interval]) -> Figure:
    """Draw a bar to the right for each value, none below 0; `unit` is what the values are."""
    longest = max([row.value for row in rows], default=0.0) or 1.0
    at_x = scale(0.0, longest, LABEL_WIDTH, WIDTH - RIGHT - VALUE_WIDTH)
    parts = []
    places, bottom = _places([row.group for row in rows])
    for row, (y, group) in zip(rows, places, strict=True):
        parts += [_group(y, group), _text(LABEL_WIDTH - 10, y + 16, row.label, "end", width=LABEL_WIDTH)]
        parts.append(_bar(LABEL_WIDTH, y, max(1.0, at_x(row.value) - LABEL_WIDTH), f"b{row.series % COLORS}"))
        parts.append(_text(at_x(row.value) + 6, y + 16, number(row.value), "start"))
    has_groups = any(row.group for row in rows)
    cells: list[list[Cell]] = [[*([row.group] if has_groups else []), row.label, row.value] for row in rows]
    grid = Grid(title, [*([""] if has_groups else []), "", unit], cells)
    return Figure(title, _svg(title, bottom + 8, parts), grid)


def share_figure(title: str, names: Sequence[str], rows: Sequence[Shares], kind: str = VERDICTS) -> Figure:
    """Draw how a whole is shared out, in each row.

    Args:
        title: of the figure.
        names: of the shares.
        rows: in their order; those of a group stand together.
        kind: `VERDICTS`, for better, equal and worse, or `LEVELS`, for up to five parts from little to much.
    """
    parts = []
    places, bottom = _places([row.group for row in rows])
    for row, (y, group) in zip(rows, places, strict=True):
        x, total = float(LABEL_WIDTH), sum(row.values) or 1.0
        parts += [_group(y, group), _text(LABEL_WIDTH - 10, y + 16, row.label, "end", width=LABEL_WIDTH)]
        for series, value in enumerate(row.values):
            width = (WIDTH - RIGHT - LABEL_WIDTH) * value / total
            parts.append(_bar(x, y, width, f"{kind}{series}"))
            if width > SMALLEST_SHARE:
                parts.append(_text(x + width / 2, y + 16, f"{value / total:.0%}", "middle", f"on {kind}{series}"))
            x += width
    parts += [_share_legend(bottom + 24 + ROW * place, name, f"{kind}{place}") for place, name in enumerate(names)]
    has_groups = any(row.group for row in rows)
    cells: list[list[Cell]] = [[*([row.group] if has_groups else []), row.label, *row.values] for row in rows]
    grid = Grid(title, [*([""] if has_groups else []), "", *names], cells)
    return Figure(title, _svg(title, bottom + 18 + ROW * len(names), parts), grid)


def _places(groups: Sequence[str]) -> tuple[list[tuple[float, str]], float]:
    """Return the upper edge of each row, with the group that begins there or "", and the lower edge of the last."""
    y, found = float(TOP), []
    for before, group in itertools.pairwise(["", *groups]):
        begins = group if group != before else ""
        y += ROW if begins else 0
        found.append((y, begins))
        y += ROW
    return found, y


def _finite(row: Interval) -> Interval:
    """The row without an interval that has no ends, as that of a test of equal differences."""
    ends = [end for end in (row.low, row.high) if end is not None and math.isfinite(end)]
    return row if len(ends) == 2 else replace(row, low=None, high=None)


# ---- parts ----


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg role="img" viewBox="0 0 {} {:.0f}"><title>{}</title>').format(WIDTH, height, one_line(title))
    return opening + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", width: float = 0) -> Markup:
    """A text at a place, of a class of the page, cut where it is wider than `width`."""
    line = one_line(text)
    most = int((width - 16) / CHARACTER) if width else len(line)
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    written = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return written.format(kind or "plain", x, y, anchor, line)


def _group(y: float, text: str) -> Markup:
    """The name of a group of rows, above the first of them."""
    return _text(0, y - 6, text, "start", "soft") if text else Markup("")


def _horizontal(y: float, label: str) -> Markup:
    rule = Markup('<path class="rule" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
    return rule + _text(LEFT - 8, y + 4, label, "end")


def _vertical(x: float, top: float, bottom: float, is_zero: bool) -> Markup:
    kind = "zero" if is_zero else "rule"
    return Markup('<path class="{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(kind, x, top, bottom)


def _line(spots: Sequence[Point], series: int, is_stepped: bool = False) -> list[Markup]:
    if not spots:
        return []
    turns = [f"H{x:.1f}V{y:.1f}" if is_stepped else f"L{x:.1f} {y:.1f}" for x, y in spots[1:]]
    path = f"{spots[0][0]:.1f} {spots[0][1]:.1f}{''.join(turns)}"
    drawn = Markup('<path class="line c{0} d{0}" d="M{1}"/>').format(series % COLORS, path)
    marked = spots if len(spots) <= MOST_MARKS else [spots[-1]]
    return [drawn, *(_mark(x, y, series) for x, y in marked)]


def _whiskers(low: float, high: float, y: float, series: int) -> Markup:
    path = Markup('<path class="line c{0}" d="M{1:.1f} {3:.1f}H{2:.1f}M{1:.1f} {4:.1f}v8M{2:.1f} {4:.1f}v8"/>')
    return path.format(series % COLORS, low, high, y, y - 4)


def _ring(x: float, y: float, series: int) -> Markup:
    return Markup('<circle class="line c{}" cx="{:.1f}" cy="{:.1f}" r="8"/>').format(series % COLORS, x, y)


def _mark(x: float, y: float, series: int) -> Markup:
    """A dot, a square or a diamond, so that colors alone tell nothing."""
    shape = series % 3
    if shape == 0:
        return Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(series % COLORS, x, y)
    turn = Markup(' transform="rotate(45 {:.1f} {:.1f})"').format(x, y) if shape == 2 else ""
    return Markup('<rect class="dot c{}" x="{:.1f}" y="{:.1f}" width="7" height="7"{}/>').format(
        series % COLORS, x - 3.5, y - 3.5, turn
    )


def _bar(x: float, y: float, width: float, kind: str) -> Markup:
    return Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}"/>').format(
        kind, x, y + 3, max(0.0, width), ROW - 6
    )


def _share_legend(y: float, name: str, kind: str) -> Markup:
    return _bar(LEFT, y - 12, 24, kind) + _text(LEFT + 34, y + 4, name, "start", width=WIDTH - LEFT - 34)


def _legend(y: float, name: str, series: int, is_line: bool = True) -> Markup:
    line = Markup('<path class="line c{0} d{0}" d="M{1} {2:.1f}h24"/>').format(series % COLORS, LEFT, y)
    sample = (line if is_line else Markup("")) + _mark(LEFT + 12, y, series)
    return sample + _text(LEFT + 34, y + 4, name, "start", width=WIDTH - LEFT - 34)
