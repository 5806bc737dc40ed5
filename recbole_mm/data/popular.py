"""`positives: popular`: the sequences of MLLM-MSR's released preprocessing, only to reproduce what is reported of it.

That preprocessing keeps of each user the few items that most interactions of the file name, puts them in time order,
and takes the last one as the positive. So held-out items are popular ones, chosen by a count that includes the held-out
interactions themselves; its negatives are drawn from all items. A ranker that knows popularity alone then does well.
"""

from __future__ import annotations

import numpy as np

from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError


def keeps_popular(config: Config) -> bool:
    """Whether `positives` is `popular`.

    Raises:
        ConfigError: the data has no last item of a user to choose: it is shuffled, or its split is given.
    """
    if config["positives"] != "popular":
        return False
    if config["benchmark_filename"] or config["eval_args"]["order"] != "TO":
        raise ConfigError(
            "positives: popular needs eval_args.order: TO and no benchmark_filename; give these, or positives: last"
        )
    return True


def popular_rows(users: np.ndarray, items: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """Each user's rows of the items that most rows of all users name.

    Args:
        users, items: int64 (M,), whole numbers from 0, of each row.
        order: int64 (M,), the rows by user and time; of a user's equally popular items, the later ones are kept.
        most: rows to keep of a user; one with fewer keeps them all.

    Returns:
        int64, ascending.

    Example:
        >>> popular_rows(np.array([1, 1, 1, 2]), np.array([5, 6, 7, 7]), np.array([0, 1, 2, 3]), most=2)
        array([1, 2, 3])
    """
    count = np.bincount(items)[items]
    later = np.empty(len(order), dtype=np.int64)
    later[order] = np.arange(len(order))
    by_user = np.lexsort((-later, -count, users))
    sorted_users = users[by_user]
    place = np.arange(len(by_user)) - np.searchsorted(sorted_users, sorted_users)
    return np.sort(by_user[place < most])
