"""Sections of a page about how runs were trained, how far ahead their users' items are, cost and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_mm.config.settings import BEFORE, PROTOCOL
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.experiments.compare.inputs import unread
from recbole_mm.reporting.blocks import Cell, Grid, Paragraph, Section
from recbole_mm.reporting.figures import Interval, Point, bar_figure, line_figure
from recbole_mm.reporting.runs import RunFacts, numbers
from recbole_mm.runs.folder import result_settings

CUTS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
"""Ranks at which the share of users is shown."""

WIDE = 50
"""Ranks from which their axis is logarithmic."""

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
LONGEST_VALUE = 200

ABSENT = ""
"""Stands for a setting that a run does not have."""
NOT_READ = "(not read)"
"""Stands for a setting that plays no part in a run, whatever its value."""


def curves(runs: Sequence[RunFacts]) -> Section:
    """The validation's score after each epoch, and the loss of training."""
    section = Section("Learning curves")
    by_metric: dict[str, dict[str, RunFacts]] = {}
    for run in runs:
        if len(_curve(run, "valid_score")) > 1:
            by_metric.setdefault(str(run.config.get("valid_metric")), {})[run.name] = run
    for metric, learned in by_metric.items():
        lines = {name: _curve(run, "valid_score") for name, run in learned.items()}
        rings = {name: point for name, run in learned.items() for point in lines[name] if point[0] == run.best_epoch}
        title = f"{metric} of the validation; a ring marks the epoch whose weights are used"
        section.blocks.append(line_figure(title, "epoch", metric, lines, rings=rings))
    for run in runs:
        if len(points := _curve(run, "train_loss")) > 1:
            title = f"Training loss of {run.name}"
            section.blocks.append(line_figure(title, "epoch", "loss", {run.name: points}))
    if len(runs) > 1 and section.blocks:
        section.blocks.append(Paragraph("Losses of different models are no measure of which one is better."))
    return section


def _curve(run: RunFacts, name: str) -> list[Point]:
    records = [numbers(record) for record in run.history]
    return [(record["epoch"], record[name]) for record in records if "epoch" in record and name in record]


def users(runs: Sequence[RunFacts]) -> Section:
    """How far ahead each user's held-out item is ranked."""
    section = Section("Users")
    ranked = {run.name: np.sort(run.ranks[run.ranks > 0]) for run in runs if run.ranks.any()}
    if not ranked:
        return section
    last = max(int(ranks[-1]) for ranks in ranked.values())
    is_long = last >= WIDE
    cuts = [cut for cut in CUTS if cut < last] + [last] if is_long else list(range(1, max(last, 2) + 1))
    lines = {
        name: [(float(cut), float(np.searchsorted(ranks, cut, side="right") / len(ranks))) for cut in cuts]
        for name, ranks in ranked.items()
    }
    of_what = " of its sampled candidates" if any(run.sampled for run in runs) else ""
    title = f"Share of users whose held-out item is among the first k{of_what}"
    section.blocks.append(line_figure(title, "k", "share of users", lines, log_x=is_long, from_zero=True))
    rows: list[list[Cell]] = [
        [name, len(ranks), *(int(np.quantile(ranks, share, method="inverted_cdf")) for share in QUANTILES)]
        for name, ranks in ranked.items()
    ]
    header = ["run", "users", *(f"{share:.0%} of users: rank up to" for share in QUANTILES)]
    section.blocks.append(Grid("Ranks of the held-out items", header, rows))
    section.blocks.append(Paragraph("Of a user with several held-out items, the one that is ranked first counts."))
    return section


