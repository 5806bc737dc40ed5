"""Items that a first stage ranks first behind a training history and that its user did not choose: hard negatives.

What is read is training interactions and the first stage, which was trained on those. Nothing is left out for being
held out: that would tell the model which items the user chooses next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.inputs.answering.examples import Target

SCORES_AT_ONCE = 1 << 23
"""Scores of the first stage that are held at once: 64 MB."""


def best_others(
    first_stage: Any,
    config: Config,
    users: np.ndarray,
    items: np.ndarray,
    offsets: np.ndarray,
    item_tokens: Sequence[str],
    targets: Sequence[Target],
    most: int,
) -> list[np.ndarray]:
    """The items that the first stage ranks first behind each target's history, of those that can be its negatives.

    Args:
        first_stage: its `scores(cases)` are (B, n_items).
        config: of the run, which names the fields of cases and bounds histories.
        users: int64 (U,) RecBole's ids, in the order of their tokens.
        items: int64 (M,) their training items, oldest first.
        offsets: int64 (U + 1,).
        item_tokens: token of every item by RecBole's id; of equal scores the lower token comes first.
        targets: whose negatives are wanted.
        most: so many items of each target at most.

    Returns:
        For each target int64 ids, best first: items of all training interactions that its user has nowhere in them.
    """
    population = np.array(sorted(set(items.tolist()), key=lambda item: item_tokens[item]), dtype=np.int64)
    at_once = max(1, SCORES_AT_ONCE // len(item_tokens))
    found: list[np.ndarray] = []
    for start in range(0, len(targets), at_once):
        part = targets[start : start + at_once]
        scores = first_stage.scores(_cases(config, users, items, offsets, part)).cpu()[:, population]
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices.numpy()
        for target, ranked in zip(part, population[order]):
            own = items[offsets[target.place] : offsets[target.place + 1]]
            found.append(ranked[~np.isin(ranked, own)][:most])
    return found


def _cases(
    config: Config, users: np.ndarray, items: np.ndarray, offsets: np.ndarray, targets: Sequence[Target]
) -> Interaction:
    """Users and what they chose before each target, as ranking gives them to a model."""
    width = config["MAX_ITEM_LIST_LENGTH"]
    histories = np.zeros((len(targets), width), dtype=np.int64)
    lengths = np.zeros(len(targets), dtype=np.int64)
    for row, target in enumerate(targets):
        start = offsets[target.place]
        history = items[start : start + target.position][-width:]
        histories[row, : len(history)] = history
        lengths[row] = len(history)
    places = np.array([target.place for target in targets], dtype=np.int64)
    fields = {
        config["USER_ID_FIELD"]: users[places],
        config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: histories,
        config["ITEM_LIST_LENGTH_FIELD"]: lengths,
    }
    return Interaction({name: torch.from_numpy(values) for name, values in fields.items()})
