"""Recurrent preference summaries (MLLM-MSR, 2408.09698): a user's history block by block, each text made of the block's
items and of the text before it.

A text waits for nothing but the text before it, which is the same user's. So users are written of in parallel, and a
user with many blocks does not wait for the others: whatever can be written now stands in a queue, longest remaining
chain first, and rounds of it go to the generator.
"""

from __future__ import annotations

import heapq
import logging
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import numpy as np

from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.artifacts.store import Store
from recbole_mm.inputs.reasoning.prompts import PreferencePrompts, Shown
from recbole_mm.inputs.reasoning.writing import PREFERENCES, PlannedTexts, Writing, stand_in
from recbole_mm.llm.texts.cleaning import cut_words
from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.llm.texts.stage import text_key, texts_through_store
from recbole_mm.utils.progress import progress

logger = logging.getLogger(__name__)

LEAST, MOST = 64, 1024
"""Texts of a round. Fewer would leave a model's batches half empty; more would keep long chains waiting."""
LOOKED_UP = 512
"""Texts that are looked for in the store at once."""

Node = tuple[int, int]
"""A text that is wanted: RecBole's user id, and after how many of the user's items."""


def blocks_of_size(length: int, size: int) -> list[int]:
    """Where blocks of `size` items begin.

    >>> blocks_of_size(7, 3)
    [0, 3, 6]
    """
    return list(range(0, length, size))


def sessions(times: np.ndarray, gap: float) -> list[int]:
    """Where sessions begin: at the first item, and at each that comes more than `gap` after the one before.

    Args:
        times: (n,) of a user's items, in order.
        gap: in the same unit.

    >>> sessions(np.array([0.0, 1.0, 9.0, 10.0, 30.0]), 5.0)
    [0, 2, 4]
    """
    return np.flatnonzero(np.diff(times, prepend=-np.inf) > gap).tolist()


@dataclass
class Chains:
    """Texts that are wanted, each with the block that it adds to the text before it.

    Histories of one user share their whole blocks: what is written after 3 and after 6 items serves the histories of 7
    and of 8 items alike.

    Attributes:
        starts: wanted text -> how many items the text before it has seen; 0 where there is none before. What is wanted
            comes after what it waits for.

    Example:
        >>> chains = Chains()
        >>> chains.add(user=1, cuts=blocks_of_size(7, 3), lengths=[7])
        >>> chains.starts
        {(1, 3): 0, (1, 6): 3, (1, 7): 6}
    """

    starts: dict[Node, int] = field(default_factory=dict)

    def add(self, user: int, cuts: Sequence[int], lengths: Iterable[int]) -> None:
        """Want the texts of a user after each of `lengths` items, and those they are made of.

        Args:
            user: RecBole's id.
            cuts: where blocks begin, ascending from 0 (`blocks_of_size`, `sessions`).
            lengths: each at least 1.
        """
        wanted = sorted(set(lengths))
        begun = list(cuts[: bisect_left(cuts, wanted[-1])]) if wanted else []
        for start, end in pairwise(begun):
            self.starts.setdefault((user, end), start)
        for length in wanted:
            self.starts.setdefault((user, length), begun[bisect_left(begun, length) - 1])

    def __len__(self) -> int:
        return len(self.starts)

    def before(self, node: Node) -> Node | None:
        """The text that this one waits for."""
        start = self.starts[node]
        return (node[0], start) if start else None

    def after(self) -> dict[Node, list[Node]]:
        """Text -> those that wait for it, where there are any."""
        waiting: dict[Node, list[Node]] = {}
        for node in self.starts:
            if (before := self.before(node)) is not None:
                waiting.setdefault(before, []).append(node)
        return waiting

    def remaining(self) -> dict[Node, int]:
        """Texts of the longest chain that begins with each."""
        found = dict.fromkeys(self.starts, 1)
        for node in reversed(self.starts):
            if (before := self.before(node)) is not None:
                found[before] = max(found[before], found[node] + 1)
        return found


@dataclass
class Written:
    """What came of the texts that were wanted.

    Attributes:
        texts: text of each that there is; a block of whose items nothing is known adds none.
        keys: artifact key of each of them.
        failed: -> reason, of those that could not be written. What waits for them goes on from the text before.
        cut: how many prompts could not show everything that is known of their items.
        asked, prompt_tokens: distinct requests that were made now, and the tokens of their words.
        computed: how many of them have a text now.
        seconds: spent on that.
    """

    texts: dict[Node, str] = field(default_factory=dict)
    keys: dict[Node, str] = field(default_factory=dict)
    failed: dict[Node, str] = field(default_factory=dict)
    cut: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    computed: int = 0
    seconds: float = 0.0


