"""Ray for the length of some work: one of its own on this machine, or a cluster that is there; checked before use."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_mm.errors import ConfigError
from recbole_mm.utils.files import scratch_folder

LOCAL = "local"
"""An address that stands for a Ray of one's own on this machine."""

REACH_SECONDS = 5.0
LEAST_STORE_MB = 75
"""Ray's own minimum for its object store."""

STORE_MB = 100
"""Enough where what passes through Ray's object store are settings and scores."""

LONGEST_PARENT = 20
"""Of a path to Ray's folder: a socket's path may have 107 bytes, and Ray adds some eighty."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns about how it hides GPUs from processes without any
}


@dataclass(frozen=True)
class Names:
    """What messages call the numbers of `Resources`: the settings as a user gives them, and what they are of."""

    cpus: str
    gpus: str
    jobs: str
    several: str
    store: str = "--object_store_mb"
    address: str = "--ray_address"


@dataclass(frozen=True)
class Resources:
    """What is asked of Ray.

    Attributes:
        cpus, gpus: of one process (a trial, a worker); GPUs may be a fraction, shared by several.
        jobs: processes at the same time; 0 for as many as there is room for.
        address: of a cluster (`auto`, host:port or ray://host:port); None or `local` starts Ray here and stops it
            afterwards.
        store_mb: object store of a Ray that is started here.
        names: for messages.
    """

    cpus: float
    gpus: float
    jobs: int
    address: str | None
    store_mb: int | None
    names: Names

    @property
    def here(self) -> bool:
        """Whether Ray is started on this machine."""
        return self.address in (None, LOCAL)


def check_resources(asked: Resources) -> None:
    """Find what cannot work before Ray is started.

    Raises:
        ConfigError: numbers that make no sense, more than this machine has, or a cluster that cannot be reached.
    """
    names = asked.names
    for option, number, least in ((names.cpus, asked.cpus, 0), (names.gpus, asked.gpus, -1)):
        if not least < number < float("inf") or number < 0:
            raise ConfigError(f"{option}={number:g}: give a number {'above' if least == 0 else 'of at least'} 0")
    if asked.gpus > 1 and asked.gpus != int(asked.gpus):
        raise ConfigError(f"{names.gpus}={asked.gpus:g}: give a whole number, or a share of one GPU such as 0.5")
    if asked.jobs < 0:
        raise ConfigError(
            f"{names.jobs}={asked.jobs}: give a number of at least 0; 0 runs as many as there is room for"
        )
    if not asked.here:
        if asked.store_mb is not None:
            raise ConfigError(f"{names.store} is for a Ray that is started here; the cluster has its own store")
        _check_reachable(asked)
        return
    if asked.store_mb is not None and asked.store_mb < LEAST_STORE_MB:
        raise ConfigError(f"{names.store}={asked.store_mb} is too small: Ray needs at least {LEAST_STORE_MB}")
    _check_room(asked, [{"CPU": cores(), "GPU": torch.cuda.device_count()}])


@contextmanager
def ray_session(asked: Resources) -> Iterator[int]:
    """Ray, connected and with room for what is asked; a Ray that is running in this process is used as it is.

    Gives how many of the processes may run at the same time.

    Raises:
        ConfigError: the cluster does not answer, or has no room for one of them.
    """
    import ray

    started = not ray.is_initialized()
    with environment(_QUIET), _folder_of_ray(started and asked.here) as folder:
        try:
            if started:
                _start(asked, folder)
            room = _check_room(asked, [node["Resources"] for node in ray.nodes() if node["Alive"]])
            yield asked.jobs or room
        finally:
            if started:
                ray.shutdown()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def inside_ray() -> bool:
    """Whether this process is one that Ray has started: a trial of a search, a worker."""
    ray = sys.modules.get("ray")  # a process of Ray's has imported it
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _folder_of_ray(is_started: bool) -> Iterator[dict[str, Any]]:
    """Options that have Ray keep its sockets and logs in a folder that goes with it; Ray alone would leave them."""
    parent = Path(tempfile.gettempdir())
    if not is_started or len(str(parent)) > LONGEST_PARENT:
        yield {}
        return
    with scratch_folder(parent, "ray-") as folder:
        yield {"_temp_dir": str(folder)}


def _start(asked: Resources, folder: Mapping[str, Any]) -> None:
    import ray

    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if not asked.here:
            ray.init(address=asked.address, **shared)
        else:
            ray.init(
                address="local",
                num_cpus=cores(),
                num_gpus=torch.cuda.device_count(),
                object_store_memory=(asked.store_mb or STORE_MB) * 2**20,
                include_dashboard=False,
                **folder,
                **shared,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        told = " ".join(str(error).split())
        if not asked.here:
            raise ConfigError(
                f"{asked.names.address}={asked.address}: no Ray cluster answers there ({told})"
            ) from error
        raise ConfigError(f"Ray cannot be started on this machine ({told})") from error


def _check_reachable(asked: Resources) -> None:
    """Whether somebody listens at the address; Ray itself would try for minutes."""
    address, given = str(asked.address), f"{asked.names.address}={asked.address}"
    if address == "auto":
        return
    found = re.fullmatch(r"(?:ray://)?([^/:\s]+):(\d{1,5})", address)
    if not found:
        raise ConfigError(f"{given}: give auto, host:port, ray://host:port or {LOCAL}")
    try:
        socket.create_connection((found[1], int(found[2])), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{given}: no Ray cluster can be reached there ({error}); start one with `ray start --head`"
        ) from error


def _check_room(asked: Resources, nodes: list[dict[str, float]]) -> int:
    """Make sure that one fits on a node, and `jobs` of them on all; gives how many fit."""
    names, where = asked.names, "this machine" if asked.here else "the cluster"
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
    for option, name, number in ((names.cpus, "CPU", asked.cpus), (names.gpus, "GPU", asked.gpus)):
        if number > most[name]:
            has = f"{most[name]:g} {name}{'s' * (most[name] != 1)}"
            place = where if len(nodes) == 1 else f"the largest node of {where}"
            raise ConfigError(f"{option}={number:g}: {place} has {has}; give at most as many")
    room = sum(_fitting(asked, node) for node in nodes)
    if room < 1:
        raise ConfigError(f"no node of {where} has {asked.cpus:g} CPUs and {asked.gpus:g} GPUs at once; give fewer")
    if asked.jobs > room:
        raise ConfigError(
            f"{names.jobs}={asked.jobs}: {where} has room for {room} {names.several} of {asked.cpus:g} CPUs and "
            f"{asked.gpus:g} GPUs at the same time; give fewer, or less to each"
        )
    return room


def _fitting(asked: Resources, node: Mapping[str, float]) -> int:
    """How many fit on a node at once."""
    by_cpu = int(node.get("CPU", 0) / asked.cpus + 1e-9)
    if not asked.gpus:
        return by_cpu
    gpus = int(node.get("GPU", 0))
    by_gpu = gpus * int(1 / asked.gpus + 1e-9) if asked.gpus <= 1 else int(gpus / asked.gpus + 1e-9)
    return min(by_cpu, by_gpu)
