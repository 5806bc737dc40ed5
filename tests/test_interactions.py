"""Flat interactions against RecBole's own augmentation and splits, and exact time order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.splits import TEST, TRAIN, VALID, group_offsets, leave_one_out, split_by_ratio
from recbole_mm.errors import ConfigError, DataError


def by_user_and_time(rows: Interaction) -> dict[str, torch.Tensor]:
    order = np.lexsort((rows["timestamp"].numpy(), rows["user_id"].numpy()))
    return {field: rows[field][torch.as_tensor(order)] for field in rows}


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.7, 0.1, 0.2]}], ids=["leave-one-out", "ratio"])
def test_sequential_fields_equal_recbole(toy_config, split):
    config = toy_config("SASRec", eval_args={"split": split, "order": "TO", "group_by": "user", "mode": "full"})
    ours = create_dataset(config).build()
    theirs = SequentialDataset(config).build()
    if "LS" in split:  # every toy user has at least four interactions, so RecBole's split of samples is the same
        for mine, other in zip(ours, theirs):
            a, b = by_user_and_time(mine[:]), by_user_and_time(other[:])
            assert set(a) == set(b)
            for field in a:
                assert torch.equal(a[field], b[field]), field
    assert sum(map(len, ours)) == sum(map(len, theirs))


def test_general_and_sequential_models_hold_out_the_same_items(toy_config):
    for split in ({"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}):
        arguments = {"split": split, "order": "TO", "group_by": "user", "mode": "full"}
        general = create_dataset(toy_config("BPR", eval_args=arguments)).build()
        sequential = create_dataset(toy_config("SASRec", eval_args=arguments)).build()
        for a, b in list(zip(general, sequential))[1:]:
            pairs = [set(zip(d.inter_feat["user_id"].tolist(), d.inter_feat["item_id"].tolist())) for d in (a, b)]
            assert pairs[0] == pairs[1]


def test_leave_one_out_equals_recbole_for_general_models(toy_config):
    config = toy_config("BPR")
    for mine, other in zip(create_dataset(config).build(), Dataset(config).build()):
        a, b = by_user_and_time(mine.inter_feat), by_user_and_time(other.inter_feat)
        for field in ("user_id", "item_id", "timestamp"):
            assert torch.equal(a[field], b[field])


def test_short_users_stay_in_training():
    offsets = np.array([0, 1, 3, 6, 10])
    assert leave_one_out(offsets).tolist() == [TRAIN, TRAIN, TEST, TRAIN, VALID, TEST, TRAIN, TRAIN, VALID, TEST]
    assert leave_one_out(offsets, "valid_only").tolist() == [0, 0, VALID, 0, 0, VALID, 0, 0, 0, VALID]


def test_ratio_split_rounds_as_recbole_does():
    offsets = np.array([0, 3, 13])
    phases = split_by_ratio(offsets, [8, 1, 1], lambda _, tot, ratios: [tot - 2 * max(1, int(tot * 0.1)), tot - 1])
    assert phases.tolist() == [0, 1, 2, *[0] * 8, 1, 2]


def test_group_offsets():
    assert group_offsets(np.array([3, 3, 5, 9, 9, 9])).tolist() == [0, 2, 3, 6]
    assert group_offsets(np.array([], dtype=int)).tolist() == [0]


def write_inter(tmp_path, lines, header="user_id:token\titem_id:token\ttimestamp:float", name="small"):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.inter").write_text("\n".join([header, *lines]) + "\n" if header else "", encoding="utf-8")
    return {"data_path": str(tmp_path), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "state": "WARNING"}


def small_dataset(tmp_path, lines, model="SASRec", **settings):
    from recbole_mm.config.resolved import Config

    header = settings.pop("header", "user_id:token\titem_id:token\ttimestamp:float")
    settings = {**write_inter(tmp_path, lines, header), **settings}
    return create_dataset(Config(model, "small", config_dict=settings))


def test_seconds_count_and_ties_keep_the_order_of_the_file(tmp_path):
    """float32 cannot tell seconds of today apart: both orders below would be lost by RecBole's conversion."""
    base = 1_700_000_000
    later_first = [f"u\tc{i}\t{base + 9 - i}" for i in range(10)]
    tied = [f"v\tt{i}\t{base}" for i in range(10)]
    dataset = small_dataset(tmp_path, later_first + tied)
    assert np.float32(base) == np.float32(base + 9)
    dataset.build()
    tokens = dataset.field2id_token["item_id"][dataset.inter_feat.flat["item_id"].numpy()]
    assert tokens.tolist() == [f"c{i}" for i in reversed(range(10))] + [f"t{i}" for i in range(10)]


