"""What is held out: the same rows for every kind of model, by exact time, never the future of what is trained on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.dataset import Dataset, SequentialDataset

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import read_yaml, write_yaml
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.sharing import Datasets
from recbole_mm.data.splits import TEST, TRAIN, VALID, Split, split_by_ratio, split_by_time
from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.splits import split
from recbole_mm.runs.plan import plan

HEAD = "user_id:token\titem_id:token\ttimestamp:float"
RATIOS = [0.8, 0.1, 0.1]
SPLITS = {
    "leave-one-out": {"split": {"LS": "valid_and_test"}},
    "ratio by user": {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user"},
    "ratio over all": {"split": {"RS": RATIOS}, "group_by": "none"},
    "time": {"split": {"TS": RATIOS}},
}
KINDS = ("Pop", "BPR", "SASRec", "DIEN")
"""A traditional and a general model, one of flat sequences, one whose dataset class makes samples of its own."""


def write(folder: Path, lines: list[str], head: str = HEAD) -> Path:
    (folder / "d").mkdir(exist_ok=True)
    (folder / "d" / "d.inter").write_text("\n".join([head, *lines]) + "\n")
    return folder


def config_of(folder: Path, model: str, arguments: dict, **settings) -> Config:
    columns = [name.split(":")[0] for name in (folder / "d" / "d.inter").read_text().split("\n")[0].split("\t")]
    given = {"data_path": str(folder), "load_col": {"inter": columns}, "state": "ERROR", "show_progress": False}
    return Config(model, "d", config_dict={**given, "eval_args": arguments, **settings})


def built(folder: Path, model: str, arguments: dict, **settings) -> list[list[str]]:
    """`user:item` of the rows of training (targets alone for a model of sequences), validation and test, sorted."""
    found = []
    for part in create_dataset(config_of(folder, model, arguments, **settings)).build():
        users, items = (part.field2id_token[field][part.inter_feat[field].numpy()] for field in ("user_id", "item_id"))
        found.append(sorted(f"{user}:{item}" for user, item in zip(users, items)))
    return found


def random_lines(n: int = 300, seed: int = 5) -> list[str]:
    """Rows of 40 users who come one after the other; times are distinct, and float32 can tell them apart."""
    rng = np.random.default_rng(seed)
    times = rng.permutation(n)
    return [f"u{min(int(t / 8 + rng.integers(0, 12)), 39)}\ti{rng.integers(60)}\t{t}" for t in times]


HOURLY = [f"u{n % 4}\ti{(n % 4 * 2 + n // 4) % 7}\t{1_700_000_000 + 3600 * n}" for n in range(20)]


@pytest.mark.parametrize("model", ["SASRec", "DIEN", "Molar", "GRU4Rec"])
def test_sequences_are_cut_in_time_where_no_user_groups_are_asked_for(tmp_path, model):
    train, valid, test = built(write(tmp_path, HOURLY), model, SPLITS["ratio over all"])
    assert (len(train), valid, test) == (14, ["u2:i1"], ["u3:i3"])


@pytest.mark.parametrize("name", SPLITS)
def test_every_kind_of_model_holds_out_the_same_rows(tmp_path, name):
    folder = write(tmp_path, random_lines())
    first, *others = (built(folder, model, SPLITS[name]) for model in KINDS)
    assert all(first[1:])
    assert all(other[1:] == first[1:] for other in others)
    assert sum(map(len, first)) <= 300


@pytest.mark.parametrize("name", ["ratio over all", "time"])
def test_samples_are_those_of_recbole_where_float32_can_tell_times(tmp_path, name):
    config = config_of(write(tmp_path, random_lines()), "SASRec", SPLITS[name])
    ours, theirs = create_dataset(config).build(), SequentialDataset(config).build()
    for mine, other in zip(ours, theirs, strict=True):
        a, b = mine.inter_feat, other.inter_feat
        a.sort(["user_id", "timestamp"])
        b.sort(["user_id", "timestamp"])
        assert len(a) > 10
        for field in b:
            assert torch.equal(a[field], b[field]), field


@pytest.mark.parametrize("ratios", [[0.8, 0.1, 0.1], [8, 0, 2], [1, 1, 0], [0.5, 0.25, 0.25]])
def test_a_point_in_time_is_recboles(tmp_path, ratios):
    """RecBole's code, on general data: there a user's first row is counted and may be held out."""
    lines = [line for user in range(30) for line in (f"u{user}\ti{user % 7}\t-1", f"u{user}\ti{user % 5}\t{user * 3}")]
    lines += [f"u{user}\ti{k}\t{user * 3 + 40 * k + 1}" for user in range(30) for k in range(7)]
    users = np.array([int(line[1:].split("\t")[0]) for line in lines])
    times = np.array([float(line.split("\t")[2]) for line in lines])
    order = np.lexsort((times, users))
    offsets = np.arange(0, len(lines) + 1, 9)
    ours = split_by_time(offsets, times[order], ratios)
    kept = times[order] >= 0  # RecBole is given the rows that can be held out
    config = config_of(write(tmp_path, [lines[row] for row in order[kept]]), "BPR", SPLITS["time"])
    dataset = Dataset(config)
    dataset._change_feat_format()
    dataset.sort("timestamp")
    for phase, part in enumerate(dataset.time_based_split(ratios, "user_id")):
        mine = np.sort(times[order][kept & (ours == phase)])
        assert mine.tolist() == np.sort(part.inter_feat["timestamp"].numpy()).tolist()
    assert set(ours[~kept]) == {TRAIN}


@pytest.mark.parametrize("name", ["ratio over all", "time"])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_nothing_is_trained_on_that_is_later_than_the_test(tmp_path, name, model):
    """Users one after the other within two minutes, which float32 gives one time; the first one's rows are last."""
    lines = [f"u{n // 6:02d}\ti{n % 11}\t{1_700_000_000_000 + 900 * n}" for n in range(120)]
    lines = [line for user in reversed(range(20)) for line in lines[user * 6 : user * 6 + 6]]
    assert np.float32(1_700_000_000_000) == np.float32(1_700_000_000_000 + 60_000)
    dataset = create_dataset(config_of(write(tmp_path, lines), model, SPLITS[name]))
    users, times = (dataset.inter_feat[field].to_numpy() for field in ("user_id", "timestamp"))
    exact = times[np.lexsort((times, users))]
    train, valid, test = dataset.build()
    last = [exact[part.own_rows].max() for part in (train, valid, test)]
    first = [exact[part.own_rows].min() for part in (train, valid, test)]
    assert last[0] < first[2]
    assert last[1] < first[2]
    assert len(test.own_rows) == 10
    if name == "ratio over all":
        assert last[0] < first[1]
    never = np.flatnonzero(dataset.rows.never_asked)
    assert (exact[never] > last[0]).all()
    assert len(never) == (3 if name == "ratio over all" else 2)
    if model == "SASRec":
        for part in (train, valid, test):
            samples = part.inter_feat
            assert (exact[samples.targets.numpy() - 1] < exact[samples.targets.numpy()]).all()
            assert (samples.starts >= torch.from_numpy(dataset.rows.starts[samples.targets.numpy()])).all()


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_of_equal_times_the_order_of_the_file_decides_across_users(tmp_path, model):
    lines = [f"u{user}\ti{n}\t7" for n in range(5) for user in (3, 1, 2, 0)]
    _, valid, test = built(write(tmp_path, lines), model, SPLITS["ratio over all"])
    assert (valid, test) == (["u2:i4"], ["u0:i4"])


