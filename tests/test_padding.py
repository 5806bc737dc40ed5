"""Batches of like length: every row once, within both limits, cut where the model allows it, and ranked alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.sequential_recommender import STAMP, GRU4Rec, SASRec

from recbole_mm.evaluation import padding
from recbole_mm.evaluation.collector import RANKS, RankingCollector
from recbole_mm.evaluation.padding import RowBatches
from recbole_mm.evaluation.ranking import rank_users
from recbole_mm.models.duorec import DuoRec
from recbole_mm.models.full_sequence import FullSequenceMixin
from recbole_mm.models.hooks import full_sequence_class, hooks_of
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_FEATURES

CPU = torch.device("cpu")
WIDTH = 8


class Reader(SequentialRecommender):
    """Names a sequential model has."""

    ITEM_ID, ITEM_SEQ, ITEM_SEQ_LEN = "item_id", "item_id_list", "item_length"
    ignores_right_padding = True

    def __init__(self):
        pass


def histories(lengths) -> Interaction:
    lengths = torch.as_tensor(lengths)
    inside = torch.arange(WIDTH) < lengths[:, None]
    items = torch.randint(1, 50, inside.shape, generator=torch.Generator().manual_seed(0))
    vectors = torch.zeros(len(lengths), WIDTH)
    return Interaction(
        {"item_id_list": items * inside, "time_list": items * 0.5 * inside, "item_length": lengths, "vector": vectors}
    )


def test_a_batch_ends_with_its_longest_history():
    interaction = histories([3, 8, 1, 2])
    rows = RowBatches(Reader(), interaction, CPU)
    batch = rows[np.array([3, 0])]
    assert torch.equal(batch["item_id_list"], interaction["item_id_list"][[3, 0], :3])
    assert torch.equal(batch["time_list"], interaction["time_list"][[3, 0], :3])
    assert batch["vector"].shape == (2, WIDTH)  # no history
    assert batch["item_length"].tolist() == [2, 3]
    assert rows[np.array([1])]["item_id_list"].shape == (1, WIDTH)


def test_other_models_keep_the_padding():
    interaction = histories([3, 1, 2])
    for model in (type("Other", (Reader,), {"ignores_right_padding": False})(), object()):
        rows = RowBatches(model, interaction, CPU)
        assert rows[np.arange(2)]["item_id_list"].shape == (2, WIDTH)
        assert rows.order(np.array([1, 0, 1])).tolist() == [1, 0, 2]


def test_long_histories_come_first_within_a_group_and_equal_ones_keep_their_order():
    rows = RowBatches(Reader(), histories([3, 8, 3, 2, 8]), CPU)
    assert rows.order(np.zeros(5)).tolist() == [1, 4, 0, 2, 3]
    assert rows.order(np.array([1, 1, 0, 0, 0])).tolist() == [4, 2, 3, 1, 0]


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("tokens", [1, 20, 10_000])
def test_batches_hold_every_row_once_and_keep_to_both_limits(monkeypatch, most, tokens):
    monkeypatch.setattr(padding, "CPU_BATCH_TOKENS", tokens)
    lengths = np.random.default_rng(0).integers(1, WIDTH + 1, 40)
    order = np.random.default_rng(1).permutation(40)
    for model, widths in ((Reader(), lengths), (object(), np.zeros(40, dtype=int))):
        batches = RowBatches(model, histories(lengths), CPU).split(order, most)
        assert np.array_equal(np.concatenate(batches), order)
        for batch in batches:
            assert len(batch) <= most
            assert len(batch) == 1 or len(batch) * widths[batch].max() <= tokens
        for batch, following in itertools.pairwise(batches):  # no batch could have been larger
            grown = np.append(batch, following[0])
            assert len(grown) > most or len(grown) * widths[grown].max() > tokens


def test_a_gpu_has_a_limit_of_its_own(monkeypatch):
    monkeypatch.setattr(padding, "CPU_BATCH_TOKENS", 1)
    monkeypatch.setattr(padding, "GPU_BATCH_TOKENS", 9)
    rows = RowBatches(Reader(), histories([3] * 10), torch.device("meta"))
    assert [len(batch) for batch in rows.split(np.arange(10), 4)] == [3, 3, 3, 1]


def test_whether_padding_is_ignored_follows_the_class():
    def answer(kind):
        return hooks_of(kind).ignores_right_padding

    own_forward = {"forward": lambda self, item_seq, item_seq_len: item_seq}
    assert answer(SASRec)
    assert answer(DuoRec)
    assert answer(full_sequence_class(SASRec))
    assert answer(type("Wider", (GRU4Rec,), {"calculate_loss": None}))
    assert not answer(STAMP)
    assert not answer(type("Own", (SASRec,), own_forward))
    assert not answer(type("Own", (SequentialRecommender,), {}))
    assert not answer(type("SASRec", (SequentialRecommender,), own_forward))
    assert not answer(type("Stated", (SASRec,), {"ignores_right_padding": False}))
    assert answer(type("Stated", (FullSequenceMixin,), {**own_forward, "ignores_right_padding": True}))
    assert not answer(torch.nn.Linear)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SASRec", {"full_sequence": True}),
        ("DuoRec", {}),
        ("SASRecContent", {"item_features": TOY_FEATURES, "hidden_size": 64}),
        ("Molar", {}),
        ("Molar", {"id_model": "GRU4Rec", "id_model_config": {"hidden_size": 32}}),
    ],
    ids=str,
)
def test_our_models_rank_alike_with_and_without_padding(toy_config, tmp_path, monkeypatch, model, settings):
    assembled = assemble(toy_config(model, MAX_ITEM_LIST_LENGTH=12, **settings), tmp_path, Stages())
    users, item_num = assembled.splits.test.users, assembled.dataset.item_num
    seen, ranks = [], []

    class Recording(RowBatches):
        def __getitem__(self, rows):
            seen.append(super().__getitem__(rows)["item_id_list"].shape[1])
            return super().__getitem__(rows)

    monkeypatch.setattr("recbole_mm.evaluation.scoring.RowBatches", Recording)
    for ignores, tokens in ((True, 64), (False, 10**6)):
        monkeypatch.setattr(type(assembled.model), "ignores_right_padding", ignores, raising=False)
        monkeypatch.setattr(padding, "CPU_BATCH_TOKENS", tokens)
        collector = RankingCollector(assembled.config)
        ranks.append(rank_users(assembled.model, users, item_num, collector=collector).get(RANKS))
    assert len(seen) > 2
    assert min(seen) < 6
    assert seen[-1] == 12
    assert torch.equal(*ranks)
