"""Preferences that decay: how much an older choice counts in a user's profile, by its place in the list or by time.

    weight = 2^(-age / half_life)

The age of a choice is the number of later choices of the same user (`list`), or the days until the user's latest
training choice (`days`). The template weighs what it counts by it; an LLM is told so in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.data.histories import ticks_per_second
from recbole_mm.errors import ConfigError

LIST, DAYS, NONE = "list", "days", "none"
"""Values of `profile_decay`."""

HALF_LIVES = {LIST: 20.0, DAYS: 30.0}
"""Of `profile_half_life: null`, in choices and in days."""

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Decay:
    """How older choices count.

    Attributes:
        kind: `list`, `days` or `none`.
        half_life: choices or days after which one counts half; None: `HALF_LIVES`.

    Example:
        >>> Decay("list", 1).weights(3)
        [0.25, 0.5, 1.0]
        >>> Decay("days", 7).weights(2, ages=[14, 0])
        [0.25, 1.0]
    """

    kind: str = LIST
    half_life: float | None = None

    @property
    def by_time(self) -> bool:
        """Whether ages are days, which the data must have."""
        return self.kind == DAYS

    @property
    def halves_after(self) -> float:
        """Choices or days after which one counts half; infinity where none counts less."""
        return float("inf") if self.kind == NONE else self.half_life or HALF_LIVES[self.kind]

    def weights(self, count: int, ages: Sequence[float] | None = None) -> list[float]:
        """Weight of each choice of a user, oldest first; the latest one's is 1.

        Args:
            count: of the choices.
            ages: (count,) days before the latest one, for `days`.

        Raises:
            ValueError: `days` without ages.
        """
        if not self.by_time:
            ages = range(count - 1, -1, -1)
        elif ages is None:
            raise ValueError("ages in days are needed")
        return [0.5 ** (age / self.halves_after) for age in ages]

    def told(self) -> str:
        """What an LLM is told of it, as the end of "Weigh what returns again and again above what occurs once, and"."""
        if self.kind == NONE:
            return "old choices as much as recent ones"
        recent = "recent choices above old ones"
        if self.by_time:
            return f"{recent}: one made {_days(self.halves_after)} earlier than another counts half as much"
        if self.half_life is None:
            return recent
        return f"{recent}: one that stands {self.half_life:g} places above another counts half as much"


def _days(number: float) -> str:
    return "1 day" if number == 1 else f"{number:g} days"


def age_mark(days: float) -> str:
    """What stands in front of a choice in a prompt where ages are days.

    >>> age_mark(0), age_mark(12.4)
    ('(latest) ', '(12 days earlier) ')
    """
    return f"({_days(round(days))} earlier) " if round(days) else "(latest) "


def ages_in_days(times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Days between each choice and its user's latest one: (M,) float64.

    Args:
        times: (M,) as the dataset's files have them, users one after the other, oldest first.
        offsets: (U + 1,) start of each user's, with M at the end.

    Raises:
        ConfigError: these are no times.
    """
    ticks = ticks_per_second(times)
    if ticks is None:
        raise ConfigError(
            f"profile_decay: days needs times in Unix seconds or milliseconds; these end at "
            f"{times.max(initial=0.0):,.0f}, as positions do: set profile_decay: list"
        )
    latest = np.repeat(times[offsets[1:] - 1], np.diff(offsets))
    return (latest - times) / (SECONDS_PER_DAY * ticks)
