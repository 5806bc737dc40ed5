"""Sections of a page about the folders that `recbole-mm compare` and `recbole-mm tune` write."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import DataError
from recbole_mm.experiments.compare.summary import SIGNIFICANT
from recbole_mm.experiments.tune.command import SEARCH
from recbole_mm.experiments.tune.records import TRIALS, Record, best_of, read_records
from recbole_mm.reporting.blocks import Cell, Figure, Grid, Paragraph, Section
from recbole_mm.reporting.figures import Interval, interval_figure, line_figure, share_figure
from recbole_mm.reporting.runs import is_bigger_better

TABLE, SLICES = "table.csv", "slices.csv"
CURVES = 6
"""Trials whose validations are drawn, the best first."""
MOST_FIGURES = 8
WIDE = 50
"""Ratio of values from which their axis is logarithmic."""

Row = dict[str, str]


def is_search(folder: Path) -> bool:
    """Return whether a folder is that of a search."""
    return (folder / TRIALS).is_dir() and (folder / SEARCH).is_file()


def is_table(folder: Path) -> bool:
    """Return whether a folder holds a table of runs."""
    return (folder / TABLE).is_file()


# ---- compare ----


def table_section(folder: Path) -> Section:
    """A table of runs: its values, a forest plot of differences, and slices where there are some.

    Raises:
        DataError: a file cannot be read, or is not one that `compare` writes.
    """
    section, rows = Section(f"Table {folder.name}"), _read(folder / TABLE, ("row", "metric", "mean", "status"))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    for metric in metrics[:MOST_FIGURES]:
        section.blocks += _forest([row for row in rows if row["metric"] == metric], metric, "row")
    section.blocks.append(_grid("Values and tests", rows, ("row", "metric", "mean", "sd", "status", "sees_held_out")))
    if (folder / SLICES).is_file():
        parts = _read(folder / SLICES, ("slice", "part", "row", "metric", "mean"))
        for kind in dict.fromkeys(row["slice"] for row in parts):
            mine = [row for row in parts if row["slice"] == kind]
            section.blocks += _slices(kind, mine, metrics)
    failed = [row for row in rows if row["metric"] == metrics[0] and row.get("reason")]
    section.blocks += [Paragraph(f"{row['row']}: {row['status']}: {row['reason']}", is_warning=True) for row in failed]
    return section


def _read(path: Path, needed: Sequence[str]) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    lacking = [name for name in needed if not rows or name not in rows[0]]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r}; give the folder of `recbole-mm compare`")
    return rows


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _forest(rows: Sequence[Row], metric: str, label: str) -> list[Figure]:
    found, shown = [], []
    for row in rows:
        value, low, high = (_number(row.get(name)) for name in ("difference", "ci_low", "ci_high"))
        if value is not None:
            shown.append(Interval(row[label], value, low, high))
    if shown:
        reference = next(row["reference"] for row in rows if row.get("reference"))
        title = f"{reference} minus each other row, {metric}, with 95% intervals"
        found.append(interval_figure(title, f"difference in {metric}", shown, has_zero=True))
    return found


def _slices(kind: str, rows: Sequence[Row], metrics: Sequence[str]) -> list[Figure | Grid]:
    found: list[Figure | Grid] = []
    metric = next((name for name in metrics if any(row["metric"] == name for row in rows)), None)
    if metric is None:
        return found
    mine = [{**row, "label": f"{row['part']}: {row['row']}"} for row in rows if row["metric"] == metric]
    found += [
        Figure(f"{figure.title}, by {kind}", figure.svg, figure.grid) for figure in _forest(mine, metric, "label")
    ]
    told = []
    for name in dict.fromkeys(row["row"] for row in mine):
        tested = [row for row in mine if row["row"] == name and _number(row.get("p_holm")) is not None]
        if tested:
            told.append((f"against {name}", _told_apart(tested, metric)))
    if told:
        title = f"Parts by {kind} in which the reference is better or worse by {metric}, p < {SIGNIFICANT} (Holm)"
        found.append(share_figure(title, ["better", "not told apart", "worse"], told))
    columns = ("part", "row", "metric", "users", "targets", "mean", "sd")
    return [*found, _grid(f"Values by {kind}", rows, columns)]


def _told_apart(rows: Sequence[Row], metric: str) -> list[int]:
    """Count parts that are won, tied and lost."""
    sign, counts = (1 if is_bigger_better(metric) else -1), [0, 0, 0]
    for row in rows:
        p_value, difference = _number(row["p_holm"]), _number(row.get("difference"))
        if p_value is None or difference is None or p_value >= SIGNIFICANT:
            counts[1] += 1
        else:
            counts[0 if sign * difference > 0 else 2] += 1
    return counts


def _grid(caption: str, rows: Sequence[Row], columns: Sequence[str]) -> Grid:
    tests = ("difference", "ci_low", "ci_high", "relative", "p", "p_holm")
    there = [name for name in (*columns, *tests) if any(row.get(name) for row in rows)]
    texts = {"row", "metric", "status", "part", "sees_held_out", "users", "targets"}
    cells: list[list[Cell]] = [
        [row.get(name, "") if name in texts else _number(row.get(name)) for name in there] for row in rows
    ]
    return Grid(caption, there, cells, is_folded=len(cells) > 20)


# ---- tune ----


def search_section(folder: Path) -> Section:
    """The trials of a search: their scores, the best ones' validations, and each setting against the score.

    Raises:
        RecboleMMError: a file is damaged.
    """
    search, records = read_yaml(folder / SEARCH), read_records(folder)
    given = search.get("settings")
    metric = str((given if isinstance(given, dict) else {}).get("valid_metric") or "score")
    bigger = is_bigger_better(metric)
    section = Section(f"Search: {search.get('model')} on {search.get('dataset')}")
    best = {record.number: record.best(bigger) for record in records}
    scored = [(it, found[1]) for it in records if (found := best[it.number]) and math.isfinite(found[1])]
    ranked = sorted(scored, key=lambda pair: ((-1 if bigger else 1) * pair[1], pair[0].number))
    if scored:
        section.blocks.append(_by_trial(scored, metric, bigger))
        lines = {
            f"trial {record.number}": [(at, score) for at, score in record.scores] for record, _ in ranked[:CURVES]
        }
        section.blocks.append(line_figure(f"Validations of the best trials, {metric}", "epoch", metric, lines))
        section.blocks += _by_setting(scored, metric)
    section.blocks.append(_trials(records, [record for record, _ in ranked], metric, bigger))
    failed = [record for record in records if record.reason]
    section.blocks += [Paragraph(f"Trial {it.number} failed: {it.reason}", is_warning=True) for it in failed]
    section.blocks.append(Paragraph(f"Scores are those of the validation, {metric}; no trial was tested."))
    return section


def _by_trial(scored: Sequence[tuple[Record, float]], metric: str, bigger: bool) -> Figure:
    points = [(float(record.number), score) for record, score in scored]
    so_far: list[tuple[float, float]] = []
    for number, score in points:
        best = so_far[-1][1] if so_far else score
        so_far.append((number, max(best, score) if bigger else min(best, score)))
    lines = {"the trial's best validation": points, "best so far": so_far}
    return line_figure(f"Trials, {metric}", "trial", metric, lines)


def _by_setting(scored: Sequence[tuple[Record, float]], metric: str) -> list[Figure]:
    found = []
    for key in dict.fromkeys(key for record, _ in scored for key in record.settings):
        points = sorted(
            (value, score) for record, score in scored if (value := _plain(record.settings.get(key))) is not None
        )
        values = [value for value, _ in points]
        if len(set(values)) > 1:
            log_x = values[0] > 0 and values[-1] / values[0] >= WIDE
            title = f"{metric} by {key}"
            found.append(line_figure(title, key, metric, {"a trial": points}, log_x=log_x, is_joined=False))
    return found[:MOST_FIGURES]


def _plain(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _trials(records: Sequence[Record], ranked: Sequence[Record], metric: str, bigger: bool) -> Grid:
    best, keys = best_of(records, bigger), list(dict.fromkeys(key for record in records for key in record.settings))
    rows: list[list[Cell]] = []
    for record in [*ranked, *(record for record in records if record not in ranked)]:
        found = record.best(bigger)
        named = f"{record.number} (best)" if record is best else str(record.number)
        score, at = (None, None) if found is None else (found[1], found[0])
        settings = [str(record.settings.get(key, "")) for key in keys]
        rows.append([named, score, at, record.epochs, f"{record.seconds:.1f}", record.status, *settings])
    return Grid("Trials, the best first", ["trial", metric, "at epoch", "epochs", "seconds", "status", *keys], rows)
