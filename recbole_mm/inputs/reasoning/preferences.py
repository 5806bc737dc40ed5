"""What users prefer, in words, after each history that a model is asked about (MLLM-MSR, 2408.09698).

Asked about are the histories before the items that fine-tuning answers with Yes, and before each held-out item. They
are beginnings of one and the same sequence, so a text of the training items is the same for both, and
nothing of a held-out item can stand in a text that training reads.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.config.resolved import Config
from recbole_mm.data.content import ItemContent
from recbole_mm.data.histories import Timelines, ticks_per_second
from recbole_mm.data.splits import TRAIN
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.examples import training_targets
from recbole_mm.inputs.answering.tuning import SftSettings
from recbole_mm.inputs.context import PlannedStage
from recbole_mm.inputs.reasoning.genericness import report
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.prompts import PreferencePrompts, Shown, Texts
from recbole_mm.inputs.reasoning.rates import TextWork
from recbole_mm.inputs.reasoning.recurrent import (
    Chains,
    ChainWriter,
    Node,
    blocks_of_size,
    sessions,
)
from recbole_mm.inputs.reasoning.settings import PreferenceSettings
from recbole_mm.inputs.reasoning.summary import HistorySummary
from recbole_mm.inputs.reasoning.writing import LABELS, PREFERENCES, TextNeed, TextStage
from recbole_mm.llm.texts.cleaning import cut_words
from recbole_mm.llm.texts.generator import Request

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Cases:
    """The histories that are asked about.

    Attributes:
        timelines: of all users.
        lengths: RecBole's user id -> how many items each history has, ascending; users in the order of their tokens.
    """

    timelines: Timelines
    lengths: dict[int, list[int]]

    @classmethod
    def of(cls, config: Config, dataset: MultimodalDataset) -> Cases:
        """The cases of a run: before the training targets, unless nothing is fine-tuned, and before held-out items.

        Args:
            config: of the run; its `sft_*` name the targets, `answers: written` fine-tunes nothing.
            dataset: loaded and not yet split.

        Raises:
            ConfigError: the split is one whose training rows are not known yet, or an `sft_*` that is not accepted.
        """
        tuned = SftSettings.of(config)
        timelines = dataset.user_timelines()
        lengths: dict[int, set[int]] = {int(user): set() for user in timelines.users}
        if tuned.tuning != "none" and config["answers"] != "written":
            users, _, offsets = dataset.user_histories()
            for target in training_targets(offsets, tuned.targets, tuned.examples, tuned.seed):
                lengths[int(users[target.place])].add(target.position)
        for place, user in enumerate(timelines.users.tolist()):
            phases = timelines.phases[timelines.offsets[place] : timelines.offsets[place + 1]]
            lengths[user] |= set(np.flatnonzero(phases != TRAIN).tolist()) - {0}
        return cls(timelines, {user: sorted(found) for user, found in lengths.items()})

    def __len__(self) -> int:
        return sum(map(len, self.lengths.values()))

    def nodes(self) -> list[Node]:
        """User and length of each."""
        return [(user, length) for user, lengths in self.lengths.items() for length in lengths]

    def sequences(self) -> dict[int, np.ndarray]:
        """User -> the items of the longest history, oldest first: no item that is only ever asked for."""
        return {user: self._rows(self.timelines.items, place) for place, user in self._places()}

    def chains(self, settings: PreferenceSettings) -> Chains:
        """The texts of `preference: recurrent`, block by block.

        Raises:
            ConfigError: sessions are wanted of data without times.
        """
        chains = Chains()
        gap = 0.0 if settings.preference_blocks == "size" else self._gap(settings.preference_gap_hours)
        for place, user in self._places():
            if settings.preference_blocks == "size":
                cuts = blocks_of_size(max(self.lengths[user], default=0), settings.preference_block_size)
            else:
                assert self.timelines.times is not None
                cuts = sessions(self._rows(self.timelines.times, place), gap)
            chains.add(user, cuts, self.lengths[user])
        return chains

    def _places(self) -> list[tuple[int, int]]:
        return list(enumerate(self.timelines.users.tolist()))

    def _rows(self, column: np.ndarray, place: int) -> np.ndarray:
        start = self.timelines.offsets[place]
        return column[start : start + max(self.lengths[int(self.timelines.users[place])], default=0)]

    def _gap(self, hours: float) -> float:
        """Hours in the unit of the time column."""
        times = self.timelines.times
        if times is None:
            raise ConfigError(
                "preference_blocks: gap needs times: name their column in load_col, or set preference_blocks: size"
            )
        trained = times[self.timelines.phases == TRAIN]
        ticks = ticks_per_second(trained)
        if ticks is None:
            raise ConfigError(
                "preference_blocks: gap needs times in Unix seconds or milliseconds; these end at "
                f"{trained.max(initial=0.0):,.0f}, as positions do: set preference_blocks: size"
            )
        return hours * SECONDS_PER_HOUR * ticks


def requests_at_once(
    cases: Cases, prompts: PreferencePrompts
) -> tuple[Mapping[Node, Request], Mapping[Node, set[int]], int]:
    """The requests of `preference: direct`: each history as a whole, its newest items within the budget.

    Returns:
        Case -> request, where anything is known of its items; case -> items shown; how many histories are cut. The
        first two are made on demand.
    """
    sequences = cases.sequences()

    def shown_of(node: Node) -> Shown | None:
        return prompts.of(sequences[node[0]][: node[1]].tolist())

    def made(node: Node) -> Shown:
        shown = shown_of(node)
        assert shown is not None
        return shown

    cut = {node: shown.cut > 0 for node in cases.nodes() if (shown := shown_of(node)) is not None}
    requests = OnDemand(cut, lambda node: made(node).request)
    return requests, OnDemand(cut, lambda node: set(made(node).items)), sum(cut.values())


def requests_of_template(cases: Cases, content: ItemContent, words: int) -> dict[Node, Request]:
    """Returns what the template says of each history, as a whole; nothing where the metadata says nothing."""
    summary, sequences = HistorySummary(content, words), cases.sequences()
    texts = {node: summary.of(sequences[node[0]][: node[1]].tolist()) for node in cases.nodes()}
    return {node: Request("", text) for node, text in texts.items() if text is not None}


class Preferences:
    """What has been written of each user after each history that is asked about.

    Args:
        sequences: RecBole's user id -> item ids (n,), oldest first.
        texts: user and number of items -> text.
        max_length: items of the longest history that is asked with (`MAX_ITEM_LIST_LENGTH`): one of so many may be the
            end of a longer one. None: histories are always whole.

    Example:
        >>> preferences = Preferences({1: np.array([5, 6, 7])}, {(1, 2): "Likes five and six."})
        >>> preferences.of(1, [5, 6, 7])
        'Likes five and six.'
    """

    def __init__(
        self, sequences: Mapping[int, np.ndarray], texts: Mapping[Node, str], max_length: int | None = None
    ) -> None:
        self._sequences = sequences
        self._max_length = max_length
        self._written: dict[int, tuple[list[int], list[str]]] = {}
        for (user, length), text in sorted(texts.items()):
            lengths, found = self._written.setdefault(user, ([], []))
            lengths.append(length)
            found.append(text)

    def __len__(self) -> int:
        return sum(len(lengths) for lengths, _ in self._written.values())

    def of(self, user: int, history: Sequence[int]) -> str | None:
        """The text of the longest beginning of this history that one was written after; None where there is none.

        Args:
            user: RecBole's id.
            history: RecBole's item ids, oldest first; or the last `max_length` of them.
        """
        if user not in self._written:
            return None
        lengths, texts = self._written[user]
        place = bisect_right(lengths, self._seen(user, np.asarray(history, dtype=np.int64)))
        return texts[place - 1] if place else None

    def _seen(self, user: int, history: np.ndarray) -> int:
        """How many of the user's known items a history has seen.

        Of several places where the end of a history may stand in the sequence it is the first: a text must never know
        more than the history that it stands for.
        """
        own = self._sequences[user]
        shared = min(len(own), len(history))
        differs = np.flatnonzero(own[:shared] != history[:shared])
        common = int(differs[0]) if len(differs) else shared
        if common == len(history) or len(history) != self._max_length:
            return common
        if len(history) <= len(own):
            windows = np.flatnonzero((sliding_window_view(own, len(history)) == history).all(axis=1))
            if len(windows):
                return int(windows[0]) + len(history)
        for start in range(1, len(own)):  # all that is known, and more that is not
            rest = own[start:]
            if len(rest) < len(history) and (rest == history[: len(rest)]).all():
                return len(own)
        return common


class UserPreferences(TextNeed):
    """`user_preferences`: what every user prefers after each history that the model is asked about (MLLM-MSR)."""

    @cached_property
    def cases(self) -> Cases:
        """The histories that are asked about."""
        return Cases.of(self.context.config, self.context.dataset)

    @property
    def in_blocks(self) -> bool:
        """Whether texts are written block by block, each made of the one before it."""
        return self.writing.answers and self.writing.preference.preference == "recurrent"

    def stage(self, texts: Texts) -> tuple[TextStage[Node], int]:
        """Returns the texts that are wanted, none made of another, and how many of them show a part of what is known.

        Args:
            texts: of the items.
        """
        words, cut = self.writing.preference.preference_words, 0
        requests: Mapping[Node, Request]
        shown: Mapping[Node, set[int]] = {}
        if self.writing.answers:
            requests, shown, cut = requests_at_once(self.cases, self._prompts(texts))
        else:
            requests = requests_of_template(self.cases, self.context.content, words)
        return TextStage(PREFERENCES, requests, self._names(requests), shown), cut

    def _prompts(self, texts: Texts) -> PreferencePrompts:
        preference = self.writing.preference
        return PreferencePrompts(
            texts,
            self.writing.settings.item_domain,
            preference.preference_words,
            self.writing.generator,
            self.writing.context_tokens,
            preference.preference_history_tokens if preference.preference == "direct" else None,
        )

    def _chain_writer(self, items: Texts) -> ChainWriter:
        """Plans or writes the texts of `preference: recurrent`."""
        writing, sequences = self.writing, self.cases.sequences()
        chains = self.cases.chains(writing.preference)
        longest = max(chains.remaining().values(), default=0)
        blocks = f"{len(chains):,} blocks, at most {longest:,} of them one after the other"
        self.context.notes.append(f"preferences: {blocks}")
        logger.info("user preferences: %s", blocks)
        done_without = writing.left_out.of(PREFERENCES) or frozenset()
        return ChainWriter(
            chains,
            lambda user: sequences[user].tolist(),
            self._prompts(items),
            writing.preference.preference_words,
            self.context.store,
            writing.generator,
            {node for node, name in self._names(chains.starts).items() if name in done_without},
        )

    def _names(self, nodes: Iterable[Node]) -> dict[Node, str]:
        """What a text is called in the list of failures: `u7 (12 items)`."""
        tokens = self.context.dataset.field2id_token[self.context.dataset.uid_field]
        return {(user, length): f"{tokens[user]} ({length} items)" for user, length in nodes}

    # --- planning ----------------------------------------------------------------------------------------------------

    def plan(self) -> list[PlannedStage]:
        """Returns the stages of descriptions and of preferences; what follows a text that is not written is estimated.

        Raises:
            ConfigError: the split is one whose training rows are not known yet, or sessions are wanted without times.
        """
        settings, preference = self.writing.settings, self.writing.preference
        if preference.preference == "none":
            return []
        rows, items = self.context.share(ItemTexts).planned
        if self.in_blocks:
            planned = self._chain_writer(items.texts).plan(self.writing, items.unwritten)
        else:
            planned = self.writing.plan(self.stage(items.texts)[0], items.unwritten, apart=True)
        if planned.waiting:
            self.context.notes.append(
                f"{len(planned.waiting):,} preference texts are made of texts that are not written yet: their prompts "
                f"are estimated with {preference.preference_words} words per text before and "
                f"{settings.description_words} per description"
            )
        return [*rows, planned.row]

    # --- writing -----------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> Preferences:
        """The texts; written now unless the store has them."""
        max_length = self.context.config["MAX_ITEM_LIST_LENGTH"]
        if self.writing.preference.preference == "none":
            return Preferences({}, {}, max_length)
        items, cases = self.context.share(ItemTexts).texts, self.cases
        nodes = cases.chains(self.writing.preference).starts if self.in_blocks else cases.nodes()
        written = self.writing.remembered(PREFERENCES, self._names(nodes))
        if written is None:
            texts = self._chains(items) if self.in_blocks else self._at_once(items)
        else:
            texts = {node: cut_words(text, self.writing.preference.preference_words) for node, text in written.items()}
        found = Preferences(cases.sequences(), texts, max_length)
        without = sum(not any((user, length) in texts for length in cases.lengths[user]) for user in cases.lengths)
        logger.info("user preferences: %d texts for %d cases; %d users have none", len(found), len(cases), without)
        self._measure(texts)
        return found

    def _measure(self, texts: Mapping[Node, str]) -> None:
        """Says how generic the preferences are, each user's after the longest history."""
        latest = {user: length for user, length in sorted(texts)}
        said, sequences = {user: texts[user, length] for user, length in latest.items()}, self.cases.sequences()
        known = self.context.share(ItemTexts).known_of
        if figures := report(LABELS[PREFERENCES], said, lambda user: sequences[user][: latest[user]].tolist(), known):
            self.context.genericness[LABELS[PREFERENCES]] = figures

    def _at_once(self, items: Texts) -> dict[Node, str]:
        """A text for each case, none of which waits for another."""
        stage, cut = self.stage(items)
        _log_cut(cut, len(stage.requests))
        words, written = self.writing.preference.preference_words, self.writing.write(stage)
        asked = stage.requests
        self.writing.note_tokens(PREFERENCES, by_user(asked), lambda node: asked[node].prompt, written)
        return {node: cut_words(text, words) for node, text in written.items()}

    def _chains(self, items: Texts) -> dict[Node, str]:
        """Texts block by block, of the cases and of what they are made of."""
        writing, config, writer = self.writing, self.context.config, self._chain_writer(items)
        names = self._names(writer.chains.starts)
        try:
            made = writer.write(config["show_progress"])
        finally:
            done = writer.written
            work = TextWork(done.asked, done.prompt_tokens, 0, done.asked * config["text_max_new_tokens"])
            if done.computed:
                writing.note_rate(PREFERENCES, work, done.seconds)
        writing.note_tokens(PREFERENCES, by_user(writer.chains.starts), writer.prompt_of, made.texts)
        writing.remember(PREFERENCES, {names[node]: key for node, key in made.keys.items()})
        _log_cut(made.cut, len(writer.chains))
        writing.list_failed(PREFERENCES, {names[node]: why for node, why in made.failed.items()}, len(writer.chains))
        return made.texts

    def write(self) -> None:
        """Has the texts written, those of items first."""
        _ = self.texts

    def compute(self) -> dict[str, Any]:
        """Returns `preferences`."""
        return {"preferences": self.texts}


def by_user(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    """Each user's texts.

    Example:
        >>> by_user([(1, 3), (2, 3), (1, 6)])
        {1: [(1, 3), (1, 6)], 2: [(2, 3)]}
    """
    found: dict[int, list[Node]] = {}
    for node in nodes:
        found.setdefault(node[0], []).append(node)
    return found


def _log_cut(cut: int, total: int) -> None:
    if cut:
        logger.info("user preferences: %d of %d prompts have no room for all that is known", cut, total)