def test_a_point_in_time_parts_no_equal_times(tmp_path):
    lines = [f"u{user}\ti{n}\t{1_700_000_000 + min(n, 3)}" for n in range(5) for user in range(4)]
    early, late = ({"split": {"TS": [1, 1, share]}} for share in (1.3, 3))
    # The last two rows of each user share a time, and are more than the first split asks for.
    assert built(write(tmp_path, lines), "BPR", early)[2] == []
    _, valid, test = built(write(tmp_path, lines), "BPR", late)
    assert test == [f"u{user}:i{n}" for user in range(4) for n in (3, 4)]
    assert valid == [f"u{user}:i2" for user in range(4)]


def test_who_comes_after_the_training_data_is_asked_from_the_second_row_on(tmp_path):
    lines = [f"a\ti{n}\t{n}" for n in range(10)] + ["b\tx\t10", "b\ty\t11", "b\tx\t12", "c\tz\t13"]
    arguments = {"split": {"RS": [8, 2, 1]}, "group_by": "none"}
    folder = write(tmp_path, lines)
    assert built(folder, "BPR", arguments)[1:] == built(folder, "SASRec", arguments)[1:] == [["a:i9", "b:y"], ["b:x"]]
    for model in ("BPR", "SASRec"):
        config = config_of(folder, model, arguments)
        phases = split(config, create_dataset(config), config.model_class)
        tokens = phases.train_dataset.field2id_token["item_id"]
        cases = [(users, users.history.offsets[-2:]) for users in (phases.valid.users, phases.test.users)]
        assert [sorted(tokens[users.history.items[slice(*ends)]]) for users, ends in cases] == [["x"], ["x", "y"]], (
            model
        )
        assert phases.test.train_counts.items[1:].tolist() == [1] * 9 + [0] * 4


