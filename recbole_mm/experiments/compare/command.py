"""What `recbole-mm compare` does: an experiment from its name to its table, or the table of finished runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from recbole_mm.config.kinds import abridged
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.slice_kinds import check_slices, entry_of
from recbole_mm.experiments.compare.best_id import with_best_id_model
from recbole_mm.experiments.compare.experiment import load_experiment
from recbole_mm.experiments.compare.grid import DONE, Grid, Outcome
from recbole_mm.experiments.compare.inputs import unread
from recbole_mm.experiments.compare.plan import PlannedRow, plan_rows
from recbole_mm.experiments.compare.summary import Table, TableRow, summarize
from recbole_mm.experiments.compare.table import write_table
from recbole_mm.runs import folder as run_folder
from recbole_mm.utils.files import make_folder
from recbole_mm.utils.paths import is_path
from recbole_mm.utils.spelling import did_you_mean

logger = logging.getLogger(__name__)

MOST_SEEDS, MOST_JOBS = 1000, 1000
LONGEST_NAME, LONGEST_VALUE = 80, 24


def compare_experiment(
    name: str,
    dataset: str,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    rows: Sequence[str] | None = None,
    reference: str | None = None,
    variables: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    trials: int | None = None,
    jobs: int = 1,
    gpus: Sequence[str] = (),
    out: Path | None = None,
    slices: Sequence[str] = (),
    config_files: Sequence[str | Path] = (),
    command_line: Mapping[str, Any] | None = None,
) -> tuple[Table, Path]:
    """Run what an experiment lacks on a dataset, and write its table.

    Args:
        name: of a shipped experiment, or a YAML file's path.
        dataset: its name.
        seeds: distinct; the first one decides between trials.
        rows: names of the rows to run; None for all.
        reference: row that the others are tested against; None for the experiment's.
        variables: for `${name}` in the file.
        metrics: columns in place of the experiment's.
        trials: how many of each row's trials are run, the first ones; 0: none is tuned; None: all.
        jobs: runs at the same time; 0 makes the table of what is finished.
        gpus: CUDA_VISIBLE_DEVICES of the runs at the same time.
        out: folder of the table; by default `<checkpoint_dir>/compare-<experiment>-<dataset>`.
        slices: kinds of slices that the runs have, besides those of their setting `slices`.
        config_files, command_line: settings for every row.

    Returns:
        The table and its folder.

    Raises:
        RecboleMMError: something the user can mend, found before any run. A run that fails is a row that failed.
    """
    if len(seeds) > MOST_SEEDS:
        raise ConfigError(f"seeds: {len(seeds)} of them; give at most {MOST_SEEDS}, each is a run of every row")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: {', '.join(map(str, seeds))} are not distinct; give each one once")
    if not 0 <= jobs <= MOST_JOBS:
        raise ConfigError(f"--jobs={jobs}: give a number from 0 to {MOST_JOBS}")
    experiment = load_experiment(name, variables)
    experiment = experiment if rows is None else experiment.select(rows)
    experiment = experiment if reference is None else experiment.against(reference)
    experiment = experiment if trials is None else experiment.tuned_by(trials)
    planned = plan_rows(experiment, dataset, seeds, config_files, command_line, metrics)
    if slices:
        planned = [entry.sliced_by([entry_of(name) for name in slices]) for entry in planned]
        check_slices(planned[0].config(0, seeds[0]))
    checkpoint_dir = Path(planned[0].config(0, seeds[0])["checkpoint_dir"])
    out = out or checkpoint_dir / f"compare-{experiment.name}-{dataset}"
    if not is_path(str(out)):
        raise ConfigError(f"--out is missing: a folder of this name cannot be made: {abridged(out.name, 50)}")
    make_folder(out)  # found before the runs, not after them
    outcomes = Grid(planned, seeds, jobs, out / "failed", gpus).run()
    found = summarize(
        [_table_row(entry, outcome) for entry, outcome in zip(planned, outcomes)],
        metrics or experiment.metrics,
        experiment.reference,
        seeds,
        experiment.published.get(dataset),
        f"{experiment.title} on {dataset}",
        experiment.shows,
        experiment.paper,
    )
    table = with_best_id_model(found)
    write_table(table, out, f"{experiment.name}-{dataset}")
    return table, out


def compare_finished(
    run_dirs: Sequence[Path], *, metrics: Sequence[str] | None = None, reference: str | None = None
) -> Table:
    """The table of finished runs, whose first row is the reference unless another is named.

    Raises:
        RecboleMMError: a folder is no finished run, or the runs cannot be compared.
    """
    rows = _rows_of_runs(run_dirs)
    names = [row.name for row in rows]
    if reference is not None and reference not in names:
        raise ConfigError(f"--reference: there is no row {reference!r}{did_you_mean(reference, names)}")
    folders = [folder for row in rows for folder in row.runs.values()]
    shared = [metric for metric in run_folder.read_result(folders[0])["test_result"] if _all_report(metric, folders)]
    if not metrics and not shared:
        raise ConfigError("--runs: there is no metric that all of them report")
    seeds = sorted({seed for row in rows for seed in row.runs})
    title = f"{len(folders)} runs"
    return with_best_id_model(
        summarize(rows, metrics or shared, reference or names[0], seeds, title=title, strict=True)
    )


def _rows_of_runs(run_dirs: Sequence[Path]) -> list[TableRow]:
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
        passed_over = run_folder.MAY_CHANGE | unread(folder)
        deciding = {key: value for key, value in deciding.items() if key not in passed_over}
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


def _flat(settings: Mapping[str, Any], front: str = "") -> dict[str, Any]:
    """Settings with those inside of others by their whole names, such as `eval_args.order`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inside = isinstance(value, Mapping) and value
        found |= _flat(value, f"{front}{name}.") if inside else {f"{front}{name}": value}
    return found


