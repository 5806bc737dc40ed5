"""Ranking by counting: equal to RecBole without ties, equal to the stated rule with them, whatever the memory."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator

from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.collector import RANKS, RankingCollector, TrainCounts
from recbole_mm.evaluation.rank_counting import top_columns
from recbole_mm.evaluation.ranking import CSR, EvalUsers, RankingData, rank_users

USERS, ITEMS = 30, 90
TOPK_METRICS = ["NDCG", "Recall", "MRR", "Hit", "Precision", "MAP"]
LIST_METRICS = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
MEMORY = {"one row": 1e-9, "a few rows": 7 * ITEMS * 4 / 2**20, "all rows": 256}


def make_config(metrics=(*TOPK_METRICS, "GAUC", *LIST_METRICS), topk=(1, 5, 20)):
    return {
        "metrics": list(metrics),
        "topk": list(topk),
        "metric_decimal_place": 15,
        "tail_ratio": 0.3,
        "eval_args": {"mode": "full"},
        "device": torch.device("cpu"),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
    }


class MatrixModel(torch.nn.Module):
    """Scores written down: `scores` (USERS, ITEMS), and how `full_sort_predict` hands them out."""

    ITEM_ID = "item_id"

    def __init__(self, scores, hand_out=lambda scores: scores.clone()):
        super().__init__()
        self.scores, self.hand_out, self.batches = scores, hand_out, []

    def full_sort_predict(self, interaction):
        self.batches.append(len(interaction))
        return self.hand_out(self.scores[interaction["user_id"]])


class PredictModel(MatrixModel):
    def full_sort_predict(self, interaction):
        raise NotImplementedError

    def predict(self, interaction):
        self.batches.append(len(interaction))
        return self.scores[interaction["user_id"], interaction["item_id"]]


def distinct_scores(seed, dtype=torch.float32):
    """Random scores without ties within a row."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(ITEMS) for _ in range(USERS)]
    return torch.tensor(np.array(rows) * 0.37 - 11, dtype=dtype)


def make_users(seed=0, most=1, history=True):
    """Random positives (1 to `most` per row) and histories, which may hold positives, repeats and the padding item."""
    rng = np.random.default_rng(seed)
    positives = [rng.choice(np.arange(1, ITEMS), rng.integers(1, most + 1), replace=False) for _ in range(USERS)]
    lists = [rng.integers(0, ITEMS, rng.integers(0, 25)) for _ in range(USERS)]
    return EvalUsers(
        interaction=Interaction({"user_id": torch.arange(USERS)}),
        positives=CSR.from_lists(positives),
        history=CSR.from_lists(lists) if history else None,
        user_ids=np.arange(USERS),
        user_tokens=np.array([f"u{i}" for i in range(USERS)]),
    )


