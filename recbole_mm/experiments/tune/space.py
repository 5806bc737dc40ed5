"""What a search may choose from: a space of settings, read from YAML or from RecBole's `hyper.test` text.

    >>> space = parse_space({"alpha": {"uniform": [0, 1]}, "dueg": {"choice": ["sasrec", "fpmc"]}}, "example")
    >>> [point["dueg"] in (0, 1) for point in space.points(seed=1, count=2)]
    [True, True]
    >>> space.settings({"alpha": 0.25, "dueg": 1})
    {'alpha': 0.25, 'dueg': 'fpmc'}

A point is one drawing as searches see it: numbers, and the place of a choice in its list. Settings are what it means.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.config.kinds import shown
from recbole_mm.config.layers import model_yaml, properties_dir
from recbole_mm.config.yaml_settings import MOST_BITS, canonical, parse_argument, plain, read_text, read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.utils.spelling import did_you_mean

KINDS = ("choice", "uniform", "loguniform", "randint")
MIXTURE = "mixture"
"""In YAML: {names: [a, b, c], total: 3} is a choice of all whole weights of these names that add up to the total."""

Point = dict[str, float | int]

MOST_REDRAWS = 1000
"""Drawings of a setting that was drawn before, in a row, after which the space counts as used up."""

MOST_CHOICES = 1000
MOST_POINTS = 1e15
LARGEST = 2**53
MOST_LOGARITHM = 700
"""Choices of a setting; points of a space, more of which count as endless; numbers to draw from, and logarithms."""


@dataclass(frozen=True)
class Range:
    """What one setting may be.

    Attributes:
        kind: one of `KINDS`.
        values: of a choice, or low and high of the others; a `randint` may be either of them.
        names, total: of a mixture, which is a choice of mappings from these names to weights that add up to the total.

    Example:
        >>> Range("choice", ("sasrec", "fpmc")).setting(1)
        'fpmc'
    """

    kind: str
    values: tuple[Any, ...]
    names: tuple[str, ...] = ()
    total: int = 0

    @property
    def size(self) -> float:
        """How many values there are; infinite for numbers with a fraction."""
        if self.kind == "choice":
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "randint" else math.inf

    def draw(self, rng: np.random.Generator) -> float | int:
        """One value, or the place of a choice."""
        if self.kind == "choice":
            return int(rng.integers(len(self.values)))
        low, high = self.values
        if self.kind == "randint":
            return int(rng.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))

    def setting(self, drawn: float | int) -> Any:
        """The value that was drawn."""
        return self.values[int(drawn)] if self.kind == "choice" else drawn

    def as_dict(self) -> dict[str, Any]:
        """The range as one would write it in YAML."""
        if self.names:
            return {MIXTURE: {"names": list(self.names), "total": self.total}}
        return {self.kind: list(self.values)}

    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or the two ends: if a setting accepts these, it accepts what is drawn."""
        return self.values


@dataclass(frozen=True)
class Space:
    """Settings and what each of them may be.

    Attributes:
        ranges: by setting.
        where: its file, for errors.

    Example:
        >>> Space({"n_layers": Range("randint", (1, 3)), "dueg": Range("choice", ("sasrec", "fpmc"))}, "example").size
        6
    """

    ranges: dict[str, Range]
    where: str

    @property
    def size(self) -> float:
        """How many different settings there are; infinite where a number has a fraction, or they are too many."""
        size: float = 1
        for found in self.ranges.values():
            size *= found.size
            if size > MOST_POINTS:
                return math.inf
        return size

    def points(self, seed: int, count: int) -> list[Point]:
        """The first `count` different random points of a seed; fewer where the space has no more.

        More points of the same seed begin with the same ones, which is how a search goes on where it stopped.
        """
        rng = np.random.default_rng(seed)
        found: dict[str, Point] = {}
        redrawn = 0
        while len(found) < min(count, self.size) and redrawn < MOST_REDRAWS:
            point = {key: range_.draw(rng) for key, range_ in self.ranges.items()}
            written = json.dumps(point)
            redrawn = redrawn + 1 if written in found else 0
            found.setdefault(written, point)
        return list(found.values())

    def settings(self, point: Mapping[str, float | int]) -> dict[str, Any]:
        """What a point means."""
        return {key: range_.setting(point[key]) for key, range_ in self.ranges.items()}

    def as_dict(self) -> dict[str, Any]:
        """The space as one would write it in YAML."""
        return {key: range_.as_dict() for key, range_ in self.ranges.items()}


def default_space(model: str) -> Space:
    """The space that ships for a model.

    Raises:
        ConfigError: none does.
    """
    path = model_yaml(properties_dir() / "search", model)
    if path is None:
        raise ConfigError(f"no search space ships for {model}; write one (docs/tune.md) and give it as --space=FILE")
    return read_space(path)


def read_space(path: Path) -> Space:
    """A space from a `.yaml` file, or from a text of RecBole's (`hyper.test`) under any other name.

    Raises:
        ConfigError: it cannot be read, is empty, or a range in it is malformed.
    """
    if path.suffix in (".yaml", ".yml"):
        return parse_space(read_yaml(path), str(path))
    return _parse_text(read_text(path, "search space"), str(path))


def parse_space(content: Mapping[str, Any], where: str) -> Space:
    """A space from a mapping of setting -> {kind: values}.

    Args:
        content: as the YAML file holds it.
        where: its file, for errors.

    Raises:
        ConfigError: it is empty, or a range is malformed.
    """
    ranges = {}
    for key, given in content.items():
        if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in (*KINDS, MIXTURE):
            raise ConfigError(
                f"{where}: {key}: {shown(given)} is no range; give choice, uniform, loguniform, randint or mixture, as "
                f"in {key}: {{choice: [1, 2]}}"
            )
        ((kind, values),) = given.items()
        at = f"{where}: {key}"
        ranges[key] = _mixture(at, values) if kind == MIXTURE else _range(at, kind, values)
    return _not_empty(ranges, where)


