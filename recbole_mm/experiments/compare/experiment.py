"""An experiment: the rows of one table, read from YAML and checked before anything runs.

    >>> found = load_experiment("molar-table5")
    >>> [row.name for row in found.rows][:2], found.reference
    (['Molar', 'w/o IT'], 'Molar')

The shipped ones are in `properties/experiments/`; docs/compare.md says what may stand in a file.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_mm.config.kinds import shown
from recbole_mm.config.layers import properties_dir
from recbole_mm.config.settings import SETTINGS, named
from recbole_mm.config.yaml_settings import MOST_BYTES, canonical, parse_argument, plain, read_yaml
from recbole_mm.data.content_source import MODALITIES
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare import experiment_names
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.spelling import did_you_mean

KEYS = (
    *("title", "shows", "paper", "metrics", "reference", "variables"),
    *("settings", "tuning", "budget", "rows", "published"),
)
ROW_KEYS = ("name", "group", "model", "settings", "tuning", "needs")

NOT_IN_AN_EXPERIMENT = {key: setting.given_as for key, setting in SETTINGS.items() if setting.given_as}
"""Settings that no layer of an experiment may hold, and how they are given instead."""

TRAINING = named(lambda setting: setting.stops)
"""Settings that decide how long is trained; rows that differ in one are marked."""

ALIKE = frozenset(named(lambda one: one.ranks or one.stops or one.scores or one.alike)) - {"dataset"}
"""Settings that every row gets alike: how long is trained, when is stopped, what is ranked for whom."""

LONGEST_ROW = 150
MOST_TRIALS = 1000
"""Trials of a row. Each is checked before anything runs, and then run."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as printed.
        group: heading it stands under; empty for none.
        model: as `--model` takes it.
        settings: what makes this row differ; they win over the command line.
        trials: settings tried on validation, at least one (empty where nothing is tuned).
        needs: modalities (image, text) without which a dataset has no such row.
    """

    name: str
    group: str
    model: str
    settings: dict[str, Any]
    trials: list[dict[str, Any]]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """A table to be filled.

    Attributes:
        name: of the shipped file, or of one's own, without its suffix.
        title, shows, paper: for the reader; `shows` is one line.
        metrics: columns, in RecBole's names (`NDCG@10`).
        reference: name of the row that every other one is tested against.
        settings: shared by all rows.
        rows: in the table's order.
        published: dataset -> row -> metric -> the paper's figure.
        models: of all rows of the file; with some rows left out, shared settings may be for those.
    """

    name: str
    title: str
    shows: str
    paper: str
    metrics: list[str]
    reference: str
    settings: dict[str, Any]
    rows: list[Row]
    published: dict[str, dict[str, dict[str, float]]]
    models: frozenset[str]

    def select(self, names: Iterable[str]) -> Experiment:
        """The same with these rows only, in the table's order; the first one is the reference if the reference goes.

        Raises:
            ConfigError: there is no such row, or a name is given twice.
        """
        names, known = list(names), [row.name for row in self.rows]
        for place, name in enumerate(names):
            if name not in known:
                raise ConfigError(f"{self.name}: there is no row {name!r}{did_you_mean(name, known)}")
            if name in names[:place]:
                raise ConfigError(f"--rows: {name!r} is given twice")
        rows = [row for row in self.rows if row.name in names]
        if not rows:
            raise ConfigError("--rows names no row; leave it out for all of them")
        reference = self.reference if self.reference in names else rows[0].name
        return replace(self, rows=rows, reference=reference)

    def against(self, reference: str) -> Experiment:
        """The same with another reference row.

        Raises:
            ConfigError: there is no such row.
        """
        names = [row.name for row in self.rows]
        if reference not in names:
            raise ConfigError(f"--reference: there is no row {reference!r}{did_you_mean(reference, names)}")
        return replace(self, reference=reference)

    def tuned_by(self, trials: int) -> Experiment:
        """The same with the first `trials` of each row's trials; 0: without tuning, each row with its own settings.

        Raises:
            ConfigError: `trials` is negative.
        """
        if trials < 0:
            raise ConfigError(f"--trials={trials}: give a number of at least 0")
        return replace(self, rows=[replace(row, trials=row.trials[:trials] or [{}]) for row in self.rows])


def load_experiment(name: str, variables: Mapping[str, str] | None = None) -> Experiment:
    """Read a shipped experiment by name, or a YAML file by path, and check it.

    Args:
        name: such as `molar-table5`, or `my-table.yaml`.
        variables: values for what stands as `${name}` in the file, in place of its defaults.

    Raises:
        ConfigError: there is no such experiment, or the file does not describe one.
    """
    path = Path(expanded(name))
    if path.suffix not in (".yaml", ".yml"):
        if name not in experiment_names():
            raise ConfigError(
                f"unknown experiment {name!r}{did_you_mean(name, experiment_names())} "
                "(a file of your own is given with its suffix .yaml)"
            )
        path = properties_dir() / "experiments" / f"{name}.yaml"
    return _Reader(str(path), read_yaml(path), variables or {}).experiment(path.stem)


class _Reader:
    """Turns the content of a file into an `Experiment`; every error names the file."""

    def __init__(self, where: str, content: dict[str, Any], variables: Mapping[str, str]) -> None:
        self.where = where
        self._only(content, KEYS, "")
        self.variables = self._variables(content.pop("variables", None) or {}, variables)
        self.filled = 0
        self.content = plain(self.where, self._filled(content))

    def experiment(self, name: str) -> Experiment:
        """Build the experiment of that name from the file's content."""
        metrics = self._texts(self.content.get("metrics"), "metrics")
        if not metrics:
            self._fail("metrics names no column; give a list such as [NDCG@10, Recall@10]")
        budget = self.content.get("budget", "equal")
        if budget not in ("equal", "unequal"):
            self._fail(f"budget: {shown(budget)} is not accepted; give equal or unequal")
        rows = self._rows()
        names = [row.name for row in rows]
        reference = self.content.get("reference", names[0])
        if reference not in names:
            self._fail(f"reference: there is no row {reference!r}{did_you_mean(str(reference), names)}")
        if budget == "equal":
            self._check_budget(rows)
        return Experiment(
            name=name,
            title=self._text(self.content, "title", name),
            shows=self._text(self.content, "shows", ""),
            paper=self._text(self.content, "paper", ""),
            metrics=metrics,
            reference=reference,
            settings=self._settings(self.content.get("settings"), "settings"),
            rows=rows,
            published=self._published(metrics, names),
            models=frozenset(row.model for row in rows),
        )

    # ---- rows ----

    def _rows(self) -> list[Row]:
        given = self.content.get("rows")
        if not isinstance(given, list) or not given:
            self._fail("rows is empty; give a list of mappings with name and model")
        rows = [self._row(entry, place) for place, entry in enumerate(given, start=1)]
        for place, row in enumerate(rows):
            if row.name in [earlier.name for earlier in rows[:place]]:
                self._fail(f"two rows are named {row.name!r}")
        return rows

    def _row(self, entry: Any, place: int) -> Row:
        if not isinstance(entry, dict):
            self._fail(f"row {place} is not a mapping; give name and model")
        name = self._text(entry, "name", "")
        if not name or "," in name or len(name) > LONGEST_ROW:
            self._fail(
                f"row {place}: give it a name of at most {LONGEST_ROW} letters without commas, which --rows separates "
                "names with"
            )
        self._only(entry, ROW_KEYS, f"row {name!r}: ")
        model = self._text(entry, "model", "")
        if not model:
            self._fail(f"row {name!r} names no model")
        settings = self._settings(entry.get("settings"), f"row {name!r}")
        trials = self._trials(entry.get("tuning", self.content.get("tuning")), name)
        for key in sorted({*settings, *(key for trial in trials for key in trial)} & ALIKE):
            self._fail(f"row {name!r} sets {key}, which every row gets alike; put it under the shared settings")
        for key in sorted({key for trial in trials for key in trial} & set(settings)):
            self._fail(f"row {name!r} both sets {key} and tunes it; keep one")
        needs = self._texts(entry.get("needs"), f"row {name!r}: needs")
        for modality in needs:
            if modality not in MODALITIES:
                self._fail(f"row {name!r}: needs: {modality!r} is not a modality{did_you_mean(modality, MODALITIES)}")
        return Row(name, self._text(entry, "group", ""), model, settings, trials, tuple(needs))

    def _trials(self, tuning: Any, row: str) -> list[dict[str, Any]]:
        """A list of settings as it stands, or a mapping of key -> values as all its combinations."""
        if isinstance(tuning, dict):
            for key, values in tuning.items():
                if not isinstance(values, list) or not values:
                    self._fail(f"row {row!r}: tuning: {key} needs a list of values, not {shown(values)}")
            self._check_count(row, math.prod(map(len, tuning.values())))
            trials = [dict(zip(tuning, combined)) for combined in itertools.product(*tuning.values())]
        elif isinstance(tuning or [], list):
            self._check_count(row, len(tuning or [{}]))
            trials = [self._settings(trial, f"row {row!r}: tuning") for trial in tuning or [{}]]
        else:
            self._fail(f"row {row!r}: tuning is {shown(tuning)}; give a list of settings, or key: [values]")
        if len(set(map(canonical, trials))) < len(trials):
            self._fail(f"row {row!r}: tuning tries the same settings twice")
        return [self._settings(trial, f"row {row!r}: tuning") for trial in trials]

    def _check_count(self, row: str, trials: int) -> None:
        if trials > MOST_TRIALS:
            self._fail(
                f"row {row!r}: tuning stands for {trials} trials, each of which is run; give at most {MOST_TRIALS}, or "
                "search with `recbole-mm tune`"
            )

    def _check_budget(self, rows: list[Row]) -> None:
        first = rows[0]
        for row in rows:
            if len(row.trials) != len(first.trials):
                self._fail(
                    f"unequal tuning budget: {len(first.trials)} trials for {first.name!r}, {len(row.trials)} for "
                    f"{row.name!r}; give every row as many, or say budget: unequal"
                )

    # ---- published figures ----

    def _published(self, metrics: list[str], names: list[str]) -> dict[str, dict[str, dict[str, float]]]:
        """dataset -> row -> figures in the order of `metrics`, with ~ where the paper has none."""
        published: dict[str, dict[str, dict[str, float]]] = {}
        for dataset, rows in self._mapping(self.content.get("published"), "published").items():
            published[dataset] = {}
            for name, figures in self._mapping(rows, f"published: {dataset}").items():
                if name not in names:
                    self._fail(f"published: {dataset}: there is no row {name!r}{did_you_mean(str(name), names)}")
                numbers = isinstance(figures, list) and all(
                    figure is None or (isinstance(figure, (int, float)) and not isinstance(figure, bool))
                    for figure in figures
                )
                if not numbers or len(figures) != len(metrics):
                    self._fail(
                        f"published: {dataset}: {name!r} needs {len(metrics)} numbers, one for each of metrics "
                        "(~ where there is none)"
                    )
                published[dataset][name] = {
                    metric: figure for metric, figure in zip(metrics, figures) if figure is not None
                }
        return published

    # ---- pieces ----

    def _variables(self, defaults: Any, given: Mapping[str, str]) -> dict[str, Any]:
        defaults = self._mapping(defaults, "variables")
        for name in given:
            if name not in defaults:
                known = did_you_mean(name, defaults) if defaults else "; it has none"
                self._fail(f"--var {name}: there is no such variable{known}")
        return defaults | {name: parse_argument(name, text, defaults[name]) for name, text in given.items()}

    def _filled(self, value: Any) -> Any:
        """`value` with every `${name}` replaced; a text that is nothing else takes the variable's own type."""
        if isinstance(value, dict):
            return {key: self._filled(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._filled(entry) for entry in value]
        if not isinstance(value, str):
            return value
        for name in _VARIABLE.findall(value):
            if name not in self.variables:
                self._fail(f"${{{name}}} is not among the variables{did_you_mean(name, self.variables)}")
        whole = _VARIABLE.fullmatch(value)
        if whole:
            return self.variables[whole[1]]
        filled = _VARIABLE.sub(lambda found: str(self.variables[found[1]]), value)
        self.filled += len(filled)
        if self.filled > MOST_BYTES:
            self._fail(f"with its variables filled in, it holds more than {MOST_BYTES:,} letters")
        return filled

    def _settings(self, value: Any, what: str) -> dict[str, Any]:
        settings = self._mapping(value, what)
        for key in settings:
            if key in NOT_IN_AN_EXPERIMENT:
                self._fail(f"{what} holds {key}; {NOT_IN_AN_EXPERIMENT[key]}")
        return settings

    def _mapping(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value or {}, dict):
            self._fail(f"{what} is {shown(value)}; give key: value lines")
        return dict(value or {})

    def _texts(self, value: Any, what: str) -> list[str]:
        if not isinstance(value or [], list) or not all(isinstance(entry, str) for entry in value or []):
            self._fail(f"{what} is {shown(value)}; give a list of names")
        return list(value or [])

    def _text(self, mapping: Mapping[str, Any], key: str, default: str) -> str:
        value = mapping.get(key, default)
        if not isinstance(value, str):
            self._fail(f"{key} is {shown(value)}; give a text, in quotes if it looks like something else")
        return value

    def _only(self, mapping: Mapping[str, Any], known: Iterable[str], what: str) -> None:
        for key in mapping:
            if key not in known:
                self._fail(f"{what}unknown key {key!r}{did_you_mean(str(key), known)}")

    def _fail(self, message: str) -> Any:
        raise ConfigError(f"{self.where}: {message}")