def train_counts():
    rng = np.random.default_rng(5)
    return TrainCounts.of(rng.integers(1, USERS, 400), rng.integers(1, ITEMS, 400) // 2, USERS, ITEMS)


def ranked(model, users, config=None, **options):
    config = config or make_config()
    collector = RankingCollector(config, item_num=ITEMS, user_num=USERS, train_counts=train_counts())
    return rank_users(model, users, ITEMS, collector=collector, **options)


def rows_of(lists):
    return [lists.items[start:stop] for start, stop in zip(lists.offsets[:-1], lists.offsets[1:])]


def recbole_struct(config, scores, users):
    """RecBole's own collector over the same scores, with the conventions of its `_full_sort_batch_eval`."""
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    positives = rows_of(users.positives)
    for row, history in enumerate(rows_of(users.history) if users.history is not None else []):
        scores[row, np.setdiff1d(history, positives[row])] = -torch.inf
    collector = Collector(config)
    owners = torch.from_numpy(np.repeat(np.arange(USERS), users.positives.lengths))
    collector.eval_batch_collect(scores, None, owners, torch.from_numpy(users.positives.items))
    struct = collector.data_struct  # its get_data_struct() calls .cpu() on plain numbers
    counts = train_counts()
    struct.set("data.num_items", ITEMS - 1)  # RecBole itself counts padding, and no item without a training interaction
    struct.set("data.count_items", {i: int(n) for i, n in enumerate(counts.items) if i})
    return struct


@pytest.mark.parametrize("memory_mb", MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("most", [1, 6], ids=["one positive", "several positives"])
@pytest.mark.parametrize("topk", [[10], [1, 5, 20], [3, 50]], ids=str)
def test_all_metrics_equal_recboles_bit_for_bit(memory_mb, most, topk):
    config = make_config(topk=topk)
    scores, users = distinct_scores(most), make_users(most, most)
    expected = recbole_struct(config, scores, users)
    struct = ranked(MatrixModel(scores), users, config, memory_mb=memory_mb)
    assert Evaluator(config).evaluate(struct) == Evaluator(config).evaluate(expected)
    for key in ("rec.topk", "rec.meanrank", "rec.items"):
        assert np.array_equal(struct.get(key).numpy(), expected.get(key).numpy()), key


def test_lists_are_measured_against_the_items_there_are():
    """Worked out by hand: 4 items, training interactions of three of them, two users with lists of two."""
    scores = torch.tensor([[0, 9, 8, 1, 0], [0, 1, 2, 9, 8]]).float()
    users = EvalUsers(
        interaction=Interaction({"user_id": torch.arange(2)}),
        positives=CSR.from_lists([[1], [3]]),
        history=None,
        user_ids=np.arange(2),
        user_tokens=np.array(["u0", "u1"]),
    )
    counts = TrainCounts.of(np.array([1, 1, 1, 2, 2, 2]), np.array([1, 1, 1, 2, 2, 3]), 3, 5)
    config = make_config(LIST_METRICS, [1, 2]) | {"tail_ratio": 0.25}
    collector = RankingCollector(config, item_num=5, user_num=3, train_counts=counts)
    found = Evaluator(config).evaluate(rank_users(MatrixModel(scores), users, 5, collector=collector))
    assert found == pytest.approx(
        {
            "itemcoverage@1": 2 / 4,
            "itemcoverage@2": 1.0,  # lists 1 2 and 3 4: all there are; RecBole's own count, with padding, gives 4 / 5
            "averagepopularity@1": (3 + 1) / 2,
            "averagepopularity@2": (2.5 + 0.5) / 2,
            "giniindex@1": 0.5,  # 0 0 1 1
            "giniindex@2": 0.0,  # 1 1 1 1; with padding, which nothing can recommend, .2
            "shannonentropy@1": np.log(2) / 2,
            "shannonentropy@2": np.log(4) / 4,
            "tailpercentage@1": 0.0,
            "tailpercentage@2": 0.25,  # the tail is the one item in four that is never seen in training: 4
        }
    )


def test_without_history_nothing_but_padding_is_masked():
    config = make_config()
    scores, users = distinct_scores(1), make_users(1, 3, history=False)
    expected = Evaluator(config).evaluate(recbole_struct(config, scores, users))
    assert Evaluator(config).evaluate(ranked(MatrixModel(scores), users, config)) == expected


def test_gauc_shares_ranks_among_ties_as_recbole_does():
    config = make_config(["GAUC"])
    scores = torch.randint(0, 9, (USERS, ITEMS), generator=torch.Generator().manual_seed(3)).float()
    users = make_users(3, 5)
    expected = recbole_struct(config, scores, users).get("rec.meanrank")
    assert torch.equal(ranked(MatrixModel(scores), users, config).get("rec.meanrank"), expected)


def brute_force(scores, users, k):
    """The rule in its plainest form: sort the unmasked items of each row. Ranks of the positives, and the first k."""
    ranks, lists = [], []
    for row, positives in enumerate(rows_of(users.positives)):
        history = [] if users.history is None else rows_of(users.history)[row]
        items = [i for i in range(1, ITEMS) if i in positives or i not in history]
        score = scores[row].tolist()
        by_rule = sorted(items, key=lambda i: (-score[i], i in positives, i))
        ranks += [by_rule.index(i) + 1 for i in sorted(positives)]
        lists.append(sorted(items, key=lambda i: (-score[i], i))[:k])
    return ranks, lists


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [1, 2, 4, 40])
def test_ties_follow_the_stated_rule(seed, levels):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, levels, (USERS, ITEMS)).astype(np.float32))
    scores[torch.from_numpy(rng.random((USERS, ITEMS)) < 0.1)] = -torch.inf  # unmasked: lowest, but candidates
    users = make_users(seed, 8)
    struct = ranked(MatrixModel(scores), users, memory_mb=[1e-9, 256][seed % 2])
    ranks, lists = brute_force(scores, users, 20)
    assert struct.get(RANKS).tolist() == ranks
    hits = np.zeros((USERS, 21), dtype=int)
    np.add.at(hits, (users.positives.rows, np.minimum(ranks, 21) - 1), 1)
    assert np.array_equal(struct.get("rec.topk")[:, :20], hits[:, :20])
    assert np.array_equal(struct.get("rec.topk")[:, 20], users.positives.lengths)
    finite = [row for row in range(USERS) if torch.isfinite(scores[row, lists[row]]).all()]
    assert len(finite) > USERS // 2
    assert struct.get("rec.items")[finite].tolist() == [lists[row] for row in finite]


def test_a_model_that_scores_everything_alike_gets_no_credit():
    config = make_config(TOPK_METRICS)
    users = make_users(0, 3)
    for constant in (0.0, -torch.inf, torch.inf):
        result = Evaluator(config).evaluate(ranked(MatrixModel(torch.full((USERS, ITEMS), constant)), users, config))
        assert set(result.values()) == {0.0}


