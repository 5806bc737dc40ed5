"""A search before anything is spent: its settings, its space and the resources of a trial, checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils import ModelType

from recbole_mm.config.layers import merge
from recbole_mm.config.resolved import Config
from recbole_mm.config.schema import Setting
from recbole_mm.config.settings import SETTINGS
from recbole_mm.data.loading import check_dataset
from recbole_mm.data.splits import VALID, Split
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.plan import known_keys
from recbole_mm.experiments.tune.space import Space, default_space, read_space
from recbole_mm.inputs.context import artifact_dir
from recbole_mm.inputs.needs import warn_without_effect, without_effect
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs import folder as run_folder

logger = logging.getLogger(__name__)


def _why_not_tuned(setting: Setting) -> str:
    """Why no space may hold a setting; empty where it may."""
    if setting.not_tuned or not setting.changes_result:
        return setting.not_tuned or "it changes no result"
    if setting.scores:
        return "it decides what a score is"
    return "trials that are ranked differently cannot be told apart by their scores" if setting.ranks else ""


NOT_TUNED = {key: reason for key, setting in SETTINGS.items() if (reason := _why_not_tuned(setting))}
"""Settings that no space may hold, and why."""

MOST_TRIALS = 10_000
SEARCHES, SCHEDULERS = ("optuna", "random"), ("asha", "none")


@dataclass(frozen=True)
class Search:
    """A search that may start.

    Attributes:
        config: of a run with the settings that all trials share.
        space: what the trials draw from.
        trials: how many.
        search, scheduler: one of `SEARCHES` and `SCHEDULERS`.
        grace_epochs: no trial of fewer epochs is stopped by the scheduler.
        most_epochs: that a trial may have.
        out: folder of the search, absolute.
    """

    config: Config
    space: Space
    trials: int
    search: str
    scheduler: str
    grace_epochs: int
    most_epochs: int
    out: Path

    @property
    def metric(self) -> str:
        """Name of the validation metric."""
        return str(self.config["valid_metric"])

    @property
    def bigger(self) -> bool:
        """Whether a larger score is a better one."""
        return bool(self.config["valid_metric_bigger"])

    @property
    def seed(self) -> int:
        """Seed of the runs and the search."""
        return int(self.config["seed"])

    def shared(self) -> dict[str, Any]:
        """Return the settings of every trial over the defaults, with absolute folders."""
        config = self.config
        folders = {
            "data_path": str(Path(config.as_dict()["data_path"]).absolute()),
            "checkpoint_dir": str(Path(config["checkpoint_dir"]).absolute()),
            "artifact_dir": str(artifact_dir(config).absolute()),
        }
        return merge(config.external_config_dict, folders, {"resume": False, "show_progress": False})

    def identity(self) -> dict[str, Any]:
        """What makes it this search: a folder of trials is continued only by the same one."""
        return {
            "model": self.config["model"],
            "dataset": self.config["dataset"],
            "search": self.search,
            "scheduler": self.scheduler,
            "grace_epochs": self.grace_epochs,
            "space": self.space.as_dict(),
            "files": self.config.current_files(),
            "settings": run_folder.result_settings(
                {k: v for k, v in self.shared().items() if k not in ("model", "dataset")}
            ),
        }


def plan_search(
    model: str | None,
    dataset: str | None,
    *,
    space: Path | None = None,
    trials: int = 20,
    search: str | None = None,
    scheduler: str = "asha",
    grace_epochs: int | None = None,
    out: Path | None = None,
    config_files: Sequence[str | Path] = (),
    command_line: Mapping[str, Any] | None = None,
) -> Search:
    """Check a search; the arguments are those of `recbole_mm.experiments.tune.command.tune_model`.

    Raises:
        ConfigError: something does not fit together.
        DataError: the dataset is not there.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise ConfigError(f"--trials={trials}: give a number from 1 to {MOST_TRIALS}")
    search = _chosen("search", search or ("optuna" if has_optuna() else "random"), SEARCHES)
    if search == "optuna" and not has_optuna():
        raise ConfigError(
            "--search=optuna needs the package optuna: pip install 'recbole_mm[tune]', or --search=random"
        )
    _chosen("scheduler", scheduler, SCHEDULERS)
    config = Config(model, dataset, config_files, None, command_line)
    warn_without_effect(config, hooks_of(config.model_class))
    if config["train_workers"] > 1:
        raise ConfigError("train_workers: a trial is one process; leave it at 1, and run the best setting with more")
    _check_validates(config)
    found = default_space(config["model"]) if space is None else read_space(space)
    _check_space(found, config)
    _check_space_is_read(found, config, ours=space is None)
    check_dataset(config)
    epochs = found.ranges["epochs"].extremes() if "epochs" in found.ranges else (config["epochs"],)
    grace = _default_grace(config, max(epochs)) if grace_epochs is None else grace_epochs
    if grace < 1:
        raise ConfigError(f"--grace_epochs={grace}: give a number of at least 1")
    folder = out or Path(config["checkpoint_dir"]) / f"tune-{config['model']}-{config['dataset']}"
    fewer = int(min(trials, found.size))
    return Search(config, found, fewer, search, scheduler, grace, max(epochs), Path(os.path.abspath(folder)))


