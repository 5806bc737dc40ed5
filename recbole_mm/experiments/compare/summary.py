"""Finished runs to the numbers of a table: means and spreads over seeds, paired tests against the reference row."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from recbole.evaluator.register import smaller_metrics

from recbole_mm.config.settings import BEFORE, PROTOCOL
from recbole_mm.config.yaml_settings import canonical, read_yaml
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.candidates import candidates_digest
from recbole_mm.evaluation.per_user import FILE as PER_USER
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.significance import (
    Comparison,
    both_have,
    compare,
    holm,
    require_same_candidates,
    require_same_items,
    require_same_users,
    values_by_user,
)
from recbole_mm.experiments.compare.experiment import TRAINING
from recbole_mm.experiments.compare.grid import DONE, FAILED
from recbole_mm.experiments.compare.inputs import has_untrained_mllm, unread
from recbole_mm.runs import folder as run_folder
from recbole_mm.utils.spelling import did_you_mean

SIGNIFICANT = 0.05


@dataclass
class TableRow:
    """A row before anything is computed.

    Attributes:
        name, group, model: as printed.
        status, reason: as in `grid.Outcome`.
        runs: seed -> folder of a finished run.
        trials: how many settings were tried on validation; None where that is not known.
        chosen: the trial's settings that were chosen.
    """

    name: str
    group: str
    model: str
    status: str
    reason: str = ""
    runs: dict[int, Path] = field(default_factory=dict)
    trials: int | None = None
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cell:
    """One metric of one row.

    Attributes:
        mean, spread: over the row's runs; the spread is the standard deviation (n - 1), None with one run.
        published: the paper's figure, if there is one.
        place: 1 for the best row, 2 for the second, else 0.
        test: the reference row against this one; None where there is none.
        p_holm: its p-value, corrected for the tests of this metric.

    Example:
        >>> Cell(mean=0.0197, p_holm=0.03).significant
        True
    """

    mean: float | None = None
    spread: float | None = None
    published: float | None = None
    place: int = 0
    test: Comparison | None = None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is significant after Holm's correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass
class Line:
    """A row of the table, computed.

    Attributes:
        row: what it is.
        cells: by metric.
        users: number of test users; 0 if nothing ran or no values per user are there.
        epochs: epochs trained, averaged over the runs.
        differs: how it differs from the reference in `PROTOCOL` or `TRAINING`; one text each.
        untested: why it cannot be paired with the reference; empty if it can.
        comparable: whether it ranked the same users by the same protocol; others get no place.
        untrained: whether its multimodal LLM is a tiny one that was never trained.
        sees_held_out: how its training saw held-out interactions, one text each; such a row gets no place.
        tokens: what its LLM reads and writes for a user, in tokens, averaged over the runs, by what for.
        taken: what its runs' models took of what they left to the validation, such as a weight of two scores, by seed.
    """

    row: TableRow
    cells: dict[str, Cell]
    users: int = 0
    epochs: float | None = None
    differs: list[str] = field(default_factory=list)
    untested: str = ""
    comparable: bool = True
    untrained: bool = False
    sees_held_out: list[str] = field(default_factory=list)
    taken: dict[int, str] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """All that is written.

    Attributes:
        lines: rows in their order.
        reference: name of the row the tests are about.
        facts: settings shared by the rows, of `PROTOCOL` and `TRAINING`.
        seeds: that were asked for.
        no_tests: why there is no test at all; empty if there may be some.
        id_line, id_note: the best ID model's row, and what is said of it; see `best_id.py`.
    """

    title: str
    shows: str
    paper: str
    metrics: list[str]
    reference: str
    lines: list[Line]
    facts: dict[str, Any]
    seeds: list[int]
    no_tests: str = ""
    id_line: Line | None = None
    id_note: str = ""

    @property
    def shown(self) -> list[Line]:
        """The rows that are written: `lines`, and below them that of the best ID model."""
        return self.lines if self.id_line is None else [*self.lines, self.id_line]

    @property
    def has_published(self) -> bool:
        """Whether any cell has a published value."""
        return any(cell.published is not None for line in self.lines for cell in line.cells.values())

    @property
    def failed(self) -> bool:
        """Whether any row has failed."""
        return any(line.row.status == FAILED for line in self.lines)


def summarize(
    rows: Sequence[TableRow],
    metrics: Sequence[str],
    reference: str,
    seeds: Sequence[int],
    published: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
    shows: str = "",
    paper: str = "",
    strict: bool = False,
) -> Table:
    """Compute a table.

    Args:
        rows: in their order.
        metrics: columns, as printed.
        reference: name of the row that the others are tested against.
        seeds: that were asked for.
        published: row -> metric -> the paper's figure.
        title, shows, paper: for the reader.
        strict: rows that cannot be paired are an error instead of a note.

    Raises:
        ConfigError: a run does not report one of the metrics.
        CheckpointError: a folder is not that of a finished run.
        DataError: with `strict`, a run has no values per user, or is of other data, another protocol or other users
            than the reference.
    """
    figures = published or {}
    lines = [_line(row, metrics, figures.get(row.name, {})) for row in rows]
    table = Table(title, shows, paper, list(metrics), reference, lines, {}, list(seeds))
    done = [line for line in lines if line.row.status == DONE]
    base = next((line for line in done if line.row.name == reference), done[0] if done else None)
    if base is None:
        return table
    table.facts, first = _facts(base), next(iter(base.row.runs.values()))
    for line in done:
        for folder in line.row.runs.values():
            config = read_yaml(folder / run_folder.CONFIG)
            passed_over = unread(folder) | unread(first)
            _mark_differences(line, config, table.facts, base.row.name, passed_over)
            if strict and not line.comparable:
                raise DataError(_refusal(folder, config, table.facts, next(iter(base.row.runs.values()))))
            line.untrained |= has_untrained_mllm(folder, config)
    values = _paired_values(base, done, metrics, strict)
    if base.row.name != reference:
        table.no_tests = f"{reference}, which the others are tested against, is not done"
    elif base.untested:
        table.no_tests = base.untested
    else:
        _test(base, done, values, metrics)
    _place(done, metrics)
    return table


def _line(row: TableRow, metrics: Sequence[str], figures: Mapping[str, float]) -> Line:
    line = Line(row, {metric: Cell(published=figures.get(metric)) for metric in metrics})
    if row.status != DONE:
        return line
    results = {folder: run_folder.read_result(folder) for folder in row.runs.values()}
    texts = [text for result in results.values() for text in result.get("sees_held_out", [])]
    line.sees_held_out = list(dict.fromkeys(texts))
    found = {seed: results[folder].get("chosen_on_validation") for seed, folder in row.runs.items()}
    line.taken = {seed: text for seed, text in found.items() if text}
    spent = [result.get("tokens_per_user", {}) for result in results.values()]
    names = dict.fromkeys(name for each in spent for name in each)
    line.tokens = {name: statistics.fmean(each.get(name, 0) for each in spent) for name in names}
    line.epochs = statistics.fmean(result["timings"].get("epochs", 0) for result in results.values())
    for metric, cell in line.cells.items():
        values = []
        for folder, result in results.items():
            if metric.lower() not in result["test_result"]:
                known = did_you_mean(metric.lower(), result["test_result"])
                raise ConfigError(f"{folder} does not report {metric}{known}; run it again with metrics and topk set")
            values.append(result["test_result"][metric.lower()])
        cell.mean = statistics.fmean(values)
        cell.spread = statistics.stdev(values) if len(values) > 1 else None
    return line


def _facts(line: Line) -> dict[str, Any]:
    """Protocol and training of a line's first run."""
    config = read_yaml(next(iter(line.row.runs.values())) / run_folder.CONFIG)
    return {key: config.get(key, BEFORE.get(key)) for key in (*PROTOCOL, *TRAINING)}


