"""What Ray Tune calls during a search: the draws, the scheduler that stops trials early, and the recorder."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from recbole_mm.experiments.tune.plan import Search
from recbole_mm.experiments.tune.records import (
    DONE,
    FAILED,
    FAILURE,
    OUTCOME,
    RUNNING,
    STOPPED,
    Record,
    best_of,
    drop_weights,
    end,
    read_records,
    trial_dir,
    write_record,
)
from recbole_mm.experiments.tune.space import Range, format_value
from recbole_mm.utils.files import read_json
from recbole_mm.utils.progress import duration

logger = logging.getLogger(__name__)

SCORE, EPOCH = "score", "epoch"
"""Names under which a trial reports its best score so far, and the epochs it has trained."""

REDUCTION = 3
"""ASHA keeps one trial of so many at each rung, and the next rung is so many times as far."""


class Draws(Searcher):
    """Draws trials: first those that were interrupted, then new ones, at random or from Optuna.

    Args:
        search: to draw for.
        records: every trial so far; new ones are added, and written into their folders.
    """

    def __init__(self, search: Search, records: list[Record]) -> None:
        super().__init__(metric=SCORE, mode=_mode(search))
        self.search, self.records = search, records
        known = {record.number: record for record in records}
        self._again = deque(record for record in records if not record.ended)
        self._new = deque(number for number in range(1, search.trials + 1) if number not in known)
        self._points = search.space.points(search.seed, search.trials)
        self._optuna = _optuna(search, records) if self._wants_optuna() else None

    def _wants_optuna(self) -> bool:
        """A space that the trials use up is tried out whole, and there is nothing to choose."""
        return self.search.search == "optuna" and self.search.trials < self.search.space.size

    @property
    def waiting(self) -> int:
        """Trials still to be started."""
        return len(self._again) + len(self._new)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's `number` and `settings`; `FINISHED` if there are enough."""
        if not self.waiting:
            return Searcher.FINISHED
        drawn = self._optuna.suggest(trial_id) if self._optuna else None  # earlier points come back in their order
        if self._again:
            record = self._again.popleft()
        else:
            number = self._new.popleft()
            point = self._points[number - 1] if drawn is None else drawn
            record = Record(number, point, self.search.space.settings(point))
            self.records.append(record)
            write_record(self.search.out, record)
        return {"number": record.number, "settings": record.settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a trial's validation on to Optuna."""
        if self._optuna:
            self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass a trial's end on to Optuna."""
        if self._optuna:
            self._optuna.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search is resumed from the records of its trials, without pickle."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""


def _mode(search: Search) -> str:
    return "max" if search.bigger else "min"


def _optuna(search: Search, records: Sequence[Record]) -> Any:
    """Returns Ray Tune's Optuna search, which knows the trials that have ended and draws the unfinished ones first.

    Its seed depends on the number of trials, or it would draw the first points again.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([search.seed, len(records)]).generate_state(1)[0])
    found = OptunaSearch(
        {key: _distribution(range_) for key, range_ in search.space.ranges.items()},
        metric=SCORE,
        mode=_mode(search),
        points_to_evaluate=[record.point for record in records if not record.ended],
        seed=seed,
    )
    for record in records:
        best = record.best(search.bigger)
        if record.ended and (best is not None or record.status == FAILED):
            found.add_evaluated_point(record.point, best[1] if best else 0.0, error=record.status == FAILED)
    return found


def _distribution(range_: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if range_.kind == "choice":
        return CategoricalDistribution(range(len(range_.values)))
    low, high = range_.values
    return (
        IntDistribution(low, high)
        if range_.kind == "randint"
        else FloatDistribution(low, high, log=range_.kind == "loguniform")
    )


def scheduler(search: Search, records: Sequence[Record]) -> TrialScheduler:
    """Returns what stops trials early: ASHA, which knows the trials that have ended, or nothing.

    Its last rung lies after the last epoch: a trial that comes so far ends by itself.
    """
    if search.scheduler == "none":
        return FIFOScheduler()
    most = search.most_epochs + 1
    asha = ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode=_mode(search),
        max_t=most,
        grace_period=min(search.grace_epochs, most),
        reduction_factor=REDUCTION,
    )
    controller: Any = None  # which ASHA does not use
    for record in records:
        if record.ended:
            trial: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")
            asha.on_trial_add(controller, trial)
            for place, (epochs, _) in enumerate(record.scores, start=1):
                so_far = [score for _, score in record.scores[:place]]
                best = max(so_far) if search.bigger else min(so_far)
                asha.on_trial_result(controller, trial, {EPOCH: epochs, SCORE: best})
            asha.on_trial_remove(controller, trial)
    return asha


class Recorder(tune.Callback):
    """Writes the record of every trial as it changes, and logs how each ends."""

    def __init__(self, search: Search, records: list[Record]) -> None:
        self.search, self.records = search, records

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial runs, and its attempt."""
        record = self._record(trial)
        record.attempts += 1
        record.status = RUNNING
        write_record(self.search.out, record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a trial's validation."""
        record = self._record(trial)
        record.add_validation(result[EPOCH], result["epoch_score"], result["seconds"])
        write_record(self.search.out, record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log that a trial has failed and is tried once more."""
        record = self._record(trial)
        logger.warning("trial %d failed and is tried once more: %s", record.number, self._reason(record))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial has failed, with its reason."""
        record = self._record(trial)
        record.status, record.reason = FAILED, self._reason(record)
        self._ended(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial's result, or that it was stopped."""
        record = self._record(trial)
        outcome = trial_dir(self.search.out, record.number) / OUTCOME
        if outcome.is_file():
            end(record, read_json(outcome))
        else:  # its process was stopped while it waited in its report
            record.status = STOPPED
        self._ended(record)

    def _record(self, trial: Any) -> Record:
        number = trial.config["number"]
        found = next((record for record in self.records if record.number == number), None)
        if found is None:  # by way of ray://, this object and the one that draws are copies of what they were
            found = next(record for record in read_records(self.search.out) if record.number == number)
            self.records.append(found)
        return found

    def _reason(self, record: Record) -> str:
        """Why the trial's process failed, as it wrote it down; a process that was killed writes nothing."""
        path = trial_dir(self.search.out, record.number) / FAILURE
        if path.is_file():
            return path.read_text(encoding="utf-8").partition("\n")[0]
        return "its process died, perhaps out of memory"

    def _ended(self, record: Record) -> None:
        write_record(self.search.out, record)
        drop_weights(self.search.out, self.records, self.search.bigger)
        over = sum(other.ended for other in self.records)
        where = f"[{over}/{self.search.trials}] trial {record.number}"
        drawn = ", ".join(f"{key}={format_value(value)}" for key, value in record.settings.items())
        if record.status == FAILED:
            logger.error("%s failed: %s: %s", where, drawn, record.reason)
            return
        best, leader = record.best(self.search.bigger), best_of(self.records, self.search.bigger)
        score = f"{self.search.metric} {best[1]:.4f}" if best else "no score"
        status = "" if record.status == DONE else f", {record.status}"
        leading = f" (best so far: trial {leader.number})" if leader is not None else ""
        after = f"{record.epochs} epochs, {duration(record.seconds)}{status}"
        logger.info("%s: %s after %s: %s%s", where, score, after, drawn, leading)
