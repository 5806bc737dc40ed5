"""Sections of a page about finished runs that need their folders alone: results, tests, curves, users, slices, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_mm.config.settings import BEFORE, PROTOCOL
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.errors import RecboleMMError
from recbole_mm.evaluation.slices import PREFIX, Targets, parts_of, users_of_part
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.slices import slice_tables
from recbole_mm.experiments.compare.summary import Table
from recbole_mm.experiments.compare.table import notes, test_cells
from recbole_mm.reporting.blocks import Cell, Figure, Grid, Paragraph, Section
from recbole_mm.reporting.figures import Interval, bar_figure, interval_figure, line_figure, share_figure
from recbole_mm.reporting.runs import RunFacts, is_bigger_better, numbers
from recbole_mm.utils.tables import SEES_HELD_OUT

CUTS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000, 1_000_000)
"""Ranks at which the share of users is shown."""

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
LONGEST_VALUE = 200


def results(runs: Sequence[RunFacts]) -> Section:
    """The runs, their test metrics with intervals, and those of the models beside them."""
    section = Section("Results")
    for run in runs:
        seen = run.result.get("sees_held_out")
        texts = seen if isinstance(seen, list) else [seen] if seen else []
        section.blocks += [Paragraph(f"{run.name} {SEES_HELD_OUT}: {text}", is_warning=True) for text in texts]
    section.blocks += [Paragraph(note, is_warning=True) for run in runs for note in run.notes]
    rows: list[list[Cell]] = []
    for run in runs:
        trained = numbers(run.result.get("timings"))
        users = len(set(run.per_user["user_id"].to_pylist())) if run.per_user is not None else None
        facts = [str(run.result.get("dataset", "")), run.folder.name, str(run.result.get("seed", ""))]
        rows.append([run.name, *facts, int(trained.get("epochs", 0)), users])
        if run.result.get("chosen_on_validation"):
            section.blocks.append(Paragraph(f"{run.name} chose on validation: {run.result['chosen_on_validation']}"))
    section.blocks.append(Grid("Runs", ["run", "data", "folder", "seed", "epochs", "test users"], rows))
    section.blocks.append(_main_figure(runs))
    section.blocks.append(_metrics(runs))
    section.blocks.append(Paragraph("Intervals are 95% over users, by bootstrap or, for many users, by Student's t."))
    return section


def _beside(runs: Sequence[RunFacts]) -> dict[str, dict[str, float]]:
    """Metrics of other models that runs were printed with, by name; equal ones once."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        beside = run.result.get("beside")
        for name, values in (beside if isinstance(beside, dict) else {}).items():
            said = numbers(values)
            if said and said not in found.values():
                found[f"{name} (beside {run.name})"] = said
    return found


def _main_figure(runs: Sequence[RunFacts]) -> Figure:
    metric = runs[0].valid_metric
    rows = []
    for place, run in enumerate(runs):
        if metric in run.metrics:
            low, high = run.intervals.get(metric, (None, None))
            rows.append(Interval(run.name, run.metrics[metric], low, high, place))
    for name, values in _beside(runs).items():
        if metric in values:
            rows.append(Interval(name, values[metric], series=len(rows)))
    return interval_figure(f"{metric} on the test data", metric, rows)


def _metrics(runs: Sequence[RunFacts]) -> Grid:
    beside = _beside(runs)
    names = dict.fromkeys(metric for run in runs for metric in run.metrics)
    rows: list[list[Cell]] = []
    for metric in names:
        cells: list[Cell] = [metric]
        for run in runs:
            cells.append(_with_interval(run.metrics.get(metric), run.intervals.get(metric)))
        rows.append([*cells, *(values.get(metric) for values in beside.values())])
    return Grid("Test metrics, with 95% intervals", ["metric", *(run.name for run in runs), *beside], rows)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" + ("" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]")


# ---- differences ----


def differences(runs: Sequence[RunFacts]) -> Section:
    """Paired tests of the first run against the others: a forest plot, wins and losses, by slice, too."""
    section = Section("Differences")
    if len(runs) < 2:
        return section
    try:
        table = compare_finished([run.folder for run in runs])
    except RecboleMMError as error:
        section.blocks.append(Paragraph(f"These runs cannot be tested against each other: {error}", is_warning=True))
        return section
    metric = runs[0].valid_metric if runs[0].valid_metric in table.metrics else table.metrics[0]
    section.blocks += _tests(table, metric)
    section.blocks += _wins(runs, metric)
    try:
        section.blocks += _slice_tests(table, metric)
    except RecboleMMError as error:
        section.blocks.append(Paragraph(f"No tests by slice: {error}"))
    section.blocks += [Paragraph(note) for note in notes(table) if not note.startswith("Bold is ")]
    return section