def _mark_differences(
    line: Line, config: Mapping[str, Any], facts: Mapping[str, Any], base: str, passed_over: Collection[str]
) -> None:
    """Note every setting of `facts` in which a run of the line differs.

    Args:
        line: is noted.
        config: of the run.
        facts: of the reference.
        base: its name.
        passed_over: settings that one of the two does not read.
    """
    for key, value in facts.items():
        mine = config.get(key, BEFORE.get(key))
        if key in passed_over or canonical(mine) == canonical(value):
            continue
        text = f"{key} is {mine}, not {value} as for {base}"
        if text not in line.differs:
            line.differs.append(text)
        if key in PROTOCOL:
            line.comparable, line.untested = False, "another protocol"


def _refusal(folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any], other: Path) -> str:
    """The words for a run whose data or protocol is not that of another one."""
    key = next(key for key in PROTOCOL if canonical(config.get(key, BEFORE.get(key))) != canonical(facts[key]))
    if key == "data_files":
        mine, theirs = (files if isinstance(files, dict) else {} for files in (config.get(key), facts[key]))
        names = sorted({str(name) for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)})
        return f"{folder} and {other} are of other data: {', '.join(names)} differ; compare runs on the same files"
    return (
        f"{folder} was ranked by another protocol than {other}: {key} is {config.get(key, BEFORE.get(key))}, not "
        f"{facts[key]}; compare runs of one"
    )


