"""What a run needs from other runs, known before it starts: a first stage, Pop, the pretrained run of `id_model_path`.

A first stage is a model whose best items another one puts in order. It is a run of its own, of any registered or
RecBole model on the same data, split and seed, with a folder of its own under the same `checkpoint_dir`: found again if
it is finished, resumed if it was interrupted. `first_stage` names the model and `first_stage_config` its settings; or
`first_stage_path` names the folder of a finished run. Its test metrics and Pop's are printed with the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import DERIVED, RANKED, named
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.needs import needed
from recbole_mm.models.hooks import full_sequence_class, hooks_of, reads_content
from recbole_mm.registry import find_model
from recbole_mm.runs.first_stage import FirstStage
from recbole_mm.runs.folder import Run, earlier_run_dirs, first_run_dir, is_finished, read_result
from recbole_mm.runs.pretrained_run import check_same_data, config_of_finished_run, read_pretrained_run
from recbole_mm.utils.file_lock import locked

logger = logging.getLogger(__name__)

NONE = "none"
"""`first_stage` of a run without one."""

COMPARED = (*RANKED, "metrics", "topk")
"""Settings under which two runs' test metrics are of the same cases and candidates, with the seed where it draws."""


class Role(Enum):
    """What a needed run is for."""

    ID_MODEL = "id_model_path"
    FIRST_STAGE = "first stage"
    POPULAR = "Pop"


@dataclass(frozen=True)
class NeededRun:
    """A run that must be finished before another one starts.

    Attributes:
        role: what it is for.
        config: its settings.
        folder: where it lies; None for the newest finished run of these settings, or one that is made now.
        settings: over the defaults, where it has no folder yet.
    """

    role: Role
    config: Config
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_run(self) -> Config:
        """Its settings for making it now: on the data of today, and resumed if it was interrupted."""
        given = {**self.settings, "resume": bool(earlier_run_dirs(self.config))}
        return Config(self.config["model"], self.config["dataset"], config_dict=given)


