"""Trains a model in child processes that are killed at random moments, then resumed; run by test_trainer.py.

    python kill_and_resume.py FOLDER SETTINGS

`SETTINGS` is a config_dict as JSON, for SASRec on the dataset `toy`. Imports everything once and forks before any
tensor exists, so that a child costs a training and not an import. Prints how many children were killed.
`FOLDER/straight` is a run that nothing happened to, `FOLDER/killed` the other one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401  (the first optimizer imports it otherwise, for seconds, in every child)
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_mm.config.resolved import Config
from recbole_mm.training.factory import make_trainer

KILLS = 4
"""Each comes at most `MOST_SAVES` + 1 epochs after the one before, so there must be more epochs than that in all."""

MOST_SAVES = 3


def train(run_dir: Path) -> None:
    """One process's life: build everything from the settings, train or resume, exit."""
    config = Config("SASRec", "toy", config_dict=json.loads(sys.argv[2]))
    init_seed(config["seed"], reproducibility=True)
    train_data, valid_data, _ = data_preparation(config, create_dataset(config))
    model = config.model_class(config, train_data.dataset)
    make_trainer(config, model, run_dir).fit(train_data, valid_data, resume=True)


def start(run_dir: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(run_dir)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finish(child: int) -> None:
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("a child failed")


def stamp(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.exists() else None


def wait_for_saves(file: Path, count: int) -> None:
    """Return when `file` has been replaced `count` times."""
    last = stamp(file)
    while count:
        time.sleep(0.001)
        if stamp(file) != last:
            last, count = stamp(file), count - 1


def main() -> None:
    folder, epochs = Path(sys.argv[1]), json.loads(sys.argv[2])["epochs"]
    begin = time.monotonic()
    finish(start(folder / "straight"))
    epoch_seconds = (time.monotonic() - begin) / epochs
    for _ in range(KILLS):
        child = start(folder / "killed")
        wait_for_saves(folder / "killed" / "checkpoint.safetensors", random.randint(0, MOST_SAVES))
        time.sleep(random.uniform(0, epoch_seconds))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            raise SystemExit("a child ended before it was killed")
    finish(start(folder / "killed"))
    print(KILLS)


if __name__ == "__main__":
    main()
