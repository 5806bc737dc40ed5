"""Where the work of a stage is done: in the loop's own process, or by workers elsewhere that are sent what they need.

`fill` takes an executor and knows no more of it than this page says. What a stage has to tell of its work to have it
done elsewhere is a `Portable`; `ray_pool.RayExecutor` does it on a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recbole_mm.artifacts.values import Value


@dataclass(frozen=True)
class Failure:
    """Takes the place of a value that could not be computed. It is recorded, and tried again by the next run."""

    reason: str


class Worker(Protocol):
    """Computes batches, in another process."""

    def compute(self, inputs: list[Any]) -> Sequence[Value | Failure]:
        """As many values, in the same order."""

    def told(self) -> dict[str, Any]:
        """What else is to be known of the batch before, in values that JSON has; {} for nothing."""


class Recipe(Protocol):
    """How a worker is made. Small, can be pickled, and equal to another one that makes the same."""

    def open(self, device: str) -> Worker:
        """Load the model, once in the life of a worker.

        Raises:
            RecboleMMError: it is not there, or not the same as where the work comes from.
        """


def _ignore(_: Mapping[str, Any]) -> None:
    """For work of which there is nothing to tell."""


@dataclass(frozen=True)
class Portable:
    """The work of a stage as it is sent elsewhere.

    Attributes:
        recipe: makes a worker.
        batches: cuts the missing inputs as the local loop does, so that values have the same bits; each batch maps keys
            to what a worker needs and nothing else (no path, no open file), or to a `Failure`.
        hear: called here with what a worker has `told`.
    """

    recipe: Recipe
    batches: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]
    hear: Callable[[Mapping[str, Any]], None] = _ignore


class Executor(Protocol):
    """Has work done elsewhere."""

    def stream(self, work: Portable, missing: Mapping[str, Any]) -> Iterator[Mapping[str, Value | Failure]]:
        """Yield every key of `missing` once, with its value, a batch as soon as it is done, in any order.

        Raises:
            RecboleMMError: what a worker has raised.
        """

    def release(self) -> None:
        """Let go of the workers and their models: another stage wants the room."""
