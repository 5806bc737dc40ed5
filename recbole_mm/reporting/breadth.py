"""How popular what runs recommend is, and how much of the catalogue it covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.data.splits import TEST, TRAIN
from recbole_mm.evaluation.slice_kinds import POPULARITY
from recbole_mm.models.base import RerankingModel
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.reporting.blocks import Cell, Grid, Paragraph, Section
from recbole_mm.reporting.figures import LEVELS, Shares, share_figure

LISTED = 10
SAMPLE = 1000
"""Users whose lists tell what is recommended in all."""


@dataclass(frozen=True)
class Breadth:
    """What a run recommends to many users.

    Attributes:
        users: how many.
        parts: recommendations in each part of `POPULARITY`.
        of_targets: held-out items in each part.
        coverage: share of the items that are recommended to somebody.
        gini: of how often items are recommended: 0 all alike, 1 a single one.
        popularity: mean number of training interactions of what is recommended.
        of_target_popularity: that of the held-out items.
    """

    users: int
    parts: list[int]
    of_targets: list[int]
    coverage: float
    gini: float
    popularity: float
    of_target_popularity: float


def breadth_of(recommender: Recommender) -> Breadth | None:
    """Count what is recommended to a sample of users; None for a model that asks an LLM for each list."""
    users = recommender.users_with_history("test")
    if isinstance(recommender.model, RerankingModel) or not len(users):
        return None
    rows = recommender.dataset.rows
    counts = np.bincount(rows.items[rows.of_phase(TRAIN)], minlength=recommender.n_items)
    targets = counts[rows.items[rows.of_phase(TEST)]]
    users = users[np.unique(np.linspace(0, len(users) - 1, min(SAMPLE, len(users))).astype(np.int64))]
    top = recommender.top_k(min(LISTED, recommender.n_items - 1), users=users, known="test")
    items = top.items[top.items > 0]
    times = np.bincount(items, minlength=recommender.n_items)[1:]
    return Breadth(
        len(users),
        _by_popularity(counts[items]),
        _by_popularity(targets),
        float((times > 0).mean()),
        gini(times),
        _mean(counts[items]),
        _mean(targets),
    )


def _mean(counts: np.ndarray) -> float:
    return float(counts.mean()) if len(counts) else 0.0


def _by_popularity(counts: np.ndarray) -> list[int]:
    parts = np.searchsorted(list(POPULARITY.values()), counts, side="right") - 1
    return np.bincount(parts, minlength=len(POPULARITY)).tolist()


def gini(counts: np.ndarray) -> float:
    """Return the Gini index of counts (n,).

    Example:
        >>> gini(np.array([2, 2])), gini(np.array([0, 4]))
        (0.0, 0.5)
    """
    if not counts.sum():
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    places = np.arange(1, len(ordered) + 1)
    return float((2 * places - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def popularity(found: Mapping[str, Breadth]) -> Section:
    """The section of some runs, by name."""
    section = Section("Popularity and coverage")
    if not found:
        return section
    first = next(iter(found.values()))
    rows = [Shares("held-out items", first.of_targets), *(Shares(name, it.parts) for name, it in found.items())]
    names = ["unseen in training" if not low else f"{part} training interactions" for part, low in POPULARITY.items()]
    title = f"Popularity of the first {LISTED} items of each list, beside that of the held-out items"
    section.blocks.append(share_figure(title, names, rows, LEVELS))
    cells: list[list[Cell]] = [["held-out items", None, None, None, f"{first.of_target_popularity:,.1f}"]]
    cells += [[name, it.users, it.coverage, it.gini, f"{it.popularity:,.1f}"] for name, it in found.items()]
    header = ["run", "users", "share of items recommended", "Gini index", "mean training interactions"]
    section.blocks.append(Grid(f"What is recommended among the first {LISTED}", header, cells))
    users: Sequence[int] = sorted({it.users for it in found.values()})
    section.blocks.append(
        Paragraph(
            f"Counted in the lists of {users[-1]:,} users. The share of items is of those that at least one of them is "
            "recommended; the Gini index is 0 where all items are recommended alike, and 1 where a single one is."
        )
    )
    return section
