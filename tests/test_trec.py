"""Rankings as TREC files: public tools that read them have our metrics, ties and all."""

from __future__ import annotations

from urllib.parse import unquote

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator

import recbole_mm
from recbole_mm.evaluation.collector import RANKS, RankingCollector
from recbole_mm.evaluation.ranking import CSR, EvalUsers, SampledCandidates, rank_users
from recbole_mm.evaluation.trec import QRELS, RUN, ranked_lists, write_trec
from recbole_mm.runs.folder import read_result
from tests.conftest import TOY_SETTINGS
from tests.two_workers import ran, together

USERS, ITEMS, K = 200, 60, 10
CONFIG = {"metrics": ["NDCG", "Recall", "MRR", "Hit", "Precision"], "topk": [1, 5, K], "metric_decimal_place": 12}
NAMES = {"ndcg": "nDCG", "recall": "R", "mrr": "RR", "hit": "Success", "precision": "P"}
RANX = {"ndcg": "ndcg", "recall": "recall", "mrr": "mrr", "hit": "hit_rate", "precision": "precision"}


class Coarse(torch.nn.Module):
    """Scores of few distinct values, so that most items tie."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        drawn = torch.rand((USERS, ITEMS), generator=torch.Generator().manual_seed(0))
        self.table = (drawn * levels).floor() / levels if levels else drawn

    def full_sort_predict(self, interaction):
        return self.table[interaction["user_id"]]

    def predict(self, interaction):
        return self.table[interaction["user_id"], interaction["item_id"]]


def ranked(levels: int, sampled: bool):
    """Cases with one to five positives, users with several cases, some of whom have almost nothing left to rank."""
    rng = np.random.default_rng(1)
    positives = [rng.choice(np.arange(1, ITEMS), rng.integers(1, 6), replace=False) for _ in range(USERS)]
    history = [rng.choice(np.arange(1, ITEMS), 52 if row % 9 == 0 else 5, replace=False) for row in range(USERS)]
    names = np.array([f"user {row // 2}\t#%ü\u2028" for row in range(USERS)])
    users = EvalUsers(
        Interaction({"user_id": torch.arange(USERS)}),
        CSR.from_lists(positives),
        CSR.from_lists(history),
        np.arange(USERS),
        user_tokens=names,
    )
    if sampled:
        users.candidates = SampledCandidates.draw(users.positives, users.history, ITEMS, 4, seed=0)
    collector = RankingCollector(CONFIG, item_num=ITEMS, rankings=True)
    return users, rank_users(Coarse(levels), users, ITEMS, collector=collector)


@pytest.fixture(params=[(7, False), (0, False), (1, False), (7, True)], ids=["ties", "no ties", "all alike", "sampled"])
def written(request, tmp_path):
    users, struct = ranked(*request.param)
    tokens = ["[PAD]", *(f"item {place} %" for place in range(1, ITEMS))]
    write_trec(tmp_path, users, struct, tokens, K, "Some model")
    return tmp_path, users, struct, Evaluator(CONFIG).evaluate(struct)


def test_the_lists_hold_every_positive_at_its_rank(written):
    folder, users, struct, _ = written
    lists = ranked_lists(users, struct, K)
    ranks = CSR(users.positives.offsets, struct.get(RANKS).numpy())
    for row in range(len(users)):
        items = lists.take(np.array([row])).items.tolist()
        held_out, places = (one.take(np.array([row])).items.tolist() for one in (users.positives, ranks))
        assert [item for item in items if item in held_out] == [
            item for place, item in sorted(zip(places, held_out)) if place <= K
        ]
        assert all(items[place - 1] == item for place, item in zip(places, held_out) if place <= K)
        assert len(set(items)) == len(items)
        assert 0 not in items
        masked = set(users.history.take(np.array([row])).items.tolist())
        assert not masked & set(items)
        left = (users.candidates.items.lengths[row] if users.candidates else ITEMS - 1 - len(masked)) - len(items)
        assert len(items) == K or left <= len(held_out)
    lines = [line.split(" ") for line in (folder / RUN).read_text(encoding="utf-8").splitlines()]
    assert {len(line) for line in lines} == {6}
    assert {line[5] for line in lines} == {"Some%20model"}
    assert unquote(lines[0][0]) == "user 0\t#%ü\u2028"
    assert len({line[0] for line in lines}) == USERS
    assert all(int(line[3]) + int(line[4]) == K + 1 for line in lines)


def test_ir_measures_has_our_metrics(written):
    ir_measures = pytest.importorskip("ir_measures")
    folder, _, _, ours = written
    qrels = list(ir_measures.read_trec_qrels(str(folder / QRELS)))
    run = list(ir_measures.read_trec_run(str(folder / RUN)))
    measures = {
        f"{name}@{k}": ir_measures.parse_measure(f"{NAMES[name]}@{k}") for name in NAMES for k in CONFIG["topk"]
    }
    found = ir_measures.calc_aggregate(measures.values(), qrels, run)
    assert found.keys() == set(measures.values())
    for name, measure in measures.items():
        assert found[measure] == pytest.approx(ours[name], abs=1e-6), name


def test_ranx_has_our_metrics(written):
    ranx = pytest.importorskip("ranx")
    folder, _, _, ours = written
    qrels, run = (
        kind.from_file(str(folder / name), kind="trec") for kind, name in ((ranx.Qrels, QRELS), (ranx.Run, RUN))
    )
    names = {f"{name}@{k}": f"{RANX[name]}@{k}" for name in RANX for k in CONFIG["topk"]}
    found = ranx.evaluate(qrels, run, list(names.values()), make_comparable=True)
    for name, theirs in names.items():
        assert found[theirs] == pytest.approx(ours[name], abs=1e-6), name


@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_a_run_writes_its_test(toy_path, tmp_path, model):
    ir_measures = pytest.importorskip("ir_measures")
    settings = {**TOY_SETTINGS, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}
    plain = recbole_mm.run(model, "toy", config_dict=settings)
    assert not (plain.run_dir / RUN).exists()
    made = recbole_mm.run(model, "toy", config_dict={**settings, "save_rankings": "trec"})
    assert made.run_dir.name == f"{plain.run_dir.name}-2", "the same run"
    assert made.test_result == plain.test_result
    qrels, run = (
        list(read(str(made.run_dir / name)))
        for read, name in ((ir_measures.read_trec_qrels, QRELS), (ir_measures.read_trec_run, RUN))
    )
    measures = [ir_measures.nDCG @ 10, ir_measures.R @ 5, ir_measures.RR @ 10]
    found = ir_measures.calc_aggregate(measures, qrels, run)
    assert [found[one] for one in measures] == pytest.approx(
        [made.test_result[name] for name in ("ndcg@10", "recall@5", "mrr@10")], abs=1e-6
    )
    if model == "Pop":
        together(tmp_path, ran, model, {**settings, "save_rankings": "trec"}, tmp_path / "two")
        assert (tmp_path / "two" / RUN).read_text() == (made.run_dir / RUN).read_text()
        assert read_result(tmp_path / "two")["test_result"] == made.test_result