def test_a_shuffled_split_depends_on_the_seed_alone(tmp_path):
    folder = write(tmp_path, random_lines())
    for group in ("user", "none"):
        arguments = {"split": {"RS": RATIOS}, "order": "RO", "group_by": group}
        torch.manual_seed(1)
        first = built(folder, "BPR", arguments)
        torch.manual_seed(2)
        assert built(folder, "BPR", arguments) == first == built(folder, "Pop", arguments)
        assert built(folder, "BPR", arguments, seed=3) != first
        assert sum(map(len, first)) == 300
        if group == "none":
            assert [len(part) for part in first] == [240, 30, 30]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("SASRec", {"split": {"RS": RATIOS}, "order": "RO", "group_by": "none"}, "needs eval_args.order: TO"),
        ("DIEN", {"split": {"LS": "valid_and_test"}, "order": "RO"}, "needs eval_args.order: TO"),
        ("BPR", {"split": {"TS": RATIOS}, "order": "RO"}, "cuts at a point in time, which needs order: TO"),
        ("BPR", {"split": {"RS": [0, 0.5, 0.5]}}, r"\[0, 0.5, 0.5\] leaves nothing to train on; give \[0.8,0.1,0.1\]"),
        ("BPR", {"split": {"TS": [0, 0, 0]}}, "leaves nothing to train on"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_settings(tmp_path, model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        config_of(write(tmp_path, HOURLY), model, arguments)


ONCE = [f"u{n}\ti{n % 3}\t{n}" for n in range(6)]
TWICE = [*ONCE, *(f"u{n}\tj{n % 3}\t{9 + n}" for n in range(6))]


@pytest.mark.parametrize("model", ["Pop", "SASRec", "BPR"])
@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (ONCE, {}, "no interaction is held out for validation by .*: there are 6 of 6 users"),
        (ONCE, {"split": {"LS": "test_only"}}, "held out for test .*filter fewer, or give another split$"),
        (TWICE, {}, "held out for validation .*or {LS: test_only} to go without validation$"),
        (ONCE, {"split": {"RS": RATIOS}, "group_by": "none"}, "held out for validation"),
        ([f"{line.rpartition(chr(9))[0]}\t5" for line in TWICE], {"split": {"TS": RATIOS}}, "is held out for"),
    ],
)
def test_a_phase_that_is_asked_for_and_empty_is_an_error(tmp_path, model, lines, arguments, message):
    config = config_of(write(tmp_path, lines), model, arguments)
    if model == "SASRec":  # which needs an item before each target
        message = "nothing is left to train on: .*; filter fewer, or give another split$"
    with pytest.raises(DataError, match=message):
        split(config, create_dataset(config), config.model_class)


