"""Users' histories before the split: the training rows, in time order, whatever kind of split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = ["b\tz\t9", "b\tx\t1", "a\tx\t2", "a\tx\t3", "c\ty\t1", "a\ty\t5", "a\tz\t6", "b\ty\t10", "b\tw\t11"]
SPLIT = {"train": ROWS[:5], "valid": ["a\ty\t0", "b\ty\t10"], "test": ["a\tz\t6", "b\tw\t11"]}


def dataset_of(folder: Path, model: str = "BPR", **settings):
    root = folder / "d"
    root.mkdir(exist_ok=True)
    (root / "d.inter").write_text("\n".join([HEAD, *ROWS]) + "\n")
    for name, rows in SPLIT.items():
        (root / f"d.{name}.inter").write_text("\n".join([HEAD, *rows]) + "\n")
    given = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "state": "ERROR", "data_path": str(folder)}
    return create_dataset(Config(model, "d", config_dict={**given, **settings}))


def told(dataset, **options) -> list:
    """(user, items) in order, by token."""
    users, items, offsets = dataset.user_histories(**options)
    names, tokens = dataset.field2id_token["user_id"], dataset.item_tokens()
    return [
        (str(names[user]), "".join(tokens[item] for item in items[start:end]))
        for user, start, end in zip(users, offsets, offsets[1:])
    ]


def test_training_rows_in_time_order_by_users_tokens(tmp_path):
    assert told(dataset_of(tmp_path)) == [("a", "xx"), ("b", "xz"), ("c", "y")]
    assert told(dataset_of(tmp_path), held_out=True) == [("a", "xxyz"), ("b", "xzyw"), ("c", "y")]


def test_a_split_made_beforehand_trains_on_its_first_file(tmp_path):
    dataset = dataset_of(tmp_path, benchmark_filename=["train", "valid", "test"])
    assert told(dataset) == [("a", "xx"), ("b", "xz"), ("c", "y")]
    assert told(dataset, held_out=True) == [("a", "yxxz"), ("b", "xzyw"), ("c", "y")]
    users, items, offsets = dataset.user_histories()
    trained = dataset.build()[0].inter_feat
    pairs = sorted(zip(trained["user_id"].tolist(), trained["item_id"].tolist()))
    mine = [(int(user), int(item)) for n, user in enumerate(users) for item in items[offsets[n] : offsets[n + 1]]]
    assert sorted(mine) == pairs


def test_a_split_made_beforehand_without_times_keeps_the_files_order(tmp_path):
    columns = {"inter": ["user_id", "item_id"]}
    dataset = dataset_of(tmp_path, benchmark_filename=["train", "valid", "test"], load_col=columns)
    assert told(dataset) == [("a", "xx"), ("b", "zx"), ("c", "y")]


def test_no_held_out_row_changes_them(tmp_path):
    before = told(dataset_of(tmp_path, benchmark_filename=["train", "valid", "test"]))
    changed = tmp_path / "other"
    changed.mkdir()
    dataset_of(changed)
    (changed / "d" / "d.test.inter").write_text(f"{HEAD}\n0\tz\t0\na\tq\t1\n")
    given = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "data_path": str(changed), "state": "ERROR"}
    dataset = create_dataset(
        Config("BPR", "d", config_dict={**given, "benchmark_filename": ["train", "valid", "test"]})
    )
    assert told(dataset) == before
    assert told(dataset, held_out=True) != before


@pytest.mark.parametrize("group", ["user", "none"])
@pytest.mark.parametrize(("order", "way"), [("RO", "RS"), ("TO", "RS"), ("TO", "TS")])
def test_every_split_is_known_beforehand(tmp_path, order, way, group):
    arguments = {"split": {way: [5, 2, 2]}, "order": order, "group_by": group}
    dataset = dataset_of(tmp_path, eval_args=arguments)
    users, items, offsets = dataset.user_histories()
    before = list(zip(np.repeat(users, np.diff(offsets)).tolist(), items.tolist()))
    trained = dataset.build()[0].inter_feat
    assert sorted(before) == sorted(zip(trained["user_id"].tolist(), trained["item_id"].tolist()))
    assert 0 < len(before) < len(ROWS)


def test_files_of_samples_are_refused(tmp_path):
    rows = {"train": ["a\tx y\tz\t1"], "valid": ["a\tx y z\ty\t2"], "test": ["a\tx\tz\t3"]}
    dataset_of(tmp_path)
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    for name, lines in rows.items():
        (tmp_path / "d" / f"d.{name}.inter").write_text("\n".join([head, *lines]) + "\n")
    config = Config(
        "SASRec",
        "d",
        config_dict={
            "load_col": {"inter": ["user_id", "item_id", "item_id_list", "timestamp"]},
            "benchmark_filename": ["train", "valid", "test"],
            "alias_of_item_id": ["item_id_list"],
            "data_path": str(tmp_path),
            "state": "ERROR",
        },
    )
    with pytest.raises(ConfigError, match="benchmark_filename"):
        create_dataset(config).training_sequences()