def _tests(table: Table, metric: str) -> list[Figure | Grid]:
    rows, cells = [], []
    for line in table.lines:
        for name in table.metrics:
            cell = line.cells[name]
            if cell.test is None or cell.p_holm is None:
                continue
            cells.append([line.row.name, name, *test_cells(cell.test, cell.p_holm)])
            if name == metric:
                rows.append(Interval(line.row.name, cell.test.difference, cell.test.ci_low, cell.test.ci_high))
    if not rows:
        return []
    title = f"{table.reference} minus each other run, {metric}, with 95% intervals"
    header = [f"{table.reference} against", "metric", "difference", "95% interval", "relative", "p", "p (Holm)"]
    return [
        interval_figure(title, f"difference in {metric}", rows, has_zero=True),
        Grid("Paired tests over users", header, cells, is_folded=len(cells) > 12),
    ]


def _slice_tests(table: Table, metric: str) -> list[Figure | Grid]:
    found: list[Figure | Grid] = []
    for slices in slice_tables(table, ["all"]):
        if metric not in slices.metrics:
            continue
        rows = [
            Interval(f"{line.part}: {line.row}", cell.test.difference, cell.test.ci_low, cell.test.ci_high)
            for line in slices.lines
            if (cell := line.cells[metric]).test is not None
        ]
        if rows:
            title = f"{slices.reference} minus each other run by {slices.name}, {metric}, with 95% intervals"
            found.append(interval_figure(title, f"difference in {metric}", rows, has_zero=True))
    return found


def _wins(runs: Sequence[RunFacts], metric: str) -> list[Figure]:
    """Figures of the users for whom the first run is better, equal or worse, in all and by slice."""
    base, rows = runs[0], []
    by_slice: dict[str, list[tuple[str, Sequence[float]]]] = {}
    for other in runs[1:]:
        ours, theirs = _values(base, metric), _values(other, metric)
        counted = win_tie_loss(ours, theirs, metric)
        if counted is not None:
            rows.append((f"against {other.name}", counted))
        mine, its = _values_by_part(base, metric), _values_by_part(other, metric)
        for (kind, part), values in mine.items():
            counted = win_tie_loss(values, its.get((kind, part), {}), metric)
            if counted is not None:
                by_slice.setdefault(kind, []).append((f"{part}, against {other.name}", counted))
    names = [f"users for whom {base.name} is better", "equal", "worse"]
    title = f"Users for whom {base.name} is better, equal or worse by {metric}"
    found = [share_figure(title, names, rows)] if rows else []
    return found + [share_figure(f"{title}, by {kind}", names, parts) for kind, parts in by_slice.items()]


def _values(run: RunFacts, metric: str) -> dict[str, float]:
    """User -> value, the mean over the user's cases."""
    if run.per_user is None or metric not in run.per_user.column_names:
        return {}
    users, rows = np.unique(run.per_user["user_id"].to_numpy().astype(str), return_inverse=True)
    sums = np.bincount(rows, weights=run.per_user[metric].to_numpy())
    return dict(zip(users.tolist(), (sums / np.bincount(rows)).tolist(), strict=True))


def _values_by_part(run: RunFacts, metric: str) -> dict[tuple[str, str], dict[str, float]]:
    """Kind and part of slices -> user -> value."""
    table = run.per_user
    if table is None or metric not in table.column_names or "ranks" not in table.column_names:
        return {}
    targets = Targets.of(table, [metric])
    found: dict[tuple[str, str], dict[str, float]] = {}
    for kind in (name.removeprefix(PREFIX) for name in table.column_names if name.startswith(PREFIX)):
        of_targets = parts_of(table, kind)
        slices = run.result.get("slices")
        known = slices.get(kind) if isinstance(slices, dict) else None
        for part in known if isinstance(known, dict) else dict.fromkeys(of_targets.tolist()):
            users, values = users_of_part(targets, of_targets, part, [metric])
            found[kind, part] = dict(zip(users.tolist(), values[metric].tolist(), strict=True))
    return found


def win_tie_loss(ours: Mapping[str, float], theirs: Mapping[str, float], metric: str) -> list[int] | None:
    """Count the users with a better, an equal and a worse value; None where the users are not the same.

    Example:
        >>> win_tie_loss({"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.5, "b": 0.0, "c": 0.1}, "ndcg@10")
        [1, 1, 1]
    """
    if not ours or ours.keys() != theirs.keys():
        return None
    sign = 1 if is_bigger_better(metric) else -1
    better = sum(sign * ours[user] > sign * theirs[user] for user in ours)
    worse = sum(sign * ours[user] < sign * theirs[user] for user in ours)
    return [better, len(ours) - better - worse, worse]


# ---- learning, users, slices ----


def curves(runs: Sequence[RunFacts]) -> Section:
    """The validation's score after each epoch, and the loss of training."""
    section = Section("Learning curves")
    scores = {run.name: _curve(run, "valid_score") for run in runs}
    if any(scores.values()):
        metrics = list(dict.fromkeys(str(run.config.get("valid_metric")) for run in runs if scores[run.name]))
        shown = {name: points for name, points in scores.items() if points}
        section.blocks.append(line_figure("Score of the validation", "epoch", " or ".join(metrics), shown))
    for run in runs:
        if len(points := _curve(run, "train_loss")) > 1:
            title = f"Training loss of {run.name}"
            section.blocks.append(line_figure(title, "epoch", "loss", {run.name: points}))
    return section


