"""The slices of a finished run: those that its folder holds, and others, cut from its results per user and its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import NOT_FROM_A_RUN
from recbole_mm.data.sharing import Datasets
from recbole_mm.errors import DataError
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.slice_kinds import entry_of, slice_kinds
from recbole_mm.evaluation.slices import PREFIX, slice_results
from recbole_mm.evaluation.splits import split
from recbole_mm.runs.folder import CONFIG, changed_files, read_result


class RunSlices:
    """Slices of one finished run; its folder is not changed, and no model is loaded.

    Args:
        folder: of the run.
        datasets: shared with other runs.

    Attributes:
        results: kind -> part -> `users`, `targets`, `weight` and metrics, of the kinds that are known by now.

    Raises:
        CheckpointError: `result.json` cannot be read.
    """

    def __init__(self, folder: Path, datasets: Datasets) -> None:
        self.folder, self._datasets = folder, datasets
        self.results: dict[str, Mapping[str, Any]] = dict(read_result(folder).get("slices", {}))
        self._computed: dict[str, pa.ListArray] = {}
        self._test: RankingData | None = None

    def of(self, kind: str) -> Mapping[str, Any]:
        """Return part -> values of one kind.

        Raises:
            RecboleMMError: the run has no such kind of slices, or its data are not there any more.
        """
        if kind not in self.results:
            self._compute(kind, read_per_user(self.folder))
        return self.results[kind]

    def per_user(self, kind: str) -> pa.Table:
        """Return the results per user, with a column of the parts of one kind.

        Raises:
            RecboleMMError: as `of`.
        """
        table = read_per_user(self.folder)
        if PREFIX + kind in table.column_names:
            return table
        if kind not in self._computed:
            self._compute(kind, table)
        return table.append_column(PREFIX + kind, self._computed[kind])

    def _compute(self, kind: str, table: pa.Table) -> None:
        config = self.config
        test = self._test or self._test_cases(config, table)
        self._test = test
        kinds = {one.name: one for one in slice_kinds(config, test.dataset, test, [entry_of(kind)])}
        if kind not in kinds:
            raise DataError(f"{self.folder}: its settings do not say what its {kind}s are")
        self.results |= slice_results(table, [kinds[kind]], test.users, config["metric_decimal_place"])
        self._computed[kind] = kinds[kind].column(test.users.positives)

    @property
    def config(self) -> Config:
        """The run's settings."""
        return Config.load(self.folder / CONFIG, None, NOT_FROM_A_RUN)

    def _test_cases(self, config: Config, table: pa.Table) -> RankingData:
        """Return the cases that the table is of.

        Raises:
            DataError: the data have changed, or give other cases.
        """
        if changed := changed_files(config):
            raise DataError(f"{self.folder}: {changed[0]} has changed since, or is gone")
        dataset = self._datasets.of(config)
        test = split(config, dataset, config.model_class, self.folder).test
        if not isinstance(test, RankingData) or "positives" not in table.column_names:
            raise DataError(f"{self.folder}: its test ranked nothing whose parts can be told")
        test.users.user_tokens = dataset.field2id_token[dataset.uid_field]
        test.users.tidy(dataset.item_num)
        tokens = dataset.field2id_token[dataset.iid_field]
        there = table["positives"].combine_chunks().flatten().to_pylist()
        same_users = table["user_id"].to_pylist() == [str(name) for name in test.users.names]
        if not same_users or there != [str(tokens[item]) for item in test.users.positives.items]:
            raise DataError(f"{self.folder}: its data give other test cases than those of its results")
        return test
