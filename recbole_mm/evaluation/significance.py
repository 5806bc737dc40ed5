"""Paired test over users whether one model is better than another, with a confidence interval.

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

A p-value is about users, for these trained models: it says nothing about another dataset, and about other seeds only as
far as each side is averaged over several (`compare_runs`). If many pairs of models are compared, correct with `holm`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from recbole_mm.errors import DataError
from recbole_mm.evaluation.candidates import candidates_digest
from recbole_mm.evaluation.per_user import ranked_digest, read_per_user

RESAMPLES = 9_999
LARGE = 5_000
CONFIDENCE = 0.95
_BLOCK_CELLS = 1 << 23

RunDirs = str | os.PathLike | Sequence[str | os.PathLike]


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
        method: name of the test and of the interval.

    Example:
        >>> found = compare(np.array([1.0, 0.5, 0.0]), np.array([0.5, 0.5, 0.0]), seed=0)
        >>> found.mean_a, found.mean_b, found.n
        (0.5, 0.3333333333333333, 3)
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
        seed: seed of the resampling; the same seed gives the same result.

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


def interval_of_mean(values: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Return the 95% interval of a metric's mean over users, as `compare` makes those of differences.

    Args:
        values: (n,) of each user, finite.
        seed: of the resampling.

    Raises:
        DataError: fewer than two users.

    Example:
        >>> low, high = interval_of_mean(np.array([0.0, 1.0, 0.0, 1.0]), seed=0)
        >>> low < 0.5 < high
        True
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise DataError(f"an interval needs at least two users, got {len(values)}")
    if np.count_nonzero(values) > LARGE:
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
        return float(low), float(high)
    return _bootstrap_interval(values, np.random.default_rng(seed))


def compare_runs(run_dirs_a: RunDirs, run_dirs_b: RunDirs, metric: str, *, seed: int = 0) -> Comparison:
    """Compare two models by `metric` (such as `ndcg@10`) from the per-user tables in their runs' folders.

    Args:
        run_dirs_a, run_dirs_b: a run's folder, or those of one model's runs with several seeds: a user's value is then
            its mean over the runs. A user who was ranked more than once in a run counts once, in the same way.
        metric: a column of the tables.
        seed: seed of the resampling.

    Raises:
        DataError: a table or the metric is missing, or the runs did not rank the same users' same held-out items
            against the same candidates.
    """
    users_a, values_a = values_by_user(run_dirs_a, [metric])
    users_b, values_b = values_by_user(run_dirs_b, [metric])
    require_same_users(run_dirs_a, users_a, run_dirs_b, users_b)
    require_same_items(run_dirs_a, run_dirs_b)
    require_same_candidates(run_dirs_a, run_dirs_b)
    return compare(*both_have(values_a[metric], values_b[metric]), seed=seed)


def both_have(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (n,) of the users that have one in both: the AUC of a user without a negative is NaN."""
    there = ~(np.isnan(a) | np.isnan(b))
    return a[there], b[there]


def values_by_user(run_dirs: RunDirs, metrics: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return sorted users (n,), and metric -> each user's value (n,), averaged over its rows and then over the runs.

    Raises:
        DataError: a table or a metric is missing, or the runs did not rank the same users.
    """
    first, *others = _listed(run_dirs)
    users, total = _values_of_run(first, metrics)
    for run_dir in others:
        its_users, values = _values_of_run(run_dir, metrics)
        require_same_users(first, users, run_dir, its_users)
        total = {metric: total[metric] + values[metric] for metric in metrics}
    return users, {metric: total[metric] / (1 + len(others)) for metric in metrics}


def require_same_users(run_dirs_a: RunDirs, users_a: np.ndarray, run_dirs_b: RunDirs, users_b: np.ndarray) -> None:
    """Refuse to pair runs whose users (sorted) differ.

    Raises:
        DataError: saying how many users only one of the sides ranked.
    """
    if np.array_equal(users_a, users_b):
        return
    only_a, only_b = len(np.setdiff1d(users_a, users_b)), len(np.setdiff1d(users_b, users_a))
    raise DataError(
        f"the runs did not rank the same users: {only_a} only in {_listed(run_dirs_a)[0]}, {only_b} only in "
        f"{_listed(run_dirs_b)[0]}; run both with the same dataset, filters and split"
    )


def require_same_items(run_dirs_a: RunDirs, run_dirs_b: RunDirs) -> None:
    """Refuse to pair runs that ranked other held-out items of their users.

    Raises:
        DataError: naming two such runs, or a table that is missing.
    """
    first, *others = [*_listed(run_dirs_a), *_listed(run_dirs_b)]
    expected = ranked_digest(first)
    for run_dir in others:
        found = ranked_digest(run_dir)
        if None not in (expected, found) and found != expected:
            raise DataError(
                f"{first} and {run_dir} ranked other held-out items of the same users; run both with the same data, "
                "split and positives"
            )


def require_same_candidates(run_dirs_a: RunDirs, run_dirs_b: RunDirs) -> None:
    """Refuse to pair two models of which one was ranked against other sampled candidates.

    Raises:
        DataError: naming a run of either side.
    """
    sides = [{candidates_digest(run_dir) for run_dir in _listed(run_dirs)} for run_dirs in (run_dirs_a, run_dirs_b)]
    if sides[0] != sides[1]:
        raise DataError(
            f"{_listed(run_dirs_a)[0]} and {_listed(run_dirs_b)[0]} were ranked against other sampled candidates; run "
            "both with the same data, eval_args and seeds"
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests by Holm's step-down method, which bounds the chance of even one false alarm.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p_values)
    least = 0.0
    for place, test in enumerate(sorted(range(len(p_values)), key=lambda test: p_values[test])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[test]))
        corrected[test] = least
    return corrected


def _listed(run_dirs: RunDirs) -> list[str | os.PathLike]:
    return [run_dirs] if isinstance(run_dirs, (str, os.PathLike)) else list(run_dirs)


def _values_of_run(run_dir: str | os.PathLike, metrics: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sorted users of one run, and metric -> the mean of each one's values."""
    table = read_per_user(run_dir)
    for metric in metrics:
        if metric.lower() not in table.column_names:
            known = ", ".join(name for name in table.column_names if "@" in name or name == "gauc")
            raise DataError(f"{run_dir}: no per-user values of {metric.lower()!r}; there are {known}")
    users, rows = np.unique(table["user_id"].to_numpy().astype(str), return_inverse=True)
    counts = np.bincount(rows)
    return users, {metric: np.bincount(rows, weights=table[metric.lower()].to_numpy()) / counts for metric in metrics}


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
