"""From an experiment and a dataset to the settings of every run; what cannot work is found here, before any run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole.utils import EvaluatorType

from recbole_mm.config.layers import merge
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import DERIVED
from recbole_mm.config.yaml_settings import canonical, parse_argument, read_yaml
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.loading import check_dataset
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.experiments.compare.experiment import ALIKE, NOT_IN_AN_EXPERIMENT, Experiment, Row
from recbole_mm.utils.spelling import did_you_mean

logger = logging.getLogger(__name__)

MADE_BY = {"image": "set image_dir, image_field or image_zip", "text": "add an .item file and set text_fields"}


@dataclass(frozen=True)
class PlannedRow:
    """A row and the settings of its runs.

    Attributes:
        row: of the experiment.
        dataset: its name.
        settings: what all its runs are given.
        not_applicable: why this dataset has no such row; empty if it has.
    """

    row: Row
    dataset: str
    settings: dict[str, Any]
    not_applicable: str = ""

    def run_settings(self, trial: int, seed: int) -> dict[str, Any]:
        """What the run of a trial (its place in `row.trials`) and a seed is given over the defaults."""
        return merge(self.settings, self.row.trials[trial], {"seed": seed})

    def sliced_by(self, entries: Sequence[str]) -> PlannedRow:
        """The row with further entries of `slices`, which change no result and name no other run."""
        given = [*(self.config(0, 0)["slices"] or ()), *entries]
        return replace(self, settings=merge(self.settings, {"slices": list(dict.fromkeys(given))}))

    def config(self, trial: int, seed: int) -> Config:
        """The run's whole configuration: the one that the run itself will come to."""
        return Config(self.row.model, self.dataset, config_dict=self.run_settings(trial, seed))


def plan_rows(
    experiment: Experiment,
    dataset: str,
    seeds: Sequence[int],
    config_files: Sequence[str | Path] = (),
    command_line: Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
) -> list[PlannedRow]:
    """Settings of every row. Later wins: property files < the experiment's shared settings < config files < command
    line < the row's own settings < its trial.

    A row keeps what makes it a row: a key of its own wins over the command line, with a warning. A shared setting that
    a row's model does not know is left out for that row. `metrics` are the table's columns in place of the
    experiment's.

    Raises:
        ConfigError: an unknown model or key, a key of the command line that no row takes, rows that would not be
            trained or ranked alike, or metrics that the runs will not report.
        DataError: the dataset is not there.
    """
    shared, typed = experiment.settings, dict(command_line or {})
    files = merge(*(read_yaml(Path(path)) for path in config_files))
    files = {key: value for key, value in files.items() if key not in DERIVED}  # a run's config.yaml holds them
    layers = {f"{experiment.name}: settings": shared, "--config_files": files, "the command line": typed}
    for where, layer in layers.items():
        for key in set(layer) & set(NOT_IN_AN_EXPERIMENT):
            raise ConfigError(f"{where} holds {key}; {NOT_IN_AN_EXPERIMENT[key]}")
    planned = [_plan_row(row, dataset, shared, files, typed) for row in experiment.rows]
    _refuse_without_effect(layers, planned, experiment.models)
    configs = [[entry.config(trial, seeds[0]) for trial in range(len(entry.row.trials))] for entry in planned]
    _check_alike([entry.row for entry in planned], [trials[0] for trials in configs])
    _check_metrics(metrics or experiment.metrics, configs[0][0])
    check_dataset(configs[0][0])
    return [
        PlannedRow(entry.row, dataset, entry.settings, _not_applicable(entry.row, trials[0]))
        for entry, trials in zip(planned, configs)
    ]


def known_keys(config: Config) -> set[str]:
    """Settings that have a meaning for the model of `config`."""
    return config.known_settings() - DERIVED