class ChainWriter:
    """Plans chains, or has them written through the store; an object does one of the two, once.

    Kill it anywhere: texts are named by what they are made of, so that all that was written is found again, and only
    the generator's batch in flight is lost.

    Args:
        chains: what is wanted.
        items: user -> that user's items, oldest first, at least as many as any text of the user is to see.
        prompts: makes the requests.
        words: longer texts are cut before they are used.
        store: where texts are kept.
        generator: writes the texts.
        skipped: texts that are not asked for: they have failed when the run began.
        least, most: texts of a round.

    Raises:
        ValueError: a round of no text.
    """

    def __init__(
        self,
        chains: Chains,
        items: Callable[[int], Sequence[int]],
        prompts: PreferencePrompts,
        words: int,
        store: Store,
        generator: Generator,
        skipped: Collection[Node] = (),
        least: int = LEAST,
        most: int = MOST,
    ) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"rounds of {least} to {most} texts")
        self.chains, self.items, self.prompts, self.words = chains, items, prompts, words
        self.store, self.generator, self.skipped = store, generator, skipped
        self.least, self.most = least, most
        self.written = Written()
        self._after = chains.after()
        self._remaining = chains.remaining()
        self._known: dict[Node, str | None] = {}
        self._numbers = count()
        self._ready: list[tuple[int, int, Node]] = []
        self._missing: list[tuple[int, int, Node]] = []

    def plan(self, writing: Writing, unwritten: Collection[int]) -> PlannedTexts[Node]:
        """Follows the chains as far as the store knows them, block after block, all users at once; nothing is written.

        Args:
            writing: the run's writing.
            unwritten: items whose text is not written yet; prompts show stand-ins for them.
        """
        asked: dict[Node, None] = {}
        texts: dict[Node, str] = {}
        missing, waiting, unknown = set[Node](), set[Node](), stand_in(self.words)
        level = [node for node in self.chains.starts if self.chains.before(node) is None]

        def request(node: Node) -> Request:
            shown = self._shown(node)
            assert shown is not None
            return shown.request

        while level:
            sure: list[Node] = []
            for node in level:
                before = self.chains.before(node)
                unsure, shown = before in missing or before in waiting, self._shown(node)
                self._known[node] = None if before is None else self._known[before]
                if shown is not None:
                    asked[node] = None
                    unsure = unsure or any(item in unwritten for item in shown.items)
                    self._known[node] = unknown
                if unsure:
                    waiting.add(node)
                elif shown is not None:
                    sure.append(node)
            found, lacking = writing.known(PREFERENCES, OnDemand(sure, request))
            self._known |= {node: cut_words(text, self.words) for node, text in found.items()}
            texts |= found
            missing |= lacking
            level = [later for node in level for later in self._after.get(node, ())]
        waiting &= asked.keys()
        exact = writing.is_counted and not waiting
        row = writing.row(PREFERENCES, OnDemand(asked, request), missing | waiting, len(texts), exact, waiting)
        return PlannedTexts(row, texts, missing | waiting, waiting)

    def write(self, show_progress: bool = True) -> Written:
        """Have everything written; what the store has is taken from it.

        Raises:
            StoreError: the store cannot be read or written.
            RecboleMMError: no text at all can be had; what was finished is kept.
        """
        done = progress(self._finished(), PREFERENCES, len(self.chains), "text", show_progress)
        for _ in done:
            done.note(f"{len(self.written.failed)} failed" if self.written.failed else "")
        return self.written

    def _finished(self) -> Iterator[Node]:
        """Each text that is wanted, as soon as it is known what becomes of it."""
        for node in self.chains.starts:
            if self.chains.before(node) is None:
                self._queue(node)
        done = 0
        while self._ready or self._missing:
            while self._ready:
                for node in self._looked_up([heapq.heappop(self._ready)[2] for _ in self._ready[:LOOKED_UP]]):
                    done += 1
                    yield node
            for node in self._round(len(self.chains) - done):
                done += 1
                yield node

    def _looked_up(self, nodes: Sequence[Node]) -> Iterator[Node]:
        """Settle what needs no call; line the rest up for a round."""
        requests: dict[Node, Request] = {}
        for node in nodes:
            shown = self._shown(node)
            if shown is None or node in self.skipped:
                yield self._settle(node, None)
            else:
                requests[node] = shown.request
                self.written.cut += shown.cut > 0
        keys = {node: text_key(PREFERENCES, self.generator, request) for node, request in requests.items()}
        found = self.store.get_many(keys.values())
        for node in requests:
            if keys[node] in found:
                self.written.keys[node] = keys[node]
                yield self._settle(node, str(found[keys[node]]))
            else:  # without its prompt: those of all users would be gigabytes
                heapq.heappush(self._missing, (-self._remaining[node], next(self._numbers), node))

    def _round(self, left: int) -> Iterator[Node]:
        """Have the texts written that the longest chains wait for."""
        if not self._missing:
            return
        size = self._round_size(left)
        taken = [heapq.heappop(self._missing)[2] for _ in self._missing[:size]]
        requests = {node: shown.request for node in taken if (shown := self._shown(node)) is not None}
        report = texts_through_store(self.store, PREFERENCES, self.generator, requests, show_progress=False)
        prompts = {request.prompt for request in requests.values()}
        self.written.asked += len(prompts)
        self.written.prompt_tokens += sum(map(self.generator.count_tokens, prompts))
        self.written.computed += report.computed
        self.written.seconds += report.seconds
        self.written.failed |= report.failed
        self.written.keys |= report.keys
        for node in requests:
            yield self._settle(node, report.texts.get(node))

    def _round_size(self, left: int) -> int:
        """As many texts as come to one round for each text of the longest chain: all chains then end together.

        Args:
            left: texts that are not settled.
        """
        longest = -self._missing[0][0]
        return min(max(-(-left // longest), self.least), self.most)

    def prompt_of(self, node: Node) -> str | None:
        """The prompt of a text whose turn has come; None where nothing is asked."""
        shown = self._shown(node)
        return None if shown is None else shown.request.prompt

    def _shown(self, node: Node) -> Shown | None:
        user, end = node
        before = self.chains.before(node)
        items = self.items(user)[self.chains.starts[node] : end]
        return self.prompts.of(items, None if before is None else self._known[before])

    def _settle(self, node: Node, text: str | None) -> Node:
        """Note a text, or that there is none; what waited for it can be written now."""
        before = self.chains.before(node)
        if text is not None:
            self.written.texts[node] = text = cut_words(text, self.words)
        self._known[node] = text if text is not None or before is None else self._known[before]
        for waiting in self._after.get(node, ()):
            self._queue(waiting)
        return node

    def _queue(self, node: Node) -> None:
        heapq.heappush(self._ready, (-self._remaining[node], next(self._numbers), node))
