"""Pop counts every training interaction once, whatever the batches; RecBole's counts batches."""

from __future__ import annotations

import numpy as np
from recbole.model.general_recommender.pop import Pop as UpstreamPop

import recbole_mm


def counted(settings, **changed):
    outcome = recbole_mm.run("Pop", "toy", config_dict={**settings, **changed})
    train = outcome.splits.train_dataset.inter_feat["item_id"].numpy()
    return outcome.model.item_cnt[:, 0].tolist(), np.bincount(train, minlength=outcome.dataset.item_num).tolist()


def test_counts_are_those_of_the_training_data(toy_settings):
    for batch_size in (8, 4096):
        counts, expected = counted(toy_settings, train_batch_size=batch_size)
        assert counts == expected


def test_recbole_counts_batches(toy_config):
    config = toy_config("BPR")
    outcome = recbole_mm.run(UpstreamPop, "toy", config_dict={**config.as_dict(), "train_batch_size": 4096})
    assert outcome.model.item_cnt.max() == 1
