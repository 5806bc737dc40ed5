"""The table that a run prints."""

from __future__ import annotations

import doctest
from pathlib import Path

from recbole_mm.utils import tables as report


def test_the_example_of_the_docstring():
    assert doctest.testmod(report).failed == 0


def test_metrics_without_k():
    text = report.result_table("DeepFM", "toy", {"auc": 0.75, "logloss": 0.5}, Path("saved/x"))
    assert text.splitlines()[1].split() == ["auc", "0.7500"]
