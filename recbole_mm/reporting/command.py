"""Writes the report of finished runs, of tables of runs and of searches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole_mm
from recbole_mm.config.settings import SETTINGS
from recbole_mm.errors import ConfigError
from recbole_mm.recommending.requests import listed
from recbole_mm.reporting import cases as case_sections
from recbole_mm.reporting import results, sections
from recbole_mm.reporting.blocks import Section
from recbole_mm.reporting.breadth import popularity
from recbole_mm.reporting.differences import differences
from recbole_mm.reporting.page import to_html
from recbole_mm.reporting.runs import RunFacts, read_runs
from recbole_mm.reporting.tables import is_search, is_table, search_section, table_section
from recbole_mm.runs.folder import Run
from recbole_mm.utils.files import make_folder, write_text
from recbole_mm.utils.paths import expanded, is_path
from recbole_mm.utils.spelling import did_you_mean

REPORT = "report.html"
CASES = 3
MOST_CASES = 50
SUFFIXES = (".html", ".htm")

Source = str | os.PathLike[str] | Run


def report(
    runs: Source | Sequence[Source],
    out: str | os.PathLike[str] = REPORT,
    *,
    cases: int = CASES,
    users: str | Sequence[str] | None = None,
    changed: Mapping[str, Any] | None = None,
) -> Path:
    """Write one HTML file that needs nothing else.

    Args:
        runs: folders of finished runs, or what `recbole_mm.run` returned, the first of which is tested against the
            others; folders of tables of `recbole-mm compare`, and of searches of `recbole-mm tune`.
        out: the file, `.html`.
        cases: how many users are shown; with 0 no run is opened, and no data is needed.
        users: ids of the users that are shown, in place of those that are chosen.
        changed: settings of the runs with other values here, such as `{"data_path": "/data/recbole"}`.

    Returns:
        The path of the file.

    Raises:
        ConfigError: nothing to report on, a malformed argument, or a folder that is given twice.
        CheckpointError: a folder is missing, or not that of a finished run.
        DataError: a table cannot be read, or a user that is asked for is not in the data.
        DiskError: the file cannot be written.

    Example:
        >>> recbole_mm.report(["saved/Molar-shop-1a2b3c4d", "saved/SASRec-shop-5e6f7a8b"])  # doctest: +SKIP
    """
    path = Path(expanded(os.fspath(out)))
    if path.suffix.lower() not in SUFFIXES or not is_path(str(path)):
        raise ConfigError(f"--out={path}: a report is an HTML file; give a name that ends in .html")
    if path.is_dir():
        raise ConfigError(f"--out={path}: there is a folder of this name; give another one")
    if isinstance(cases, bool) or not isinstance(cases, int) or not 0 <= cases <= MOST_CASES:
        raise ConfigError(f"--cases={cases}: give a number from 0 to {MOST_CASES}")
    asked = None if users is None else listed(users)
    if asked is not None and len(asked) > MOST_CASES:
        raise ConfigError(f"--users: {len(asked)} users are given; a report shows {MOST_CASES} at most")
    folders = [runs] if isinstance(runs, (str, os.PathLike, Run)) else list(runs)
    if not folders:
        raise ConfigError("no folder is given; name finished runs, tables of compare or searches of tune")
    paths = [_path(folder) for folder in folders]
    shown = [table_section(folder) for folder in paths if is_table(folder)]
    shown += [search_section(folder) for folder in paths if is_search(folder)]
    found = read_runs([folder for folder in paths if not is_table(folder) and not is_search(folder)])
    if found:
        shown = [*_sections(found, cases, asked, changed or {}), *shown]
    make_folder(path.parent)
    write_text(path, to_html(_title(found, paths), shown, f"Written by recbole_mm {recbole_mm.__version__}."))
    return path


def _path(given: Source) -> Path:
    return given.run_dir if isinstance(given, Run) else Path(expanded(os.fspath(given)))


def _title(runs: Sequence[RunFacts], paths: Sequence[Path]) -> str:
    if not runs:
        return f"Report of {', '.join(path.name for path in paths)}"
    names = ", ".join(run.name for run in runs)
    return f"{names} on {runs[0].result.get('dataset', 'its data')}"


def _sections(
    runs: Sequence[RunFacts], count: int, users: Sequence[str] | None, changed: Mapping[str, Any]
) -> list[Section]:
    known = {*SETTINGS, *(key for run in runs for key in run.config)}
    for name in changed:
        if name not in known:
            raise ConfigError(f"--{name} is no setting of these runs{did_you_mean(name, sorted(known), 0.6)}")
    chosen = case_sections.choose(runs, count, users)
    opened = case_sections.open_all(runs if count or users else [], chosen, changed, users is not None)
    if count and not chosen:
        opened.notes.append("no user is shown, since the runs have no ranks of the same users")
    return [
        results.results(runs),
        differences(runs),
        results.slices(runs),
        sections.users(runs),
        popularity(opened.breadth),
        case_sections.cases(opened),
        sections.curves(runs),
        sections.cost(runs),
        sections.settings(runs),
    ]