@dataclass
class OpenedRuns:
    """What the runs that another one needs give to it.

    Attributes:
        inputs: for the model: `first_stage` and `id_model_run`, where it asks for them.
        beside: test metrics to print with the result: name -> metric -> value.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def sees_held_out(self) -> list[str]:
        """How the training of the first stage saw held-out interactions."""
        first = self.inputs.get("first_stage")
        return [] if first is None else first.sees_held_out

    def check_ids(self, dataset: Dataset) -> None:
        """Make sure that the first stage numbers users and items as the dataset does.

        Raises:
            ConfigError: it does not.
        """
        first = self.inputs.get("first_stage")
        if first is None:
            return
        for name in (dataset.uid_field, dataset.iid_field):
            theirs, ours = (part.field2id_token.get(name, ()) for part in (first.dataset, dataset))
            if not np.array_equal(theirs, ours):
                raise ConfigError(
                    f"first_stage: {first.folder} knows other {name}s than this run, by other data or settings of it"
                )

    def _add_first_stage(self, run: Run, config: Config) -> None:
        """Take in a finished first stage for the run of `config`, and its metrics where they are of the same cases."""
        name = run.config["model"]
        self.inputs["first_stage"] = FirstStage(run.config, run.dataset, run.model, run.sees_held_out, run.run_dir)
        logger.info("first stage: %s of %s", name, run.run_dir)
        drawn = set(config["eval_args"]["mode"].values()) != {"full"}
        keys = (*COMPARED, "seed") if drawn else COMPARED
        if other := [key for key in keys if canonical(run.config[key]) != canonical(config[key])]:
            logger.warning("%s was tested with another %s: its metrics are not shown beside", run.run_dir, other[0])
        else:
            self.beside[f"{name} (first stage)"] = run.test_result


def open_runs(
    needs: Sequence[NeededRun], config: Config, make: Callable[[Config], Run], load: Callable[[Path], Run]
) -> OpenedRuns:
    """Load or make the runs that another one needs, each once and in their order.

    Args:
        needs: from `needed_runs`.
        config: of the run that needs them.
        make: runs a config that no finished run has, and returns it ready to score.
        load: opens the folder of a finished run, ready to score.

    Raises:
        RecboleMMError: a folder cannot be read, or making a run failed.
    """
    opened, first_folder = OpenedRuns(), None
    if hooks_of(config.model_class).has_first_stage:
        opened.inputs["first_stage"] = None  # of `first_stage: none`
    for need in needs:
        folder, made = (need.folder, None) if need.folder is not None else _find_or_make(need, make)
        if need.role == Role.ID_MODEL:
            opened.inputs["id_model_run"] = read_pretrained_run(folder, need.config)
        elif need.role == Role.FIRST_STAGE:
            opened._add_first_stage(load(folder) if made is None else made, config)
            first_folder = folder
        elif folder != first_folder:
            opened.beside["Pop"] = read_result(folder)["test_result"]
    return opened


def _find_or_make(need: NeededRun, make: Callable[[Config], Run]) -> tuple[Path, Run | None]:
    """The newest finished run of some settings, whatever command made it; or the run that is made now."""
    first = first_run_dir(need.config)
    with locked(first.with_name(f"{first.name}-beside"), "making"):  # the run itself locks its own folder
        if finished := [path for path in earlier_run_dirs(need.config) if is_finished(path)]:
            return finished[-1], None
        logger.info("%s on the same data and split comes first", need.config["model"])
        made = make(need.to_run())
    return made.run_dir, made


def needed_runs(config: Config, beside: bool = True) -> list[NeededRun]:
    """The runs that a run needs, in the order in which they must be finished.

    Args:
        config: of the run that needs them.
        beside: include the runs whose metrics are printed only.

    Raises:
        ConfigError: settings do not fit together, or name a run that is not finished or is on other data.
    """
    hooks, found = hooks_of(config.model_class), []
    if "id_model_run" in needed(config, hooks):
        path = config["id_model_path"]
        found.append(NeededRun(Role.ID_MODEL, config_of_finished_run(path, config, "id_model_path"), Path(path)))
    if not hooks.has_first_stage:
        return found
    check_first_stage(config)
    if (path := config["first_stage_path"]) is not None:
        theirs = config_of_finished_run(path, config, "first_stage_path")
        found.append(NeededRun(Role.FIRST_STAGE, theirs, Path(path)))
    elif not _is_none(config["first_stage"]):
        found.append(companion(config, Role.FIRST_STAGE, config["first_stage"], config["first_stage_config"] or {}))
    if beside:
        found.append(companion(config, Role.POPULAR, "Pop", {}))
    return found


def check_first_stage(config: Config) -> None:
    """Make sure that `first_stage`, `first_stage_path`, `first_stage_config` and `rerank_k` fit together.

    Raises:
        ConfigError: they do not.
    """
    name, path, given = (config[key] for key in ("first_stage", "first_stage_path", "first_stage_config"))
    if not isinstance(given or {}, Mapping):
        raise ConfigError(f"first_stage_config: {given!r} is not accepted; give a mapping such as {{epochs: 20}}")
    if path is not None and given:
        raise ConfigError("first_stage_config is for a first stage that is trained here, not for first_stage_path")
    if path is None and _is_none(name):
        modes = config["eval_args"]["mode"]
        if config["rerank_k"] is not None and "full" in modes.values():
            raise ConfigError(
                f"first_stage: none leaves nobody to choose the rerank_k: {config['rerank_k']} items; name a model as "
                "first_stage, or ask about every item with rerank_k: ~"
            )


def _is_none(name: Any) -> bool:
    return name is None or str(name).lower() == NONE


def companion(config: Config, role: Role, model: str, changed: Mapping[str, Any]) -> NeededRun:
    """Another model's run on the data, split, seed and candidates of `config`.

    Sequential models that can are trained on full sequences.

    Args:
        config: of the run that needs it.
        role: what it is for.
        model: the other's name.
        changed: settings of the other.

    Raises:
        ConfigError: unknown model, or `changed` changes the data or the split.
    """
    entry = find_model(str(model))
    settings = {**_shared(config, entry.load()), **changed}
    theirs = Config(entry.name, config["dataset"], config_dict=settings)
    theirs["data_files"] = config["data_files"]  # of the day of the run that needs it, where that one is loaded again
    check_same_data(theirs, config, f"first_stage_config: {entry.name}")
    return NeededRun(role, theirs, settings=settings)


def _shared(config: Config, model_class: type) -> dict[str, Any]:
    """Settings that a needed run takes over. What an item looks like is left out where it changes nothing, so that
    runs on other texts and images share one first stage."""
    inherited = named(lambda setting: setting.inherited)
    kept = {*inherited, *config.parameters["Dataset"], *config.parameters["Evaluation"]} - DERIVED
    asks = reads_content(hooks_of(model_class))
    if asks or config["item_features"] or config["missing_modality"] != "mask":
        kept.update(named(lambda setting: setting.describes_items or setting.group == "content"))
    settings = config.as_dict()
    if asks:
        kept |= {key for key, setting in config.settings.items() if setting.group in ("mllm", "texts")}
    found = {key: settings[key] for key in settings if key in kept}
    if _can_train_on_full_sequences(model_class):
        found["full_sequence"] = True
    return found


def _can_train_on_full_sequences(model_class: type) -> bool:
    """Whether `full_sequence: True` makes another class of it."""
    try:
        return full_sequence_class(model_class) is not model_class
    except ConfigError:
        return False