def test_repeated_positives_count_once_and_a_positive_is_never_masked():
    scores = distinct_scores(0)
    users = make_users(0, 1)
    users.positives = CSR.from_lists([[7, 3, 7]] * USERS)
    users.history = CSR.from_lists([[3, 5, 5, 0]] * USERS)
    struct = ranked(MatrixModel(scores), users)
    visible = scores.clone()
    visible[:, [0, 5]] = -torch.inf
    expected = 1 + (visible[:, :, None] > scores[:, None, [3, 7]]).sum(1)
    assert torch.equal(struct.get(RANKS), expected.reshape(-1))
    assert struct.get("rec.topk")[:, -1].tolist() == [2] * USERS
    assert struct.get("rec.meanrank")[:, 1].tolist() == [ITEMS - 2] * USERS


@pytest.mark.parametrize(
    "hand_out",
    [
        lambda scores: scores.clone().view(-1),
        lambda scores: scores.double(),
        lambda scores: scores.T.contiguous().T,
        lambda scores: (scores.T.contiguous() * 1).T,
    ],
    ids=["flat", "float64", "transposed view", "transposed"],
)
def test_every_shape_recbole_models_return(hand_out):
    scores, users = distinct_scores(2), make_users(2, 4)
    expected = ranked(MatrixModel(scores), users).get(RANKS)
    assert torch.equal(ranked(MatrixModel(scores, hand_out), users).get(RANKS), expected)


@pytest.mark.parametrize("memory_mb", MEMORY.values(), ids=MEMORY)
def test_a_models_own_tensor_is_never_masked(memory_mb):
    row = distinct_scores(4)[0]
    before = row.clone()
    users = make_users(4, 2)
    expected = ranked(MatrixModel(row.repeat(USERS, 1)), users).get(RANKS)
    same_for_all = MatrixModel(torch.zeros(USERS, 1), lambda scores: row.expand(len(scores), -1))
    assert torch.equal(ranked(same_for_all, users, memory_mb=memory_mb).get(RANKS), expected)
    assert torch.equal(row, before)


def test_half_precision_scores_are_counted_exactly():
    scores = torch.randint(-40, 40, (USERS, ITEMS), generator=torch.Generator().manual_seed(1)).half()
    users = make_users(1, 3)
    expected = ranked(MatrixModel(scores.float()), users).get(RANKS)
    assert torch.equal(ranked(MatrixModel(scores), users).get(RANKS), expected)


@pytest.mark.parametrize("batch_size", [13, ITEMS, 100_000])
def test_models_without_full_sort_predict_are_asked_pair_by_pair(batch_size):
    scores, users = distinct_scores(6), make_users(6, 3)
    model = PredictModel(scores)
    struct = ranked(model, users, batch_size=batch_size)
    assert torch.equal(struct.get(RANKS), ranked(MatrixModel(scores), users).get(RANKS))
    assert sum(model.batches) == USERS * ITEMS
    assert max(model.batches) <= batch_size


def test_predict_gets_the_features_of_the_item_not_of_the_held_out_one():
    class OfClass(PredictModel):
        def predict(self, interaction):
            return self.scores[interaction["user_id"], interaction["class"]]

    scores, users = distinct_scores(6), make_users(6, 3)
    users.interaction = Interaction({"user_id": torch.arange(USERS), "class": torch.full((USERS,), 3)})
    shuffled = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0))
    features = Interaction({"item_id": torch.arange(ITEMS), "class": shuffled})
    struct = ranked(OfClass(scores), users, item_features=features)
    assert torch.equal(struct.get(RANKS), ranked(MatrixModel(scores[:, shuffled]), users).get(RANKS))


def test_memory_bounds_the_rows_of_a_block():
    model = MatrixModel(distinct_scores(0))
    ranked(model, make_users(), memory_mb=4 * ITEMS * 4 / 2**20)
    assert max(model.batches) == 4
    model.batches.clear()
    ranked(model, make_users(), memory_mb=0.000001)
    assert model.batches == [1] * USERS
    model.batches.clear()
    ranked(model, make_users(), batch_size=9)
    assert max(model.batches) == 9


def test_a_nan_score_names_the_user():
    scores = distinct_scores(0)
    scores[11, 40] = torch.nan
    users = make_users(history=False)
    with pytest.raises(RecboleMMError, match=r"user u11 as NaN"):
        ranked(MatrixModel(scores), users)
    users.history = CSR.from_lists([[40]] * USERS)
    users.positives = CSR.from_lists([[41]] * USERS)
    assert len(ranked(MatrixModel(scores), users).get(RANKS)) == USERS  # masked: nobody looks at it


