"""The best model of interactions alone, which every table shows once more below its rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.grid import DONE, valid_score
from recbole_mm.experiments.compare.summary import Line, Table
from recbole_mm.models.hooks import hooks_of, reads_content
from recbole_mm.registry import find_model
from recbole_mm.runs import folder as run_folder

NAME = "best ID model"

READS_ITEMS = ("content_features", "selected_features", "item_attribute")
"""Settings of models, ours and RecBole's, that read what is known of an item beside its id."""


def with_best_id_model(table: Table) -> Table:
    """Return the table with the row of its best ID model, and a note of which it is, or why there is none.

    ID models are general and sequential models that read interactions alone. Those count that were trained and ranked
    as the reference was, with as many trials; the mean best validation result of their runs decides, never the test.
    """
    base = next((line for line in table.lines if line.row.name == table.reference and line.row.status == DONE), None)
    if base is None:
        return table
    config = _config(base)
    metric, sign = config["valid_metric"], 1 if config.get("valid_metric_bigger", True) else -1
    scores = {line.row.name: _validation(line, metric) for line in table.lines if _has_equal_budget(line, base)}
    found = {name: sign * score for name, score in scores.items() if score is not None}
    if not found:
        note = f"{NAME}: none of the rows with the budget of {table.reference} is a model of interactions alone."
        return replace(table, id_note=note)
    best = max(found, key=lambda name: found[name])
    (line,) = (line for line in table.lines if line.row.name == best)
    among = f" of {', '.join(found)}" if len(found) > 1 else ""
    return replace(
        table,
        id_line=replace(
            line,
            row=replace(line.row, name=f"{NAME}: {best}", group=""),
            cells={metric: replace(cell, place=0) for metric, cell in line.cells.items()},
        ),
        id_note=f"{NAME}: {best}, the best{among} by validation {metric}, each with the budget of {table.reference}.",
    )


def reads_interactions_alone(config: Mapping[str, Any]) -> bool:
    """Return whether a run's model knows items by their ids alone; False where its class cannot be loaded."""
    try:
        entry = find_model(str(config["model"]))
        hooks = hooks_of(entry.load())
    except ConfigError:
        return False
    reads = reads_content(hooks) or hooks.has_first_stage or any(config.get(key) for key in READS_ITEMS)
    return entry.type in ("general", "sequential") and not reads


def _has_equal_budget(line: Line, base: Line) -> bool:
    alike = line.row.status == DONE and line.comparable and not (line.differs or line.sees_held_out)
    return alike and line.row.trials == base.row.trials and reads_interactions_alone(_config(line))


def _validation(line: Line, metric: str) -> float | None:
    scores = [valid_score(folder, metric) for folder in line.row.runs.values()]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(scores) else None


def _config(line: Line) -> dict[str, Any]:
    return read_yaml(next(iter(line.row.runs.values())) / run_folder.CONFIG)
