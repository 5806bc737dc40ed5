"""Axes of figures: round numbers that hold all values, where a value lies, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Callable

MOST_TICKS = 6


def ticks(low: float, high: float, is_whole: bool = False) -> list[float]:
    """Return round numbers, at most `MOST_TICKS` + 2, whose first and last hold all values between.

    Args:
        low, high: the smallest and the largest value.
        is_whole: whether values are whole numbers, so that those of the axis are.

    Example:
        >>> ticks(0.013, 0.058)
        [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
        >>> ticks(1, 2, is_whole=True)
        [1.0, 2.0]
    """
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        half = 1.0 if is_whole else abs(low) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if is_whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Return the powers of ten that hold all values between.

    Example:
        >>> powers(2, 40)
        [1.0, 10.0, 100.0]
    """
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return where a value from `low` to `high` lies from `start` to `end`.

    Example:
        >>> scale(0.0, 10.0, 100.0, 200.0)(2.5)
        125.0
    """
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