@pytest.mark.parametrize("arguments", [{"split": {"LS": "test_only"}}, {"split": {"RS": [0.5, 0, 0.5]}}])
def test_a_phase_that_is_not_asked_for_may_be_empty(tmp_path, arguments):
    config = config_of(write(tmp_path, TWICE), "BPR", arguments)
    phases = split(config, create_dataset(config), config.model_class)
    assert phases.valid is None
    assert len(phases.test) == 6


def test_a_given_split_with_an_empty_file_is_an_error(tmp_path):
    write(tmp_path, TWICE)
    for name, lines in (("train", TWICE), ("valid", []), ("test", ONCE)):
        (tmp_path / "d" / f"d.{name}.inter").write_text("\n".join([HEAD, *lines]) + "\n")
    config = config_of(tmp_path, "BPR", {}, benchmark_filename=["train", "valid", "test"])
    with pytest.raises(DataError, match=r"held out for validation by benchmark_filename \['train', 'valid', 'test'\]"):
        split(config, create_dataset(config), config.model_class)


LABELLED = [f"u{user}\ti{user + n}\t{user * 9 + n}\t{int((user + n) % 3 != 0)}" for user in range(6) for n in range(6)]


@pytest.mark.parametrize("model", ["BPR", "SASRec", "FM"])
def test_what_is_labelled_0_is_no_positive(tmp_path, model):
    folder = write(tmp_path, LABELLED, f"{HEAD}\tlabel:float")
    arguments = {"split": {"RS": [4, 1, 1]}, "order": "TO", "group_by": "user", "mode": "full"}
    changed = {"train_neg_sample_args": None} if model == "FM" else {}
    config = config_of(folder, model, arguments, metrics=["Recall"], valid_metric="Recall@10", **changed)
    phases = split(config, create_dataset(config), config.model_class)
    users = phases.test.users
    tokens = phases.train_dataset.field2id_token
    held = zip(tokens["user_id"][users.user_ids[users.positives.rows]], tokens["item_id"][users.positives.items])
    expected = [f"u{user}:i{user + 5}" for user in range(6) if (user + 5) % 3]
    assert sorted(f"{user}:{item}" for user, item in held) == expected
    assert (users.history.lengths == 5).all(), "what the user did not like is known of the user"
    train = phases.train_dataset.inter_feat
    labels = train["label"].tolist()
    assert (0.0 in labels) == (model == "FM"), "a model that reads labels learns from both"
    assert phases.test.train_counts.items.sum() == 16
    if model == "SASRec":
        assert set(train[:]["label_list"].flatten().tolist()) == {0.0, 1.0}, "the history holds what was seen"


@pytest.mark.parametrize(("mode", "asked"), [("uni3", 4), ("labeled", 6)])
def test_value_metrics_against_samples_take_positives_alone(tmp_path, mode, asked):
    folder = write(tmp_path, LABELLED, f"{HEAD}\tlabel:float")
    arguments = {"split": {"RS": [4, 1, 1]}, "order": "TO", "group_by": "user", "mode": mode}
    config = config_of(folder, "FM", arguments, metrics=["AUC"], valid_metric="AUC")
    phases = split(config, create_dataset(config), config.model_class)
    assert [len(loader._dataset.own_rows) for loader in (phases.valid, phases.test)] == [asked, asked]


def test_whole_sequences_and_histories_refuse_labels_of_0(tmp_path):
    folder = write(tmp_path, LABELLED, f"{HEAD}\tlabel:float")
    config = config_of(folder, "Molar", {})
    with pytest.raises(ConfigError, match=r"labelled 0.*val_interval"):
        split(config, create_dataset(config), config.model_class)
    with pytest.raises(ConfigError, match=r"takes every interaction as chosen.*val_interval"):
        create_dataset(config).user_histories()


