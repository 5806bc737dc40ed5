"""Seconds and peak memory of the stages of a run, and the versions it ran with."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("recbole", "torch", "transformers", "peft", "numpy", "scipy", "pandas", "ray")


class Stages:
    """Measures seconds and peak memory of the stages of a run.

    Args:
        measured: stages that another process has measured.

    Example:
        >>> stages = Stages()
        >>> with stages("training"):
        ...     total = sum(range(10))
        >>> list(stages.as_dict())
        ['training']
    """

    def __init__(self, measured: Mapping[str, dict[str, float]] | None = None) -> None:
        self._measured: dict[str, dict[str, float]] = dict(measured or {})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            yield
        finally:
            measured = {"seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb()}
            if torch.cuda.is_available():
                measured["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
            self._measured[name] = {key: round(value, 3) for key, value in measured.items()}

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Returns stage -> seconds, and the process's peak resident memory by its end."""
        return self._measured


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in ("recbole_mm", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
