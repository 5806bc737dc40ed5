"""Sections of a page about the folders that `recbole-mm compare` and `recbole-mm tune` write."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import DataError
from recbole_mm.experiments.compare.grid import DONE
from recbole_mm.experiments.compare.summary import SIGNIFICANT
from recbole_mm.experiments.tune.command import SEARCH
from recbole_mm.experiments.tune.records import TRIALS, Record, best_of, read_records
from recbole_mm.experiments.tune.table import TRIANGLE
from recbole_mm.experiments.tune.triangle import triangle
from recbole_mm.reporting.blocks import Cell, Figure, Grid, Notes, Paragraph, Section
from recbole_mm.reporting.figures import Interval, interval_figure, line_figure
from recbole_mm.reporting.results import WORDS
from recbole_mm.reporting.runs import is_bigger_better
from recbole_mm.utils.tables import SEES_HELD_OUT

TABLE, SLICES, TEXT = "table.csv", "slices.csv", "table.md"
CURVES = 6
"""Trials whose validations are drawn, the best first."""
MOST_FIGURES = 8
MOST_ROWS = 40
"""Rows of a table that is open."""

WIDE = 50
"""Ratio of values from which their axis is logarithmic."""

ONE_TRIAL = "best validation of a trial"

TESTS = ("difference", "ci_low", "ci_high", "relative", "p", "p_holm")
NUMBERS = ("mean", "sd", "published", *TESTS)
FACTS = ("group", "model", "status", "seeds", "users", "epochs", "trials", "chosen", "differs")
HEADERS = {
    **{"sd": "standard deviation", "published": "paper", "ci_low": "95% interval from", "ci_high": "to"},
    **{"relative": "relative difference", "p_holm": "p (Holm)", "differs": "other settings"},
}

HOW_TO_READ = (
    "Right of 0 the first-named row has the higher value. Tests pair users, each with the mean over the seeds. An "
    "interval without 0 is a difference that is expected of other users, too; p (Holm) is corrected for the rows of a "
    "metric."
)

OF_MARKS = ("- Bold is the best", "- \\*: ", "- *: ")
"""Begin the notes of `table.md` that tell of its typefaces and marks."""

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
    rows = _read(folder / TABLE, ("row", "metric", "mean", "status"))
    title, shows, said = _words(folder)
    section = Section(title)
    section.blocks += [Paragraph(shows)] if shows else []
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    first = [row for row in rows if row["metric"] == metrics[0]]
    seen = [row for row in first if row.get("sees_held_out")]
    section.blocks += [
        Paragraph(f"{row['row']} {SEES_HELD_OUT}: {row['sees_held_out']}", is_warning=True) for row in seen
    ]
    section.blocks += _values(first, metrics[0])
    for metric in metrics[:MOST_FIGURES]:
        section.blocks += _forest([row for row in rows if row["metric"] == metric], metric, "row", "other row")
    section.blocks.append(Paragraph(HOW_TO_READ))
    section.blocks.append(_grid("Values and tests", rows, ("row", "metric", "mean", "sd", "published", *TESTS)))
    section.blocks.append(_grid("Rows", first, ("row", *FACTS)))
    if (folder / SLICES).is_file():
        parts = _read(folder / SLICES, ("slice", "part", "row", "metric", "mean"))
        for kind in dict.fromkeys(row["slice"] for row in parts):
            mine = [row for row in parts if row["slice"] == kind]
            section.blocks += _slices(kind, mine, metrics)
    failed = [row for row in first if row.get("reason") and row["status"] != DONE]
    section.blocks += [Paragraph(f"{row['row']}: {row['status']}: {row['reason']}", is_warning=True) for row in failed]
    section.blocks += [Notes(said)] if said else []
    return section


def _words(folder: Path) -> tuple[str, str, list[str]]:
    """The title of a table, what it shows, and its notes, as `table.md` has them."""
    path = folder / TEXT
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    title = lines[0].removeprefix("# ") if lines and lines[0].startswith("# ") else f"Table {folder.name}"
    begins = next((place for place, line in enumerate(lines) if line.startswith("|")), 0)
    said = [line.removeprefix("- ") for line in lines if line.startswith("- ") and not line.startswith(OF_MARKS)]
    return title, " ".join(line for line in lines[1:begins] if line), said


def _values(rows: Sequence[Row], metric: str) -> list[Figure]:
    """The mean over the seeds of each row, and its standard deviation."""
    shown = []
    for row in rows:
        mean, spread = _number(row.get("mean")), _number(row.get("sd"))
        if mean is not None:
            low, high = (None, None) if spread is None else (mean - spread, mean + spread)
            shown.append(Interval(row["row"], mean, low, high, group=row.get("group", "")))
    title = f"{metric} of each row, the mean over its seeds and one standard deviation to each side"
    return [interval_figure(title, metric, shown, has_values=True)] if shown else []


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


def _forest(rows: Sequence[Row], metric: str, label: str, others: str, group: str = "") -> list[Figure]:
    shown = []
    for row in rows:
        value, low, high = (_number(row.get(name)) for name in ("difference", "ci_low", "ci_high"))
        if value is not None:
            shown.append(Interval(row[label], value, low, high, group=row.get(group, "") if group else ""))
    if not shown:
        return []
    reference = next(row["reference"] for row in rows if row.get("reference"))
    title = f"{reference} minus each {others}, {metric}, with 95% intervals"
    return [interval_figure(title, f"difference in {metric}", shown, has_zero=True, has_values=True)]


def _slices(kind: str, rows: Sequence[Row], metrics: Sequence[str]) -> list[Figure | Grid]:
    found: list[Figure | Grid] = []
    metric = next((name for name in metrics if any(row["metric"] == name for row in rows)), None)
    if metric is None or len({row["part"] for row in rows}) == 1:
        return found
    mine = [{**row, "group": _part(row)} for row in rows if row["metric"] == metric]
    found += _forest(mine, metric, "row", f"other row by {WORDS.get(kind, kind)}", "group")
    names = list(dict.fromkeys(row["row"] for row in mine if _number(row.get("p_holm")) is not None))
    if names:
        reference = next(row["reference"] for row in mine if row.get("reference"))
        verdicts = {(row["group"], row["row"]): _verdict(row, metric) for row in mine}
        parts = dict.fromkeys(row["group"] for row in mine)
        cells: list[list[Cell]] = [[part, *(verdicts.get((part, name), "") for name in names)] for part in parts]
        cells.append(["wins, ties, losses", *(_counted(verdicts, name) for name in names)])
        title = f"Whether {reference} is better by {metric}, by {kind}, p < {SIGNIFICANT} (Holm)"
        found.append(Grid(title, [kind, *(f"against {name}" for name in names)], cells))
    return [
        *found,
        _grid(f"Values by {kind}", rows, ("part", "row", "metric", "users", "targets", "mean", "sd", *TESTS)),
    ]


def _part(row: Row) -> str:
    return f"{row['part']} ({row['users']} users)" if row.get("users") else row["part"]


def _verdict(row: Row, metric: str) -> str:
    p_value, difference = _number(row.get("p_holm")), _number(row.get("difference"))
    if p_value is None or difference is None:
        return ""
    if p_value >= SIGNIFICANT or difference == 0:
        return "not told apart"
    return "better" if (difference > 0) == is_bigger_better(metric) else "worse"


def _counted(verdicts: Mapping[tuple[str, str], str], name: str) -> str:
    mine = [verdict for (_, row), verdict in verdicts.items() if row == name]
    return ", ".join(str(mine.count(verdict)) for verdict in ("better", "not told apart", "worse"))


def _grid(caption: str, rows: Sequence[Row], columns: Sequence[str]) -> Grid:
    there = [name for name in columns if any(row.get(name) for row in rows)]
    cells: list[list[Cell]] = [
        [_number(row.get(name)) if name in NUMBERS else row.get(name, "") for name in there] for row in rows
    ]
    return Grid(caption, [HEADERS.get(name, name) for name in there], cells, is_folded=len(cells) > MOST_ROWS)


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
        section.blocks += [*_by_setting(scored, metric), *_by_mixture(scored, metric, bigger)]
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
    lines = {ONE_TRIAL: points, "best so far": so_far}
    return line_figure(f"Trials, {metric}", "trial", metric, lines, dotted={ONE_TRIAL}, stepped={"best so far"})


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
            found.append(line_figure(title, key, metric, {ONE_TRIAL: points}, log_x=log_x, dotted={ONE_TRIAL}))
    return found[:MOST_FIGURES]


def _by_mixture(scored: Sequence[tuple[Record, float]], metric: str, bigger: bool) -> list[Figure]:
    """Settings that are weights of three parts, as the triangles that the search draws."""
    found = []
    for key in dict.fromkeys(key for record, _ in scored for key in record.settings):
        points = [(weights, score) for record, score in scored if (weights := _weights(record.settings.get(key)))]
        names = list(points[0][0]) if points else []
        if len(names) == TRIANGLE and all(list(weights) == names for weights, _ in points):
            title = f"{metric} by {key}"
            rows: list[list[Cell]] = [[score, *weights.values()] for weights, score in points]
            drawn = Markup(triangle(title, points, metric, bigger))  # which escapes the texts
            found.append(Figure(title, drawn, Grid(title, [metric, *names], rows)))
    return found


def _weights(value: Any) -> dict[str, float] | None:
    """A setting as weights of parts, not all 0; None for what is none."""
    numbers = {str(name): _plain(given) for name, given in value.items()} if isinstance(value, dict) else {}
    found = {name: weight for name, weight in numbers.items() if weight is not None and weight >= 0}
    return found if len(found) == len(numbers) and sum(found.values()) > 0 else None


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