def _curve(run: RunFacts, name: str) -> list[tuple[float, float]]:
    records = [numbers(record) for record in run.history]
    return [(record["epoch"], record[name]) for record in records if "epoch" in record and name in record]


def users(runs: Sequence[RunFacts]) -> Section:
    """How far ahead each user's held-out item is ranked."""
    section = Section("Users")
    ranked = {run.name: np.sort(np.fromiter(run.ranks.values(), np.int64)) for run in runs if run.ranks}
    if not ranked:
        return section
    section.blocks.append(Paragraph("Of a user with several held-out items, the one that is ranked first counts."))
    last = max(int(ranks[-1]) for ranks in ranked.values())
    cuts = [cut for cut in CUTS if cut < last] + [max(last, 2)]
    lines = {
        name: [(float(cut), float(np.searchsorted(ranks, cut, side="right") / len(ranks))) for cut in cuts]
        for name, ranks in ranked.items()
    }
    title = "Share of users whose held-out item is among the first k"
    section.blocks.append(line_figure(title, "k", "share of users", lines, log_x=True, from_zero=True))
    rows: list[list[Cell]] = [
        [name, len(ranks), *(int(np.quantile(ranks, share, method="lower")) for share in QUANTILES)]
        for name, ranks in ranked.items()
    ]
    header = ["run", "users", *(f"{share:.0%} of users: rank up to" for share in QUANTILES)]
    section.blocks.append(Grid("Ranks of the held-out items", header, rows))
    return section


def slices(runs: Sequence[RunFacts]) -> Section:
    """Metrics of parts of the test targets."""
    section = Section("Slices")
    metric = runs[0].valid_metric
    found = {run.name: _slices_of(run) for run in runs}
    for kind in dict.fromkeys(kind for kinds in found.values() for kind in kinds):
        parts = dict.fromkeys(part for kinds in found.values() for part in kinds.get(kind, {}))
        rows, cells, names = [], [], list(dict.fromkeys(name for run in runs for name in run.metrics))
        for part in parts:
            for place, run in enumerate(runs):
                values = found[run.name].get(kind, {}).get(part)
                if values is None:
                    continue
                if metric in values:
                    rows.append(Interval(f"{part}: {run.name}", values[metric], series=place))
                counts: list[Cell] = [int(values.get(name, 0)) for name in ("users", "targets")]
                cells.append([part, run.name, *counts, *(values.get(name) for name in names)])
        if rows:
            section.blocks.append(interval_figure(f"{metric} by {kind}", metric, rows))
        header = [kind, "run", "users", "targets", *names]
        section.blocks.append(Grid(f"Test metrics by {kind}", header, cells, is_folded=True))
    return section


def _slices_of(run: RunFacts) -> dict[str, dict[str, dict[str, float]]]:
    given = run.result.get("slices")
    kinds = given.items() if isinstance(given, dict) else ()
    return {
        str(kind): {str(part): numbers(values) for part, values in parts.items()}
        for kind, parts in kinds
        if isinstance(parts, dict)
    }


# ---- cost and settings ----


def cost(runs: Sequence[RunFacts]) -> Section:
    """Seconds and memory of each stage."""
    section, stages = Section("Cost"), {run.name: _stages(run) for run in runs}
    rows: list[list[Cell]] = []
    for run in runs:
        for stage, said in stages[run.name].items():
            seconds, memory = said.get("seconds"), said.get("peak_memory_mb")
            written = [None if value is None else f"{value:,.1f}" for value in (seconds, memory)]
            rows.append([run.name, stage, *written])
    bars = [
        (f"{run.name}: {stage}", said["seconds"])
        for run in runs
        for stage, said in stages[run.name].items()
        if said.get("seconds", -1) >= 0
    ]
    if bars:
        section.blocks.append(bar_figure("Seconds of each stage", "seconds", bars))
        section.blocks.append(Grid("Cost of each stage", ["run", "stage", "seconds", "peak memory, MiB"], rows))
    return section


def _stages(run: RunFacts) -> dict[str, dict[str, float]]:
    given = run.result.get("stages")
    return {str(name): numbers(said) for name, said in (given if isinstance(given, dict) else {}).items()}


def settings(runs: Sequence[RunFacts]) -> Section:
    """The settings in which the runs differ, the protocol, all settings, and versions of libraries."""
    section = Section("Settings")
    names = [run.name for run in runs]
    keys = sorted({key for run in runs for key in run.config})
    values = {key: [run.config.get(key, BEFORE.get(key)) for run in runs] for key in keys}
    differing = [key for key in keys if len({canonical(value) for value in values[key]}) > 1]
    if len(runs) > 1:
        rows = [[key, *map(_value, values[key])] for key in differing]
        section.blocks.append(
            Grid("Settings that differ", ["setting", *names], rows) if rows else Paragraph("The settings are the same.")
        )
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


def _value(value: Any) -> str:
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]}…"
