"""`positives: popular`: the sequences of MLLM-MSR's released preprocessing, only to reproduce what is reported of it.

That preprocessing keeps of each user the few items that most interactions of the file name, puts them in time order,
and takes the last one as the positive. So held-out items are popular ones, chosen by a count that includes the held-out
interactions themselves; its negatives are drawn from all items. A ranker that knows popularity alone then does well.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from recbole_mm.errors import ConfigError

logger = logging.getLogger(__name__)


def keeps_popular(config) -> bool:
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


def popular_only(dataset, order: np.ndarray, most: int) -> pd.DataFrame:
    """The interactions of a dataset whose ids are numbered, without those that are dropped (see `popular_rows`)."""
    table = dataset.inter_feat
    users, items = (table[field].to_numpy() for field in (dataset.uid_field, dataset.iid_field))
    kept = popular_rows(users, items, order, most)
    logger.info("positives: popular keeps %d of %d interactions, at most %d of a user", len(kept), len(table), most)
    return table.iloc[kept].reset_index(drop=True)


def popular_rows(users: np.ndarray, items: np.ndarray, order: np.ndarray, most: int) -> np.ndarray:
    """Of each user, the rows of the items that most rows of all users name.

    Args:
        users, items: int64 (M,), whole numbers from 0, of each row.
        order: int64 (M,), the rows by user and time; of a user's equally popular items, the later ones are kept.
        most: rows to keep of a user; one with fewer keeps them all.

    Returns:
        int64, ascending.
    """
    count = np.bincount(items)[items]
    later = np.empty(len(order), dtype=np.int64)
    later[order] = np.arange(len(order))
    by_user = np.lexsort((-later, -count, users))
    sorted_users = users[by_user]
    place = np.arange(len(by_user)) - np.searchsorted(sorted_users, sorted_users)
    return np.sort(by_user[place < most])
