"""Training on several workers from the command's side: checks, artifacts, and Ray Train's TorchTrainer.

The command computes everything that is costly and stored, builds the model once to find what does not fit, and lets go
of all that. The workers then find the same things in the store, train, test, and leave a run's folder behind.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_mm.config.resolved import Config
from recbole_mm.distributed.cluster import Names, Resources, check_resources, environment, ray_session
from recbole_mm.distributed.worker import Job, read_verdict, train_worker
from recbole_mm.errors import RecboleMMError
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.profiling import Stages
from recbole_mm.training.ddp import adapt_losses, check_supported
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.log import LOG_FILE

logger = logging.getLogger(__name__)

LOST = 3
"""Times that training is taken up again from its checkpoint after a worker was lost."""

PATIENCE = 24 * 3600
"""Seconds that a worker waits for the others. A process that dies is noticed at once, by its connections."""

_QUIET = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # importing torch on a busy machine takes longer than the minute
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}

_NAMES = Names(cpus="--train_workers: CPUs", gpus="--train_workers: GPUs", jobs="--train_workers", several="workers")


class LostWorkerError(RecboleMMError):
    """Workers were lost, or failed for a reason of their own, more often than training is taken up again."""


def check_workers(config: Config) -> None:
    """Find what stands against training on `train_workers` workers, before anything is spent.

    Raises:
        ConfigError: a model that takes one process, more workers than there is room for, or an unreachable cluster.
    """
    model_class = full_sequence_class(config.model_class) if config["full_sequence"] else config.model_class
    check_supported(config, model_class)
    check_resources(_asked(config))


def train_on_workers(
    config: Config,
    run_dir: Path,
    stages: Stages,
    sees_held_out: Sequence[str] = (),
    beside: Mapping[str, dict[str, float]] | None = None,
) -> None:
    """Provide what the run needs, train and test it on its workers; the folder is that of a finished run then.

    Args:
        config: of the run, saved in its folder.
        run_dir: the run's folder, which all workers reach under the same path.
        stages: measures the stages before training.
        sees_held_out, beside: as in `pipeline.Run`.

    Raises:
        RecboleMMError: something the user can mend, in this process or in a worker.
        LostWorkerError: workers were lost too often.
    """
    _prepare(config, run_dir, stages)
    asked = _asked(config)
    read_verdict(run_dir)  # of an earlier attempt
    with environment(_QUIET), ray_session(asked):
        cpus = cpus_each(_nodes(), asked.jobs, asked.gpus)
        job = Job(
            str(run_dir.absolute()),
            os.getcwd(),
            config.model_class,
            cpus,
            stages.as_dict(),
            list(sees_held_out),
            dict(beside or {}),
        )
        logger.info("training on %d workers of %d CPUs and %g GPUs each", asked.jobs, cpus, asked.gpus)
        _fit(job, asked)


def cpus_each(nodes: Sequence[Mapping[str, float]], count: int, gpus: float) -> int:
    """Most CPUs that each of `count` workers can have on these nodes, at least 1; with `gpus` GPUs each."""
    for cpus in range(int(sum(node.get("CPU", 0) for node in nodes)) // count, 1, -1):
        rooms = (
            min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf")) for node in nodes
        )
        if sum(rooms) >= count:
            return cpus
    return 1


def _asked(config: Config) -> Resources:
    """A GPU for each worker where this process would use one."""
    gpus = 1 if config["device"].type == "cuda" else 0
    return Resources(1, gpus, config["train_workers"], config["ray_address"], None, _NAMES)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _prepare(config: Config, run_dir: Path, stages: Stages) -> None:
    """Fill the artifact store, draw candidates, and find what does not fit; nothing of it is kept in memory."""
    assembled = pipeline.assemble(config, run_dir, stages)
    adapt_losses(assembled.model)
    make_trainer(config, assembled.model, run_dir)
    del assembled
    gc.collect()
    torch.cuda.empty_cache()


def _fit(job: Job, asked: Resources) -> None:
    """Ray Train's part of it, in a thread, while this one repeats what the first worker writes into the run's log.

    An interrupt ends this thread's waiting; the workers end with the Ray session. What Ray keeps of its own is removed:
    the run's checkpoint is enough to go on.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    run_dir = Path(job.run_dir)
    scratch = run_dir / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    limits: dict[str, Any] = {"max_failures": LOST, "controller_failure_limit": LOST}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=PATIENCE),
        scaling_config=ScalingConfig(
            num_workers=asked.jobs,
            use_gpu=bool(asked.gpus),
            resources_per_worker={"CPU": job.cpus, **({"GPU": asked.gpus} if asked.gpus else {})},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=FailureConfig(**limits),
        ),
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
            while thread.is_alive():
                thread.join(0.3)
                _repeat(log.read())
            _repeat(log.read())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if verdict := read_verdict(run_dir):
        raise verdict
    if failures:
        raise _told(failures[0], asked.jobs) from failures[0]


def _repeat(lines: str) -> None:
    if lines:
        sys.stderr.write(lines)
        sys.stderr.flush()


def _told(error: BaseException, count: int) -> LostWorkerError:
    """What ended the training, in a line; the whole of it goes to the log."""
    logger.error("%s", error)
    reasons: Mapping[int, Any] = getattr(error, "worker_failures", {})
    first = next(iter(reasons.values()), error)
    return LostWorkerError(
        f"training on {count} workers ended with: {' '.join(str(first).split())[-300:]}; it is taken up again {LOST} "
        "times at most, and --resume goes on from its checkpoint"
    )