def _paired_values(
    base: Line, done: Sequence[Line], metrics: Sequence[str], strict: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Row -> metric -> values of the users, for the rows that ranked the users of `base` by its protocol.

    A row that cannot be paired gets the reason as `untested`.
    """
    values: dict[str, dict[str, np.ndarray]] = {}
    users = np.array([])
    for line in [base, *(line for line in done if line is not base and line.comparable)]:
        try:
            its_users, its_values = _user_values(line, metrics)
            line.users = len(its_users)
            if line is base:
                users = its_users
            elif not base.untested:
                _require_alike(base, users, line, its_users)
            values[line.row.name] = its_values
        except DataError as error:
            if strict:
                raise
            line.untested = str(error)
    return values


def _require_alike(base: Line, users: np.ndarray, line: Line, its_users: np.ndarray) -> None:
    """Refuse to pair lines that ranked other users, held-out items or sampled candidates; such a line gets no place.

    Sampled candidates are those of a seed: the runs of each seed that both lines have must share them.

    Raises:
        DataError: saying which of it differs.
    """
    sides = list(base.row.runs.values()), list(line.row.runs.values())
    line.comparable = False
    require_same_users(sides[0], users, sides[1], its_users)
    require_same_items(*sides)
    if any(candidates_digest(folder) for side in sides for folder in side):
        shared = sorted(set(base.row.runs) & set(line.row.runs))
        if not shared:
            raise DataError("it has no seed in common, and each seed has sampled candidates of its own")
        for seed in shared:
            require_same_candidates(base.row.runs[seed], line.row.runs[seed])
    line.comparable = True


def _test(
    base: Line, done: Sequence[Line], values: Mapping[str, Mapping[str, np.ndarray]], metrics: Sequence[str]
) -> None:
    """Test `base` against every other line, and correct the p-values of each metric for their number."""
    others = [line for line in done if line is not base and line.row.name in values]
    for metric in metrics:
        cells = []
        for line in others:
            pair = values[base.row.name].get(metric), values[line.row.name].get(metric)
            if pair[0] is not None and pair[1] is not None:
                line.cells[metric].test = compare(*both_have(pair[0], pair[1]), seed=0)
                cells.append(line.cells[metric])
        for cell, p_value in zip(cells, holm([cell.test.p_value for cell in cells if cell.test is not None])):
            cell.p_holm = p_value


def _user_values(line: Line, metrics: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Users of a line, and the values of the metrics that have one per user.

    Raises:
        DataError: a run has no table per user, or its runs did not rank the same users.
    """
    folders = list(line.row.runs.values())
    path = folders[0] / PER_USER
    there = set(read_per_user(path).column_names) if path.is_file() else set()
    return values_by_user(folders, [metric for metric in metrics if metric.lower() in there])


def _place(done: Sequence[Line], metrics: Sequence[str]) -> None:
    """Mark the best and the second of each metric among the lines that compare and were trained on training data."""
    alike = [line for line in done if line.comparable and not line.sees_held_out]
    for metric in metrics:
        sign = 1 if metric.lower().partition("@")[0] in smaller_metrics else -1
        cells = [line.cells[metric] for line in alike]
        ordered = sorted({cell.mean for cell in cells if cell.mean is not None}, key=lambda mean: sign * mean)
        for cell in cells:
            if cell.mean in ordered[:2]:
                cell.place = ordered.index(cell.mean) + 1
