"""Users with their histories and lists: which ones, what the runs say of them, and the section of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.models.base import RerankingModel
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.reasons import item_texts_of, reasons_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.reporting.blocks import Case, Item, Paragraph, Ranking, Section
from recbole_mm.reporting.breadth import LISTED, Breadth, breadth_of
from recbole_mm.reporting.pictures import Pictures
from recbole_mm.reporting.runs import RunFacts

SHOWN_OF_HISTORY = 12
LONGEST_TITLE, LONGEST_WORDS = 120, 1500
NOTED = 3
"""Broken pictures that are named."""


@dataclass(frozen=True)
class Chosen:
    """A user of a case, and why this one."""

    user: str
    why: str


@dataclass
class Opened:
    """What the runs say once they are opened, one after the other.

    Attributes:
        chosen: users of the cases.
        histories: user -> its items, and how many came before.
        lists: user -> rankings.
        targets: user -> held-out items.
        breadth: run -> what it recommends to many users.
        notes: what could not be opened or shown, and why.
        pictures: of the items, by the first run that could be opened.
    """

    chosen: Sequence[Chosen]
    histories: dict[str, tuple[list[Item], int]] = field(default_factory=dict)
    lists: dict[str, list[Ranking]] = field(default_factory=dict)
    targets: dict[str, list[Item]] = field(default_factory=dict)
    breadth: dict[str, Breadth] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: Pictures | None = None


# ---- which users ----


def choose(runs: Sequence[RunFacts], count: int, users: Sequence[str] | None = None) -> list[Chosen]:
    """Choose users for cases: those that are asked for; those on whom several runs disagree most, half of them with the
    first run ahead of all others; or, of a single run, users from the best rank to the worst.

    Args:
        runs: of the page.
        count: how many.
        users: that are asked for.
    """
    if users is not None:
        return [Chosen(user, "Asked for.") for user in users]
    ranked = [run for run in runs if run.ranks.any()]
    if not ranked or count < 1:
        return []
    shared, ranks = shared_ranks(ranked)
    if len(ranked) > 1:
        places = _disagreed(ranks, count)
        said = [", ".join(f"{run.name} {rank:,}" for run, rank in zip(ranked, ranks[:, at])) for at in places]
        return [
            Chosen(str(shared[at]), f"The models disagree most on such users: the held-out item has the ranks {text}.")
            for at, text in zip(places, said)
        ]
    order = np.argsort(ranks[0], kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)).tolist()
    return [
        Chosen(str(shared[order[at]]), f"Number {at + 1:,} of {len(order):,} users by the rank of the held-out item.")
        for at in places
    ]


def shared_ranks(runs: Sequence[RunFacts]) -> tuple[np.ndarray, np.ndarray]:
    """Return the users (n,) that have a rank in all runs, sorted, and the ranks (runs, n)."""
    known = [run.users[run.ranks > 0] for run in runs]
    shared = known[0]
    for users in known[1:]:
        shared = shared if np.array_equal(shared, users) else np.intersect1d(shared, users, assume_unique=True)
    return shared, np.stack([run.ranks[np.searchsorted(run.users, shared)] for run in runs])


def _disagreed(ranks: np.ndarray, count: int) -> list[int]:
    """Columns of (runs, n) with the largest ratio of ranks, half of them with the first run ahead where there are so
    many."""
    spread = np.log(ranks.max(axis=0) / ranks.min(axis=0))
    order = np.argsort(-spread, kind="stable")
    order = order[spread[order] > 0]
    is_ahead = ranks[0, order] < ranks[1:, order].min(axis=0)
    sides = order[is_ahead][:count].tolist(), order[~is_ahead][:count].tolist()
    half = min(len(sides[1]), max(count // 2, count - len(sides[0])))
    chosen = {*sides[0][: count - half], *sides[1][:half]}
    return sorted(chosen, key=lambda at: (-spread[at], at))


# ---- what the runs say ----


def open_all(
    runs: Sequence[RunFacts],
    chosen: Sequence[Chosen],
    changed: Mapping[str, Any] | None = None,
    is_asked: bool = False,
) -> Opened:
    """Open the runs one after the other, and keep what a page shows of them. A run that cannot be opened is a note.

    Args:
        runs: of the page.
        chosen: users of the cases.
        changed: settings of the runs with other values here.
        is_asked: somebody named the users, so that one who is not in the data is an error.

    Raises:
        DataError: a user that was asked for is not in the data; names the nearest.
    """
    found = Opened(chosen)
    for run in runs:
        _add_run(found, run, changed, is_asked)
    if found.pictures is not None:
        found.notes += [found.pictures.note] if found.pictures.note else []
        for token, why in list(found.pictures.broken.items())[:NOTED]:
            found.notes.append(f"no picture of item {token}: {why}")
    return found


def _add_run(found: Opened, run: RunFacts, changed: Mapping[str, Any] | None, is_asked: bool) -> None:
    """Add what one run says; its model is let go of before the next one is loaded."""
    try:
        recommender = Recommender(open_run(run.folder, changed=changed))
    except RecboleMMError as error:
        found.notes.append(f"{run.name} cannot be opened, so its lists are not shown: {error}")
        return
    if is_asked:
        recommender.user_ids([chosen.user for chosen in found.chosen])
    if found.pictures is None:
        found.pictures = Pictures(recommender.config)
    try:
        _add_lists(found, run, recommender, found.pictures)
        if (breadth := breadth_of(recommender)) is not None:
            found.breadth[run.name] = breadth
    except RecboleMMError as error:
        found.notes.append(f"{run.name}: {error}")


def _add_lists(found: Opened, run: RunFacts, recommender: Recommender, pictures: Pictures) -> None:
    tokens = [chosen.user for chosen in found.chosen]
    if not tokens:
        return
    users = recommender.user_ids(tokens)
    item = partial(_item, recommender, pictures, _words(found, run, recommender))
    histories = recommender.histories_of(users, "test")
    lists = _lists(found, run, recommender, users)
    reasons = _reasons(found, run, recommender, users, histories)
    for place, user in enumerate(tokens):
        held_out = run.held_out(user)
        ranked = [item(str(recommender.item_tokens[number]), held_out) for number in lists[place]]
        said = (reasons[place] or "")[:LONGEST_WORDS]
        found.lists.setdefault(user, []).append(Ranking(run.name, _of_rank(run, user, recommender), ranked, said))
        if user not in found.histories:
            history = histories.items[histories.offsets[place] : histories.offsets[place + 1]]
            latest = [item(str(recommender.item_tokens[number])) for number in history[-SHOWN_OF_HISTORY:]]
            found.histories[user] = latest, len(history) - len(latest)
            found.targets[user] = [item(token) for token in held_out[:LISTED]]


def _lists(found: Opened, run: RunFacts, recommender: Recommender, users: np.ndarray) -> list[list[int]]:
    """The first items of each user; none of a model that needs sampled candidates to choose from."""
    try:
        top = recommender.top_k(min(LISTED, recommender.n_items - 1), users=users, known="test")
    except RecboleMMError as error:
        found.notes.append(f"{run.name}: no lists: {error}")
        return [[] for _ in users]
    return [[number for number, _ in top.row(place)] for place in range(len(users))]


def _item(
    recommender: Recommender,
    pictures: Pictures,
    words: Sequence[str | None],
    token: str,
    held_out: Sequence[str] = (),
) -> Item:
    number = int(recommender.item_ids([token])[0]) if recommender.knows_item(token) else 0
    title = recommender.title(number)[:LONGEST_TITLE] if number else ""
    written = (words[number] or "") if 0 < number < len(words) else ""
    return Item(token, title, pictures.of(token), written[:LONGEST_WORDS], token in held_out)


def _of_rank(run: RunFacts, user: str, recommender: Recommender) -> str:
    """The rank of a user's held-out item, and among what."""
    rank, cases = run.rank_of(user), run.cases_of(user)
    if rank is None:
        return "the rank of the held-out item is not known"
    text = f"the held-out item has rank {rank:,}"
    if run.sampled:
        text += f" among its sampled candidates ({run.sampled}); a list is of all items"
    elif not isinstance(recommender.model, RerankingModel):
        text += f" of {recommender.n_items - 1:,} items"
    return text if cases < 2 else f"{text} in the best of {cases} cases, the list is of one"


