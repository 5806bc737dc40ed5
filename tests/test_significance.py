"""Paired comparison of two models: right on cases with known answers, calibrated, reproducible."""

from __future__ import annotations

import doctest
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from recbole_mm.errors import DataError
from recbole_mm.evaluation import significance
from recbole_mm.evaluation.per_user import write_per_user
from recbole_mm.evaluation.significance import LARGE, compare, compare_runs, holm

PERMUTATION = "sign-flip permutation test, bootstrap interval"


def test_all_sign_patterns_are_tried_when_there_are_few():
    differences = np.array([0.5, -0.25, 0.75, 0.0, 1.0, 0.125, 0.0])
    b = np.full(7, 0.3)
    found = compare(b + differences, b, seed=0)
    sums = [abs(np.dot(signs, differences)) for signs in product([1, -1], repeat=7)]
    assert found.p_value == pytest.approx(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))
    assert found.difference == pytest.approx(differences.mean())
    assert found.relative == pytest.approx(differences.mean() / 0.3)
    assert (found.n, found.method) == (7, PERMUTATION)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_agrees_with_the_t_test_where_that_holds(shift):
    rng = np.random.default_rng(1)
    b = rng.normal(0.5, 1, 400)
    a = b + rng.normal(shift, 1, 400)
    found = compare(a, b, seed=0)
    expected = stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    assert found.method == PERMUTATION
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.015)
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=0.01)


def test_many_differing_users_get_the_t_test():
    rng = np.random.default_rng(2)
    b = rng.random(3 * LARGE)
    a = np.where(rng.random(3 * LARGE) < 0.5, b, b + rng.normal(0.004, 0.1, 3 * LARGE))
    found, expected = compare(a, b, seed=0), stats.ttest_rel(a, b)
    assert found.method == "paired t-test"
    assert found.p_value == expected.pvalue
    assert (found.ci_low, found.ci_high) == tuple(expected.confidence_interval(0.95))
    assert found.ci_low < found.difference < found.ci_high


def test_false_alarms_are_as_rare_as_promised(monkeypatch):
    """Two equal models on sparse metrics: p < 0.05 in about 5% of the cases, and the interval misses 0 as often."""
    monkeypatch.setattr("recbole_mm.evaluation.significance.RESAMPLES", 999)
    rng = np.random.default_rng(3)
    found = []
    for trial in range(300):
        a, b = (np.where(rng.random(150) < 0.3, 1 / rng.integers(1, 11, 150), 0) for _ in range(2))
        found.append(compare(a, b, seed=trial))
    assert 0.02 <= np.mean([one.p_value < 0.05 for one in found]) <= 0.09
    assert 0.02 <= np.mean([not one.ci_low <= 0 <= one.ci_high for one in found]) <= 0.1


def test_swapping_the_models_turns_the_answer_around():
    rng = np.random.default_rng(4)
    a, b = rng.random(60), rng.random(60)
    there, back = compare(a, b, seed=5), compare(b, a, seed=5)
    assert there.difference == -back.difference
    assert (there.mean_a, there.mean_b) == (back.mean_b, back.mean_a)
    assert there.p_value == pytest.approx(back.p_value, abs=0.01)
    assert there == compare(a, b, seed=5)


def test_models_that_do_not_differ():
    found = compare(np.zeros(5), np.zeros(5), seed=0)
    assert (found.difference, found.p_value, found.ci_low, found.ci_high) == (0, 1, 0, 0)
    assert np.isnan(found.relative)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [2.0], "at least two users"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "at least two users"),
        ([1.0, np.nan], [1.0, 2.0], "1 users have a value that is not finite"),
    ],
)
def test_what_cannot_be_compared_is_said(a, b, message):
    with pytest.raises(DataError, match=message):
        compare(np.array(a), np.array(b), seed=0)


def write_run(folder, users, values):
    folder.mkdir()
    write_per_user(
        folder / "per_user.parquet", pa.table({"user_id": users, "rank": [1] * len(users), "ndcg@10": values})
    )
    return folder


def test_runs_are_paired_by_user_whatever_the_order(tmp_path):
    one = write_run(tmp_path / "one", ["u3", "u1", "u2"], [0.3, 0.1, 0.2])
    two = write_run(tmp_path / "two", ["u1", "u2", "u3"], [0.0, 0.2, 0.1])
    assert compare_runs(one, two, "NDCG@10") == compare(np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.2, 0.1]), seed=0)


def test_a_user_ranked_several_times_counts_once(tmp_path):
    one = write_run(tmp_path / "one", ["u1", "u1", "u2", "u3"], [0.0, 1.0, 0.5, 0.25])
    two = write_run(tmp_path / "two", ["u1", "u1", "u2", "u3"], [0.0, 0.0, 0.5, 0.5])
    found = compare_runs(one, two, "ndcg@10")
    assert found.n == 3
    assert found.mean_a == pytest.approx((0.5 + 0.5 + 0.25) / 3)


def test_several_runs_of_a_side_are_averaged_by_user(tmp_path):
    rng = np.random.default_rng(6)
    values = rng.random((5, 30))
    users = [f"u{n:02}" for n in range(30)]
    runs = [write_run(tmp_path / f"run{n}", users, list(row)) for n, row in enumerate(values)]
    found = compare_runs(runs[:3], runs[3:], "ndcg@10")
    expected = compare(values[:3].mean(0), values[3:].mean(0), seed=0)
    assert (found.p_value, found.method) == (expected.p_value, expected.method)
    assert found.difference == pytest.approx(expected.difference)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.ci_low, expected.ci_high))
    short = write_run(tmp_path / "short", users[:9], list(values[0, :9]))
    with pytest.raises(DataError, match=r"21 only in .*run0, 0 only in .*short"):
        compare_runs([runs[0], short], runs[3:], "ndcg@10")


def test_holm_bounds_the_chance_of_any_false_alarm():
    assert doctest.testmod(significance).failed == 0
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.04, 0.01, 0.9, 0.03]) == pytest.approx([0.09, 0.04, 0.9, 0.09])
    assert holm([0.5, 0.6]) == [1.0, 1.0], "never above 1"
    rng = np.random.default_rng(7)
    false = [min(holm(list(rng.random(10)))) < 0.05 for _ in range(2000)]
    assert 0.035 < np.mean(false) < 0.065


def test_runs_over_other_users_or_metrics_are_refused(tmp_path):
    one = write_run(tmp_path / "one", ["u1", "u2", "u3"], [0.3, 0.1, 0.2])
    two = write_run(tmp_path / "two", ["u1", "u4"], [0.0, 0.2])
    with pytest.raises(DataError, match=r"2 only in .*one, 1 only in .*two"):
        compare_runs(one, two, "ndcg@10")
    with pytest.raises(DataError, match=r"no per-user values of 'hit@5'; there are ndcg@10"):
        compare_runs(one, two, "hit@5")
    with pytest.raises(DataError, match="does not exist"):
        compare_runs(tmp_path / "three", two, "ndcg@10")
