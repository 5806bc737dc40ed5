"""One function in several worker processes that exchange tensors, by Ray Train's `TorchTrainer`.

Workers are restarted together after one was lost. What the function has written to the run's folder by then is what it
goes on from; Ray's own checkpoints are not used.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_mm.distributed.cluster import Resources, alive_nodes, environment, ray_session, set_up_process
from recbole_mm.errors import RecboleMMError
from recbole_mm.utils.files import read_json, write_json
from recbole_mm.utils.log import LOG_FILE, close_logging, init_logging, without_details
from recbole_mm.utils.process_group import Workers, use_workers

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Restarts after lost workers before training is given up."""

TIMEOUT_SECONDS = 24 * 3600
"""Time that a worker waits for the others. A process that dies is noticed at once, by its connections."""

FAILURE = "failure.json"
"""File in the run's folder with an error that another attempt would meet again."""

_QUIET = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # importing torch on a busy machine takes longer than the minute
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


class LostWorkerError(RecboleMMError):
    """Workers were lost, or failed for a reason of their own, more than `MAX_RESTARTS` times."""


@dataclass(frozen=True)
class TrainJob:
    """What every worker calls; it is sent to Ray's processes.

    Attributes:
        train: a module's function, called as `train(run_dir, device=..., **arguments)`.
        arguments: its keyword arguments.
        run_dir: the run's folder, absolute.
        cwd: working directory of the command: relative paths in settings start there.
        cpus: CPU cores of a worker.
    """

    train: Callable[..., None]
    arguments: dict[str, Any]
    run_dir: str
    cwd: str
    cpus: int


def run_on_workers(
    train: Callable[..., None], arguments: Mapping[str, Any], run_dir: Path, resources: Resources
) -> None:
    """Call a function in `resources.jobs` workers, and write to stderr what the first one adds to the run's log.

    Args:
        train: a module's function, called as `train(run_dir, device=..., **arguments)` in every worker, where
            `current_workers()` is set; again in all of them after one was lost.
        arguments: its keyword arguments.
        run_dir: the run's folder with its log, which all workers reach under the same path.
        resources: what is asked of Ray.

    Raises:
        RecboleMMError: raised by the function in a worker.
        LostWorkerError: workers were lost more than `MAX_RESTARTS` times.
    """
    take_failure(run_dir)  # of an earlier attempt
    with environment(_QUIET), ray_session(resources):
        cpus = cpus_each(alive_nodes(), resources.jobs, resources.gpus)
        job = TrainJob(train, dict(arguments), str(run_dir.absolute()), os.getcwd(), cpus)
        logger.info("training on %d workers of %d CPUs and %g GPUs each", resources.jobs, cpus, resources.gpus)
        _fit(job, resources)


def cpus_each(nodes: Sequence[Mapping[str, float]], count: int, gpus: float) -> int:
    """Returns the most CPUs that each of `count` workers with `gpus` GPUs can have on these nodes, at least 1."""
    for cpus in range(int(sum(node.get("CPU", 0) for node in nodes)) // count, 1, -1):
        rooms = (
            min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf")) for node in nodes
        )
        if sum(rooms) >= count:
            return cpus
    return 1


def _fit(job: TrainJob, resources: Resources) -> None:
    """Run Ray Train in a thread, while this one repeats the lines of the run's log.

    An interrupt ends this thread's waiting; the workers end with the Ray session. Ray's own files are removed.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    run_dir = Path(job.run_dir)
    scratch = run_dir / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    limits: dict[str, Any] = {"max_failures": MAX_RESTARTS, "controller_failure_limit": MAX_RESTARTS}
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=resources.jobs,
            use_gpu=bool(resources.gpus),
            resources_per_worker={"CPU": job.cpus, **({"GPU": resources.gpus} if resources.gpus else {})},
        ),
        run_config=RunConfig(name="train", storage_path=str(scratch), failure_config=FailureConfig(**limits)),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    try:
        with (run_dir / LOG_FILE).open(encoding="utf-8", errors="replace") as log:
            log.seek(0, os.SEEK_END)
            thread.start()
            shown = True
            while thread.is_alive():
                thread.join(0.3)
                shown = _repeat(log.read(), shown)
            _repeat(log.read(), shown)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if failure := take_failure(run_dir):
        raise failure
    if failures:
        raise _summary(failures[0], resources.jobs) from failures[0]


def _repeat(text: str, shown: bool) -> bool:
    """Write what a run's console shows of its log to stderr, and return whether the last line was shown."""
    lines, shown = without_details(text.splitlines(keepends=True), shown)
    sys.stderr.write("".join(lines))
    sys.stderr.flush()
    return shown


def _summary(error: BaseException, count: int) -> LostWorkerError:
    """Returns an error that says in one line what ended the training; all of it goes to the log."""
    logger.error("%s", error)
    reasons: Mapping[int, Any] = getattr(error, "worker_failures", {})
    first = next(iter(reasons.values()), error)
    return LostWorkerError(
        f"training on {count} workers ended with: {' '.join(str(first).split())[-300:]}; it is taken up again "
        f"{MAX_RESTARTS} times at most, and --resume goes on from its checkpoint"
    )


# ------------------------------------------------------------------------------------------------ in a worker process


def run_worker(settings: Mapping[str, Any]) -> None:
    """Call the job's function; Ray Train calls this in every worker, and again in all after one was lost.

    Raises:
        RecboleMMError: raised by the function. It is also in the run's folder, so that no later attempt trains again.
    """
    from ray.train.torch import get_device

    job: TrainJob = settings["job"]
    run_dir = Path(job.run_dir)
    if (run_dir / FAILURE).exists():
        return
    set_up_process(job.cwd, job.cpus)
    init_logging(None, "ERROR")  # the command has logged what assembling says
    try:
        with use_workers(Workers()):
            job.train(run_dir, device=get_device(), **job.arguments)
    except RecboleMMError as error:
        write_failure(run_dir, error)
        raise
    finally:
        close_logging()


def write_failure(run_dir: Path, error: RecboleMMError) -> None:
    """Keep the first error that another attempt would meet again."""
    path = run_dir / FAILURE
    if not path.exists():
        write_json(path, {"kind": type(error).__name__, "message": str(error)})


def take_failure(run_dir: Path) -> RecboleMMError | None:
    """Returns the error that a worker has written, and removes it from the folder; None if there is none."""
    path = run_dir / FAILURE
    if not path.exists():
        return None
    failure = read_json(path)
    path.unlink()
    kinds, left = {}, [RecboleMMError]
    while left:
        kind = left.pop()
        kinds[kind.__name__] = kind
        left += kind.__subclasses__()
    return kinds.get(failure["kind"], RecboleMMError)(failure["message"])
