"""Tables of slices: each row's metrics in each part of the test targets, tested against the reference part by part."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.data.sharing import Datasets
from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.significance import both_have, compare, holm
from recbole_mm.evaluation.slice_kinds import kinds_of
from recbole_mm.evaluation.slices import Targets, parts_of, users_of_part
from recbole_mm.experiments.compare.grid import DONE
from recbole_mm.experiments.compare.summary import SIGNIFICANT, Cell, Line, Table
from recbole_mm.experiments.compare.table import markdown_grid, test_cells
from recbole_mm.runs.slicing import RunSlices
from recbole_mm.utils.escaping import csv_cell, markdown
from recbole_mm.utils.files import make_folder, write_text
from recbole_mm.utils.spelling import did_you_mean

ALL = "all"
"""Every kind of slices that the reference's runs have, or would have by their settings."""

COLUMNS = (
    *("slice", "part", "row", "metric", "users", "targets", "mean", "sd", "reference", "difference", "relative"),
    *("ci_low", "ci_high", "p", "p_holm", "test"),
)

Values = tuple[np.ndarray, dict[str, np.ndarray]]
"""Sorted users, and metric -> a value of each."""


@dataclass
class PartLine:
    """One row of a table in one part.

    Attributes:
        row, part: their names.
        users, targets: that the part has.
        cells: by metric; a test is of the reference row against this one.
    """

    row: str
    part: str
    users: int
    targets: int
    cells: dict[str, Cell]


@dataclass
class SliceTable:
    """A table's rows in the parts of one kind of slices.

    Attributes:
        name: of the kind.
        metrics: columns, as printed.
        lines: part after part, in each the rows of the table.
        reference: name of the row the tests are about.
        notes: what is missing, and why.
    """

    name: str
    metrics: list[str]
    reference: str
    lines: list[PartLine] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def slice_tables(table: Table, wanted: Sequence[str]) -> list[SliceTable]:
    """The tables of some kinds of slices, in the order in which they are named.

    What a run's folder lacks is cut from its results per user and its data.

    Args:
        table: computed.
        wanted: kinds as in `result.json`, or entries of `slices`; `all` stands for those of the reference row.

    Raises:
        ConfigError: there is no such kind, or the reference row cannot be cut by it.
        CheckpointError, DataError: a run cannot be read.
    """
    done = [line for line in table.lines if line.row.status == DONE and line.comparable]
    base = next((line for line in done if line.row.name == table.reference), done[0] if done else None)
    if base is None:
        return []
    datasets = Datasets()
    runs = {line.row.name: [RunSlices(folder, datasets) for folder in line.row.runs.values()] for line in done}
    names = _kinds(base.row.name, runs[base.row.name][0], wanted)
    return [_slice_table(name, table, base, done, runs) for name in names]


def _kinds(row: str, run: RunSlices, wanted: Sequence[str]) -> list[str]:
    """The kinds of slices that are named, by the reference's first run."""
    names: list[str] = []
    for entry in wanted:
        if entry == ALL:
            names += list(run.results) or _kinds_of_settings(row, run)
        elif entry in run.results:
            names.append(entry)
        else:
            try:
                names += kinds_of(run.config, entry)
            except RecboleMMError as error:
                known = did_you_mean(entry, [*run.results, ALL])
                raise ConfigError(f"--slices: {row} has no slices {entry!r}{known}") from error
    return list(dict.fromkeys(names))


def _kinds_of_settings(row: str, run: RunSlices) -> list[str]:
    """The kinds that a run without slices would have by its settings."""
    try:
        found = [kind for entry in run.config["slices"] or () for kind in kinds_of(run.config, entry)]
    except RecboleMMError as error:
        raise ConfigError(f"--slices: {row} has none, and its settings cannot be read here: {error}") from error
    if not found:
        raise ConfigError(f"--slices: {row} has none, and its setting slices names none; name some")
    return found


def _slice_table(
    name: str, table: Table, base: Line, done: Sequence[Line], runs: Mapping[str, Sequence[RunSlices]]
) -> SliceTable:
    found = SliceTable(name, [], base.row.name)
    results, lines = {}, []
    for line in done:
        try:
            results[line.row.name] = [run.of(name) for run in runs[line.row.name]]
            lines.append(line)
        except RecboleMMError as error:
            if line is base:
                raise ConfigError(f"--slices: {line.row.name} has no slices by {name}: {error}") from error
            found.notes.append(f"{line.row.name}: no slices by {name}: {error}")
    parts = list(dict.fromkeys(part for line in lines for run in results[line.row.name] for part in run))
    first = next(iter(results[base.row.name][0].values()))
    found.metrics = [metric for metric in table.metrics if metric.lower() in first]
    for part in parts:
        for line in lines:
            if there := [run[part] for run in results[line.row.name] if part in run]:
                found.lines.append(_part_line(line.row.name, part, there, found.metrics))
    _test(found, base, lines, parts, runs)
    return found


