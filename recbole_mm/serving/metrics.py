"""What Prometheus reads of a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts requests, their seconds, batches and changes of the run; of one server, not of the process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "recbole_mm_requests", "Requests answered, by path and status.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "recbole_mm_request_seconds",
            "Seconds from a request to its answer.",
            ("path",),
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "recbole_mm_batch_size", "Requests that were scored together.", buckets=SIZES, registry=registry
        )
        self._changes = Counter(
            "recbole_mm_changes", "Changes to another run, by outcome.", ("outcome",), registry=registry
        )
        self._waiting = Gauge("recbole_mm_waiting", "Requests that wait to be scored.", registry=registry)
        self._served = Gauge("recbole_mm_run", "1 for the run that is served.", ("run",), registry=registry)

    def watch_waiting(self, count: Callable[[], float]) -> None:
        """Read how many requests wait from a function."""
        self._waiting.set_function(count)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is the pattern of a route, of which there are few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def scored(self, size: int) -> None:
        """Count a batch."""
        self._batches.observe(size)

    def serves(self, run: str) -> None:
        """Tell which run is served."""
        self._served.clear()
        self._served.labels(run).set(1)

    def changed(self, outcome: str) -> None:
        """Count a change of the run: `done` or `failed`."""
        self._changes.labels(outcome).inc()

    def text(self) -> bytes:
        """Return all in Prometheus's text format."""
        return generate_latest(self._registry)
