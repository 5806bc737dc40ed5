"""A Ray session: started on this machine, or connected to a cluster; and what is checked before."""

from __future__ import annotations

import gc
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
"""The address that starts Ray on this machine."""

REACH_SECONDS = 5.0
LEAST_STORE_MB = 75
"""Ray's own minimum for its object store."""

STORE_MB = 100
"""Object store of a Ray that is started here: enough for settings and scores."""

LONGEST_PARENT = 20
"""Most characters of the path above Ray's folder: a socket's path may have 107 bytes, and Ray adds some eighty."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # usage statistics are not sent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns about how it hides GPUs from processes without any
}


@dataclass(frozen=True)
class Names:
    """What error messages call the numbers of `Resources`.

    Attributes:
        cpus, gpus, jobs, store, address: names of the settings or options.
    """

    cpus: str
    gpus: str
    jobs: str
    store: str = "--object_store_mb"
    address: str = "--ray_address"


@dataclass(frozen=True)
class Resources:
    """What is asked of Ray.

    Attributes:
        cpus, gpus: of one process (a trial, a worker); GPUs may be a fraction, shared by several processes.
        jobs: number of processes at the same time; 0 for as many as there is room for.
        address: address of a cluster (`auto`, host:port or ray://host:port); None or `local` starts Ray on this machine
            and stops it afterwards.
        store_mb: megabytes of the object store of a Ray that is started here.
        names: for error messages.
    """

    cpus: float
    gpus: float
    jobs: int
    address: str | None
    store_mb: int | None
    names: Names

    @property
    def is_local(self) -> bool:
        """Whether Ray is started on this machine."""
        return self.address in (None, LOCAL)


def check_resources(asked: Resources) -> None:
    """Make sure, before Ray is started, that it can run what is asked.

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
    if not asked.is_local:
        if asked.store_mb is not None:
            raise ConfigError(f"{names.store} is for a Ray that is started here; the cluster has its own store")
        _check_reachable(asked)
        return
    if asked.store_mb is not None and asked.store_mb < LEAST_STORE_MB:
        raise ConfigError(f"{names.store}={asked.store_mb} is too small: Ray needs at least {LEAST_STORE_MB}")
    _check_room(asked, [{"CPU": cores(), "GPU": torch.cuda.device_count()}])


@contextmanager
def ray_session(asked: Resources) -> Iterator[int]:
    """Start or connect to Ray for the length of a block; a session that this process has is used as it is.

    Yields:
        The number of processes that may run at the same time.

    Raises:
        ConfigError: the cluster does not answer, or has no room for one of them.
    """
    import ray

    started = not ray.is_initialized()
    with environment(_QUIET), _folder_of_ray(started and asked.is_local) as folder:
        try:
            if started:
                _start(asked, folder)
            room = _check_room(asked, alive_nodes())
            yield asked.jobs or room
        finally:
            if started:
                ray.shutdown()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a block."""
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


def alive_nodes() -> list[dict[str, float]]:
    """Returns the resources of each node of the connected cluster that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def set_up_process(cwd: str, cpus: float) -> None:
    """Make one of Ray's processes work like the command's own: in its directory, with its share of the CPU cores.

    Args:
        cwd: working directory of the command; Ray changes into a folder of its own.
        cpus: CPU cores of this process. `OMP_NUM_THREADS` may ask for fewer threads.
    """
    gc.collect()  # the process may have done other work before
    torch.cuda.empty_cache()
    if Path(cwd).is_dir():
        os.chdir(cwd)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(cpus))
    torch.set_num_threads(min(threads, int(given)) if given.isdigit() and int(given) else threads)


def inside_ray() -> bool:
    """Returns whether Ray has started this process: a trial of a search, or a worker."""
    ray = sys.modules.get("ray")  # imported in every process that Ray starts
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _folder_of_ray(is_started: bool) -> Iterator[dict[str, Any]]:
    """Yields options for `ray.init` that keep sockets and logs in a folder, which is removed afterwards."""
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
        if not asked.is_local:
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
        reason = " ".join(str(error).split())
        if asked.address == "auto" and isinstance(error, ConnectionError):
            raise ConfigError(
                f"{asked.names.address}=auto: no Ray runs on this machine; start one with `ray start --head`"
            ) from error
        if not asked.is_local:
            raise ConfigError(
                f"{asked.names.address}={asked.address}: no Ray cluster answers there ({reason})"
            ) from error
        raise ConfigError(f"Ray cannot be started on this machine ({reason})") from error


def _check_reachable(asked: Resources) -> None:
    """Make sure that a server listens at the address; Ray itself would try for minutes."""
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
    """Make sure that one process fits on a node, and `jobs` of them on all; returns how many fit."""
    names, where = asked.names, "this machine" if asked.is_local else "the cluster"
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
    for option, name, number in ((names.cpus, "CPU", asked.cpus), (names.gpus, "GPU", asked.gpus)):
        if number > most[name]:
            place = where if len(nodes) == 1 else f"the largest node of {where}"
            raise ConfigError(f"{option}={number:g}: {place} has {_counted(most[name], name)}; give at most as many")
    room, each = sum(_fitting(asked, node) for node in nodes), _counted(asked.cpus, "CPU")
    if asked.gpus:
        each += f" and {_counted(asked.gpus, 'GPU')}"
    if room < 1:
        raise ConfigError(f"no node of {where} has {each} at once; give fewer")
    if asked.jobs > room:
        raise ConfigError(
            f"{names.jobs}={asked.jobs}: {where} has room for {room} at the same time, of {each} each; give fewer, or "
            "less to each"
        )
    return room


def _counted(number: float, name: str) -> str:
    return f"{number:g} {name}{'s' * (number != 1)}"


def _fitting(asked: Resources, node: Mapping[str, float]) -> int:
    """Returns how many processes fit on a node at once."""
    by_cpu = int(node.get("CPU", 0) / asked.cpus + 1e-9)
    if not asked.gpus:
        return by_cpu
    gpus = int(node.get("GPU", 0))
    by_gpu = gpus * int(1 / asked.gpus + 1e-9) if asked.gpus <= 1 else int(gpus / asked.gpus + 1e-9)
    return min(by_cpu, by_gpu)
