"""What needs the data of a run: users with their histories and lists as pictures, and what is recommended to many."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recbole_mm.config.resolved import Config
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.decode import decode_image
from recbole_mm.data.splits import TEST, TRAIN
from recbole_mm.errors import ConfigError, ImageError, RecboleMMError
from recbole_mm.evaluation.slice_kinds import POPULARITY
from recbole_mm.models.base import RerankingModel
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.reasons import item_texts_of, reasons_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.reporting.blocks import Case, Cell, Grid, Item, Paragraph, Ranking, Section
from recbole_mm.reporting.figures import share_figure
from recbole_mm.reporting.runs import RunFacts

LISTED = 10
SHOWN_OF_HISTORY = 12
PICTURE_SIDE = 96
PICTURE_QUALITY = 70
LONGEST_TITLE, LONGEST_WORDS = 120, 1500
NOTED = 3
"""Broken pictures that are named."""

SAMPLE = 1000
"""Users whose lists tell what is recommended in all."""


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
        breadth: run -> share of recommended items in each part of `POPULARITY`, and figures of the lists.
        of_targets: share of held-out items in each part.
        notes: what could not be opened or shown, and why.
        pictures: of the items, by the first run that could be opened.
    """

    chosen: Sequence[Chosen]
    histories: dict[str, tuple[list[Item], int]] = field(default_factory=dict)
    lists: dict[str, list[Ranking]] = field(default_factory=dict)
    targets: dict[str, list[Item]] = field(default_factory=dict)
    breadth: dict[str, Breadth] = field(default_factory=dict)
    of_targets: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Breadth:
    """What a run recommends to many users.

    Attributes:
        users: how many.
        parts: recommendations in each part of `POPULARITY`.
        coverage: share of the items that are recommended to somebody.
        gini: of how often items are recommended: 0 all alike, 1 a single one.
        popularity: mean number of training interactions of what is recommended.
    """

    users: int
    parts: list[int]
    coverage: float
    gini: float
    popularity: float


class Pictures:
    """Pictures of items as `data:` URIs: decoded within limits, made small and encoded anew.

    Args:
        config: of a run, whose settings say where images are.

    Attributes:
        note: why there are none; "" where there may be some.
        broken: item -> why its picture is left out.
    """

    def __init__(self, config: Config) -> None:
        self.note, self.broken = "", dict[str, str]()
        self._source: ContentSource | None = None
        try:
            self._source = ContentSource.from_config(config, ["image"])
        except RecboleMMError as error:
            self.note = f"no pictures: {error}"

    def of(self, token: str) -> str:
        """Return the picture of an item; "" without one."""
        source = self._source
        if source is None or source.images is None or not source.images.has(token):
            return ""
        try:
            picture = decode_image(
                source.images.read(token), f"item {token}", source.max_image_pixels, max_side=PICTURE_SIDE
            )
        except ImageError as error:
            self.broken[token] = str(error).removeprefix(f"item {token}: ")
            return ""
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=PICTURE_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def choose(runs: Sequence[RunFacts], count: int, users: Sequence[str] | None = None) -> list[Chosen]:
    """Choose users for cases: those that are asked for, those on whom several runs disagree most, or, of a single run,
    users from the best rank to the worst.

    Args:
        runs: of the page.
        count: how many.
        users: that are asked for.
    """
    if users is not None:
        return [Chosen(user, "asked for") for user in users]
    ranks = [run.ranks for run in runs if run.ranks]
    if not ranks or count < 1:
        return []
    shared = sorted(set(ranks[0]).intersection(*ranks[1:]))
    if len(ranks) > 1:
        spread = {user: math.log(max(r[user] for r in ranks) / min(r[user] for r in ranks)) for user in shared}
        most = sorted(shared, key=lambda user: (-spread[user], user))[:count]
        return [Chosen(user, "one of the users on whom the models disagree most") for user in most]
    order = sorted(shared, key=lambda user: (ranks[0][user], user))
    places = sorted({round(place) for place in np.linspace(0, len(order) - 1, min(count, len(order))).tolist()})
    return [
        Chosen(order[at], f"number {at + 1} of {len(order)} users by the rank of the held-out item") for at in places
    ]


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
        _add_breadth(found, run, recommender)
    except RecboleMMError as error:
        found.notes.append(f"{run.name}: {error}")