def _part_line(row: str, part: str, runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> PartLine:
    cells = {}
    for metric in metrics:
        values = [run[metric.lower()] for run in runs if run.get(metric.lower()) is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        cells[metric] = Cell(mean=statistics.fmean(values) if values else None, spread=spread)
    return PartLine(row, part, runs[0]["users"], runs[0]["targets"], cells)


def _test(
    found: SliceTable,
    base: Line,
    lines: Sequence[Line],
    parts: Sequence[str],
    runs: Mapping[str, Sequence[RunSlices]],
) -> None:
    """Test the reference against every other row in every part; Holm's correction is over all of them, by metric."""
    values = {}
    for line in lines:
        try:
            if line.untested:
                raise DataError(line.untested)
            values[line.row.name] = _values(runs[line.row.name], found.name, parts, found.metrics)
        except RecboleMMError as error:
            found.notes.append(f"{line.row.name}: no test: {error}")
    ours = values.pop(base.row.name, None)
    if ours is None:
        return
    for metric in found.metrics:
        cells = []
        for shown in found.lines:
            theirs = values.get(shown.row, {}).get(shown.part)
            mine = ours.get(shown.part)
            if theirs is None or mine is None or not np.array_equal(mine[0], theirs[0]):
                continue
            pair = both_have(mine[1][metric.lower()], theirs[1][metric.lower()])
            if len(pair[0]) > 1:
                shown.cells[metric].test = compare(*pair, seed=0)
                cells.append(shown.cells[metric])
        for cell, p_value in zip(cells, holm([cell.test.p_value for cell in cells if cell.test is not None])):
            cell.p_holm = p_value


def _values(runs: Sequence[RunSlices], name: str, parts: Sequence[str], metrics: Sequence[str]) -> dict[str, Values]:
    """Part -> its users and each one's values, the mean over a line's runs.

    Raises:
        RecboleMMError: a run has no table per user or none of these slices, or its users in a part are not those of the
            other runs.
    """
    total: dict[str, Values] = {}
    for number, run in enumerate(runs):
        per_user = run.per_user(name)
        lower = [metric.lower() for metric in metrics]
        targets, of_targets = Targets.of(per_user, lower), parts_of(per_user, name)
        for part in parts:
            users, values = users_of_part(targets, of_targets, part, lower)
            if number and not np.array_equal(total[part][0], users):
                raise DataError(f"its runs have other users in the part {part}, as their splits differ by the seed")
            before = total[part][1] if number else dict.fromkeys(lower, np.zeros(len(users)))
            total[part] = users, {metric: before[metric] + values[metric] for metric in lower}
    return {
        part: (users, {key: sums / len(runs) for key, sums in values.items()})
        for part, (users, values) in total.items()
    }


# ---- writing ----


def write_slices(tables: Sequence[SliceTable], folder: Path) -> None:
    """Write `slices.md` and `slices.csv`."""
    make_folder(folder)
    write_text(folder / "slices.md", slices_markdown(tables))
    write_text(folder / "slices.csv", slices_csv(tables))


def slices_markdown(tables: Sequence[SliceTable]) -> str:
    """A section per kind of slices: the values, the tests, the notes."""
    return "\n\n".join(_section(table) for table in tables) + "\n"


def _section(table: SliceTable) -> str:
    rows, tests = [], []
    for line in table.lines:
        rows.append([line.part, line.row, f"{line.users:,}", f"{line.targets:,}", *map(_value, line.cells.values())])
    for metric in table.metrics:
        for line in table.lines:
            cell = line.cells[metric]
            if cell.test is not None and cell.p_holm is not None:
                tests.append([metric, line.part, line.row, *test_cells(cell.test, cell.p_holm)])
    parts = [
        f"## By {markdown(table.name)}",
        markdown_grid([table.name, "", "users", "targets", *table.metrics], rows, texts=2),
    ]
    if tests:
        header = ["metric", table.name, f"{table.reference} against", "difference", "95% interval", "relative"]
        parts.append(markdown_grid([*header, "p", "p (Holm)"], tests, texts=3))
        table_wide = f"over the rows and parts of a metric; *: p < {SIGNIFICANT}"
        parts.append(
            f"Tests pair users, each with the mean of its targets in the part; Holm's correction is {table_wide}."
        )
    parts += [f"- {markdown(note)}" for note in table.notes]
    return "\n\n".join(parts)


def _value(cell: Cell) -> str:
    if cell.mean is None:
        return ""
    spread = f" ± {cell.spread:.4f}" if cell.spread is not None else ""
    return f"{cell.mean:.4f}{spread}{'*' * cell.significant}"


def slices_csv(tables: Sequence[SliceTable]) -> str:
    """One line per kind, part, row and metric, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for line in table.lines:
            for metric, cell in line.cells.items():
                written = {
                    **{"slice": table.name, "part": line.part, "row": line.row, "metric": metric},
                    **{"users": line.users, "targets": line.targets, "mean": cell.mean, "sd": cell.spread},
                    "reference": table.reference,
                }
                if cell.test is not None:
                    test = cell.test
                    written |= {"difference": test.difference, "relative": test.relative, "ci_low": test.ci_low}
                    written |= {"ci_high": test.ci_high, "p": test.p_value, "p_holm": cell.p_holm, "test": test.method}
                writer.writerow({column: csv_cell(value) for column, value in written.items()})
    return text.getvalue()
