"""A run whose training is shared by several workers (`train_workers`).

The command computes everything that is costly and stored, builds the model once to find what does not fit, and drops
all of that. The workers then find the same things in the store, train, test, and write the run's folder.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_mm.config.resolved import Config
from recbole_mm.distributed.cluster import Names, Resources, check_resources
from recbole_mm.distributed.training import run_on_workers
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.runs.folder import CONFIG
from recbole_mm.runs.profiling import Stages
from recbole_mm.training.ddp import adapt_losses, check_supported
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.process_group import current_workers

_NAMES = Names(cpus="--train_workers: CPUs", gpus="--train_workers: GPUs", jobs="--train_workers", several="workers")


def check_workers(config: Config) -> None:
    """Find what stands against training on `train_workers` workers, before anything is computed.

    Raises:
        ConfigError: a model that takes one process, more workers than there is room for, or an unreachable cluster.
    """
    model_class = full_sequence_class(config.model_class) if config["full_sequence"] else config.model_class
    check_supported(config, model_class)
    check_resources(worker_resources(config))


def worker_resources(config: Config) -> Resources:
    """Returns what the workers ask of Ray: a GPU for each where this process would use one."""
    gpus = 1 if config["device"].type == "cuda" else 0
    return Resources(1, gpus, config["train_workers"], config["ray_address"], None, _NAMES)


def train_on_workers(
    config: Config,
    run_dir: Path,
    stages: Stages,
    sees_held_out: Sequence[str],
    beside: Mapping[str, dict[str, float]],
    assemble: Callable[[Config, Path, Stages], Any],
    train: Callable[..., None],
) -> None:
    """Compute what the run needs, then train and test it on its workers; its folder is that of a finished run then.

    Args:
        config: the run's settings, saved in its folder.
        run_dir: the run's folder, which all workers reach under the same path.
        stages: measures the stages before training.
        sees_held_out, beside: as in `run.Run`.
        assemble: as `run.assemble`.
        train: a module's function, called in every worker as `train(run_dir, device=..., model_class=..., stages=...,
            sees_held_out=..., beside=...)`.

    Raises:
        RecboleMMError: something the user can mend, in this process or in a worker.
        LostWorkerError: workers were lost too often.
    """
    _check_model(config, run_dir, assemble(config, run_dir, stages).model)
    gc.collect()
    torch.cuda.empty_cache()
    arguments = {
        "model_class": config.model_class,  # which need not be registered
        "stages": stages.as_dict(),
        "sees_held_out": list(sees_held_out),
        "beside": dict(beside),
    }
    run_on_workers(train, arguments, run_dir, worker_resources(config))


def _check_model(config: Config, run_dir: Path, model: torch.nn.Module) -> None:
    """Find what does not fit in a model that workers train.

    Raises:
        ConfigError: it normalises over a batch, or training options do not fit together.
    """
    adapt_losses(model)
    make_trainer(config, model, run_dir)


def worker_config(run_dir: Path, model_class: type, device: torch.device) -> Config:
    """Returns the run's settings for a worker, on the device that Ray has given to it."""
    workers = current_workers()
    config = Config.load(run_dir / CONFIG, model_class, {"gpu_id": ""})
    config.final_config_dict["device"] = device
    config.final_config_dict["ray_address"] = None  # nothing is left to be computed on a cluster
    config.final_config_dict["log_wandb"] = bool(config["log_wandb"]) and (workers is None or workers.is_first)
    return config
