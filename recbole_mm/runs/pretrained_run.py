"""The trained model of a finished run, for a model of another run to build on (`id_model_path`, `first_stage_path`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import BEFORE, named
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.errors import ConfigError
from recbole_mm.training.checkpoint import load_tree

SAME = named(lambda setting: setting.same_data)
"""Settings that number users and items, or bound the length of a history: they must be those of the finished run."""

SAME_SPLIT = ("split", "order", "group_by")
"""Parts of `eval_args` that decide what is held out; with others the finished run may have trained on test items."""


@dataclass(frozen=True)
class PretrainedRun:
    """The trained model of a finished run.

    Attributes:
        model: its name.
        settings: every setting of its run.
        weights: its parameters and buffers by name.
    """

    model: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def read_pretrained_run(folder: Path, theirs: Config) -> PretrainedRun:
    """The best weights of a finished run.

    Args:
        folder: the run's folder.
        theirs: its settings, from `config_of_finished_run`.

    Raises:
        CheckpointError: its weights are damaged.
    """
    tree = load_tree(folder / "model.safetensors")
    return PretrainedRun(theirs["model"], theirs.as_dict(), tree.get("state_dict", tree))


def config_of_finished_run(folder: str | Path, config: Config, key: str) -> Config:
    """The settings of a finished run on the same data, split the same way.

    Args:
        folder: the run's folder.
        config: settings of the run that builds on it.
        key: the setting that names the folder, for errors.

    Raises:
        ConfigError: it is no finished run, or one whose items or held-out interactions are others.
    """
    folder = Path(folder)
    for name in ("config.yaml", "result.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ConfigError(f"{key}: {folder} has no {name}; give the folder of a finished run")
    theirs = Config.load(folder)
    check_same_data(theirs, config, f"{key}: {folder}")
    return theirs


def check_same_data(theirs: Config, ours: Config, who: str) -> None:
    """Make sure that two runs number users and items alike and hold out the same interactions.

    Args:
        theirs, ours: settings of both.
        who: they are, for errors.

    Raises:
        ConfigError: they do not.
    """
    for name in SAME:
        before = BEFORE.get(name)
        found, wanted = (before if config[name] is None else config[name] for config in (theirs, ours))
        if canonical(found) != canonical(wanted):
            raise ConfigError(f"{who} was run with {name}: {found!r}, this run has {wanted!r}")
    then, now = (
        {name: digest for name, digest in (config["data_files"] or {}).items() if name.endswith(".inter")}
        for config in (theirs, ours)
    )
    if theirs["data_files"] is not None and then != now:
        raise ConfigError(f"{who} was run on other interactions: {', '.join(now)} changed since; run it again")
    for name in SAME_SPLIT:
        if canonical(theirs["eval_args"].get(name)) != canonical(ours["eval_args"].get(name)):
            raise ConfigError(
                f"{who} held out other interactions (eval_args.{name}: {theirs['eval_args'].get(name)!r}), "
                "so it may have been trained on what is tested here"
            )
