"""Settings of a model, checked where they are read: a wrong one is named before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_mm.errors import ConfigError

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config


def read_choice(config: Config, key: str, options: Sequence[str]) -> str:
    """`config[key]`, one of `options`.

    Raises:
        ConfigError: it is none of them.
    """
    if config[key] not in options:
        raise ConfigError(f"{key} must be one of {', '.join(options)}, not {config[key]!r}")
    return config[key]


def read_whole(config: Config, key: str, low: int) -> int:
    """`config[key]`, a whole number of at least `low`.

    Raises:
        ConfigError: it is not.
    """
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{key} must be a whole number of at least {low}, not {value!r}")
    return value


def read_number(config: Config, key: str, low: float = 0.0, high: float = math.inf) -> float:
    """`config[key]`, a finite number from `low` to `high`, both included.

    Raises:
        ConfigError: it is not.
    """
    value = config[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        limits = f"of at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise ConfigError(f"{key} must be a number {limits}, not {value!r}")
    return float(value)


def read_weights(config: Config, key: str, count: int) -> list[float]:
    """`config[key]`: a weight for each of `count` modalities, none negative, of sum 1.

    Raises:
        ConfigError: it is something else.
    """
    values = config[key]
    plain = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
    if not plain or len(values) != count:
        raise ConfigError(f"{key} must list {count} numbers, one for each of content_features, not {values!r}")
    if not all(value >= 0 for value in values) or not math.isclose(sum(values), 1.0, abs_tol=1e-4):
        raise ConfigError(f"{key}: {values!r} must be numbers of at least 0 whose sum is 1")
    return [float(value) for value in values]


def read_flag(config: Config, key: str) -> bool:
    """`config[key]`, True or False.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(config[key], bool):
        raise ConfigError(f"{key} must be True or False, not {config[key]!r}")
    return config[key]