def has_optuna() -> bool:
    """Whether Optuna is installed."""
    from importlib.util import find_spec

    return find_spec("optuna") is not None


def _chosen(option: str, value: str, options: Sequence[str]) -> str:
    if value not in options:
        raise ConfigError(f"--{option}={value}: give one of {', '.join(options)}")
    return value


def _default_grace(config: Config, epochs: int) -> int:
    """A tenth of the epochs, at least one validation: enough that a slow start is not taken for a bad setting."""
    return max(1, config["eval_step"], epochs // 10)


def _check_validates(config: Config) -> None:
    """A search chooses by validation, so every trial must have one.

    Raises:
        ConfigError: a run of these settings would have none.
    """
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise ConfigError(f"{config['model']} is trained by a library that saves with pickle; choose another model")
    if config["train_stage"] not in (None, "finetune"):
        raise ConfigError(f"train_stage: {config['train_stage']} is not validated, and a search chooses by validation")
    _check_epochs(config["eval_step"], config["epochs"])
    if not Split.of(config).holds_out(VALID):
        split = config["eval_args"]["split"]
        raise ConfigError(f"eval_args: split: {split} holds out nothing for validation, which a search needs")


def _check_epochs(eval_step: Any, epochs: Any) -> None:
    for key, value in (("eval_step", eval_step), ("epochs", epochs)):
        if value == 0:
            raise ConfigError(f"{key}: 0 leaves out validation, which a search chooses by; give at least 1")


def _check_space(space: Space, config: Config) -> None:
    known, typed, given = known_keys(config), config.cmd_config_dict, config.external_config_dict
    for key in space.ranges:
        at = f"{space.where}: {key}"
        if key in NOT_TUNED:
            raise ConfigError(f"{at}: cannot be searched: {NOT_TUNED[key]}")
        if key not in known:
            raise ConfigError(f"{at}: this setting is {config.unknown(key)}")
        if key in typed:
            raise ConfigError(f"{at}: --{key} is also given; take it out of the space or leave the option out")
    ranges = {key: range_.extremes() for key, range_ in space.ranges.items()}
    for place in range(max(map(len, ranges.values()))):  # the first values of all, then the second ones, ...
        drawn = {key: values[place % len(values)] for key, values in ranges.items()}
        try:
            _check_epochs(drawn.get("eval_step"), drawn.get("epochs"))
            _check_validates(Config(config.model_class, config["dataset"], config_dict=merge(given, drawn)))
        except ConfigError as error:
            raise ConfigError(f"{space.where}: {error}") from error


def _check_space_is_read(space: Space, config: Config, *, ours: bool) -> None:
    """A setting that no trial reads would make trials that differ in nothing.

    Args:
        space: of settings that are known.
        config: of what the trials share.
        ours: whether it is the space that ships for the model, which is not changed for every option: then it is said.

    Raises:
        ConfigError: one of another space is not read, and no other one that is searched decides so.
    """
    for key, reason in without_effect(config, hooks_of(config.model_class), space.ranges).items():
        if set(config.settings[key].read_where).isdisjoint(space.ranges):
            if not ours:
                raise ConfigError(f"{space.where}: {key}: searching it has no effect: {reason}")
            logger.warning("%s: searching %s has no effect: %s", space.where, key, reason)
