"""Is one model better than another, or were the users lucky? A paired test over users, with a confidence interval.

    >>> import numpy as np
    >>> found = compare(np.array([1.0, 0.5, 1.0, 0.0]), np.array([0.5, 0.5, 0.0, 0.0]), seed=0)
    >>> found.difference, found.n
    (0.375, 4)

Two models are compared on the same users, by each user's difference d of the metric.

- **p-value**: sign-flip permutation test of the mean of d, two-sided. If neither model is better, each user's
  difference could as well have had the other sign; p is the share of sign patterns with a mean at least as far from 0.
  All patterns are tried when there are few, `RESAMPLES` random ones otherwise (the observed one counts among them, so
  that p is never 0).
- **interval**: percentile bootstrap of the mean of d over users, 95%.

Neither assumes a distribution, which matters because most differences are 0. Above `LARGE` users whose two values
differ, where the mean is normal for all purposes and resampling is slow, both are those of the paired t-test
(`scipy.stats.ttest_rel`). `method` says which was used.

A p-value is about users, for these two trained models: it says nothing about another seed or another dataset. If many
pairs of models are compared, correct for that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recbole_mm.errors import DataError
from recbole_mm.evaluation.per_user import read_per_user

RESAMPLES = 9_999
LARGE = 5_000
CONFIDENCE = 0.95
_BLOCK_CELLS = 1 << 23


@dataclass(frozen=True)
class Comparison:
    """Model a against model b (the baseline), over the users both ranked.

    Attributes:
        mean_a, mean_b: mean of the metric over users.
        difference: mean_a - mean_b.
        relative: difference / mean_b; nan where mean_b is 0.
        ci_low, ci_high: 95% confidence interval of the difference.
        p_value: two-sided.
        n: number of users.
        method: how interval and p-value were found.
    """

    mean_a: float
    mean_b: float
    difference: float
    relative: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    method: str


def compare(a: np.ndarray, b: np.ndarray, *, seed: int) -> Comparison:
    """Compare two models by their values (n,) of one metric on the same n users, in the same order.

    Args:
        a, b: values of each user.
        seed: of the resampling; the same seed gives the same answer.

    Raises:
        DataError: fewer than two users, different numbers of users, or a value that is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise DataError(f"a paired test needs two values for each of at least two users, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(
            f"{int((~np.isfinite(a - b)).sum())} users have a value that is not finite; they cannot be compared"
        )
    differences = a - b
    differing = differences[differences != 0]
    if len(differing) == 0:
        low, high, p_value, method = 0.0, 0.0, 1.0, "no user's value differs"
    elif len(differing) > LARGE:
        test = stats.ttest_rel(a, b)
        low, high = test.confidence_interval(CONFIDENCE)
        p_value, method = test.pvalue, "paired t-test"
    else:
        rng = np.random.default_rng(seed)
        p_value = _sign_flip_p_value(differing, rng)
        low, high = _bootstrap_interval(differences, rng)
        method = "sign-flip permutation test, bootstrap interval"
    mean_a, mean_b = float(a.mean()), float(b.mean())
    difference = float(differences.mean())
    relative = difference / mean_b if mean_b else float("nan")
    return Comparison(mean_a, mean_b, difference, relative, float(low), float(high), float(p_value), len(a), method)


def compare_runs(
    run_dir_a: str | os.PathLike, run_dir_b: str | os.PathLike, metric: str, *, seed: int = 0
) -> Comparison:
    """Compare two runs by `metric` (such as `ndcg@10`) from the per-user tables in their folders.

    A user who was ranked more than once counts once, with the mean of its values.

    Raises:
        DataError: a table or the metric is missing, or the runs did not rank the same users.
    """
    users_a, values_a = _values_by_user(run_dir_a, metric)
    users_b, values_b = _values_by_user(run_dir_b, metric)
    if not np.array_equal(users_a, users_b):
        only_a, only_b = len(np.setdiff1d(users_a, users_b)), len(np.setdiff1d(users_b, users_a))
        raise DataError(
            f"the runs did not rank the same users: {only_a} only in {run_dir_a}, {only_b} only in {run_dir_b}; "
            "run both with the same dataset, filters and split"
        )
    return compare(values_a, values_b, seed=seed)


def _values_by_user(run_dir: str | os.PathLike, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Sorted users and the mean of each one's values."""
    table = read_per_user(run_dir)
    metric = metric.lower()
    if metric not in table.column_names:
        known = ", ".join(name for name in table.column_names if "@" in name)
        raise DataError(f"{run_dir}: no per-user values of {metric!r}; there are {known}")
    users, rows = np.unique(table["user_id"].to_numpy().astype(str), return_inverse=True)
    return users, np.bincount(rows, weights=table[metric].to_numpy()) / np.bincount(rows)


def _sign_flip_p_value(differing: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p of the mean under independent random signs; differences of 0 change nothing and are left out."""
    m = len(differing)
    observed = abs(differing.sum()) * (1 - 1e-12)  # sums of the same terms in another order still count as equal
    if 2**m <= RESAMPLES + 1:
        signs = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
        return float(np.mean(np.abs((1 - 2 * signs) @ differing) >= observed))
    extreme = 0
    step = max(1, _BLOCK_CELLS // m)
    for start in range(0, RESAMPLES, step):
        signs = rng.integers(0, 2, size=(min(step, RESAMPLES - start), m), dtype=np.int8)
        extreme += int(np.sum(np.abs((1 - 2 * signs) @ differing) >= observed))
    return (extreme + 1) / (RESAMPLES + 1)


def _bootstrap_interval(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval of the mean over resampled users.

    Drawing n users with replacement is drawing how often each distinct difference occurs, which are far fewer.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    means = np.empty(RESAMPLES)
    step = max(1, _BLOCK_CELLS // len(values))
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        means[start : start + size] = rng.multinomial(n, counts / n, size=size) @ values / n
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
