"""Ray for the length of a search: one of its own on this machine, or a cluster that is there; checked before use."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from recbole_mm.errors import ConfigError

REACH_SECONDS = 5.0
LEAST_STORE_MB = 75
"""Ray's own minimum for its object store."""

STORE_MB = 100
"""Enough: what passes through Ray's object store are settings and scores."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_AIR_NEW_OUTPUT": "0",  # or Ray Tune prints a frame even where it is told to print nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials keep their own logs and boards
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns about how it hides GPUs from trials without any
}

_PENDING = "TUNE_MAX_PENDING_TRIALS_PG"
"""Of Ray Tune: trials that may wait for their process. By default one, and a process needs seconds to import torch."""


@dataclass(frozen=True)
class Resources:
    """What a search asks of Ray.

    Attributes:
        cpus, gpus: of one trial; GPUs may be a fraction, shared by several trials.
        jobs: trials at the same time; 0 for as many as there is room for.
        address: of a cluster (`auto`, host:port or ray://host:port); None starts Ray here and stops it afterwards.
        store_mb: object store of a Ray that is started here.
    """

    cpus: float
    gpus: float
    jobs: int
    address: str | None
    store_mb: int | None


def check_resources(asked: Resources) -> None:
    """Find what cannot work before Ray is started.

    Raises:
        ConfigError: numbers that make no sense, more than this machine has, or a cluster that cannot be reached.
    """
    for option, number, least in (("cpus_per_trial", asked.cpus, 0), ("gpus_per_trial", asked.gpus, -1)):
        if not least < number < float("inf") or number < 0:
            raise ConfigError(f"--{option}={number:g}: give a number {'above' if least == 0 else 'of at least'} 0")
    if asked.gpus > 1 and asked.gpus != int(asked.gpus):
        raise ConfigError(f"--gpus_per_trial={asked.gpus:g}: give a whole number, or a share of one GPU such as 0.5")
    if asked.jobs < 0:
        raise ConfigError(f"--jobs={asked.jobs}: give a number of at least 0; 0 runs as many as there is room for")
    if asked.address is not None:
        if asked.store_mb is not None:
            raise ConfigError("--object_store_mb is for a Ray that is started here; the cluster has its own store")
        _check_reachable(asked.address)
        return
    if asked.store_mb is not None and asked.store_mb < LEAST_STORE_MB:
        raise ConfigError(f"--object_store_mb={asked.store_mb} is too small: Ray needs at least {LEAST_STORE_MB}")
    _check_room(asked, [{"CPU": cores(), "GPU": torch.cuda.device_count()}], "this machine")


@contextmanager
def ray_session(asked: Resources) -> Iterator[int]:
    """Ray, connected and with room for the trials; a Ray that is running in this process is used as it is.

    Gives how many trials may run at the same time.

    Raises:
        ConfigError: the cluster does not answer, or has no room for one trial.
    """
    import ray

    before = {key: os.environ.get(key) for key in (*_QUIET, _PENDING)}
    os.environ.update(_QUIET)
    started = not ray.is_initialized()
    try:
        if started:
            _start(asked)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = _check_room(asked, nodes, "the cluster" if asked.address else "this machine")
        at_once = asked.jobs or room
        os.environ[_PENDING] = str(at_once)
        yield at_once
    finally:
        if started:
            ray.shutdown()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(asked: Resources) -> None:
    import ray

    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if asked.address is not None:
            ray.init(address=asked.address, **shared)
        else:
            ray.init(
                address="local",
                num_cpus=cores(),
                num_gpus=torch.cuda.device_count(),
                object_store_memory=(asked.store_mb or STORE_MB) * 2**20,
                include_dashboard=False,
                **shared,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        told = " ".join(str(error).split())
        if asked.address is not None:
            raise ConfigError(f"--ray_address={asked.address}: no Ray cluster answers there ({told})") from error
        raise ConfigError(f"Ray cannot be started on this machine ({told})") from error


def _check_reachable(address: str) -> None:
    """Whether somebody listens at the address; Ray itself would try for minutes."""
    if address == "auto":
        return
    found = re.fullmatch(r"(?:ray://)?([^/:\s]+):(\d{1,5})", address)
    if not found:
        raise ConfigError(f"--ray_address={address}: give auto, host:port or ray://host:port")
    try:
        socket.create_connection((found[1], int(found[2])), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray_address={address}: no Ray cluster can be reached there ({error}); start one with `ray start --head`"
        ) from error


def _check_room(asked: Resources, nodes: list[dict[str, float]], where: str) -> int:
    """Make sure that a trial fits on a node, and `jobs` of them on all; gives how many fit."""
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
    for option, name, number in (("cpus_per_trial", "CPU", asked.cpus), ("gpus_per_trial", "GPU", asked.gpus)):
        if number > most[name]:
            has = f"{most[name]:g} {name}{'s' * (most[name] != 1)}"
            place = where if len(nodes) == 1 else f"the largest node of {where}"
            raise ConfigError(f"--{option}={number:g}: {place} has {has}; give at most as many")
    room = sum(_fitting(asked, node) for node in nodes)
    if room < 1:
        raise ConfigError(f"no node of {where} has {asked.cpus:g} CPUs and {asked.gpus:g} GPUs at once; give fewer")
    if asked.jobs > room:
        raise ConfigError(
            f"--jobs={asked.jobs}: {where} has room for {room} trials of {asked.cpus:g} CPUs and {asked.gpus:g} GPUs "
            "at the same time; give fewer jobs, or less to each trial"
        )
    return room


def _fitting(asked: Resources, node: dict[str, float]) -> int:
    """How many trials fit on a node at once."""
    by_cpu = int(node.get("CPU", 0) / asked.cpus + 1e-9)
    if not asked.gpus:
        return by_cpu
    gpus = int(node.get("GPU", 0))
    by_gpu = gpus * int(1 / asked.gpus + 1e-9) if asked.gpus <= 1 else int(gpus / asked.gpus + 1e-9)
    return min(by_cpu, by_gpu)