def test_the_model_is_in_evaluation_mode_only_while_it_is_ranked():
    modes = []
    model = MatrixModel(distinct_scores(0), lambda scores: modes.append(model.training) or scores.clone())
    model.train()
    ranked(model, make_users())
    assert modes == [False]
    assert model.training


def test_what_cannot_be_ranked_is_said():
    model = MatrixModel(distinct_scores(0))
    users = make_users()
    users.positives = CSR.from_lists([[0]] * 2 + [[4]] * (USERS - 2))
    with pytest.raises(DataError, match="2 of 30 cases to rank have no held-out item"):
        ranked(model, users)
    users.positives = CSR.from_lists([[ITEMS]] * USERS)
    with pytest.raises(DataError, match=f"item ids must be from 1 to {ITEMS - 1}, found {ITEMS}"):
        ranked(model, users)
    with pytest.raises(RecboleMMError, match="MatrixModel gave"):
        ranked(MatrixModel(distinct_scores(0)[:, :-1]), make_users())
    with pytest.raises(ConfigError, match="need labels"):
        RankingCollector(make_config(["NDCG", "AUC"]))
    with pytest.raises(ConfigError, match="lists of 80 items cannot be filled"):
        ranked(model, make_users(), make_config(["ItemCoverage"], [80]))


def test_k_beyond_the_number_of_items_is_no_problem_for_hits():
    config = make_config(["Recall"], [ITEMS + 5])
    assert Evaluator(config).evaluate(ranked(MatrixModel(distinct_scores(0)), make_users(), config)) == {
        f"recall@{ITEMS + 5}": 1.0
    }


@pytest.mark.parametrize("seed", range(4))
def test_top_columns_breaks_ties_by_column(seed):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 3 + 100 * (seed % 2), (20, 50)).astype(np.float64))
    for k in (1, 7, 49, 50):
        expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(top_columns(scores, k), expected)
    with pytest.raises(ValueError, match="top 51 of 50"):
        top_columns(scores, 51)


def test_ranking_data_takes_its_settings_from_the_config():
    dataset = SimpleNamespace(
        item_num=ITEMS,
        user_num=USERS,
        uid_field="user_id",
        iid_field="item_id",
        field2id_token={
            "user_id": np.array([f"name{i}" for i in range(USERS)]),
            "item_id": np.array([f"item{i}" for i in range(ITEMS)]),
        },
        get_item_feature=lambda: Interaction({"item_id": torch.arange(ITEMS)}),
    )
    config = make_config() | {
        "eval_memory_mb": 3 * ITEMS * 4 / 2**20,
        "eval_batch_size": 64,
        "seed": 1,
        "save_rankings": None,
    }
    scores, users = distinct_scores(0), make_users()
    users.user_tokens = None
    model = MatrixModel(scores)
    data = RankingData(users, dataset, train_counts=train_counts())
    struct = data.rank(model, config)
    assert len(data) == USERS
    assert max(model.batches) == 3
    assert Evaluator(config).evaluate(struct) == Evaluator(config).evaluate(recbole_struct(config, scores, users))
    assert users.names[4] == "name4"
    sampled = RankingData(make_users(), dataset, mode="uni9")
    assert (
        sampled.rank(PredictModel(scores), config | {"metrics": ["GAUC"]}).get("rec.meanrank")[:, 1].tolist()
        == [10] * USERS
    )
    assert sampled.users.candidates is not None
    with pytest.raises(ConfigError, match="'uni' is no ranking"):
        RankingData(make_users(), dataset, mode="uni").rank(model, config)
    with pytest.raises(ConfigError, match="needs the counts"):
        RankingData(make_users(), dataset, mode="pop5").rank(model, config)


@pytest.mark.parametrize("rows", [[], [2], [0, 2, 1], [2, 2, 0]])
def test_csr_takes_rows_in_any_order(rows):
    lists = [[5, 3], [], [7, 1, 7]]
    csr = CSR.from_lists(lists)
    assert [row.tolist() for row in rows_of(csr.take(np.array(rows, dtype=int)))] == [lists[row] for row in rows]


def test_csr_operations_agree_with_sets():
    rng = np.random.default_rng(0)
    lists = [[rng.integers(0, 12, rng.integers(0, 9)) for _ in range(20)] for _ in range(2)]
    a, b = (CSR.from_lists(one).distinct(12) for one in lists)
    sets = [[set(map(int, row)) - {0} for row in one] for one in lists]
    assert [row.tolist() for row in rows_of(a)] == [sorted(one) for one in sets[0]]
    assert [row.tolist() for row in rows_of(a.without(b, 12))] == [sorted(x - y) for x, y in zip(*sets)]
    assert [row.tolist() for row in rows_of(a.union(b, 12))] == [sorted(x | y) for x, y in zip(*sets)]
    with pytest.raises(ValueError, match="never fall"):
        CSR(np.array([0, 3, 1]), np.array([1]))