def test_nothing_is_computed_for_a_split_that_cannot_be(toy_settings, monkeypatch):
    computed = []
    monkeypatch.setattr("recbole_mm.inputs.model_inputs.provide", lambda *_, **__: computed.append("artifacts"))
    columns = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]}
    for settings, message in (
        ({"threshold": {"rating": 3}, "load_col": columns}, "labelled 0.*instead of threshold"),
        ({"user_inter_num_interval": "[0,4]", "eval_args": {"split": {"TS": [1, 8, 1]}}}, "nothing is left"),
    ):
        for call in (recbole_mm.run, plan):
            with pytest.raises(RecboleMMError, match=message):
                call("Molar", "toy", config_dict={**toy_settings, **settings})
    assert not computed


def test_labels_by_threshold_leave_nothing_to_ask_for(tmp_path):
    lines = [f"{line[:-1]}{5 - int(line.split(chr(9))[2]) % 9}" for line in LABELLED]
    folder = write(tmp_path, lines, f"{HEAD}\trating:float")
    config = config_of(folder, "BPR", {}, threshold={"rating": 3})
    with pytest.raises(DataError, match="no interaction labelled 1 is held out for validation"):
        split(config, create_dataset(config), config.model_class)


def test_ratios_over_all_rows_round_as_recbole_does():
    for count in (1, 2, 3, 9, 10, 16, 100):
        phases = split_by_ratio(np.array([0, count]), RATIOS)
        cuts = Dataset._calcu_split_ids(None, tot=count, ratios=RATIOS)
        assert np.bincount(phases, minlength=3).tolist() == np.diff([0, *cuts, count]).tolist()


def slow_phases(split: Split, users: list[int], times: list[float]) -> list[int]:
    """`Split.phases` in time order, word for word as docs/evaluation.md has it."""
    order = sorted(range(len(users)), key=lambda row: times[row])
    rows = {user: [row for row in order if users[row] == user] for user in set(users)}
    first = {mine[0] for mine in rows.values()}
    asked = [row for row in order if row not in first]
    found = dict.fromkeys(range(len(users)), TRAIN)

    def cut(mine: list[int], ratios: list[float]) -> None:
        sizes = np.diff([0, *Dataset._calcu_split_ids(None, len(mine), [r / sum(ratios) for r in ratios]), len(mine)])
        found.update(zip(mine, np.repeat([TRAIN, VALID, TEST], sizes).tolist()))

    if split.way == "LS":
        for mine in rows.values():
            found.update(zip(mine[1:][::-1], [TEST, VALID]))
    elif split.way == "RS" and split.by_user:
        for mine in rows.values():
            cut(mine, split.value)
    elif split.way == "RS":
        cut(asked, split.value)
        for row in first:
            before = [found[one] for one in order[: order.index(row)] if one not in first]
            found[row] = before[-1] if before else TRAIN
    elif asked:
        train, valid, _ = (Fraction(str(share)) for share in split.value)
        point = np.percentile([times[row] for row in asked], 100 * (1 - split.value[2] / sum(split.value)))
        for user, mine in rows.items():
            early = [row for row in mine if times[row] <= point]
            kept = 1 + int((len(early) - 1) * train / (train + valid)) if early else 0
            found.update(dict.fromkeys(mine, TEST) | dict.fromkeys(early, VALID) | dict.fromkeys(early[:kept], TRAIN))
            assert users[mine[0]] == user
    return [found[row] for row in range(len(users))]


@pytest.mark.parametrize(("way", "by_user"), [("LS", True), ("RS", True), ("RS", False), ("TS", True)])
def test_phases_equal_a_slow_reference(way, by_user):
    rng = np.random.default_rng(11)
    for case in range(120):
        count = int(rng.integers(1, 40))
        users = rng.integers(1, 1 + rng.integers(1, 9), count)
        times = 1_700_000_000 + rng.integers(0, rng.choice([4, 60, 10_000]), count) * rng.choice([1.0, 0.25, 1e-4])
        value = "valid_and_test" if way == "LS" else [[0.8, 0.1, 0.1], [3, 1, 2], [0.5, 0, 0.5], [1, 1, 0]][case % 4]
        split = Split(way, value, in_time=True, by_user=by_user, seed=0)
        found = split.phases(users, times)
        assert found.tolist() == slow_phases(split, users.tolist(), times.tolist()), (users, times, value)


