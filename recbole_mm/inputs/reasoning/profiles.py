"""Users in words: a preference profile out of what each has chosen, in time order (MLLMRec, section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.data.content import ItemContent
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.context import PlannedStage
from recbole_mm.inputs.reasoning.decay import age_mark, ages_in_days
from recbole_mm.inputs.reasoning.genericness import report
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.prompts import MARKUP_TOKENS, Texts, history_line, newest_within, profile_prompt
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.inputs.reasoning.summary import HistorySummary
from recbole_mm.inputs.reasoning.vectors import SentenceVectors
from recbole_mm.inputs.reasoning.writing import LABELS, PROFILES, TextNeed, TextStage
from recbole_mm.llm.texts.cleaning import cut_words
from recbole_mm.llm.texts.generator import Generator, Request

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

LONG_AGO = 10_000
"""Days, for the length of the mark of an old choice."""


@dataclass(frozen=True)
class Histories:
    """What users have chosen.

    Attributes:
        users: (U,) RecBole's ids, in the order of the users' tokens.
        items: (M,) item ids, users one after the other, in time order within a user.
        offsets: (U + 1,) start of each user's items, with M at the end.
        ages: (M,) days before the user's latest choice, where older ones count less by time; else None.
    """

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    ages: np.ndarray | None = None

    @classmethod
    def of(cls, dataset: MultimodalDataset, settings: ReasoningSettings) -> Histories:
        """The histories that profiles may see; all of them, with a warning, for `profiles_see: all`.

        Raises:
            ConfigError: the split is one whose training rows are not known yet, or `profile_decay: days` has no
                times.
        """
        if settings.profiles_see == "all":
            logger.warning(
                "profiles_see: all: user profiles are written from EVERY interaction, those held out for validation "
                "and test included; results are not comparable with those of any other model"
            )
        held_out = settings.profiles_see == "all"
        users, items, offsets = dataset.user_histories(held_out)
        if not settings.decay.by_time:
            return cls(users, items, offsets)
        times = dataset.user_history_times(held_out)
        if times is None:
            raise ConfigError("profile_decay: days needs times: name their column in load_col, or set it to list")
        return cls(users, items, offsets, ages_in_days(times, offsets))

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, place: int) -> list[int]:
        """Items of the user at this place, oldest first."""
        if not 0 <= place < len(self):
            raise IndexError(f"history {place} of {len(self)}")
        return self.items[self.offsets[place] : self.offsets[place + 1]].tolist()

    def ages_of(self, place: int) -> list[float] | None:
        """Days before the latest choice, of each item of the user at this place; None where they do not count."""
        return None if self.ages is None else self.ages[self.offsets[place] : self.offsets[place + 1]].tolist()


@dataclass
class ProfileRequests:
    """What is to be written of users.

    Attributes:
        requests: user id -> request, users in the order of their tokens. An LLM's are made on demand.
        shown: user id -> items that the request shows, oldest first.
        cut: users whose older items are left out.
        without: users of whose items nothing is known.
    """

    requests: Mapping[int, Request] = field(default_factory=dict)
    shown: Mapping[int, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    without: list[int] = field(default_factory=list)


class UserProfiles(TextNeed):
    """`user_profiles`: sentence vectors of every user's profile, written of training items (MLLMRec, 4.1)."""

    def check(self) -> None:
        """Finds the sentence encoder."""
        self.context.share(SentenceVectors).check()

    def requests(self, texts: Texts) -> ProfileRequests:
        """Returns what is to be written of users.

        Args:
            texts: of the items.
        """
        dataset, writing = self.context.dataset, self.writing
        histories = Histories.of(dataset, writing.settings)
        limit = writing.context_tokens
        return profile_requests(self.context.content, histories, texts, writing.settings, writing.generator, limit)

    def stage(self, made: ProfileRequests) -> TextStage[int]:
        """Returns the profiles that are wanted."""
        return TextStage(PROFILES, made.requests, self._tokens, made.shown)

    @property
    def _tokens(self) -> Sequence[str]:
        return self.context.dataset.field2id_token[self.context.dataset.uid_field]

    def plan(self) -> list[PlannedStage]:
        """Returns the stages of descriptions, of profiles and of their vectors."""
        items, notes, settings = self.context.share(ItemTexts), self.context.notes, self.writing.settings
        rows = items.plan()
        made = self.requests(items.known.texts)
        planned = self.writing.plan(self.stage(made), items.known.unwritten)
        if planned.waiting:
            notes.append(
                f"{len(planned.waiting):,} profiles show items that are not described yet: their prompts are estimated "
                f"with {settings.description_words} words per description"
            )
        if made.cut:
            notes.append(
                f"{len(made.cut):,} of {len(made.requests):,} histories are cut to their newest items within "
                f"{settings.profile_history_tokens:,} tokens"
            )
        texts = [cut_words(text, settings.profile_words) for text in planned.texts.values()]
        vectors = self.context.share(SentenceVectors).plan(LABELS[PROFILES], texts, len(planned.unwritten))
        return [*rows, planned.row, vectors]

    @cached_property
    def texts(self) -> Texts:
        """The profile of every user, by RecBole's id; written now unless the store has it."""
        written = self.writing.remembered(PROFILES, dict(enumerate(self._tokens)))
        if written is None:
            written = self._written()
        found: Texts = [None] * len(self._tokens)
        for user, text in written.items():
            found[user] = cut_words(text, self.writing.settings.profile_words)
        self._measure(found)
        return found

    def _written(self) -> dict[int, str]:
        """What is written of users now, or was written before by the same model."""
        made = self.requests(self.context.share(ItemTexts).texts)
        log_requests(made, self.writing.settings.profile_history_tokens, self._tokens)
        written = self.writing.write(self.stage(made))
        one_each = {user: [user] for user in made.requests}
        self.writing.note_tokens(PROFILES, one_each, lambda user: made.requests[user].prompt, written)
        return written

    def _measure(self, found: Texts) -> None:
        """Says how generic the profiles are."""
        dataset, known = self.context.dataset, self.context.share(ItemTexts).known_of
        histories = Histories(*dataset.user_histories(held_out=self.writing.settings.profiles_see == "all"))
        place_of = {int(user): place for place, user in enumerate(histories.users)}
        profiles = {user: text for user in place_of if (text := found[user])}
        if figures := report(LABELS[PROFILES], profiles, lambda user: histories[place_of[user]], known):
            self.context.genericness[LABELS[PROFILES]] = figures

    def write(self) -> None:
        """Has item texts and profiles written."""
        _ = self.texts

    def compute(self) -> dict[str, Any]:
        """Returns `profile_vectors`."""
        return {"profile_vectors": self.context.share(SentenceVectors).encode(LABELS[PROFILES], self.texts, PROFILES)}


