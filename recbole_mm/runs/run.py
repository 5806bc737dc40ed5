"""One run: config -> dataset -> inputs -> model -> train -> evaluate -> run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from recbole_mm.config.resolved import Config, opener_settings
from recbole_mm.config.settings import NOT_FROM_A_RUN
from recbole_mm.data.loading import check_dataset
from recbole_mm.data.sharing import Datasets
from recbole_mm.inputs.needs import warn_without_effect
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs.folder import (
    CHECKPOINT,
    CONFIG,
    Run,
    changed_files,
    choose_run_dir,
    is_finished,
    read_result,
    require_finished,
    started,
)
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.needed import OpenedRuns, needed_runs, open_runs
from recbole_mm.runs.on_workers import check_model, train_on_workers, worker_config
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.steps import assemble, check, show_as_tested, train_and_test, with_best_weights
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.log import init_logging
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.process_group import current_workers

__all__ = ["Run", "assemble", "load", "open_needed", "run", "train_and_test"]

logger = logging.getLogger(__name__)


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> Run:
    """Train a model, rank its test users, and write the run's folder under `checkpoint_dir`.

    The runs that it needs (`needed_runs`) come first: each is loaded, or made in the same way.

    Args:
        model: name (case, hyphens and underscores do not matter) or class of any model, ours or RecBole's.
        dataset: name of the dataset.
        config_files, config_dict, command_line: settings over the defaults, later ones win.

    Raises:
        RecboleMMError: something the user can mend; the message is one line.
    """
    config = Config(model, dataset, config_files, config_dict, command_line)
    warn_without_effect(config, hooks_of(config.model_class))
    return _run(config, Datasets(config))


def _run(config: Config, datasets: Datasets) -> Run:
    check(config)
    run_dir, resumed = choose_run_dir(config)
    with locked(run_dir, "running"):
        if is_finished(run_dir):
            init_logging(None, config["state"], config["log_style"])
            logger.info("%s is a finished run of these settings; it is loaded", run_dir)
            return load(run_dir, config.model_class, opener_settings(config))
        with started(run_dir, config, resumed):
            return _train_and_test(config, run_dir, datasets)


def _train_and_test(config: Config, run_dir: Path, datasets: Datasets) -> Run:
    stages = Stages()
    for text in held_out_seen(config, config.model_class):
        logger.warning("SEES HELD-OUT DATA: %s; no result of this run is one of the train-only protocol", text)
    with stages("first stage") if hooks_of(config.model_class).has_first_stage else nullcontext():
        opened = open_needed(config, run_dir, datasets)
    assembled = assemble(config, run_dir, stages, opened, datasets)
    if config["train_workers"] == 1:
        return train_and_test(assembled, stages)
    check_model(config, assembled.model, run_dir)
    del assembled  # every worker assembles its own
    train_on_workers(config, run_dir, train_in_worker, stages.as_dict())
    init_logging(run_dir, "ERROR")  # the log has said what loading would say again
    finished = _load(run_dir, config.model_class, opener_settings(config), datasets, opened)
    init_logging(run_dir, config["state"], config["log_style"])
    return finished


def train_in_worker(run_dir: Path, *, device: torch.device, model_class: type, measured: Mapping[str, Any]) -> None:
    """Assemble, train and test a run in one of several workers, from its checkpoint if there is one.

    Args:
        run_dir: the run's folder, with its settings.
        device: the worker's device.
        model_class: the model's class, which need not be registered.
        measured: stages that the command has measured.
    """
    config = worker_config(run_dir, model_class, device)
    datasets = Datasets(config)
    assembled = assemble(config, run_dir, Stages(), open_needed(config, run_dir, datasets), datasets)
    workers = current_workers()
    if workers is None or workers.is_first:
        init_logging(run_dir, config["state"], config["log_style"])
    train_and_test(assembled, Stages(measured), resume=(run_dir / CHECKPOINT).exists())


def open_needed(config: Config, run_dir: Path, datasets: Datasets | None = None, beside: bool = True) -> OpenedRuns:
    """`open_runs` of what a run needs: each is loaded, or made in the same way as the run itself.

    Args:
        config: of the run that needs them.
        run_dir: its folder, whose log goes on afterwards.
        datasets: shared by all of them.
        beside: include the runs whose metrics are printed only.
    """
    datasets = datasets or Datasets(config)

    def make(theirs: Config) -> Run:
        try:
            return with_best_weights(_run(theirs, datasets))
        finally:
            init_logging(run_dir, config["state"], config["log_style"])

    def load_run(folder: Path) -> Run:
        return _load(folder, changed=opener_settings(config), datasets=datasets)

    return open_runs(needed_runs(config, beside), config, make, load_run)


def load(run_dir: str | os.PathLike, model: type | None = None, changed: Mapping[str, Any] | None = None) -> Run:
    """A finished run, its config, dataset and trained model, ready to score.

    The folder may have come from anybody: what it says of data, features and models is followed, but it runs no code,
    asks no server and joins no cluster unless `changed` says so: see `NOT_FROM_A_RUN`.

    Args:
        run_dir: its folder.
        model: the model's class, needed only where it was never registered.
        changed: settings with other values, such as `{"text_url": "http://localhost:8000/v1"}`.

    Raises:
        CheckpointError: the folder is not a finished run.
    """
    return _load(run_dir, model, changed)


def _load(
    run_dir: str | os.PathLike,
    model: type | None = None,
    changed: Mapping[str, Any] | None = None,
    datasets: Datasets | None = None,
    opened: OpenedRuns | None = None,
) -> Run:
    """As `load`; `datasets` are shared with other runs, and `opened` is what it needs from them."""
    run_dir = Path(expanded(os.fspath(run_dir)))
    require_finished(run_dir)
    config = Config.load(run_dir / CONFIG, model, {**NOT_FROM_A_RUN, **(changed or {})})
    check_dataset(config)  # what is not there has not changed
    if other := changed_files(config):
        logger.warning("%s has changed since %s was run: its model may now score other items", other[0], run_dir)
    datasets = datasets or Datasets(config)
    opened = opened or open_needed(config, run_dir, datasets, beside=False)
    result, loaded = read_result(run_dir), assemble(config, run_dir, Stages(), opened, datasets)
    loaded.test_result, loaded.best_valid_result = result["test_result"], result["best_valid_result"]
    loaded.sees_held_out, loaded.beside = result.get("sees_held_out", []), result.get("beside", {})
    loaded.chosen = result.get("chosen_on_validation", "")
    loaded.slices = result.get("slices", {})
    show_as_tested(loaded)
    return with_best_weights(loaded)
