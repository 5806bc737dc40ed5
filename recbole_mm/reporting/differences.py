"""The section of a page that tests the first run against the others: paired tests, users won and lost, by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recbole_mm.errors import DataError, RecboleMMError
from recbole_mm.evaluation.significance import both_have
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.slices import SliceTable, slice_tables
from recbole_mm.experiments.compare.summary import SIGNIFICANT, Table
from recbole_mm.experiments.compare.table import test_cells
from recbole_mm.reporting.blocks import Cell, Figure, Grid, Notes, Paragraph, Section
from recbole_mm.reporting.figures import Interval, Shares, interval_figure, share_figure
from recbole_mm.reporting.results import WORDS
from recbole_mm.reporting.runs import RunFacts, Values, is_bigger_better, main_metric

Parts = Mapping[str, Mapping[str, Values]]


def differences(runs: Sequence[RunFacts]) -> Section:
    """Paired tests of the first run against the others: a forest plot, wins and losses, by slice, too."""
    section = Section("Differences")
    if len(runs) < 2:
        return section
    lacking = [run.name for run in runs if run.per_user is None]
    try:
        if lacking:
            raise DataError(f"{', '.join(lacking)} has no values per user")
        table = _renamed(compare_finished([run.folder for run in runs]), runs)
    except RecboleMMError as error:
        section.blocks.append(Paragraph(f"These runs cannot be tested against each other: {error}", is_warning=True))
        return section
    if len(table.lines) < 2:
        section.blocks.append(
            Paragraph("The runs differ in nothing but their seeds, so that there is nothing to test.")
        )
        return section
    metric = main_metric(runs) if main_metric(runs) in table.metrics else table.metrics[0]
    section.blocks += _tests(table, metric)
    section.blocks.append(Paragraph(_how_to_read(table, metric)))
    wins = _wins(runs, metric)
    section.blocks += wins.pop("", [])
    try:
        for slices in slice_tables(table, ["all"]) if runs[0].result.get("slices") else []:
            if len({line.part for line in slices.lines}) > 1:
                section.blocks += [*_of_slices(slices, metric), *wins.get(slices.name, [])]
                section.blocks += [Notes(slices.notes)] if slices.notes else []
    except RecboleMMError as error:
        section.blocks.append(Paragraph(f"No tests by slice: {error}"))
    said = [f"{line.row.name}: {text}" for line in table.lines for text in (*line.differs, line.untested) if text]
    section.blocks += [Notes(said)] if said else []
    return section


def _renamed(table: Table, runs: Sequence[RunFacts]) -> Table:
    """The table with the names of the page; runs of several seeds are one row."""
    names = {run.folder: run.name for run in runs}
    for line in table.lines:
        name = ", ".join(names[folder] for folder in line.row.runs.values())
        table.reference = name if line.row.name == table.reference else table.reference
        line.row.name = name
    return table


def _how_to_read(table: Table, metric: str) -> str:
    side = "better" if is_bigger_better(metric) else "worse"
    tests = [cell.test for line in table.lines for cell in line.cells.values() if cell.test is not None]
    methods = "; ".join(sorted({test.method for test in tests}))
    return (
        f"Right of 0 {table.reference} is {side} by {metric}. An interval without 0 is a difference that is expected "
        "of other users, too. p (Holm) is corrected for the number of tests of a metric; where it is below "
        f"{SIGNIFICANT}, the two are told apart. Tests pair users ({methods}). An interval without width is of users "
        "whose values are all equal."
    )


def _tests(table: Table, metric: str) -> list[Figure | Grid]:
    rows = []
    cells: dict[bool, list[list[Cell]]] = {True: [], False: []}
    for line in table.lines:
        for name in table.metrics:
            cell = line.cells[name]
            if cell.test is None or cell.p_holm is None:
                continue
            cells[name == metric].append([line.row.name, name, *test_cells(cell.test, cell.p_holm)])
            if name == metric:
                rows.append(Interval(line.row.name, cell.test.difference, cell.test.ci_low, cell.test.ci_high))
    if not rows:
        return []
    title = f"{table.reference} minus each other run, {metric}, with 95% intervals"
    header = [f"{table.reference} against", "metric", "difference", "95% interval", "relative", "p", "p (Holm)"]
    found: list[Figure | Grid] = [
        interval_figure(title, f"difference in {metric}", rows, has_zero=True, has_values=True),
        Grid(f"Paired tests over users, {metric}", header, cells[True]),
    ]
    return found + (
        [Grid("Paired tests of the other metrics", header, cells[False], is_folded=True)] if cells[False] else []
    )


def _of_slices(slices: SliceTable, metric: str) -> list[Figure | Grid]:
    """A forest plot over the parts of one kind, and the tests as a table."""
    rows: list[Interval] = []
    cells: list[list[Cell]] = []
    has_many = len({line.row for line in slices.lines}) > 2
    for line in slices.lines:
        for name in slices.metrics:
            cell = line.cells[name]
            if cell.test is None or cell.p_holm is None:
                continue
            cells.append([line.part, line.row, name, line.users, *test_cells(cell.test, cell.p_holm)])
            if name == metric:
                test, label, group = cell.test, *_labels(line.part, line.users, line.row, has_many)
                rows.append(Interval(label, test.difference, test.ci_low, test.ci_high, group=group))
    if not rows:
        return []
    kind = WORDS.get(slices.name, slices.name)
    title = f"{slices.reference} minus each other run by {kind}, {metric}, with 95% intervals"
    header = [slices.name, f"{slices.reference} against", "metric", "users", "difference", "95% interval", "relative"]
    return [
        interval_figure(title, f"difference in {metric}", rows, has_zero=True, has_values=True),
        Grid(f"Paired tests by {slices.name}", [*header, "p", "p (Holm)"], cells, is_folded=True),
    ]


def _labels(part: str, users: int, other: str, has_many: bool) -> tuple[str, str]:
    """The label and the group of a row: the part alone where there is one run to test against."""
    words = f"{part} ({users:,} users)"
    return (f"against {other}", words) if has_many else (words, "")


def _wins(runs: Sequence[RunFacts], metric: str) -> dict[str, list[Figure | Paragraph]]:
    """Figures of the users for whom the first run is better, equal or worse, by kind of slices; all users under ""."""
    base, others = runs[0], runs[1:]
    rows: dict[str, list[Shares]] = {}
    for other in others:
        if (counted := win_tie_loss(_of_run(base, metric), _of_run(other, metric), metric)) is not None:
            rows.setdefault("", []).append(Shares(f"against {other.name}", counted))
    for kind, parts in base.by_part(metric).items():
        for part, values in parts.items():
            for other in others:
                counted = win_tie_loss(values, other.by_part(metric).get(kind, {}).get(part), metric)
                if counted is not None:
                    label, group = _labels(part, sum(counted), other.name, len(others) > 1)
                    rows.setdefault(kind, []).append(Shares(label, counted, group))
    names = [f"users for whom {base.name} is better", "equal", "worse"]
    title = f"Users for whom {base.name} is better, equal or worse by {metric}"
    found: dict[str, list[Figure | Paragraph]] = {
        kind: [share_figure(f"{title}, by {WORDS.get(kind, kind)}" if kind else title, names, shares)]
        for kind, shares in rows.items()
    }
    if "" in found and "@" in metric:
        cut = metric.partition("@")[2]
        found[""].append(
            Paragraph(f"Equal are mostly users whose held-out item neither run has among its first {cut}.")
        )
    return found


def _of_run(run: RunFacts, metric: str) -> Values | None:
    values = run.values(metric)
    return None if values is None else (run.users, values)


def win_tie_loss(ours: Values | None, theirs: Values | None, metric: str) -> list[int] | None:
    """Count the users with a better, an equal and a worse value; None where the users are not the same.

    Example:
        >>> users = np.array(["a", "b", "c"])
        >>> win_tie_loss((users, np.array([1.0, 0.0, 0.0])), (users, np.array([0.5, 0.0, 0.1])), "ndcg@10")
        [1, 1, 1]
    """
    if ours is None or theirs is None or not len(ours[0]) or not np.array_equal(ours[0], theirs[0]):
        return None
    first, second = both_have(ours[1], theirs[1])
    sign = 1 if is_bigger_better(metric) else -1
    better, worse = int((sign * first > sign * second).sum()), int((sign * first < sign * second).sum())
    return [better, len(first) - better - worse, worse]
