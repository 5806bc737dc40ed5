"""TALLRec: "An Effective and Efficient Tuning Framework to Align Large Language Model with Recommendation"
(2305.00447), a baseline of MLLM-MSR."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.settings import DEFAULT_DOMAIN
from recbole_mm.llm.model import MLLM
from recbole_mm.models.answering.model import AnsweringRecommender
from recbole_mm.models.answering.prompts import TitlesPrompt
from recbole_mm.models.titles import read_titles

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class TALLRec(AnsweringRecommender):
    """Told: titles of the history, liked ones and, where ratings tell, disliked ones; the candidate's title. Words
    alone. See `AnsweringRecommender` for how it answers and ranks.

    Needs from the dataset, beside that: `content`, which gives titles; the column `tallrec_rating_field` of `.inter`.

    Raises:
        ConfigError: no titles, or no such column of ratings.

    Example:
        >>> recbole_mm.run("TALLRec", "my-data")  # doctest: +SKIP
    """

    @classmethod
    def build_prompt(cls, config: Config, dataset: MultimodalDataset, mllm: MLLM) -> TitlesPrompt:
        """Titles of the history, then the candidate's."""
        if "text" not in config["modalities"]:
            raise ConfigError("TALLRec reads titles: keep text among the modalities")
        fields, rating = config["text_fields"], config["tallrec_rating_field"]
        field = config["tallrec_title_field"] or (fields[0] if fields else None)
        return TitlesPrompt(
            mllm,
            read_titles(dataset.content, field, "tallrec_title_field"),
            history=config["tallrec_history"],
            max_title_tokens=config["tallrec_title_tokens"],
            likes=None if rating is None else likes_of(dataset, rating, config["tallrec_liked_from"]),
            domain=config["item_domain"] or DEFAULT_DOMAIN,
        )


def likes_of(dataset: MultimodalDataset, field: str, least: float) -> Callable[[int, int], bool]:
    """Return a function that tells by a column of ratings whether a user likes an item.

    Of several ratings of a pair the first one counts, since a later one may be held out.

    Args:
        dataset: a sequential dataset, before or after it is split.
        field: float column of `.inter`.
        least: lowest rating of a liked item.

    Returns:
        (RecBole's user id, item id) -> whether the user likes it; a pair without a rating is liked.

    Raises:
        ConfigError: there is no such column, or it is not loaded.
    """
    rows = dataset.inter_feat
    columns = rows.flat if isinstance(rows, SequenceSamples) else rows  # after the split, all rows in the order of time
    if field not in columns:
        raise ConfigError(f"tallrec_rating_field: the interactions have no column {field!r}; see load_col")
    order = slice(None) if columns is not rows else dataset._rows_in_order()
    users, items, ratings = (np.asarray(columns[name])[order] for name in (dataset.uid_field, dataset.iid_field, field))
    keys, first = np.unique(users.astype(np.int64) * dataset.item_num + items, return_index=True)
    liked = ratings[first] >= least

    def likes(user: int, item: int) -> bool:
        """Return whether the user likes the item."""
        key = user * dataset.item_num + item
        place = int(np.searchsorted(keys, key))
        return bool(liked[place]) if place < len(keys) and keys[place] == key else True

    return likes