def _parse_text(text: str, where: str) -> Space:
    """Lines of `setting kind values`, as in RecBole's `hyper.test`; bounds of loguniform are natural logarithms."""
    ranges = {}
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split(maxsplit=2)
        if not parts or parts[0].startswith("#"):
            continue
        at = f"{where}, line {number}"
        if len(parts) < 3:
            raise ConfigError(
                f"{at}: {line.strip()!r} is not of the form `setting kind values`, as in `k choice [1,2]`"
            )
        key, kind, written = parts
        if key in ranges:
            raise ConfigError(f"{at}: {key} is given twice")
        if kind not in KINDS:
            raise ConfigError(f"{at}: {key}: {kind!r} is not known{did_you_mean(kind, KINDS)}")
        ranges[key] = _range(f"{at}: {key}", kind, _literal(at, key, kind, written))
    return _not_empty(ranges, where)


def _literal(at: str, key: str, kind: str, written: str) -> Any:
    try:
        values = ast.literal_eval(written if kind == "choice" else f"[{written.strip().strip('[]')}]")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        example = "['a','b'] or [1,2]" if kind == "choice" else "0.1,0.5"
        raise ConfigError(f"{at}: {key}: {shown(written)} cannot be read; give values as in {example}") from error
    if kind == "choice" and isinstance(values, (list, tuple)):
        # RecBole evaluates texts that look like lists ('[64,64]') once more when a run reads its settings.
        return [parse_argument(key, value) if _looks_like_list(value) else value for value in values]
    if kind == "loguniform" and all(map(_is_number, values)):
        if max(values, default=0) > MOST_LOGARITHM:
            raise ConfigError(f"{at}: {key}: loguniform: {shown(written)} are natural logarithms; these are too large")
        return [math.exp(value) for value in values]
    return values


def _looks_like_list(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("[")


def _range(at: str, kind: str, values: Any) -> Range:
    """A checked range; `at` opens the message of a failure."""
    if kind == "choice":
        if not isinstance(values, (list, tuple)) or not values:
            raise ConfigError(f"{at}: choice: {shown(values)} is not accepted; give a list of at least one value")
        if len(values) > MOST_CHOICES:
            raise ConfigError(f"{at}: choice: of {len(values)} values; give at most {MOST_CHOICES}")
        options = [plain(at, value) for value in values]
        if len(set(map(canonical, options))) < len(options):
            raise ConfigError(f"{at}: choice: {shown(values)} holds a value twice; give each one once")
        return Range(kind, tuple(options))
    if not isinstance(values, (list, tuple)) or len(values) != 2 or not all(map(_is_number, values)):
        raise ConfigError(f"{at}: {kind}: {shown(values)} is not accepted; give two numbers, as in [0.1, 0.5]")
    low, high = values
    if kind == "randint" and not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"{at}: randint: {list(values)!r} are not whole numbers; give uniform for others")
    if kind == "randint" and max(abs(low), abs(high)) > LARGEST:
        raise ConfigError(f"{at}: randint: {list(values)!r} are too large; give whole numbers up to {LARGEST}")
    if not math.isfinite(high - low):
        raise ConfigError(f"{at}: {kind}: {list(values)!r} are too far apart; give numbers that a float can tell apart")
    if low >= high:
        raise ConfigError(f"{at}: {kind}: {list(values)!r} is empty; give the lower bound first")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{at}: loguniform: {list(values)!r} must lie above 0; give uniform for others")
    return Range(kind, (low, high) if kind == "randint" else (float(low), float(high)))


def _mixture(at: str, given: Any) -> Range:
    """The choice of all mixtures of some names, as `{names: [a, b], total: 2}` asks for."""
    found: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    names, total = found.get("names"), found.get("total")
    listed = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) and name for name in names)
    whole = isinstance(total, int) and not isinstance(total, bool) and 0 < total <= MOST_CHOICES
    if not listed or not whole or found.keys() != {"names", "total"} or len(set(names or [])) < len(names or []):
        raise ConfigError(
            f"{at}: mixture: {shown(given)} is not accepted; give different names, at least two, and a whole number "
            "that their weights add up to, as in {names: [a, b, c], total: 3}"
        )
    assert isinstance(names, list)
    assert isinstance(total, int)
    if (count := math.comb(total + len(names) - 1, total)) > MOST_CHOICES:
        raise ConfigError(f"{at}: mixture: of {count} mixtures; give a smaller total, for at most {MOST_CHOICES}")
    values = tuple(dict(zip(names, weights)) for weights in _weights(len(names), total))
    return Range("choice", values, tuple(names), total)


def _weights(count: int, total: int) -> list[tuple[int, ...]]:
    """All tuples of `count` whole numbers that add up to `total`.

    >>> _weights(2, 2)
    [(2, 0), (1, 1), (0, 2)]
    """
    if count == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total, -1, -1) for rest in _weights(count - 1, total - first)]


def _not_empty(ranges: dict[str, Range], where: str) -> Space:
    if not ranges:
        raise ConfigError(
            f"{where}: the search space is empty; give a line such as learning_rate: {{loguniform: [1e-4, 1e-2]}}"
        )
    return Space(ranges, where)


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= MOST_BITS
    return isinstance(value, float) and math.isfinite(value)


def format_value(value: Any) -> str:
    """Returns a setting on one line, as in a table.

    >>> format_value(0.00012345), format_value([64, 64]), format_value("CE")
    ('0.0001234', '[64, 64]', 'CE')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
