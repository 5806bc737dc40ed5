"""What a model is fine-tuned on to answer: users' training items with Yes, sampled items with No.

Everything is drawn from training interactions and in the order of users' and items' tokens: RecBole's numbers follow
rows that are held out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from recbole_mm.errors import DataError
from recbole_mm.inputs.answering.prompt import WordedPrompt
from recbole_mm.llm.finetuning import examples as sft

YES_KIND, NO_KIND = "yes", "no"
"""Kinds of examples: the loss is logged for each."""


@dataclass(frozen=True)
class Target:
    """An item to be answered with Yes.

    Attributes:
        place: of its user in the histories, which are in the order of users' tokens.
        position: of the item among that user's training items, at least 1: what is before it is the history.
    """

    place: int
    position: int


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        user: RecBole's id.
        history: RecBole's ids of the items before the candidate, oldest first.
        item: the candidate.
        answer: whether it was chosen.
    """

    user: int
    history: tuple[int, ...]
    item: int
    answer: bool


def training_targets(offsets: np.ndarray, per_user: int | None, limit: int | None, seed: int) -> list[Target]:
    """The last items of every user that have a history before them.

    Args:
        offsets: int64 (U + 1,), start of each user's training items (`user_histories`).
        per_user: so many of the last of each user; None: all.
        limit: at most so many of all users' together, drawn; None: all.
        seed: of the draw.

    Returns:
        Targets by place, then position.
    """
    targets = [
        Target(place, position)
        for place, count in enumerate(np.diff(offsets).tolist())
        for position in range(1 if per_user is None else max(1, count - per_user), count)
    ]
    if limit is not None and limit < len(targets):
        drawn = np.random.default_rng([seed, 0]).permutation(len(targets))[:limit]
        targets = [targets[index] for index in np.sort(drawn).tolist()]
    return targets


def draw_examples(
    users: np.ndarray,
    items: np.ndarray,
    offsets: np.ndarray,
    item_tokens: Sequence[str],
    targets: Sequence[Target],
    negatives: int,
    seed: int,
    pools: Sequence[np.ndarray] | None = None,
) -> list[Question]:
    """Questions about each target and about items drawn for it, which its user has nowhere in the training data.

    Negatives are drawn uniformly, without repetition for one target, from the items of all training interactions, or
    from those of its pool; where there are not so many it gets fewer. What is drawn for a target does not depend on the
    other targets.

    Args:
        users: int64 (U,) RecBole's ids, in the order of their tokens.
        items: int64 (M,) their training items, oldest first.
        offsets: int64 (U + 1,).
        item_tokens: token of every item by RecBole's id.
        targets: the items that are answered with Yes.
        negatives: items with No for each.
        seed: of the draw.
        pools: for each target the items that its negatives are drawn from, none of them its user's; None: all.

    Returns:
        Each target's question, followed by those of its negatives.
    """
    population = np.array(sorted(set(items.tolist()), key=lambda item: item_tokens[item]), dtype=np.int64)
    examples: list[Question] = []
    for index, target in enumerate(targets):
        start, end = offsets[target.place], offsets[target.place + 1]
        own = items[start:end]
        user, history = int(users[target.place]), tuple(own[: target.position].tolist())
        examples.append(Question(user, history, int(own[target.position]), True))
        rng = np.random.default_rng([seed, 1, target.place, target.position])
        pool, known = (population, set(own.tolist())) if pools is None else (pools[index], set[int]())
        for item in _draw_others(pool, known, negatives, rng):
            examples.append(Question(user, history, item, False))
    return examples


def _draw_others(population: np.ndarray, known: set[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` distinct items that are not among `known`, or all of them where there are no more."""
    count = min(count, len(population) - len(known))
    if 2 * (len(known) + count) > len(population):
        others = [item for item in population.tolist() if item not in known]
        return [others[place] for place in rng.permutation(len(others))[:count].tolist()]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        item = int(population[rng.integers(len(population))])
        if item not in known:
            drawn[item] = None
    return list(drawn)


class PromptedQuestions:
    """`recbole_mm.llm.finetuning.examples.Examples` of questions: prompt and first token of the answer.

    The token that is learnt is the one whose probability ranks; what a model would write after it ranks nothing.

    Args:
        asked: the questions.
        prompt: lays them out.
        yes, no: ids of the answers' tokens (`resolve_yes_no`).
        whole: learn the words of the prompt too.

    Raises:
        DataError: there is none.
    """

    def __init__(self, asked: Sequence[Question], prompt: WordedPrompt, yes: int, no: int, whole: bool = False) -> None:
        if not asked:
            raise DataError("fine-tuning needs a user with at least two training interactions: there is none")
        self.asked = asked
        self.prompt = prompt
        self.answers = {True: yes, False: no}
        self.whole = whole
        costs = (1 + prompt.prefix_length(one.user, one.history) + prompt.suffix_length(one.item) for one in asked)
        self.lengths = np.fromiter(costs, np.int64, len(asked))

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> sft.Example:
        """One example; called in threads."""
        one = self.asked[index]
        parts = [*self.prompt.prefix(one.user, one.history), *self.prompt.suffix(one.item)]
        kind = YES_KIND if one.answer else NO_KIND
        return sft.Example(parts, [self.answers[one.answer]], kind, learns_prompt=self.whole)


def questions_digest(asked: Sequence[Question], prompt: WordedPrompt) -> str:
    """sha256 in hex over everything that the questions show and ask for, whatever RecBole numbers it."""
    digest = hashlib.sha256()
    items = sorted({one.item for one in asked})
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # image files are read
        shown = dict(zip(items, pool.map(prompt.fingerprint, items)))
    for one in asked:
        line = json.dumps([prompt.user_text(one.user, one.history), shown[one.item], one.answer])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
