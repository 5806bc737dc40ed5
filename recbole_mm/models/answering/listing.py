"""Ranking by the letter that an LLM would answer: a case's candidates in one prompt, in one or several orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.questions import Questions, ask
from recbole_mm.models.answering.asking import ListBlocks


def orders(count: int, wanted: int) -> list[np.ndarray]:
    """Orders in which a list is shown: as it stands, and turned by equal parts of it, each order once.

    A letter is answered for its place as well as for its item; over turned lists every item has stood at several.

    Example:
        >>> [order.tolist() for order in orders(4, 2)]
        [[0, 1, 2, 3], [2, 3, 0, 1]]
    """
    turns = dict.fromkeys(turn * count // wanted for turn in range(wanted))
    return [np.roll(np.arange(count), -turn) for turn in turns]


def best_first(scores: Tensor, asked: Tensor) -> list[np.ndarray]:
    """The marked columns of each row, the highest score first; of equal scores the first column.

    Args:
        scores: (B, N).
        asked: bool (B, N).

    Example:
        >>> [row.tolist() for row in best_first(torch.tensor([[2.0, 9.0, 5.0]]), torch.tensor([[True, False, True]]))]
        [[2, 0]]
    """
    ranked = scores.masked_fill(~asked, -torch.inf).sort(stable=True, dim=1, descending=True).indices
    counts = asked.sum(1).tolist()
    return [row[:count].cpu().numpy() for row, count in zip(ranked, counts)]


def list_questions(
    blocks: ListBlocks,
    users: Sequence[int],
    histories: Sequence[np.ndarray],
    lists: Sequence[np.ndarray],
    wanted: int,
) -> tuple[Questions, list[tuple[int, np.ndarray]]]:
    """The prompts of all lists in all of their orders.

    Args:
        blocks: lays them out.
        users, histories: (B,) of the cases.
        lists: (B,) items of each case, best first; an empty one is not asked about.
        wanted: number of orders.

    Returns:
        The questions, and for each its case and the items as they are shown.
    """
    shown = [
        (case, items[order]) for case, items in enumerate(lists) if len(items) for order in orders(len(items), wanted)
    ]
    owners = np.array([case for case, _ in shown], dtype=np.int64)
    return blocks.questions(users, histories, owners, [tuple(items.tolist()) for _, items in shown]), shown


def list_scores(
    reader: AnswerReader,
    questions: Questions,
    shown: Sequence[tuple[int, np.ndarray]],
    shape: tuple[int, ...],
    most: int,
) -> Tensor:
    """p(letter) of each item over the letters of its list, averaged over orders, as a share of the case's highest.

    A share, so that the best item of a list has 1 whatever the length of the list, and scores are of the scale of the
    probabilities that other models rerank by.

    Args:
        reader: of the letters.
        questions, shown: from `list_questions`.
        shape: (B, n_items).
        most: tokens that are read at once.

    Returns:
        float64 (B, n_items); zeros for items that are not asked about.
    """
    total = torch.zeros(shape, dtype=torch.float64)
    with torch.no_grad():
        logits = ask(reader, questions, most).double().cpu()
    for (case, items), row in zip(shown, logits):
        total[case, torch.from_numpy(items)] += row[: len(items)].softmax(0)
    highest = total.amax(1, keepdim=True)
    return total / highest.clamp_min(1e-300)
