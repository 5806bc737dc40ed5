"""One run, from a configuration to a folder with its result: config -> dataset -> artifacts -> model -> train ->
evaluate."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.utils import ModelType, dict2str, init_seed

from recbole_mm.config.resolved import NOT_FROM_A_RUN, Config, opener_settings
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.loading import check_dataset
from recbole_mm.distributed.stages import check_stages, open_executor
from recbole_mm.errors import CheckpointError, ConfigError, RecboleMMError
from recbole_mm.evaluation.per_user import FILE as PER_USER
from recbole_mm.evaluation.per_user import per_user_table, write_per_user
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.splits import Splits, check_split, split
from recbole_mm.inputs.needs import asks_for_inputs, needed
from recbole_mm.models.hooks import full_sequence_class, hooks_of
from recbole_mm.runs.first_stage import open_first_stage, results_beside
from recbole_mm.runs.folder import (
    CHECKPOINT,
    CONFIG,
    RESULT,
    WEIGHTS,
    changed_files,
    choose_run_dir,
    is_finished,
    read_result,
    write_result,
)
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.on_workers import check_workers, train_on_workers, worker_config
from recbole_mm.runs.pretrained_run import read_finished_model
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.recbole_errors import told_in_one_line
from recbole_mm.runs.summary import data_line, model_line
from recbole_mm.training.checkpoint import without_pickles
from recbole_mm.training.factory import make_trainer
from recbole_mm.training.state import load_weights
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.files import make_folder
from recbole_mm.utils.log import COMPACT, LONG, close_logging, init_logging
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.process_group import current_workers
from recbole_mm.utils.tables import result_table

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A finished or reloaded run.

    Attributes:
        config, dataset, model: ready to score: `model.full_sort_predict(...)`.
        splits: training, validation and test data.
        run_dir: the run's folder.
        test_result, best_valid_result: metric -> value, as RecBole names them.
        sees_held_out: how its training saw held-out interactions, one text each; empty where it did not.
        beside: test metrics of other models that a result of this one is printed beside, by name.
    """

    config: Config
    dataset: Any
    model: Any
    splits: Splits
    run_dir: Path
    test_result: dict[str, float] = field(default_factory=dict)
    best_valid_result: dict[str, float] = field(default_factory=dict)
    sees_held_out: list[str] = field(default_factory=list)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> Run:
    """Train a model, rank its test users, and write the run's folder under `checkpoint_dir`.

    Args:
        model: name (case, hyphens and underscores do not matter) or class of any model, ours or RecBole's.
        dataset: name of the dataset.
        config_files, config_dict, command_line: settings over the defaults, later ones win.

    Raises:
        RecboleMMError: something the user can mend; the message is one line.
    """
    config = Config(model, dataset, config_files, config_dict, command_line)
    if config["epochs"] == 0 and config["load_best_model"] and config["MODEL_TYPE"] != ModelType.TRADITIONAL:
        raise ConfigError("epochs: 0 leaves no best weights; give --load_best_model=False to test an untrained model")
    check_dataset(config)
    hooks = hooks_of(config.model_class)
    if config["ray_address"] and asks_for_inputs(config, hooks):
        check_stages(config)
    if config["train_workers"] > 1:
        check_workers(config)
    run_dir, resumed = choose_run_dir(config)
    with locked(run_dir, "running"):
        if is_finished(run_dir):
            init_logging(None, config["state"], config["log_style"])
            logger.info("%s is a finished run of these settings; it is loaded", run_dir)
            return load(run_dir, config.model_class, opener_settings(config))
        make_folder(run_dir)  # the process that held the lock before may have failed and removed it
        return _run_in(run_dir, config, resumed and (run_dir / CHECKPOINT).is_file())


def _run_in(run_dir: Path, config: Config, resumed: bool) -> Run:
    new = not (run_dir / CONFIG).exists()
    try:
        init_logging(run_dir, config["state"], config["log_style"])
        config.save(run_dir / CONFIG)
        logger.info("%s on %s -> %s%s", config["model"], config["dataset"], run_dir, " (resumed)" if resumed else "")
        return _train_and_test(config, run_dir)
    except KeyboardInterrupt:
        logger.warning("interrupted; continue with the same command and --resume")
        raise
    except RecboleMMError:
        gained = any((run_dir / name).exists() for name in (CHECKPOINT, WEIGHTS))
        if new and not gained:  # nothing is left behind
            close_logging()
            shutil.rmtree(run_dir, ignore_errors=True)  # why it failed is to be told, not that it cannot be removed
        raise


def _train_and_test(config: Config, run_dir: Path) -> Run:
    stages = Stages()
    sees_held_out = held_out_seen(config, config.model_class)
    for text in sees_held_out:
        logger.warning("SEES HELD-OUT DATA: %s; no result of this run is one of the train-only protocol", text)
    beside = results_beside(config, run_dir, stages) if hooks_of(config.model_class).has_first_stage else {}
    if config["train_workers"] > 1:
        train_on_workers(config, run_dir, stages, sees_held_out, beside, assemble, train_in_worker)
        init_logging(run_dir, "ERROR")  # the log has said what loading would say again
        finished = load(run_dir, config.model_class, opener_settings(config))
        init_logging(run_dir, config["state"], config["log_style"])
        return finished
    assembled = assemble(config, run_dir, stages)
    assembled.sees_held_out[:0] = sees_held_out
    assembled.beside = beside
    return train_and_test(assembled, stages)