def cost(runs: Sequence[RunFacts]) -> Section:
    """Seconds and memory of each stage, and how much was learned in them."""
    section, stages = Section("Cost"), {run.name: _stages(run) for run in runs}
    bars = [
        Interval(stage, said["seconds"], series=place, group=run.name)
        for place, run in enumerate(runs)
        for stage, said in stages[run.name].items()
        if said.get("seconds", -1) >= 0
    ]
    if not bars:
        return section
    section.blocks.append(bar_figure("Seconds of each stage", "seconds", bars))
    names = {"seconds": "seconds", "peak_memory_mb": "peak memory so far, MiB", "peak_gpu_memory_mb": "of the GPU, MiB"}
    shown = [name for name in names if any(name in said for found in stages.values() for said in found.values())]
    rows: list[list[Cell]] = [
        [run.name, stage, *(_written(said.get(name)) for name in shown)]
        for run in runs
        for stage, said in stages[run.name].items()
    ]
    header = ["run", "stage", *(names[name] for name in shown)]
    section.blocks.append(Grid("Cost of each stage", header, rows, is_folded=True))
    section.blocks.append(_training(runs))
    return section


def _written(value: float | None, digits: int = 1) -> Cell:
    return None if value is None else f"{value:,.{digits}f}"


def _training(runs: Sequence[RunFacts]) -> Grid:
    rows: list[list[Cell]] = []
    for run in runs:
        said = numbers(run.result.get("timings"))
        counts = [_written(said.get(name), 0) for name in ("epochs", "steps", "train_targets")]
        seconds = said.get("train_seconds", 0.0)
        speed = said["train_targets"] / seconds if seconds > 0 and said.get("train_targets") else None
        best = None if run.best_epoch is None else str(run.best_epoch)
        rows.append(
            [run.name, *counts, best, _written(seconds), _written(said.get("eval_seconds")), _written(speed, 0)]
        )
    header = ["run", "epochs", "steps", "targets", "best epoch", "seconds of training", "of validation"]
    return Grid("Training", [*header, "targets per second"], rows)


def _stages(run: RunFacts) -> dict[str, dict[str, float]]:
    given = run.result.get("stages")
    return {str(name): numbers(said) for name, said in (given if isinstance(given, dict) else {}).items()}


def settings(runs: Sequence[RunFacts]) -> Section:
    """The settings in which the runs differ, the protocol, all settings, and versions of libraries."""
    section = Section("Settings")
    names = [run.name for run in runs]
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [run.config.get(key, BEFORE.get(key, ABSENT)) for run in runs] for key in keys}
    if len(runs) > 1:
        not_read = [unread(run.folder) for run in runs]
        read = {
            key: [NOT_READ if key in mine else value for mine, value in zip(not_read, values[key], strict=True)]
            for key in keys
        }
        differing = {
            key: found
            for key, found in read.items()
            if len({canonical(value) for value in found if value is not NOT_READ}) > 1
        }
        section.blocks += _differing(differing, names)
    protocol = [[key, *map(_value, values[key])] for key in PROTOCOL if key in values and key != "data_files"]
    section.blocks.append(Grid("Protocol", ["setting", *names], protocol))
    section.blocks.append(
        Grid("All settings", ["setting", *names], [[key, *map(_value, values[key])] for key in keys], is_folded=True)
    )
    given = [run.result.get("versions") for run in runs]
    versions: list[dict[str, Any]] = [found if isinstance(found, dict) else {} for found in given]
    libraries = dict.fromkeys(str(name) for found in versions for name in found)
    rows = [[name, *(str(found.get(name, "")) for found in versions)] for name in libraries]
    section.blocks.append(Grid("Versions", ["library", *names], rows, is_folded=True))
    return section


def _differing(values: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[Grid | Paragraph]:
    """What all runs have and can change a result; what some runs have alone; what changes no result."""
    matters = result_settings(values)
    own = [key for key in matters if ABSENT in values[key]]
    parts = {
        "Settings that differ": [key for key in matters if key not in own],
        "Settings that some of the runs have alone": own,
        "Settings that differ and change no result": [key for key in values if key not in matters],
    }
    found: list[Grid | Paragraph] = [
        Grid(title, ["setting", *names], [[key, *map(_value, values[key])] for key in keys], is_folded=place > 0)
        for place, (title, keys) in enumerate(parts.items())
        if keys
    ]
    return found or [Paragraph("The settings are the same.")]


def _value(value: Any) -> str:
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]}…"
