"""Many questions about candidates, answered in batches: every prefix once, prompts of like length together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_mm.errors import ConfigError
from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.blocks import Block
from recbole_mm.llm.decoder import context_of


@dataclass(frozen=True)
class Questions:
    """Many candidates for each of U users: prompts that share a prefix per user.

    Attributes:
        prefix_lengths: (U,) tokens of each user's prefix.
        suffix_lengths: (n,) tokens of each candidate's suffix.
        owners: (n,) the user of each candidate.
        prefixes, suffixes: make the block of given users or candidates, when their turn has come.
        whole: makes the block of whole prompts of given candidates, for models whose prefixes cannot be shared
            (`Family.images_reach_back`); None: they can.
    """

    prefix_lengths: np.ndarray
    suffix_lengths: np.ndarray
    owners: np.ndarray
    prefixes: Callable[[np.ndarray], Block] = field(repr=False)
    suffixes: Callable[[np.ndarray], Block] = field(repr=False)
    whole: Callable[[np.ndarray], Block] | None = field(repr=False, default=None)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int((self.prefix_lengths[self.owners] + self.suffix_lengths).max(initial=0))

    @property
    def tokens(self) -> int:
        """Tokens that are read to answer all of them, padding not counted: each user's prefix once if it is shared."""
        asking = self.owners if self.whole is not None else np.unique(self.owners)
        return int(self.prefix_lengths[asking].sum() + self.suffix_lengths.sum())


def ask(reader: AnswerReader, questions: Questions, tokens_per_batch: int) -> Tensor:
    """Answer all candidates: every prefix once, or prompts as a whole; those of like length together.

    Args:
        reader: of the model.
        questions: n of them.
        tokens_per_batch: bound on the tokens, padding included, whose keys and values are held at once: those of the
            prefixes in work, and as many again for the candidates that are read against them.

    Returns:
        (n,) float32 logit(yes) - logit(no); of a reader of words (n, number of words), their logits.

    Raises:
        ConfigError: a prompt is longer than the model can read.
    """
    check_length(reader.model, questions.longest)
    answers = torch.zeros(len(questions.owners), *reader.contrast.shape[1:], device=reader.contrast.device)
    if questions.whole is not None:
        lengths = questions.prefix_lengths[questions.owners] + questions.suffix_lengths
        for batch in batches_of_like_length(lengths, tokens_per_batch):
            answers[torch.from_numpy(batch).to(answers.device)] = reader.read(questions.whole(batch))
        return answers
    by_owner = np.argsort(questions.owners, kind="stable")
    asking, starts, counts = np.unique(questions.owners[by_owner], return_index=True, return_counts=True)
    for batch in batches_of_like_length(questions.prefix_lengths[asking], tokens_per_batch):
        prefix = reader.read_prefix(questions.prefixes(asking[batch]))
        place = np.repeat(np.arange(len(batch)), counts[batch])
        mine = np.concatenate([by_owner[starts[user] : starts[user] + counts[user]] for user in batch])
        longest = int(questions.prefix_lengths[asking[batch]].max())
        for some in batches_of_like_length(questions.suffix_lengths[mine], tokens_per_batch, longest):
            owners = torch.from_numpy(place[some]).to(answers.device)
            read = reader.read_after(prefix, owners, questions.suffixes(mine[some]))
            answers[torch.from_numpy(mine[some]).to(answers.device)] = read
    return answers


def check_length(model: Any, longest: int) -> None:
    """Refuse prompts that are longer than the model can read.

    Args:
        model: an LLM.
        longest: tokens of the longest prompt.

    Raises:
        ConfigError: naming both lengths.
    """
    context = context_of(model)
    if context is not None and longest > context:
        raise ConfigError(f"the longest prompt has {longest} tokens, more than the {context} that the LLM can read")


def batches_of_like_length(lengths: np.ndarray, tokens: int, extra: int = 0) -> Iterator[np.ndarray]:
    """Cut rows into batches whose count times (`extra` + their longest) is at most `tokens`; longest rows first.

    Yields:
        Indices into `lengths`; a row that alone is longer is a batch of its own.

    Example:
        >>> [batch.tolist() for batch in batches_of_like_length(np.array([2, 9, 3, 2]), tokens=6)]
        [[1], [2, 0], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, tokens // (extra + int(lengths[order[start]])))
        yield order[start : start + size]
        start += size
