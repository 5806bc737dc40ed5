"""The interface between `fill` and workers in other processes or on other machines (`distributed.stages`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recbole_mm.artifacts.values import Value


@dataclass(frozen=True)
class Failure:
    """Takes the place of a value that could not be computed. It is recorded, and the next run tries again.

    Example:
        >>> Failure("the image is broken").reason
        'the image is broken'
    """

    reason: str


class Worker(Protocol):
    """Computes batches, in another process."""

    def compute(self, inputs: list[Any]) -> Sequence[Value | Failure]:
        """Returns as many values as there are inputs, in the same order."""

    def report(self) -> dict[str, Any]:
        """Returns what else the calling process should know of the last batch, in values that JSON has; often {}."""


class Recipe(Protocol):
    """Makes a worker. Recipes are small, can be pickled, and are equal if they make the same worker."""

    def open(self, device: str) -> Worker:
        """Load the model, once in the life of a worker.

        Args:
            device: `cpu` or `cuda`.

        Raises:
            RecboleMMError: the model is not there, or another one than in the calling process.
        """


def _ignore(_: Mapping[str, Any]) -> None:
    """Ignore a report."""


@dataclass(frozen=True)
class RemoteWork:
    """The work of a stage in a form that can be sent to other processes.

    Attributes:
        recipe: makes a worker.
        batches: cuts the missing inputs as the local loop does, so that values have the same bits. Each batch maps keys
            to what a worker needs and nothing else (no path, no open file), or to a `Failure`.
        on_report: called in the calling process with each non-empty `Worker.report`.
    """

    recipe: Recipe
    batches: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]
    on_report: Callable[[Mapping[str, Any]], None] = _ignore


class Executor(Protocol):
    """Computes the values of a stage by workers in other processes."""

    def stream(self, work: RemoteWork, missing: Mapping[str, Any]) -> Iterator[Mapping[str, Value | Failure]]:
        """Yields every key of `missing` once with its value, a batch as soon as it is computed, in any order.

        Raises:
            RecboleMMError: raised by a worker.
        """

    def release(self) -> None:
        """End the workers, so that another stage can use their memory."""
