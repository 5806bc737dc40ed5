"""Supervised fine-tuning inside: prompts with answers, their batches, and the loss on the answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Sampler

from recbole_mm.llm.family import Family, Part, PreparedInput

POOL_BATCHES = 16
"""Batches are cut from pools of so many, sorted by length: more pad less, fewer mix examples better."""

HEAD_TOKENS = 1024
"""Logits that are held at once: those of so many tokens, 600 MB each way for a vocabulary of 150,000."""


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to be learnt.

    Attributes:
        parts: images and token ids of the prompt, in reading order.
        answer: token ids of the answer, with the token that ends it; not empty.
        kind: what sort of example it is: the loss is logged for each kind.
        weight: of its loss.
        learns_prompt: the words of the prompt are learnt as well as the answer; what stands for images is not.
    """

    parts: Sequence[Part]
    answer: Sequence[int]
    kind: str
    weight: float = 1.0
    learns_prompt: bool = False


class Examples(Protocol):
    """What is learnt from.

    Attributes:
        lengths: (n,) upper bounds of each example's cost: tokens plus image patches.
    """

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example | None:
        """Decode and tokenize one; None if it cannot be had. Called in threads."""


class Ready(NamedTuple):
    """A prepared example.

    Attributes:
        input: prompt and answer.
        answer: so many of its last tokens are the answer.
        kind, weight: see `Example`.
        learnt: (T,) places of all tokens that are to be predicted; None: the answer's.
    """

    input: PreparedInput
    answer: int
    kind: str
    weight: float
    learnt: np.ndarray | None = None

    @property
    def places(self) -> np.ndarray:
        """(T,) places of the tokens that are to be predicted."""
        length = len(self.input.ids)
        return np.arange(length - self.answer, length) if self.learnt is None else self.learnt


def words_to_learn(ids: np.ndarray, not_words: Collection[int]) -> np.ndarray:
    """Places of the tokens that a prompt's words are made of: all but the first one and those of images.

    Args:
        ids: (L,) of prompt and answer.
        not_words: ids that stand for something else than words.
    """
    return 1 + np.flatnonzero(~np.isin(ids[1:], list(not_words)))


# --- batches ---------------------------------------------------------------------------------------------------------


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of examples of like length, within a budget of tokens; the same batches in another order every epoch.

    A batch of n examples costs n times the longest one, padding included. An example that alone exceeds the budget is a
    batch of its own.

    Args:
        lengths: cost of each example.
        budget: bound of a batch's cost.
        seed: of the grouping and the orders.

    Example:
        >>> sorted(map(len, LengthGroupedBatches(np.array([5, 5, 5, 9]), budget=10, seed=0)))
        [1, 1, 2]
    """

    batch_size = None  # what accelerate reads to learn that sizes vary
    drop_last = False

    def __init__(self, lengths: np.ndarray, budget: int, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self.batches = _cut(np.asarray(lengths), budget, np.random.default_rng([seed, 0]))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for place in np.random.default_rng([self.seed, 1, self.epoch]).permutation(len(self.batches)):
            yield self.batches[place]


def _cut(lengths: np.ndarray, budget: int, rng: np.random.Generator) -> list[list[int]]:
    """Shuffle, sort by length within pools, and cut greedily."""
    order = rng.permutation(len(lengths))
    pool = (np.cumsum(lengths[order]) - 1) // (POOL_BATCHES * budget)
    order = order[np.lexsort((lengths[order], pool))]
    batches: list[list[int]] = []
    longest = 0
    for index, cost in zip(order.tolist(), lengths[order].tolist()):
        longest = max(longest, cost)
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = cost
        batches[-1].append(index)
    return batches


# --- loss ------------------------------------------------------------------------------------------------------------


class AnswerLoss(nn.Module):
    """A model and the cross-entropy of the answers it is to give, in one module, as data-parallel wrappers want it.

    The language-model head, whose vocabulary is the widest thing in the model, runs on what is to be predicted alone,
    and on so few tokens at once that its logits do not decide how much memory a batch takes.

    Args:
        model: with a head; an adapter may be around it.
        family: of the model.
        bottleneck_id: token id of `[Cur_Item]` if answers may see only these of a prompt (see `bottleneck_mask`).
    """

    def __init__(self, model: nn.Module, family: Family, bottleneck_id: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.bottleneck_id = bottleneck_id
        head = next(module for module in model.modules() if isinstance(module, family.generation_class))
        self._inner = (family, head)  # in a tuple: registered once, below `model`, is enough

    def forward(
        self, batch: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of each answer token, (T,) float32.

        Args:
            batch: of `Family.collate`.
            rows, columns: (T,) the places whose next token is to be predicted.
            targets: (T,) those tokens.
        """
        family, head = self._inner
        if self.bottleneck_id is not None:
            attention = family.decoder(self.model).config._attn_implementation
            mask = bottleneck_mask(batch["input_ids"], self.bottleneck_id, family.bos_token_id)
            batch = family.masked(batch, mask, head.dtype, attention)
        states = family.base(self.model)(**batch, use_cache=False).last_hidden_state[rows, columns]
        if len(targets) <= HEAD_TOKENS:
            return self._cross_entropy(states, targets)
        parts = zip(states.split(HEAD_TOKENS), targets.split(HEAD_TOKENS))
        return torch.cat([checkpoint(self._cross_entropy, *part, use_reentrant=False) for part in parts])

    def _cross_entropy(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        family, head = self._inner
        return functional.cross_entropy(family.logits(head, states).float(), targets, reduction="none")


def bottleneck_mask(ids: torch.Tensor, cur_item_id: int, bos_id: int | None = None) -> torch.Tensor:
    """Which tokens see which when items can be learnt about only through their `[Cur_Item]`.

    An item is what stands between two `[Cur_Item]`s. Its tokens see it alone, so its `[Cur_Item]` is computed as when
    the item is encoded; what follows the last item sees all `[Cur_Item]`s and itself. Everything looks back only.

    Args:
        ids: (B, L) token ids.
        cur_item_id: of `[Cur_Item]`.
        bos_id: of the token that opens a prompt, which belongs to every item.

    Returns:
        bool (B, 1, L, L), True where a row sees a column.

    Example:
        >>> bottleneck_mask(torch.tensor([[1, 9, 2]]), cur_item_id=9)[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    ends = ids == cur_item_id
    item = ends.cumsum(1) - ends.long()
    last = item == ends.sum(1, keepdim=True)
    seen = (item[:, :, None] == item[:, None, :]) | (last[:, :, None] & ends[:, None, :])
    if bos_id is not None:
        seen[:, :, 0] |= (ids[:, 0] == bos_id)[:, None]
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    return (seen & causal)[:, None]
