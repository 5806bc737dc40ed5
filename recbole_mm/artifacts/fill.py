"""The loop that computes the missing values of a stage, and writes every batch to the store as soon as it is done."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from recbole_mm.artifacts.database import READ_ONLY
from recbole_mm.artifacts.executor import Executor, Failure, RemoteWork
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.values import NOT_FINITE, Value
from recbole_mm.errors import DataError, StoreError
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.progress import progress

logger = logging.getLogger(__name__)

Input = TypeVar("Input")
Key = TypeVar("Key", bound=Hashable)

DEFAULT_BATCH = 64
REASONS_LOGGED = 3


Work = Callable[[list[Any]], Sequence[Value | Failure]]
Batches = int | Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]


class OnDemand(Mapping[Key, Input], Generic[Key, Input]):
    """A mapping that makes a value at each look-up and keeps none.

    The prompts of a million users are gigabytes, of which one batch at a time is needed.

    Args:
        keys: the keys, in order.
        make: key -> value, the same at each call.

    Example:
        >>> squares = OnDemand([1, 2, 3], lambda number: number**2)
        >>> squares[3], len(squares), dict(squares)
        (9, 3, {1: 1, 2: 4, 3: 9})
    """

    def __init__(self, keys: Iterable[Key], make: Callable[[Key], Input]) -> None:
        self._keys, self._make = dict.fromkeys(keys), make

    def __getitem__(self, key: Key) -> Input:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys  # `Mapping` would make the value

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass
class FillReport:
    """What a call of `fill` did.

    Attributes:
        done: number of keys that have a value now.
        computed: number of keys whose value this call computed.
        failed: number of keys that have no value now.
        seconds: wall time.
        reasons: key -> reason, of the keys that have no value.
    """

    done: int = 0
    computed: int = 0
    failed: int = 0
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)


def fill(
    store: Store,
    stage: str,
    inputs: Mapping[str, Input],
    work: Work,
    batches: Batches = DEFAULT_BATCH,
    show_progress: bool = True,
    label: str | None = None,
    executor: Executor | None = None,
    remote_work: RemoteWork | None = None,
) -> FillReport:
    """Compute the values of the keys that the store lacks, and write each batch in one transaction when it is done.

    After an interrupt all batches but the one in flight are kept, and the next call computes only the rest. Several
    processes may fill one store at once. Of those that want the same keys one computes and the others wait for it.
    Where they want some keys in common, a batch skips what another process has finished.

    Args:
        store: receives the values.
        stage: name of the stage, for counting and for the progress display.
        inputs: key -> input, of every key that is wanted; looked up when its batch is cut, possibly several times
            (`OnDemand`).
        work: computes one batch: takes a list of inputs, returns as many values or `Failure`s in the same order.
        batches: number of inputs per batch, or a function from the missing inputs to an iterable of batches. Such a
            function may prepare inputs ahead of the work: each batch maps keys to what `work` takes, or to a `Failure`
            where preparing failed.
        show_progress: show a progress display.
        label: text of the display; the stage's name by default.
        executor: computes in other processes; None computes in this one.
        remote_work: `work` and `batches` for the executor; None computes in this process.

    Returns:
        The counts, over the distinct keys of `inputs`.

    Raises:
        StoreError: the store cannot be read, or be written where something is missing.
        ValueError: `work` returned another number of values than it got inputs, or `batches` left some out.

    Example:
        >>> from recbole_mm.artifacts.store import Store
        >>> store = Store(tmp_path / "artifacts.sqlite")
        >>> fill(store, "upper", {"k1": "a", "k2": "b"}, lambda texts: [text.upper() for text in texts]).computed
        2
    """
    started = time.perf_counter()
    report = FillReport(done=len(store.sound(inputs)))
    if report.done < len(inputs):
        if store.read_only:
            lacking = f"{len(inputs) - report.done} of {len(inputs)} values of {stage} are not in the store"
            raise StoreError(f"{store.path}: {lacking}, and {READ_ONLY}")
        cut = batches if callable(batches) else _every(batches)
        if executor is not None and remote_work is not None:
            cut, work = partial(executor.stream, remote_work), list  # its batches are finished values already
        with locked(store.path.with_name(f"{store.path.stem}-{_digest(inputs)}"), f"computing {label or stage} for"):
            present = store.contains(inputs)
            missing = OnDemand((key for key in inputs if key not in present), inputs.__getitem__)
            report.done = len(present)
            keys = _finished_keys(store, stage, cut(missing) if missing else (), work, report)
            for _ in progress(keys, label or stage, total=len(missing), unit="it", show=show_progress):
                pass
    if report.done + report.failed != len(inputs):
        raise ValueError(f"{stage}: the batches covered {report.done + report.failed} of {len(inputs)} inputs")
    report.seconds = time.perf_counter() - started
    if report.reasons:
        shown = "; ".join(f"{key[:12]}: {reason}" for key, reason in islice(report.reasons.items(), REASONS_LOGGED))
        logger.warning("%s: %d of %d could not be computed (%s)", stage, report.failed, len(inputs), shown)
    return report


def require_finite(report: FillReport, encoder: str, name: Callable[[str], str]) -> None:
    """Make sure that no vector is missing because its encoder gave NaN or infinity.

    Args:
        report: what `fill` returned.
        encoder: name of the encoder, for the error message.
        name: key -> name of its input, for the error message.

    Raises:
        DataError: a vector is; names the encoder and the first input.
    """
    broken = [key for key, reason in report.reasons.items() if reason == NOT_FINITE]
    if broken:
        raise DataError(
            f"{encoder} gave NaN or infinity for {len(broken)} inputs, such as {name(broken[0])}; choose another dtype "
            "(float32) or another encoder"
        )


def _digest(keys: Iterable[str]) -> str:
    """Returns a hash that does not depend on the order of the keys."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()[:16]


