"""Tables of a terminal."""

from __future__ import annotations

import doctest

import numpy as np

from recbole_mm.utils import tables


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(tables).failed == 0


def test_metrics_without_k():
    text = tables.result_table("toy, test", {"DeepFM": {"auc": np.float32(0.75), "logloss": 0.5}})
    assert [line.split() for line in text.splitlines()] == [
        ["toy,", "test", "auc", "logloss"],
        ["DeepFM", "0.7500", "0.5000"],
    ]


def test_a_table_of_many_metrics_fits_a_terminal():
    result = {f"{name}@{k}": 0.5 for name in ("ndcg", "recall", "mrr", "hit") for k in (1, 5, 10, 20, 50)}
    text = tables.result_table("ml-100k, test", {"SASRecContent": result, "Pop": result})
    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert text.count("0.5000") == 2 * len(result)
    assert [block.split()[2] for block in text.split("\n\n")] == ["ndcg@1", "mrr@1"]
