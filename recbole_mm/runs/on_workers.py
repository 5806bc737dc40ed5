"""A run whose training is shared by several workers (`train_workers`).

The command computes everything that is costly and stored, builds the model once to find what does not fit, and drops
all of that. The workers then find the same things in the store, train, test, and write the run's folder.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_mm.config.resolved import Config
from recbole_mm.distributed.cluster import Names, Resources, check_resources
from recbole_mm.distributed.training import run_on_workers
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.runs.folder import CONFIG
from recbole_mm.training.ddp import adapt_losses, check_supported
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.process_group import current_workers

_NAMES = Names(cpus="--train_workers: CPUs", gpus="--train_workers: GPUs", jobs="--train_workers")


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


def check_model(config: Config, model: torch.nn.Module, run_dir: Path) -> None:
    """Find what keeps a model that is built from being trained on workers.

    Raises:
        ConfigError: it normalises over a batch, or training options do not fit together.
    """
    adapt_losses(model)
    make_trainer(config, model, run_dir)


def train_on_workers(config: Config, run_dir: Path, train: Callable[..., None], measured: Mapping[str, Any]) -> None:
    """Train and test a run on its workers; its folder is that of a finished run then.

    Args:
        config: the run's settings, saved in its folder. What the run needs is computed and stored.
        run_dir: the run's folder, which all workers reach under the same path.
        train: a module's function, called in every worker as `train(run_dir, device=..., model_class=...,
            measured=...)`.
        measured: seconds and memory of the stages before training.

    Raises:
        RecboleMMError: something the user can mend, in this process or in a worker.
        LostWorkerError: workers were lost too often.
    """
    gc.collect()
    torch.cuda.empty_cache()
    arguments = {"model_class": config.model_class, "measured": dict(measured)}  # the class need not be registered
    run_on_workers(train, arguments, run_dir, worker_resources(config))


def worker_config(run_dir: Path, model_class: type, device: torch.device) -> Config:
    """Returns the run's settings for a worker, on the device that Ray has given to it."""
    workers = current_workers()
    config = Config.load(run_dir / CONFIG, model_class, {"gpu_id": ""})
    config.final_config_dict["device"] = device
    config.final_config_dict["ray_address"] = None  # nothing is left to be computed on a cluster
    for tracker in ("log_wandb", "log_mlflow"):
        config.final_config_dict[tracker] = bool(config[tracker]) and (workers is None or workers.is_first)
    return config
