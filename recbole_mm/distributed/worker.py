"""What happens in a worker's process: the run of one process, of which the first worker alone writes the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_mm.config.resolved import Config
from recbole_mm.distributed.process import settle
from recbole_mm.errors import RecboleMMError
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.profiling import Stages
from recbole_mm.utils.files import read_json, write_json
from recbole_mm.utils.log import close_logging, init_logging
from recbole_mm.utils.process_group import Workers, use_workers

VERDICT = "failure.json"
"""File in the run's folder by which a worker says that training again would fail again, and why."""


@dataclass(frozen=True)
class Job:
    """What all workers are told.

    Attributes:
        run_dir: the run's folder, absolute, with its config in it.
        cwd: working directory of the command: relative paths in settings start there.
        model_class: the model's, which need not be registered.
        cpus: cores of a worker.
        stages: what the command has measured so far.
        sees_held_out, beside: as in `pipeline.Run`.
    """

    run_dir: str
    cwd: str
    model_class: type
    cpus: int
    stages: dict[str, dict[str, float]]
    sees_held_out: list[str]
    beside: dict[str, dict[str, float]]


def train_worker(settings: dict[str, Any]) -> None:
    """One worker's whole life; Ray Train calls it in every worker, and again in all after one was lost.

    Training goes on from the run's checkpoint, so that a loss costs what came after it.

    Raises:
        RecboleMMError: something the user can mend; it is in the folder then, and no later call trains again.
    """
    from ray.train.torch import get_device

    job: Job = settings["job"]
    run_dir = Path(job.run_dir)
    if (run_dir / VERDICT).exists():
        return
    settle(job.cwd, job.cpus)
    workers = Workers()
    init_logging(None, "ERROR")  # what assembling says, the command has said
    try:
        config = worker_config(run_dir, job.model_class, get_device(), workers.is_first)
        with use_workers(workers):
            assembled = pipeline.assemble(config, run_dir, Stages())
            assembled.sees_held_out[:0] = job.sees_held_out
            assembled.beside = job.beside
            if workers.is_first:
                init_logging(run_dir, config["state"])
            pipeline.train_and_test(assembled, Stages(job.stages), resume=(run_dir / run_folder.CHECKPOINT).exists())
    except RecboleMMError as error:
        write_verdict(run_dir, error)
        raise
    finally:
        close_logging()


def worker_config(run_dir: Path, model_class: type, device: torch.device, first: bool) -> Config:
    """The run's settings, on the device that Ray has given to this worker."""
    config = Config.load(run_dir / run_folder.CONFIG, model_class, {"gpu_id": ""})
    config.final_config_dict["device"] = device
    config.final_config_dict["ray_address"] = None  # nothing is left to be computed on a cluster
    config.final_config_dict["log_wandb"] = bool(config["log_wandb"]) and first
    return config


def write_verdict(run_dir: Path, error: RecboleMMError) -> None:
    """Keep the first error that no second attempt would mend."""
    path = run_dir / VERDICT
    if path.exists():
        return
    write_json(path, {"kind": type(error).__name__, "message": str(error)})


def read_verdict(run_dir: Path) -> RecboleMMError | None:
    """The error that a worker has left, taken out of the folder; None if there is none."""
    path = run_dir / VERDICT
    if not path.exists():
        return None
    told = read_json(path)
    path.unlink()
    kinds, left = {}, [RecboleMMError]
    while left:
        kind = left.pop()
        kinds[kind.__name__] = kind
        left += kind.__subclasses__()
    return kinds.get(told["kind"], RecboleMMError)(told["message"])