def _every(size: int) -> Callable[[Mapping[str, Any]], Iterator[Mapping[str, Any]]]:
    """Returns a function that cuts inputs, in order, into batches of `size`."""
    if size < 1:
        raise ValueError(f"a batch holds at least one input, not {size}")

    def cut(missing: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        items = iter(missing.items())
        while batch := dict(islice(items, size)):
            yield batch

    return cut


def _finished_keys(
    store: Store,
    stage: str,
    batches: Iterable[Mapping[str, Any]],
    work: Work,
    report: FillReport,
) -> Iterator[str]:
    """Compute the batches; yields each key once its batch is in the store."""
    for batch in batches:
        finished = store.contains(batch)
        todo = {key: value for key, value in batch.items() if key not in finished and not isinstance(value, Failure)}
        unprepared = {key: value for key, value in batch.items() if key not in finished and key not in todo}
        reasons = {key: value.reason for key, value in unprepared.items()}
        values: dict[str, Value] = {}
        for key, outcome in zip(todo, _outcomes(stage, work, list(todo.values())), strict=True):
            if isinstance(outcome, Failure):
                reasons[key] = outcome.reason
            else:
                values[key] = outcome
        if values:
            store.put_many(stage, values)
        if reasons:
            store.fail_many(stage, reasons)
        report.done += len(finished) + len(values)
        report.computed += len(values)
        report.failed += len(reasons)
        report.reasons.update(reasons)
        yield from batch


def _outcomes(stage: str, work: Work, inputs: list[Any]) -> list[Value | Failure]:
    """Returns the outcomes of one batch. A vector with NaN or infinity becomes a failure."""
    outcomes = list(work(inputs)) if inputs else []
    if len(outcomes) != len(inputs):
        raise ValueError(f"{stage}: the worker returned {len(outcomes)} values for {len(inputs)} inputs")
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, np.ndarray) and not np.isfinite(outcome).all():
            outcomes[place] = Failure(NOT_FINITE)
    return outcomes