def profile_requests(
    content: ItemContent,
    histories: Histories,
    texts: Texts,
    settings: ReasoningSettings,
    generator: Generator,
    context_tokens: int | None = None,
) -> ProfileRequests:
    """One request for each user of whose items something is known.

    An LLM is shown the newest items within `profile_history_tokens`, one at least. The template, which costs nothing,
    looks at all of them; older ones count less.

    Args:
        content: the items.
        histories: of the users.
        texts: of the items; an item without one is not shown.
        settings: words and budget of the prompts.
        generator: counts tokens, and says whether an LLM or the template writes.
        context_tokens: a whole prompt's bound, which the history's share is kept within.
    """
    made = ProfileRequests()
    place_of = {int(user): place for place, user in enumerate(histories.users)}
    if generator.makes == "templates":
        summary, requests = HistorySummary(content, settings.profile_words, settings.decay), {}
        for user, place in place_of.items():
            text = summary.of(histories[place], histories.ages_of(place))
            if text is None:
                made.without.append(user)
            else:
                requests[user] = Request("", text)
        made.requests, made.shown = requests, OnDemand(requests, lambda user: histories[place_of[user]])
        return made
    budget = _budget(settings, generator, context_tokens)
    mark = "" if histories.ages is None else age_mark(LONG_AGO)
    costs = {
        int(item): generator.count_tokens(history_line(100, mark + (texts[item] or "")) + "\n")
        for item in sorted(np.unique(histories.items).tolist(), key=content.tokens.__getitem__)
        if texts[item] is not None
    }

    def known_of(user: int) -> list[int]:
        return [item for item in histories[place_of[user]] if item in costs]

    def marks_of(user: int) -> list[str]:
        place = place_of[user]
        items, ages = histories[place], histories.ages_of(place)
        return ["" if ages is None else age_mark(ages[row]) for row, item in enumerate(items) if item in costs]

    omitted: dict[int, int] = {}
    for user in place_of:
        if known := known_of(user):
            omitted[user] = newest_within([costs[item] for item in known], budget)
        else:
            made.without.append(user)

    def shown_of(user: int) -> list[int]:
        return known_of(user)[omitted[user] :]

    def request_of(user: int) -> Request:
        marked = zip(marks_of(user)[omitted[user] :], shown_of(user))
        words = [mark + (texts[item] or "") for mark, item in marked]
        return Request(_prompt(settings, words, omitted[user]), None)

    made.cut = [user for user, count in omitted.items() if count]
    made.requests, made.shown = OnDemand(omitted, request_of), OnDemand(omitted, shown_of)
    return made


def _prompt(settings: ReasoningSettings, texts: Sequence[str], left_out: int) -> str:
    domain, words, wording = settings.item_domain, settings.profile_words, settings.wording.profile
    return profile_prompt(domain, texts, left_out, words, settings.decay, wording)


def _budget(settings: ReasoningSettings, generator: Generator, context_tokens: int | None) -> int:
    """Tokens for the items of a prompt."""
    if context_tokens is None:
        return settings.profile_history_tokens
    frame = generator.count_tokens(_prompt(settings, [], 1_000_000))
    return min(settings.profile_history_tokens, context_tokens - frame - MARKUP_TOKENS)


def log_requests(made: ProfileRequests, budget: int, tokens: Mapping[int, str] | Sequence[str]) -> None:
    """Say how many histories were cut, and of whom nothing can be said."""
    if made.cut:
        logger.info(
            "user profiles: %d of %d histories are cut to their newest items within %d tokens",
            *(len(made.cut), len(made.requests), budget),
        )
    if made.without:
        shown = ", ".join(tokens[user] for user in made.without[:5]) + (", ..." if len(made.without) > 5 else "")
        logger.warning(
            "user profiles: nothing is known of the items of %d users, who have no profile (%s)",
            *(len(made.without), shown),
        )