def reported_metrics(config: Config) -> list[str]:
    """Names under which a run reports its metrics."""
    names = [name.lower() for name in config["metrics"]]
    if config["eval_type"] != EvaluatorType.RANKING:
        return names
    return [
        name if name == "gauc" else f"{name}@{k}" for name in names for k in ([0] if name == "gauc" else config["topk"])
    ]


def _plan_row(
    row: Row, dataset: str, shared: Mapping[str, Any], files: Mapping[str, Any], typed: Mapping[str, Any]
) -> PlannedRow:
    where = {key: layer[key] for layer in (files, typed) for key in ("data_path",) if key in layer}
    try:
        defaults = Config(row.model, dataset, config_dict=where)
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from error
    known = known_keys(defaults)
    tuned = {key for trial in row.trials for key in trial}
    for key in (*row.settings, *sorted(tuned)):
        if key not in known:
            raise ConfigError(f"row {row.name!r}: setting {key!r} is {defaults.unknown(key)}")
    given = {
        key: parse_argument(key, value, defaults.internal_config_dict.get(key), defaults.settings)
        for key, value in typed.items()
        if key in known
    }
    for key in sorted(set(given) & {*row.settings, *tuned}):
        kept = "tunes it" if key in tuned else f"keeps its own, {row.settings[key]!r}"
        logger.warning("--%s does not reach row %r, which %s", key, row.name, kept)
    own = merge(row.settings)
    below = [{key: value for key, value in layer.items() if key in known} for layer in (shared, files, given)]
    return PlannedRow(row, dataset, merge(*below, own))


def _refuse_without_effect(
    layers: Mapping[str, Mapping[str, Any]], planned: Sequence[PlannedRow], models: Iterable[str]
) -> None:
    """A shared key that no row takes would be a typo, or a wish that silently comes to nothing. One that is for a row
    that was left out is none: the same command line serves for a part of the rows.
    """
    known = set().union(*(known_keys(Config(model, planned[0].dataset)) for model in models))
    for where, layer in layers.items():
        for key in layer:
            if key not in known:
                raise ConfigError(f"{where}: setting {key!r} is unknown to every row{did_you_mean(key, known)}")
    for key in layers["the command line"]:
        own = [key in entry.row.settings or any(key in trial for trial in entry.row.trials) for entry in planned]
        if all(own):
            raise ConfigError(f"--{key}: every row sets or tunes it itself; change the experiment's file, or --var")


def _check_alike(rows: Sequence[Row], configs: Sequence[Config]) -> None:
    for key in sorted(ALIKE - {"metrics", "topk"}):
        for row, config in zip(rows, configs):
            if canonical(config[key]) != canonical(configs[0][key]):
                raise ConfigError(
                    f"{key} is {configs[0][key]!r} for {rows[0].name!r} but {config[key]!r} for {row.name!r}, and all "
                    f"rows must get the same; give it in the experiment's shared settings or as --{key}"
                )


def _check_metrics(metrics: Sequence[str], config: Config) -> None:
    reported = reported_metrics(config)
    for metric in metrics:
        if metric.lower() not in reported:
            raise ConfigError(
                f"the runs will not report {metric}, only {', '.join(reported)}; change metrics or topk, or choose the "
                "columns with --show"
            )
    if not config["save_per_user"]:
        raise ConfigError("save_per_user: False leaves no values per user to test; leave it at True")


def _not_applicable(row: Row, config: Config) -> str:
    """Why the dataset cannot give the row what it needs; empty if it can."""
    if not row.needs:
        return ""
    for need in row.needs:
        if need not in config["modalities"]:
            return f"it needs {need}, which modalities: {config['modalities']} leaves out"
    try:
        source = ContentSource.from_config(config)
    except DataError as error:
        return str(error)
    there = {"image": source.images is not None and any(source.images.names()), "text": source.layout is not None}
    for need in row.needs:
        if not there[need]:
            return f"{config['dataset']} has no {need} ({MADE_BY[need]})"
    return ""
