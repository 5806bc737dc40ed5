"""Candidates in one list: the prompt shows them behind letters, and the answer is the letter of the next item (ours).

    p(letter of i | prompt) for every candidate i, at the first answer token: one pass orders the whole list, as in
    FIRST (Single Token Decoding, 2406.15657), where asking Yes or No takes a pass for each candidate.

What a letter is fine-tuned on: a training item among others, in an order that is drawn, with its own letter as answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.errors import DataError
from recbole_mm.inputs.answering.examples import Question
from recbole_mm.inputs.answering.prompt import LABELS, WordedPrompt
from recbole_mm.llm.finetuning import examples as sft

LISTED = "listed"
"""Value of `answers`."""

MOST_LISTED = len(LABELS)

LIST_KIND = "list"
"""Kind of examples, for the loss that is logged."""


@dataclass(frozen=True)
class ListQuestion:
    """One list with its answer.

    Attributes:
        user: RecBole's id.
        history: RecBole's ids of the items before, oldest first.
        items: the candidates, in the order in which they are shown.
        place: of the chosen one among them.
    """

    user: int
    history: tuple[int, ...]
    items: tuple[int, ...]
    place: int


def lists_of(asked: Sequence[Question], seed: int) -> list[ListQuestion]:
    """Questions about an item and about others as one list each, in an order that is drawn.

    Args:
        asked: each target's question, followed by those of its negatives (`draw_examples`).
        seed: of the draw.
    """
    groups: list[list[Question]] = []
    for one in asked:
        if one.answer:
            groups.append([one])
        else:
            groups[-1].append(one)
    found = []
    for index, (target, *others) in enumerate(groups):
        items = [target.item, *(one.item for one in others)]
        order = np.random.default_rng([seed, 2, index]).permutation(len(items)).tolist()
        shown = tuple(items[place] for place in order)
        found.append(ListQuestion(target.user, target.history, shown, order.index(0)))
    return found


class PromptedLists:
    """`recbole_mm.llm.finetuning.examples.Examples` of lists: prompt and letter of the chosen item.

    Args:
        asked: the lists.
        prompt: lays them out.
        labels: token ids of the letters.
        whole: learn the words of the prompt too.

    Raises:
        DataError: there is none.
    """

    def __init__(self, asked: Sequence[ListQuestion], prompt: WordedPrompt, labels: Sequence[int], whole: bool) -> None:
        if not asked:
            raise DataError("fine-tuning needs a user with at least two training interactions: there is none")
        self.asked, self.prompt, self.labels, self.whole = asked, prompt, labels, whole
        costs = (1 + prompt.prefix_length(one.user, one.history) + prompt.list_length(one.items) for one in asked)
        self.lengths = np.fromiter(costs, np.int64, len(asked))

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> sft.Example:
        """One example; called in threads."""
        one = self.asked[index]
        parts = [*self.prompt.prefix(one.user, one.history), *self.prompt.list_suffix(one.items)]
        return sft.Example(parts, [self.labels[one.place]], LIST_KIND, learns_prompt=self.whole)


def lists_digest(asked: Sequence[ListQuestion], prompt: WordedPrompt) -> str:
    """sha256 in hex over everything that the lists show and ask for, whatever RecBole numbers it."""
    digest, shown = hashlib.sha256(), dict[int, str]()
    for one in asked:
        for item in one.items:
            if item not in shown:
                shown[item] = prompt.fingerprint(item)
        line = json.dumps([prompt.user_text(one.user, one.history), [shown[item] for item in one.items], one.place])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