def _names(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A name for each group: its model, and what tells it from the other groups of that model.

    Where all of that would be long, it is the fewest settings that tell the groups apart, their values cut.
    """
    names: dict[str, str] = {}
    flat = {key: _flat(mine) for key, mine in settings.items()}
    for model in dict.fromkeys(str(mine["model"]) for mine in flat.values()):
        same = {key: mine for key, mine in flat.items() if str(mine["model"]) == model}
        differing = sorted(
            name for name in {*chain(*same.values())} if len({str(mine.get(name)) for mine in same.values()}) > 1
        )
        found = {key: _named(model, mine, differing) for key, mine in same.items()}
        if any(len(name) > LONGEST_NAME for name in found.values()):
            chosen = _telling(list(same.values()), differing)
            found = {key: _named(model, mine, chosen, LONGEST_VALUE) for key, mine in same.items()}
        names |= _numbered(found)
    return {key: names[key] for key in settings}


def _named(model: str, mine: Mapping[str, Any], names: Sequence[str], longest: int | None = None) -> str:
    """`model (name=value, ...)`, the ends of values that are longer left out."""
    said = {name: str(mine[name]) for name in names if name in mine}
    cut = {
        name: text if longest is None or len(text) <= longest else f"{text[:longest]}..." for name, text in said.items()
    }
    given = ", ".join(f"{name}={text}" for name, text in cut.items())
    return f"{model} ({given})" if given else model


def _telling(groups: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> list[str]:
    """The settings that tell the most groups apart, one after the other until all are; the shorter one of two."""
    chosen: list[str] = []

    def told_apart(names: Sequence[str]) -> int:
        return len({tuple(str(mine.get(name)) for name in names) for mine in groups})

    def rank(name: str) -> tuple[int, int, str]:
        length = len(name) + max(len(str(mine.get(name))) for mine in groups)
        return -told_apart([*chosen, name]), length, name

    while told_apart(chosen) < told_apart(differing):
        chosen.append(min(differing, key=rank))
    return chosen


def _numbered(names: Mapping[str, str]) -> dict[str, str]:
    """The same names, a number behind those that are there already."""
    taken: list[str] = []
    found: dict[str, str] = {}
    for key, name in names.items():
        taken.append(name)
        again = taken.count(name)
        found[key] = name if again == 1 else f"{name} #{again}"
    return found


def _table_row(entry: PlannedRow, outcome: Outcome) -> TableRow:
    row = entry.row
    chosen = row.trials[outcome.trial] if outcome.runs else {}
    return TableRow(
        row.name, row.group, row.model, outcome.status, outcome.reason, outcome.runs, len(row.trials), chosen
    )


def _all_report(metric: str, folders: Sequence[Path]) -> bool:
    return all(metric in run_folder.read_result(folder)["test_result"] for folder in folders)