def test_phases_of_rows_in_any_order():
    times = np.array([5.0, 1, 3, 4, 2, 0])
    users = np.array([1, 1, 2, 1, 2, 2])
    one = Split("RS", [1, 1, 1], in_time=True, by_user=False, seed=0)
    assert one.phases(users, times).tolist() == [TEST, TRAIN, TRAIN, VALID, TRAIN, TRAIN]
    assert Split("LS", "test_only", True, True, 0).phases(users, times).tolist() == [TEST, 0, TEST, 0, 0, 0]


def test_a_run_of_an_earlier_rule_is_another_run_and_is_not_opened(tmp_path):
    folder = write(tmp_path, HOURLY)
    kept = config_of(folder, "SASRec", SPLITS["leave-one-out"])
    assert kept["split_rule"] is None, "what has not changed keeps its name"
    config = config_of(folder, "SASRec", SPLITS["ratio over all"])
    assert config["split_rule"] == 2
    path = tmp_path / "config.yaml"
    config.save(path)
    assert Config.load(path)["split_rule"] == 2
    earlier = read_yaml(path)
    del earlier["split_rule"]
    path.write_text(write_yaml(earlier))
    with pytest.raises(ConfigError, match=r"split by the rule of an earlier version.*run it again"):
        Config.load(path)


@pytest.mark.parametrize("ratios", [[2, 0, 1], [6, 0, 1], [1, 0, 0]])
def test_a_share_of_nothing_holds_nothing_out(ratios):
    phases = split_by_time(np.array([0, 10]), np.arange(10.0), ratios)
    assert VALID not in phases
    assert (TEST in phases) == (ratios[2] > 0)


@pytest.mark.parametrize("full", [False, True])
def test_samples_of_given_histories_are_trained_on(tmp_path, full):
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    (tmp_path / "d").mkdir()
    parts = {"train": (0, 4), "valid": (4, 6), "test": (6, 8)}
    for part, (start, end) in parts.items():
        rows = [f"u{user}\ti{n % 5} i{(n + user) % 5}\ti{(n + 2) % 5}" for user in range(6) for n in range(start, end)]
        (tmp_path / "d" / f"d.{part}.inter").write_text("\n".join([head, *rows]) + "\n")
    given = {
        **{"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1, "show_progress": False},
        **{"benchmark_filename": list(parts), "alias_of_item_id": ["item_id_list"], "full_sequence": full},
        **{"load_col": {"inter": ["user_id", "item_id_list", "item_id"]}, "topk": [3], "valid_metric": "NDCG@3"},
    }
    if full:
        with pytest.raises(ConfigError, match="benchmark_filename"):
            recbole_mm.run("SASRec", "d", config_dict=given)
    else:
        outcome = recbole_mm.run("SASRec", "d", config_dict=given)
        assert [len(part.inter_feat) for part in (outcome.splits.train_dataset,)] == [24]
        assert outcome.test_result["recall@3"] > 0
        with pytest.raises(ConfigError, match="samples with histories of their own"):
            recbole_mm.recommend(outcome, 2, users="all")
        assert len(recbole_mm.recommend(outcome, 2, histories=[["i1", "i4"]])) == 2


def test_shared_data_are_split_anew_for_each_split(tmp_path):
    folder, datasets = write(tmp_path, HOURLY), Datasets()
    for given in ("leave-one-out", "ratio over all"):
        config = config_of(folder, "SASRec", SPLITS[given])
        shared = datasets.of(config)
        order, rows = shared.split_rows()
        own_order, own_rows = create_dataset(config).split_rows()
        assert np.array_equal(order, own_order)
        assert np.array_equal(rows.phases, own_rows.phases)
        assert shared.split_rows()[1] is rows, "once for a table as it stands"
