"""Finished runs as rows of a table, without an experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.grid import DONE
from recbole_mm.experiments.compare.summary import TableRow
from recbole_mm.runs import folder as run_folder


def rows_of_runs(run_dirs: Sequence[Path]) -> list[TableRow]:
    """Rows for finished runs; those that differ in nothing but the seed make one row.

    A row is named by its model; where several rows have the same one, by the settings in which they differ, too.

    Raises:
        CheckpointError: a folder is not that of a finished run.
        ConfigError: a folder is given twice, two are of the same settings and seed, or they are of several datasets.
    """
    groups: dict[str, dict[int, Path]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for place, folder in enumerate(run_dirs):
        if folder.resolve() in [earlier.resolve() for earlier in run_dirs[:place]]:
            raise ConfigError(f"--runs: {folder} is given twice")
        run_folder.read_result(folder)
        config = read_yaml(folder / run_folder.CONFIG)
        deciding = run_folder.result_settings(config)
        seed = deciding.pop("seed", 0)
        key = json.dumps(deciding, sort_keys=True, default=str)
        same = groups.setdefault(key, {})
        if seed in same:
            raise ConfigError(f"--runs: {same[seed]} and {folder} are of the same settings and seed; give one of them")
        same[seed] = folder
        settings[key] = deciding
    datasets = sorted({str(entry["dataset"]) for entry in settings.values()})
    if len(datasets) > 1:
        raise ConfigError(f"--runs: the runs are of several datasets, {', '.join(datasets)}; compare those of one")
    names = _names(settings)
    return [
        TableRow(names[key], "", str(settings[key]["model"]), DONE, runs=dict(sorted(groups[key].items())))
        for key in groups
    ]


def _names(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A name for each group: its model, and what tells it from the other groups of that model."""
    names = {}
    for key, mine in settings.items():
        same = [other for other in settings.values() if other["model"] == mine["model"]]
        differing = sorted(name for name in mine if any(other.get(name) != mine[name] for other in same))
        differences = ", ".join(f"{name}={mine[name]}" for name in differing)
        names[key] = f"{mine['model']} ({differences})" if differences else str(mine["model"])
    return names
