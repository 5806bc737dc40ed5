"""The work of Ray's processes: a trial, which trains and validates, and at the end the test of the best one."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_mm.config.layers import merge
from recbole_mm.config.resolved import Config
from recbole_mm.data.sharing import Datasets
from recbole_mm.distributed.cluster import set_up_process
from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.experiments.tune.records import FAILURE, OUTCOME, number_in
from recbole_mm.registry import ModelEntry, find_model, register_model
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.profiling import Stages
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.files import write_json
from recbole_mm.utils.log import init_logging

logger = logging.getLogger(__name__)

ASSEMBLED = "assembled"
"""Written once a first trial has its dataset, texts and vectors: those after it find them in the artifact store."""

Report = Callable[[int, float, float, float], None]
"""Called with epochs trained, the score after them, the best one so far, and seconds of training and validation."""


@dataclass(frozen=True)
class Job:
    """What every trial of a search has in common; it travels to Ray's processes.

    Attributes:
        model: its entry in the registry.
        dataset: its name.
        shared: settings of every trial.
        cwd: working directory of the command: relative paths in settings start there.
        cpus, gpus: of one trial.
    """

    model: ModelEntry
    dataset: str
    shared: dict[str, Any]
    cwd: str
    cpus: float
    gpus: float

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial's run over the defaults."""
        first_of_its_own = {"gpu_id": "0"} if self.gpus else {}
        return merge(self.shared, drawn, first_of_its_own)

    def config(self, drawn: Mapping[str, Any]) -> Config:
        """Return the configuration of a trial's run."""
        return Config(self.model.name, self.dataset, config_dict=self.settings(drawn))


def run_trial(job: Job, drawn: Mapping[str, Any], folder: Path, search_dir: Path, report: Report) -> None:
    """Train and validate one setting into its folder; an interrupted trial goes on from its last epoch.

    Nothing is tested: `splits.test` is built, as the split builds it, and never ranked.

    Args:
        job: the search's job.
        drawn: the trial's own settings.
        folder: the trial's folder.
        search_dir: the search's folder.
        report: called after each validation, when that epoch is safe on disk.

    Raises:
        RecboleMMError: something the user can mend. Its reason, or that of any other failure, is in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        _settle(job)
        _train(job.config(drawn), folder, search_dir, report)
    except Exception as error:
        kind = "" if isinstance(error, RecboleMMError) else f"{type(error).__name__}: "
        reason = " ".join(str(error).split())
        (folder / FAILURE).write_text(f"{kind}{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
        raise


def _train(config: Config, folder: Path, search_dir: Path, report: Report) -> None:
    init_logging(folder, config["state"], config["log_style"])
    config.save(folder / run_folder.CONFIG)
    for text in held_out_seen(config, config.model_class):
        logger.warning("SEES HELD-OUT DATA: %s; no result of this run is one of the train-only protocol", text)
    with _first_alone(search_dir):
        datasets = Datasets(config)
        opened = pipeline.open_needed(config, folder, datasets, beside=False)
        assembled = pipeline.assemble(config, folder, Stages(), opened, datasets)
    trainer = make_trainer(config, assembled.model, folder)
    reported = False

    def on_validation(epoch: int, score: float) -> None:
        nonlocal reported
        reported = True
        report(epoch + 1, float(score), float(trainer.best_valid_score), _seconds(trainer.timings))

    with trainer.mlflow:
        trainer.fit(assembled.splits.train, assembled.splits.valid, callback_fn=on_validation, resume=True)
        trainer.mlflow.log_choice(trainer.chosen)
    scores = [
        [record["epoch"] + 1, float(record["valid_score"])] for record in trainer.history if "valid_score" in record
    ]
    if not scores:
        raise ConfigError("nothing was validated, and a search chooses by validation; raise epochs or max_train_steps")
    write_json(folder / OUTCOME, {"scores": scores, "seconds": _seconds(trainer.timings)})
    # What the model chose on validation came after the last report; and a trial that was interrupted after its last
    # epoch has reported nothing in this process.
    if trainer.chosen or not reported:
        report(scores[-1][0], scores[-1][1], float(trainer.best_valid_score), _seconds(trainer.timings))


def evaluate_best(job: Job, drawn: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Make the best trial's folder that of a finished run: train on if it was stopped early, then test once.

    Args:
        job: of the search.
        drawn: the best trial's settings.
        folder: a copy of its folder.

    Returns:
        Test metric -> value.
    """
    _settle(job)
    settings = merge(job.settings(drawn), {"resume": str(folder)})
    return pipeline.run(job.model.name, job.dataset, config_dict=settings).test_result


def _settle(job: Job) -> None:
    """Make Ray's process what the command's own would be: its directory, its models, its share of the machine."""
    set_up_process(job.cwd, job.cpus)
    try:
        known = find_model(job.model.name)
    except ConfigError:
        known = None
    if known is None or known.target != job.model.target:
        entry = job.model
        register_model(entry.name, entry.target, entry.paper, entry.type, replaces_recbole=known is not None)
    if not job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextmanager
def _first_alone(search_dir: Path) -> Iterator[None]:
    """Let the first trial compute texts and vectors alone; others wait until then, and find them stored."""
    done, lock = search_dir / ASSEMBLED, FileLock(search_dir / f".{ASSEMBLED}.lock")
    if not done.exists():
        lock.acquire()
    try:
        if done.exists():
            _release(lock)
        yield
        done.touch()
    finally:
        _release(lock)


def _release(lock: FileLock) -> None:
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # a process that waits for it locks the file anew
        lock.release()


def _seconds(timings: Mapping[str, float]) -> float:
    return round(timings["train_seconds"] + timings["eval_seconds"], 3)


def read_tested(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Number of the trial that a `best` folder tested, and its `result.json`; None if it is unfinished or not there."""
    number = number_in(folder)
    if number is None or not run_folder.is_finished(folder):
        return None
    return number, run_folder.read_result(folder)