def _words(found: Opened, run: RunFacts, recommender: Recommender) -> Sequence[str | None]:
    """What an LLM wrote of the items."""
    try:
        return item_texts_of(recommender)
    except RecboleMMError as error:
        found.notes.append(f"{run.name}: what was written of items is not shown: {error}")
        return []


def _reasons(
    found: Opened, run: RunFacts, recommender: Recommender, users: np.ndarray, histories: Any
) -> Sequence[str | None]:
    """What an LLM wrote of the users; nothing for the models that read no such texts."""
    try:
        return reasons_of(recommender)(users, histories)
    except ConfigError:
        return [None] * len(users)
    except RecboleMMError as error:
        found.notes.append(f"{run.name}: what was written of users is not shown: {error}")
        return [None] * len(users)


# ---- the section ----


def cases(opened: Opened) -> Section:
    """The users, and notes of what could not be shown."""
    section = Section("Cases")
    section.blocks += [Paragraph(note, is_warning=True) for note in opened.notes]
    for chosen in opened.chosen:
        if chosen.user not in opened.histories:
            continue
        history, earlier = opened.histories[chosen.user]
        rankings = opened.lists[chosen.user]
        targets = opened.targets[chosen.user]
        section.blocks.append(Case(chosen.user, chosen.why, history, earlier, targets, rankings, _shared(rankings)))
    return section


def _shared(rankings: Sequence[Ranking]) -> str:
    """How many items are in all lists of a user."""
    if len(rankings) < 2:
        return ""
    lists = [{item.token for item in ranking.items} for ranking in rankings]
    if not all(lists):
        return ""
    count = len(set.intersection(*lists))
    return f"{'Both' if len(lists) == 2 else 'All'} lists have {count} of {max(map(len, lists))} items in common."