def _add_lists(found: Opened, run: RunFacts, recommender: Recommender, pictures: Pictures) -> None:
    tokens = [chosen.user for chosen in found.chosen]
    if not tokens:
        return
    users = recommender.user_ids(tokens)
    words = _words(recommender)

    def item(token: str, held_out: Sequence[str] = ()) -> Item:
        known = recommender.knows_item(token)
        number = int(recommender.item_ids([token])[0]) if known else 0
        title = recommender.title(number)[:LONGEST_TITLE] if known else ""
        written = (words[number] or "") if number < len(words) and number else ""
        return Item(token, title, pictures.of(token), written[:LONGEST_WORDS], token in held_out)

    histories = recommender.histories_of(users, "test")
    top = recommender.top_k(min(LISTED, recommender.n_items - 1), users=users, known="test")
    reasons = _reasons(recommender, users, histories)
    for place, user in enumerate(tokens):
        held_out = run.held_out.get(user, [])
        ranked = [item(str(recommender.item_tokens[number]), held_out) for number, _ in top.row(place)]
        shown = Ranking(run.name, run.ranks.get(user), ranked, (reasons[place] or "")[:LONGEST_WORDS])
        found.lists.setdefault(user, []).append(shown)
        if user not in found.histories:
            history = histories.items[histories.offsets[place] : histories.offsets[place + 1]]
            latest = [item(str(recommender.item_tokens[number])) for number in history[-SHOWN_OF_HISTORY:]]
            found.histories[user] = latest, len(history) - len(latest)
            found.targets[user] = [item(token) for token in held_out[:LISTED]]


def _words(recommender: Recommender) -> Sequence[str | None]:
    """What an LLM wrote of the items; a page without it is better than none."""
    try:
        return item_texts_of(recommender)
    except RecboleMMError:
        return []


def _reasons(recommender: Recommender, users: np.ndarray, histories: Any) -> Sequence[str | None]:
    """What an LLM wrote of the users; nothing for the models that read no such texts."""
    try:
        return reasons_of(recommender)(users, histories)
    except ConfigError:
        return [None] * len(users)


def _add_breadth(found: Opened, run: RunFacts, recommender: Recommender) -> None:
    """Count what is recommended to a sample of users; a model that asks an LLM for each list is left out."""
    if isinstance(recommender.model, RerankingModel):
        return
    rows = recommender.dataset.rows
    counts = np.bincount(rows.items[rows.of_phase(TRAIN)], minlength=recommender.n_items)
    if not found.of_targets:
        found.of_targets = _by_popularity(counts[rows.items[rows.of_phase(TEST)]])
    users = recommender.users_with_history("test")
    if not len(users):
        return
    users = users[np.unique(np.linspace(0, len(users) - 1, min(SAMPLE, len(users))).astype(np.int64))]
    top = recommender.top_k(min(LISTED, recommender.n_items - 1), users=users, known="test")
    items = top.items[top.items > 0]
    times = np.bincount(items, minlength=recommender.n_items)[1:]
    found.breadth[run.name] = Breadth(
        len(users),
        _by_popularity(counts[items]),
        float((times > 0).mean()),
        gini(times),
        float(counts[items].mean()) if len(items) else 0.0,
    )


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


# ---- sections ----


def popularity(opened: Opened) -> Section:
    """How popular what is recommended is, and how much of the catalogue it covers."""
    section = Section("Popularity and coverage")
    if not opened.breadth:
        return section
    rows = [("held-out items", opened.of_targets), *((name, it.parts) for name, it in opened.breadth.items())]
    names = [f"{part} training interactions" for part in POPULARITY]
    title = f"How popular the first {LISTED} items of users are, and what they took"
    section.blocks.append(share_figure(title, names, rows))
    cells: list[list[Cell]] = [
        [name, it.users, it.coverage, it.gini, it.popularity] for name, it in opened.breadth.items()
    ]
    header = ["run", "users", "share of items recommended", "Gini index", "mean training interactions"]
    section.blocks.append(Grid(f"What is recommended among the first {LISTED}", header, cells))
    return section


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
        section.blocks.append(Case(chosen.user, chosen.why, history, earlier, targets, rankings))
    return section
