"""Ray for the length of a search: what trials ask of it, and Ray Tune kept quiet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from recbole_mm.distributed.cluster import Names, Resources, environment, ray_session

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # or Ray Tune prints a frame even where it is told to print nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials keep their own logs and boards
}

_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
"""Of Ray Tune: trials that may wait for their process. By default one, and a process needs seconds to import torch."""

_NAMES = Names(cpus="--cpus_per_trial", gpus="--gpus_per_trial", jobs="--jobs", several="trials")


@dataclass(frozen=True)
class Trials(Resources):
    """What a search asks of Ray: `cpus` and `gpus` of one trial, and `jobs` trials at the same time."""

    names: Names = _NAMES


@contextmanager
def search_session(asked: Trials) -> Iterator[int]:
    """`ray_session` for Ray Tune; gives how many trials may run at the same time."""
    with environment(_QUIET), ray_session(asked) as at_once, environment({_PENDING: str(at_once)}):
        yield at_once
