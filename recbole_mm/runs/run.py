"""One run: config -> dataset -> inputs -> model -> train -> evaluate -> run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.utils import ModelType, dict2str, init_seed

from recbole_mm.config.resolved import NOT_FROM_A_RUN, Config, opener_settings
from recbole_mm.data.loading import check_dataset
from recbole_mm.data.sharing import Datasets
from recbole_mm.errors import CheckpointError, ConfigError
from recbole_mm.evaluation.per_user import FILE as PER_USER
from recbole_mm.evaluation.per_user import per_user_table, write_per_user
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.splits import check_split, split
from recbole_mm.inputs.needs import asks_for_inputs
from recbole_mm.models.hooks import full_sequence_class, hooks_of
from recbole_mm.runs.folder import (
    CHECKPOINT,
    CONFIG,
    RESULT,
    WEIGHTS,
    Run,
    changed_files,
    choose_run_dir,
    is_finished,
    read_result,
    started,
    write_result,
)
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.needed import OpenedRuns, needed_runs, open_runs
from recbole_mm.runs.on_workers import check_model, check_workers, train_on_workers, worker_config
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.recbole_errors import told_in_one_line
from recbole_mm.runs.summary import data_line, model_line
from recbole_mm.training.checkpoint import without_pickles
from recbole_mm.training.factory import make_trainer
from recbole_mm.training.state import load_weights
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.log import COMPACT, LONG, init_logging
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.process_group import current_workers
from recbole_mm.utils.tables import result_table

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
    return _run(config, Datasets(config))


def _run(config: Config, datasets: Datasets) -> Run:
    _check(config)
    run_dir, resumed = choose_run_dir(config)
    with locked(run_dir, "running"):
        if is_finished(run_dir):
            init_logging(None, config["state"], config["log_style"])
            logger.info("%s is a finished run of these settings; it is loaded", run_dir)
            return load(run_dir, config.model_class, opener_settings(config))
        with started(run_dir, config, resumed):
            return _train_and_test(config, run_dir, datasets)


def _check(config: Config) -> None:
    """Find what keeps a run from starting, before anything is spent."""
    if config["epochs"] == 0 and config["load_best_model"] and config["MODEL_TYPE"] != ModelType.TRADITIONAL:
        raise ConfigError("epochs: 0 leaves no best weights; give --load_best_model=False to test an untrained model")
    check_dataset(config)
    hooks = hooks_of(config.model_class)
    if config["ray_address"] and asks_for_inputs(config, hooks):
        from recbole_mm.distributed.stages import check_stages

        check_stages(config)
    if config["train_workers"] > 1:
        check_workers(config)


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
    assembled = assemble(config, run_dir, Stages(), open_needed(config, run_dir))
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
            return _with_best_weights(_run(theirs, datasets))
        finally:
            init_logging(run_dir, config["state"], config["log_style"])

    def load_run(folder: Path) -> Run:
        return _load(folder, changed=opener_settings(config), datasets=datasets)

    return open_runs(needed_runs(config, beside), config, make, load_run)


def assemble(
    config: Config,
    run_dir: Path,
    stages: Stages,
    opened: OpenedRuns | None = None,
    datasets: Datasets | None = None,
) -> Run:
    """Dataset, inputs, split and an untrained model: everything that `run` and `load` share.

    Args:
        config: of the run.
        run_dir: its folder, which keeps sampled candidates.
        stages: measures each part.
        opened: what it needs from other runs (see `open_needed`).
        datasets: shared with other runs.

    Raises:
        RecboleMMError: the data, the settings or both do not fit the model.
    """
    opened = opened or OpenedRuns()
    with told_in_one_line(config["model"]):
        init_seed(config["seed"], config["reproducibility"])
        with stages("dataset"):
            dataset = (datasets or Datasets(config)).of(config)
            logger.info("%s", dataset, extra=LONG)
        model_class = full_sequence_class(config.model_class) if config["full_sequence"] else config.model_class
        rows = check_split(config, dataset, model_class)
        logger.info("%s", data_line(dataset, rows), extra=COMPACT)
        hooks = hooks_of(model_class)
        with stages("artifacts"):
            opened.check_ids(dataset)
            if hooks.has_first_stage or asks_for_inputs(config, hooks):
                _provide_inputs(config, dataset, hooks, run_dir, opened)
        with stages("split"):
            splits = split(config, dataset, model_class, run_dir)
        init_seed(config["seed"], config["reproducibility"])
        with without_pickles():
            model = model_class(config, splits.train_dataset).to(config["device"])
        logger.info("%s", model, extra=LONG)
        logger.info("%s", model_line(model, config), extra=COMPACT)
    seen = [*held_out_seen(config, config.model_class), *opened.sees_held_out]
    return Run(config, dataset, model, splits, run_dir, sees_held_out=seen, beside=dict(opened.beside))


def _provide_inputs(config: Config, dataset: Any, hooks: Any, run_dir: Path, opened: OpenedRuns) -> None:
    """Compute what the model asks for, by modules of LLMs and Ray, which a run on interactions alone never imports."""
    from recbole_mm.distributed.stages import open_executor
    from recbole_mm.inputs.model_inputs import provide

    provide(config, dataset, hooks, run_dir, partial(open_executor, config), **opened.inputs)


def train_and_test(assembled: Run, stages: Stages, resume: bool | None = None) -> Run:
    """Train a run that is assembled, test it and write its folder. Of several workers the first one writes.

    Args:
        assembled: the run; its results are set.
        stages: measures training and test.
        resume: see `TrainerMixin.fit`.
    """
    config, run_dir, workers = assembled.config, assembled.run_dir, current_workers()
    trainer = make_trainer(config, assembled.model, run_dir)
    splits, show_progress = assembled.splits, config["show_progress"]
    with stages("training"), told_in_one_line(config["model"]):
        _, best_valid_result = trainer.fit(splits.train, splits.valid, show_progress=show_progress, resume=resume)
    with stages("test"), told_in_one_line(config["model"]):
        test_result = trainer.evaluate(splits.test, config["load_best_model"], show_progress=show_progress)
    assembled.test_result = dict(test_result or {})
    assembled.best_valid_result = dict(best_valid_result or {})
    if isinstance(splits.test, RankingData) and config["model"] != "Pop" and not trainer.hooks.has_first_stage:
        assembled.beside["Pop"] = trainer.evaluate_pop(splits.test)
    if workers is not None and not workers.is_first:
        return assembled
    if config["save_per_user"] and isinstance(splits.test, RankingData):
        table = per_user_table(config, splits.test.users, trainer.last_struct, assembled.dataset.item_tokens())
        write_per_user(run_dir / PER_USER, table)
    write_result(assembled, stages.as_dict(), trainer.timings)
    logger.info("best valid: %s", dict2str(assembled.best_valid_result), extra=LONG)
    logger.info("test:       %s", dict2str(assembled.test_result), extra=LONG)
    if assembled.beside:
        results = {config["model"]: assembled.test_result, **assembled.beside}
        logger.info("beside:\n%s", result_table("test", results), extra=LONG)
    return assembled


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
    for name in (CONFIG, RESULT, WEIGHTS):
        if not (run_dir / name).is_file():
            raise CheckpointError(f"{run_dir}: no {name}; give the folder of a finished run")
    config = Config.load(run_dir / CONFIG, model, {**NOT_FROM_A_RUN, **(changed or {})})
    if other := changed_files(config):
        logger.warning("%s has changed since %s was run: its model may now score other items", other[0], run_dir)
    datasets = datasets or Datasets(config)
    opened = opened or open_needed(config, run_dir, datasets, beside=False)
    result, loaded = read_result(run_dir), assemble(config, run_dir, Stages(), opened, datasets)
    loaded.test_result, loaded.best_valid_result = result["test_result"], result["best_valid_result"]
    loaded.sees_held_out, loaded.beside = result.get("sees_held_out", []), result.get("beside", {})
    return _with_best_weights(loaded)


def _with_best_weights(finished: Run) -> Run:
    """Have the model score by the weights that the folder keeps."""
    load_weights(finished.model, finished.run_dir / WEIGHTS)
    finished.model.eval()
    return finished