def test_samples_are_cut_on_demand_and_agree_with_the_whole_table(toy_config):
    train = create_dataset(toy_config("SASRec")).build()[0]
    samples = train.inter_feat
    whole = samples.interaction
    rows = np.array([5, 0, 17])
    batch = samples[rows]
    assert set(batch.columns) == set(samples.columns) == set(whole)
    for field in batch:
        assert torch.equal(batch[field], whole[field][torch.as_tensor(rows)])
        assert torch.equal(samples[field], whole[field])
    assert "item_id_list" in samples
    assert "nothing" not in samples
    with pytest.raises(KeyError):
        samples["nothing"]
    with pytest.raises(TypeError, match="cut batch"):
        samples["item_id"] = batch["item_id"]


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], "", "empty"),
        ([], "user_id:token\titem_id:token\ttimestamp:float", "no interactions"),
        (["u\ti\t1"], "user_id\titem_id\ttimestamp", "line 1: column 'user_id' is not name:type"),
        (["u\ti\t1"], "user_id:id\titem_id:token\ttimestamp:float", "line 1: column 'user_id:id'"),
        (["u\ti\t1"], "user_id:token\tuser_id:token\ttimestamp:float", "named twice"),
        (
            ["u\ti\t1", "u\tj\tnoon"],
            "user_id:token\titem_id:token\ttimestamp:float",
            "line 3: 'noon' in column timestamp",
        ),
        (["u\ti\t1\t5"], "user_id:token\titem_id:token\ttimestamp:float", "line 2: 4 fields"),
        (["u\ti\t1", "u\ti\t1\t5"], "user_id:token\titem_id:token\ttimestamp:float", "line 3: 4 fields"),
        (["u\ti\t1", "u\ti"], "user_id:token\titem_id:token\ttimestamp:float", "line 3: 2 fields"),
    ],
)
def test_bad_inter_files_are_named_with_the_line(tmp_path, lines, header, message):
    with pytest.raises(DataError) as caught:
        small_dataset(tmp_path, lines, header=header)
    assert message in str(caught.value)
    assert "small.inter" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_dataset_says_where_to_get_it(toy_config, tmp_path):
    config = toy_config("SASRec", data_path=str(tmp_path), prepare_hint="recbole-mm prepare toy --source DIR --out DIR")
    with pytest.raises(DataError, match=r"toy\.inter does not exist.*recbole-mm prepare toy"):
        create_dataset(config)


def test_items_absent_from_the_item_file(tmp_path):
    lines = ["u\ta\t1", "u\tb\t2", "u\tghost\t3", "u\ta2\t4"]
    settings = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]}}
    write_inter(tmp_path, lines)
    (tmp_path / "small" / "small.item").write_text("item_id:token\na\nb\na2\nunused\n")
    with pytest.raises(DataError, match=r"small\.item: 1 item ids.*'ghost'"):
        small_dataset(tmp_path, lines, **settings)
    dataset = small_dataset(tmp_path, lines, filter_inter_by_user_or_item=True, **settings)
    assert dataset.inter_num == 3
    assert dataset.item_num == 4, "an item that only .item names is no candidate"
    dataset = small_dataset(tmp_path, lines, filter_inter_by_user_or_item=True, candidates="catalogue", **settings)
    assert dataset.item_num == 5


def test_ordering_by_time_needs_a_time(tmp_path):
    with pytest.raises(DataError, match="timestamp"):
        small_dataset(tmp_path, ["u\ta", "u\tb"], header="user_id:token\titem_id:token")


def test_sequential_models_need_time_order(toy_config):
    with pytest.raises(ConfigError, match="order: TO"):
        toy_config("SASRec", eval_args={"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full"})


@pytest.mark.parametrize(("users", "items"), [("[6,inf)", "[9,inf)"), ("[3,9]", "[3,12]")])
def test_k_core_equals_recbole(toy_config, users, items):
    load = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
    config = toy_config("BPR", user_inter_num_interval=users, item_inter_num_interval=items, load_col=load)
    ours, theirs = create_dataset(config), Dataset(config)
    assert ours.inter_num == theirs.inter_num > 0
    assert ours.field2id_token["item_id"].tolist() == theirs.field2id_token["item_id"].tolist()
    with pytest.raises(DataError, match="leave no interaction"):
        create_dataset(toy_config("BPR", user_inter_num_interval="[1000,inf)"))
