"""Trials of a search in Ray's processes, by Ray Tune, and single tasks in processes of the same kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_mm.distributed.cluster import Names, Resources, environment, ray_session
from recbole_mm.errors import RecboleMMError

MAX_RETRIES = 1
"""Times that a trial is tried again after it failed."""

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # or Ray Tune prints a frame even at verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials keep their own logs and boards
}

_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
"""Ray Tune's limit of trials that wait for their process: by default one, and a process needs seconds to import torch.
"""

_NAMES = Names(cpus="--cpus_per_trial", gpus="--gpus_per_trial", jobs="--jobs")


@dataclass(frozen=True)
class TrialResources(Resources):
    """What a search asks of Ray: `cpus` and `gpus` of one trial, and `jobs` trials at the same time."""

    names: Names = _NAMES


@contextmanager
def trial_session(asked: TrialResources) -> Iterator[int]:
    """`ray_session` for Ray Tune; yields the number of trials that may run at the same time."""
    with environment(_QUIET), ray_session(asked) as at_once, environment({_PENDING: str(at_once)}):
        yield at_once


def run_trials(
    trial: Callable[[dict[str, Any], Callable[[Mapping[str, Any]], None]], None],
    resources: TrialResources,
    *,
    count: int,
    at_once: int,
    searcher: Any,
    scheduler: Any,
    callbacks: Sequence[Any],
    scratch: Path,
) -> None:
    """Run trials until the searcher has no more settings.

    Args:
        trial: called in a process of its own with what the searcher suggests, and with a function that reports metrics.
        resources: CPUs and GPUs of a trial.
        count: number of trials.
        at_once: number of trials at the same time.
        searcher, scheduler, callbacks: as Ray Tune takes them.
        scratch: folder for Ray's own files; removed before and afterwards.
    """
    from ray import tune

    def run(config: dict[str, Any]) -> None:
        trial(config, lambda metrics: tune.report(dict(metrics)))

    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tune.Tuner(
            tune.with_resources(run, {"cpu": resources.cpus, "gpu": resources.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=count,
                max_concurrent_trials=at_once,
                reuse_actors=True,  # the imports alone take longer than a small trial
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch),
                callbacks=list(callbacks),
                failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class TaskError(Exception):
    """A task failed; the message says why in one line."""


def run_task(function: Callable[..., Any], *arguments: Any, resources: TrialResources) -> Any:
    """Returns what a function returns in one of Ray's processes.

    Raises:
        TaskError: the function raised an exception, or its process was lost.
    """
    import ray

    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        reason = " ".join(str(cause or error).split())
        kind = "" if cause is None or isinstance(cause, RecboleMMError) else f"{type(cause).__name__}: "
        raise TaskError(f"{kind}{reason}") from error
