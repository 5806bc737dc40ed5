"""The per-user table: its columns are the reported metrics before they are averaged."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

from recbole_mm.errors import DataError, DiskError
from recbole_mm.evaluation.collector import RankingCollector
from recbole_mm.evaluation.per_user import per_user_table, per_user_values, read_per_user, write_per_user
from recbole_mm.evaluation.ranking import CSR, EvalUsers, rank_users

USERS, ITEMS = 50, 80
METRICS = ["NDCG", "Recall", "MRR", "Hit", "Precision", "MAP"]
CONFIG = {"metrics": [*METRICS, "GAUC", "ItemCoverage"], "topk": [1, 5, 20], "metric_decimal_place": 12}


class Random(torch.nn.Module):
    def full_sort_predict(self, interaction):
        return torch.rand((len(interaction), ITEMS), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def evaluated():
    """Users with one to four positives, and what ranking them gives."""
    rng = np.random.default_rng(0)
    positives = [rng.choice(np.arange(1, ITEMS), rng.integers(1, 5), replace=False) for _ in range(USERS)]
    users = EvalUsers(
        Interaction({"user_id": torch.arange(USERS)}),
        CSR.from_lists(positives),
        None,
        np.arange(USERS),
        user_tokens=np.array([f"ü{i}" for i in range(USERS)]),
    )
    return users, rank_users(Random(), users, ITEMS, collector=RankingCollector(CONFIG, item_num=ITEMS))


def test_the_mean_of_a_column_is_the_reported_metric(evaluated):
    users, struct = evaluated
    table = per_user_table(CONFIG, users, struct)
    reported = Evaluator(CONFIG).evaluate(struct)
    columns = [name for name in table.column_names if "@" in name]
    assert columns == [f"{metric.lower()}@{k}" for metric in METRICS for k in CONFIG["topk"]]
    for name in columns:
        assert table[name].to_numpy().mean() == pytest.approx(reported[name], abs=1e-12), name
    weighted = np.average(table["gauc"].to_numpy(), weights=table["n_positives"].to_numpy())
    assert weighted == pytest.approx(reported["gauc"], abs=1e-6), "RecBole's is computed in float32"


def test_columns_describe_each_user(evaluated):
    users, struct = evaluated
    tokens = np.array([f"item {i}" for i in range(ITEMS)])
    rows = per_user_table(CONFIG, users, struct, tokens).to_pylist()
    assert [row["user_id"] for row in rows] == [f"ü{i}" for i in range(USERS)]
    for place, row in enumerate(rows):
        mine = users.positives.items[users.positives.offsets[place] : users.positives.offsets[place + 1]]
        assert row["n_positives"] == len(mine)
        assert row["positives"] == [f"item {i}" for i in mine]
        assert row["rank"] == min(row["ranks"])
        assert row["hit@5"] == (row["rank"] <= 5)
        assert row["mrr@20"] == pytest.approx(1 / row["rank"] if row["rank"] <= 20 else 0)
        assert row["recall@20"] == np.mean(np.array(row["ranks"]) <= 20)


def test_values_without_user_tokens_go_by_recboles_ids(evaluated):
    users, struct = evaluated
    users.user_tokens = None
    assert per_user_table(CONFIG, users, struct)["user_id"].to_pylist()[:3] == ["0", "1", "2"]
    named = {f"{m.lower()}@{k}" for m in METRICS for k in CONFIG["topk"]}
    assert set(per_user_values(CONFIG, struct)) == named | {"gauc"}


def test_the_file_is_whole_or_not_there(evaluated, tmp_path, monkeypatch):
    table = per_user_table(CONFIG, *evaluated)
    path = tmp_path / "per_user.parquet"
    write_per_user(path, table)
    assert read_per_user(tmp_path).equals(table)
    assert read_per_user(path).equals(table)

    def fails(table, where, **options):
        with open(where, "wb") as file:
            file.write(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(DiskError, match=r"per_user\.parquet: cannot be written: No space left on device"):
        write_per_user(path, table)
    assert read_per_user(path).equals(table)
    assert [file.name for file in tmp_path.iterdir()] == ["per_user.parquet"]


def test_unreadable_tables_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"per_user.parquet does not exist; run the model again with save_per_user"):
        read_per_user(tmp_path)
    (tmp_path / "per_user.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
        read_per_user(tmp_path)
    assert "\n" not in str(caught.value)