def _model_inputs() -> Any:
    """The module that computes what models ask for; it imports LLMs, which a run on interactions alone does without."""
    from recbole_mm.inputs import model_inputs

    return model_inputs


def train_in_worker(
    run_dir: Path,
    *,
    device: torch.device,
    model_class: type,
    stages: Mapping[str, dict[str, float]],
    sees_held_out: Sequence[str],
    beside: Mapping[str, dict[str, float]],
) -> None:
    """Assemble, train and test a run in one of several workers, from its checkpoint if there is one.

    Args:
        run_dir: the run's folder, with its settings.
        device: the worker's device.
        model_class: the model's class, which need not be registered.
        stages: what the command has measured so far.
        sees_held_out, beside: as in `Run`.

    Raises:
        RecboleMMError: something the user can mend.
    """
    config = worker_config(run_dir, model_class, device)
    assembled = assemble(config, run_dir, Stages())
    assembled.sees_held_out[:0] = sees_held_out
    assembled.beside = dict(beside)
    workers = current_workers()
    if workers is None or workers.is_first:
        init_logging(run_dir, config["state"], config["log_style"])
    train_and_test(assembled, Stages(stages), resume=(run_dir / CHECKPOINT).exists())


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
    write_result(
        run_dir,
        config,
        assembled.test_result,
        assembled.best_valid_result,
        assembled.sees_held_out,
        assembled.beside,
        stages.as_dict(),
        trainer.timings,
    )
    logger.info("best valid: %s", dict2str(assembled.best_valid_result), extra=LONG)
    logger.info("test:       %s", dict2str(assembled.test_result), extra=LONG)
    if assembled.beside:
        results = {config["model"]: assembled.test_result, **assembled.beside}
        logger.info("beside:\n%s", result_table("test", results), extra=LONG)
    return assembled


def load(run_dir: str | os.PathLike, model: type | None = None, changed: Mapping[str, Any] | None = None) -> Run:
    """A finished run, its config, dataset and trained model, ready to score.

    The folder may have come from anybody: what it says of data, features and models is followed, but it runs no code,
    asks no server and joins no cluster. Who wants that says so: see `NOT_FROM_A_RUN`.

    Args:
        run_dir: its folder.
        model: the model's class, needed only where it was never registered.
        changed: settings that are others here, such as `{"text_url": "http://localhost:8000/v1"}`.

    Raises:
        CheckpointError: the folder is not a finished run.
    """
    run_dir = Path(expanded(os.fspath(run_dir)))
    for name in (CONFIG, RESULT, WEIGHTS):
        if not (run_dir / name).is_file():
            raise CheckpointError(f"{run_dir}: no {name}; give the folder of a finished run")
    config = Config.load(run_dir / CONFIG, model, {**NOT_FROM_A_RUN, **(changed or {})})
    if other := changed_files(config):
        logger.warning("%s has changed since %s was run: its model may now score other items", other[0], run_dir)
    loaded = assemble(config, run_dir, Stages())
    load_weights(loaded.model, run_dir / WEIGHTS)
    loaded.model.eval()
    result = read_result(run_dir)
    loaded.test_result, loaded.best_valid_result = result["test_result"], result["best_valid_result"]
    loaded.sees_held_out, loaded.beside = result.get("sees_held_out", []), result.get("beside", {})
    return loaded


def assemble(config: Config, run_dir: Path, stages: Stages) -> Run:
    """Dataset, artifacts, split and an untrained model: everything that `run` and `load` share.

    Raises:
        RecboleMMError: the data, the settings or both do not fit the model.
    """
    with told_in_one_line(config["model"]):
        return _assemble(config, run_dir, stages)


def _assemble(config: Config, run_dir: Path, stages: Stages) -> Run:
    init_seed(config["seed"], config["reproducibility"])
    with stages("dataset"):
        dataset = create_dataset(config)
        logger.info("%s", dataset, extra=LONG)
    model_class = full_sequence_class(config.model_class) if config["full_sequence"] else config.model_class
    check_split(config, dataset, model_class)
    hooks = hooks_of(model_class)
    with stages("artifacts"):
        given: dict[str, Any] = {}
        if hooks.has_first_stage:
            given["first_stage"] = open_first_stage(config, dataset, run_dir)
        if "id_model_run" in needed(config, hooks):  # before anything costly, so that a wrong path costs nothing
            given["id_model_run"] = read_finished_model(config["id_model_path"], config)
        if given or asks_for_inputs(config, hooks):
            _model_inputs().provide(config, dataset, hooks, run_dir, partial(open_executor, config), **given)
    with stages("split"):
        splits = split(config, dataset, model_class, run_dir)
    logger.info("%s", data_line(dataset), extra=COMPACT)
    init_seed(config["seed"], config["reproducibility"])
    with without_pickles():
        model = model_class(config, splits.train_dataset).to(config["device"])
    logger.info("%s", model, extra=LONG)
    logger.info("%s", model_line(model, config), extra=COMPACT)
    first = given.get("first_stage")
    return Run(config, dataset, model, splits, run_dir, sees_held_out=[] if first is None else first.sees_held_out)
