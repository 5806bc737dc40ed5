"""Sampled candidates are the same for every model, kept by the run, and read again; GAUC of them is exact."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

import recbole_mm
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.candidates import FILES, Cases, candidates_digest, draw, read_candidates, write_candidates
from recbole_mm.evaluation.per_user import _auc, per_user_values, ranked_digest, read_per_user
from recbole_mm.evaluation.ranking import CSR, EvalUsers, RankingData
from recbole_mm.evaluation.significance import compare_runs, require_same_candidates
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from tests.conftest import write_toy

SAMPLED = {"eval_args": {"mode": "uni20"}, "metrics": ["GAUC", "Hit", "MRR"], "topk": [5], "valid_metric": "GAUC"}
USERS, ITEMS = 30, 50


@pytest.fixture
def run(toy_settings):
    """`run(model, **settings)` -> a finished run of the sampled protocol on `toy`."""

    def start(model="Pop", **settings):
        return recbole_mm.run(model, "toy", config_dict={**toy_settings, **SAMPLED, **settings})

    return start


def table_of(run_dir, phase="test"):
    return pq.read_table(run_dir / FILES[phase]).to_pylist()


def make_users(order=None, histories=True):
    """`USERS` with one to three positives and a history; `order` numbers users and items differently."""
    rng = np.random.default_rng(5)
    lists = [rng.permutation(np.arange(1, ITEMS))[: rng.integers(5, 12)] for _ in range(USERS)]
    counts = rng.integers(1, 4, size=USERS)
    item_names = np.array(["[PAD]", *(f"i{n:02d}" for n in range(1, ITEMS))])
    user_names = np.array(["[PAD]", *(f"u{n:02d}" for n in range(USERS))])
    item_order = np.arange(ITEMS) if order is None else np.concatenate([[0], 1 + order.permutation(ITEMS - 1)])
    user_order = np.arange(USERS + 1) if order is None else np.concatenate([[0], 1 + order.permutation(USERS)])
    ids = np.empty(ITEMS, dtype=np.int64)
    ids[item_order] = np.arange(ITEMS)
    rows = user_order[1:] - 1
    users = EvalUsers(
        None,
        CSR.from_lists([ids[lists[row][: counts[row]]] for row in rows]),
        CSR.from_lists([ids[lists[row][counts[row] :]] for row in rows]) if histories else None,
        np.arange(1, USERS + 1),
    )
    return users, user_names[user_order], item_names[item_order]


def by_token(cases: Cases, candidates: CSR):
    tokens = cases.items.tokens[cases.items.ids]
    return {
        name: tokens[candidates.items[candidates.offsets[row] : candidates.offsets[row + 1]]].tolist()
        for row, name in enumerate(cases.names)
    }


# ---- the draw ----


@pytest.mark.parametrize("mode", ["uni9", "pop9"])
def test_the_draw_does_not_depend_on_how_users_and_items_are_numbered(mode):
    drawn = []
    for order in (None, np.random.default_rng(1)):
        cases = Cases(*make_users(order))
        counts = np.array([0, *(int(name[1:]) for name in cases.items.tokens[1:])])
        drawn.append(by_token(cases, draw(cases, mode, "test", 3, counts)))
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn[0].values()}) == USERS


def test_seeds_and_phases_have_draws_of_their_own():
    cases = Cases(*make_users())
    drawn = [by_token(cases, draw(cases, "uni9", phase, seed, None)) for phase in FILES for seed in (1, 2)]
    for place, one in enumerate(drawn):
        assert all(one != other for other in drawn[:place])
    assert drawn[0] == by_token(cases, draw(cases, "uni9", "valid", 1, None))


def test_candidates_come_back_in_recboles_ids_and_rows():
    users, user_names, item_names = make_users(np.random.default_rng(2))
    cases = Cases(users, user_names, item_names)
    candidates = draw(cases, "uni9", "test", 3, None)
    expected, found = by_token(cases, candidates), cases.by_id(candidates).items
    for row, user in enumerate(users.user_ids):
        mine = found.items[found.offsets[row] : found.offsets[row + 1]]
        assert mine.tolist() == sorted(mine)
        assert sorted(item_names[mine]) == expected[user_names[user]]
        positives = users.positives.items[users.positives.offsets[row] : users.positives.offsets[row + 1]]
        history = users.history.items[users.history.offsets[row] : users.history.offsets[row + 1]]
        assert set(positives) <= set(mine)
        assert not set(history) & set(mine)
        assert len(mine) == 10 * len(positives)


def test_popularity_needs_the_counts_of_the_training_data():
    with pytest.raises(ConfigError, match="needs the counts"):
        draw(Cases(*make_users()), "pop9", "test", 3, None)


# ---- the file ----


@pytest.mark.parametrize("histories", [True, False])
def test_what_is_written_is_read_back_whatever_the_numbers(tmp_path, histories):
    path = tmp_path / FILES["test"]
    cases = Cases(*make_users(histories=histories))
    candidates = draw(cases, "uni9", "test", 3, None)
    write_candidates(path, cases, candidates)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    other = Cases(*make_users(np.random.default_rng(1), histories))
    assert by_token(other, read_candidates(path, other)) == by_token(cases, candidates)
    rows = table_of(tmp_path)
    assert [row["user_id"] for row in rows] == cases.names.tolist()
    for row, expected in zip(rows, by_token(cases, candidates).values()):
        assert sorted(row["positives"] + row["negatives"]) == expected
        assert len(row["negatives"]) == 9 * len(row["positives"])


def changed_file(path, change):
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


MISFITS = {
    "it ranks other users": lambda rows: rows.pop(),
    "there is no item 'nowhere'": lambda rows: rows[3]["negatives"].append("nowhere"),
    "other items are held out": lambda rows: rows[3]["positives"].append(rows[3]["negatives"].pop()),
    "a negative is an item that the user knows": lambda rows: rows[3]["negatives"].append(rows[3]["positives"][0]),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, message):
    path = tmp_path / FILES["test"]
    cases = Cases(*make_users())
    write_candidates(path, cases, draw(cases, "uni9", "test", 3, None))
    changed_file(path, MISFITS[message])
    with pytest.raises(DataError, match=message) as caught:
        read_candidates(path, cases)
    assert "\n" not in str(caught.value)
    assert "does not fit the data of this run" in str(caught.value)


def test_an_item_of_the_history_is_no_negative(tmp_path):
    path = tmp_path / FILES["test"]
    cases = Cases(*make_users())
    write_candidates(path, cases, draw(cases, "uni9", "test", 3, None))
    known = cases.items.tokens[cases.items.ids][cases.history.items[0]]
    changed_file(path, lambda rows: rows[0]["negatives"].append(str(known)))
    with pytest.raises(DataError, match="a negative is an item that the user knows"):
        read_candidates(path, cases)


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else", b"user_id,positives\n"])
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / FILES["test"]
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as stored candidates") as caught:
        read_candidates(path, Cases(*make_users()))
    assert "\n" not in str(caught.value)


def test_a_table_of_something_else_is_refused_in_one_line(tmp_path):
    pq.write_table(pa.table({"user_id": ["u1"]}), tmp_path / FILES["test"])
    with pytest.raises(DataError, match="cannot be read as stored candidates"):
        candidates_digest(tmp_path)


# ---- exact AUC ----


class Scores(torch.nn.Module):
    """Whole numbers, full of ties; asked for pairs."""

    def __init__(self):
        super().__init__()
        self.table = torch.randint(0, 4, (USERS + 1, ITEMS), generator=torch.Generator().manual_seed(0)).float()

    def predict(self, interaction):
        return self.table[interaction["user_id"], interaction["item_id"]]


def test_gauc_of_sampled_candidates_counts_equal_scores_half():
    users, user_names, item_names = make_users()
    users.interaction = Interaction({"user_id": torch.from_numpy(users.user_ids)})
    dataset = SimpleNamespace(
        item_num=ITEMS,
        user_num=USERS + 1,
        uid_field="user_id",
        iid_field="item_id",
        field2id_token={"user_id": user_names, "item_id": item_names},
        get_item_feature=lambda: Interaction({"item_id": torch.arange(ITEMS)}),
    )
    config = {"metrics": ["GAUC", "Hit", "MRR"], "topk": [5], "metric_decimal_place": 12, "seed": 2}
    config |= {"eval_memory_mb": 64, "eval_batch_size": 100, "save_rankings": None}
    data = RankingData(users, dataset, "uni20")
    model = Scores()
    struct = data.rank(model, config)
    expected, weights = [], []
    lists = users.candidates.items
    for row, user in enumerate(users.user_ids):
        positives = users.positives.items[users.positives.offsets[row] : users.positives.offsets[row + 1]].tolist()
        listed = lists.items[lists.offsets[row] : lists.offsets[row + 1]].tolist()
        negatives = [model.table[user, item].item() for item in listed if item not in positives]
        wins = [
            1 if model.table[user, item] > other else 0.5 if model.table[user, item] == other else 0
            for item in positives
            for other in negatives
        ]
        expected.append(sum(wins) / len(wins))
        weights.append(len(positives))
    assert per_user_values(config, struct)["gauc"] == pytest.approx(np.array(expected), abs=1e-12)
    assert Evaluator(config).evaluate(struct)["gauc"] == pytest.approx(np.average(expected, weights=weights), abs=1e-6)


def test_a_user_without_a_negative_has_no_auc():
    assert _auc(np.array([[1.0, 3, 1], [3, 3, 1], [2, 3, 1]])).tolist() == [1, 0, 0.5]
    assert _auc(np.array([[3.0, 2, 2], [3, 4, 2], [7, 4, 2]])).tolist()[1:] == [1, 0]
    assert np.isnan(_auc(np.array([[3.0, 2, 2]]))).all()


# ---- runs ----


def test_every_model_ranks_the_same_users_positives_and_negatives(run):
    runs = [run(model) for model in ("Pop", "BPR", "SASRec", "GRU4Rec")]
    for phase in FILES:
        tables = [table_of(one.run_dir, phase) for one in runs]
        assert len(tables[0]) > 40
        assert all(len(row["positives"]) == 1 and len(row["negatives"]) == 20 for row in tables[0])
        assert all(table == tables[0] for table in tables)
    assert len({candidates_digest(one.run_dir) for one in runs}) == 1
    assert len({ranked_digest(one.run_dir) for one in runs}) == 1
    assert candidates_digest(run("Pop", seed=8).run_dir) != candidates_digest(runs[0].run_dir)


def test_gauc_stands_in_the_result_and_per_user(run):
    one = run("SASRec")
    result = run_folder.read_result(one.run_dir)["test_result"]
    assert set(result) == {"gauc", "hit@5", "mrr@5"}
    table = read_per_user(one.run_dir)
    assert table["gauc"].to_numpy().mean() == pytest.approx(result["gauc"], abs=1e-6)
    ranks = table["rank"].to_numpy()
    assert np.mean(ranks <= 5) == pytest.approx(result["hit@5"], abs=1e-6)
    # Without equal scores, a rank among 21 candidates tells the AUC.
    assert table["gauc"].to_numpy() == pytest.approx(1 - (ranks - 1) / 20)


def test_a_loaded_run_ranks_what_it_keeps_and_leaves_it_alone(run):
    one = run("Pop")
    path = one.run_dir / FILES["test"]
    users = one.splits.test.users
    items = np.asarray(one.dataset.item_tokens())

    def listed(lists):
        return set(items[lists.items[lists.offsets[0] : lists.offsets[1]]])

    candidates = listed(users.candidates.items)
    free = min(set(items[1:]) - candidates - listed(users.history))
    stored = [row["user_id"] for row in table_of(one.run_dir)].index(users.names[0])
    dropped = table_of(one.run_dir)[stored]["negatives"][0]
    changed_file(path, lambda rows: rows[stored]["negatives"].__setitem__(0, str(free)))
    before = path.read_bytes()
    loaded = pipeline.load(one.run_dir).splits.test.users
    assert listed(loaded.candidates.items) == candidates - {dropped} | {free}
    assert path.read_bytes() == before


def test_a_loaded_run_whose_data_has_changed_is_refused(toy_settings, tmp_path):
    where = write_toy(tmp_path / "own")
    one = recbole_mm.run("Pop", "toy", config_dict={**toy_settings, **SAMPLED, "data_path": str(where)})
    shutil.rmtree(where)
    write_toy(where, seed=8)
    with pytest.raises(DataError, match=r"candidates-valid.parquet does not fit the data of this run"):
        pipeline.load(one.run_dir)


def test_a_finished_run_that_keeps_none_stays_as_it_is(run, caplog):
    one = run("Pop")
    for name in FILES.values():
        (one.run_dir / name).unlink()
    loaded = pipeline.load(one.run_dir)
    assert "is not there: its candidates are drawn anew" in caplog.text
    assert loaded.splits.test.users.candidates is not None
    assert not any((one.run_dir / name).exists() for name in FILES.values())


def test_full_ranking_keeps_no_candidates(run):
    one = run("Pop", eval_args={"mode": "full"})
    assert candidates_digest(one.run_dir) is None
    assert not any((one.run_dir / name).exists() for name in FILES.values())


def test_a_resumed_run_ranks_what_was_drawn_first(run, toy_settings, monkeypatch):
    """The first start is killed behind its first epoch; the second one must not draw again."""
    from recbole_mm.training import trainer as trainer_module

    epochs = []

    def killed(self, epoch, *args, **kwargs):
        if epochs:
            raise KeyboardInterrupt
        epochs.append(epoch)
        return original(self, epoch, *args, **kwargs)

    original = trainer_module.TrainerMixin._run_epoch
    monkeypatch.setattr(trainer_module.TrainerMixin, "_run_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run("BPR")
    monkeypatch.undo()
    (folder,) = Path(toy_settings["checkpoint_dir"]).glob("BPR-*")
    before = {name: (folder / name).stat().st_mtime_ns for name in FILES.values()}
    monkeypatch.setattr("recbole_mm.evaluation.ranking.draw", None)
    resumed = run("BPR", resume=True)
    assert resumed.run_dir == folder
    assert {name: (folder / name).stat().st_mtime_ns for name in FILES.values()} == before


# ---- comparing ----


def test_runs_of_other_candidates_are_not_compared(run):
    first, same, other = run("Pop"), run("BPR"), run("BPR", seed=9)
    assert compare_runs(first.run_dir, same.run_dir, "GAUC").n > 40
    with pytest.raises(DataError, match="ranked against other sampled candidates"):
        compare_runs(first.run_dir, other.run_dir, "gauc")
    with pytest.raises(DataError, match="ranked against other sampled candidates"):
        compare_runs(first.run_dir, run("Pop", eval_args={"mode": "full"}).run_dir, "gauc")
    require_same_candidates([first.run_dir, other.run_dir], [other.run_dir, same.run_dir])


def test_runs_that_ranked_other_positives_are_not_compared(run):
    first = run("Pop", eval_args={"mode": "full"})
    other = run("Pop", eval_args={"mode": "full"}, positives="popular", MAX_ITEM_LIST_LENGTH=2)
    with pytest.raises(DataError, match="ranked other held-out items of the same users"):
        compare_runs(first.run_dir, other.run_dir, "gauc")
