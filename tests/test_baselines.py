"""RecBole's own models through the same entry, split and ranking, on the ml-100k of the RecBole wheel."""

from __future__ import annotations

import math

import pytest

import recbole_mm

BASELINES = {
    "Pop": {},
    "BPR": {},
    "LightGCN": {"n_layers": 1},
    "FPMC": {},
    "GRU4Rec": {"hidden_size": 32, "embedding_size": 32},
    "SASRec": {"hidden_size": 32, "inner_size": 32, "n_layers": 1},
    "SASRecF": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1},
    "BERT4Rec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 1},
}


SLOW = ("FPMC", "SASRec", "SASRecF", "BERT4Rec")


@pytest.mark.parametrize("model", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BASELINES])
def test_runs_to_a_finite_result_and_reloads(model, tmp_path):
    settings = {
        "epochs": 1,
        "MAX_ITEM_LIST_LENGTH": 10,
        "user_inter_num_interval": "[150,inf)",  # the most active users: small, and every model has work to do
        "checkpoint_dir": str(tmp_path),
        "show_progress": False,
        "state": "WARNING",
        **BASELINES[model],
    }
    outcome = recbole_mm.run(model, "ml-100k", config_dict=settings)
    assert set(outcome.test_result) >= {"ndcg@10", "recall@10", "mrr@20", "hit@50"}
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in outcome.test_result.values())
    assert outcome.test_result["recall@50"] > 0
    again = recbole_mm.load(outcome.run_dir)
    result = again.splits.test.rank(again.model, again.config, again.config["device"], False)
    assert result.get("rec.topk").sum() > 0
