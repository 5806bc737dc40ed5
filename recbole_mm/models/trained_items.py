"""Item vectors of an LLM that is trained with the recommender: those of a batch with gradients, others from a cache.

Encoding a whole catalogue at every step costs too much, and keeping the activations of a large batch too much memory.
So the distinct items of a batch are encoded once, with gradients, in passes of a bounded number of tokens, whose
activations are computed again in the backward pass where there are several. Other items that a loss looks at, its
negatives, come from a cache without gradients, and no entry of it is older than `staleness` batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError

CACHED, TRAINED = "cached", "trained"
"""Values of `item_llm_negatives`."""


@dataclass(frozen=True)
class CachePolicy:
    """Which items of a loss have gradients, and how old the vectors of the others may be.

    Attributes:
        max_tokens: most tokens of a pass of the LLM, padding and image patches included; an item that alone has more
            is a pass of its own.
        negatives: `cached`: items that are not in a batch's histories and targets have no gradients. `trained`: every
            item that the loss looks at has.
        staleness: most batches since a cached vector was computed; None: it is computed once per epoch.
    """

    max_tokens: int
    negatives: str = CACHED
    staleness: int | None = None

    @classmethod
    def of(cls, config: Config) -> CachePolicy:
        """Read `max_tokens_per_batch`, `item_llm_negatives` and `item_llm_staleness`."""
        return cls(config["max_tokens_per_batch"], config["item_llm_negatives"], config["item_llm_staleness"])


@dataclass
class _Batch:
    """The items that are encoded with gradients for the batch at hand.

    Attributes:
        items: (m,) their ids.
        vectors: (m, h) their vectors.
        place: (n_items,) int64, row of each item in `vectors`, or -1.
    """

    items: Tensor
    vectors: Tensor
    place: Tensor


class TrainedItems(nn.Module, ABC):
    """An item LLM that is trained; a subclass says what it reads.

    Weights that are frozen (those below a LoRA) are not saved with the model: they are those of the `mllm`.

    Args:
        n_items: number of items, padding included.
        width: h, width of the vectors.
        policy: of memory, gradients and the cache.

    Example:
        >>> class Table(TrainedItems):
        ...     def __init__(self):
        ...         super().__init__(3, 2, CachePolicy(max_tokens=1))
        ...         self.words = nn.Embedding(3, 2)
        ...     def sizes(self, ids):
        ...         return [1] * len(ids)
        ...     def read(self, ids):
        ...         return self.words(ids)
        >>> items = Table()
        >>> with items.batch(torch.tensor([[1, 2], [1, 0]])):
        ...     vectors = items.look_up(torch.tensor([2, 1]))
        >>> vectors.shape, vectors.requires_grad
        (torch.Size([2, 2]), True)
    """

    keeps_contents = True  # so that other contents in the test would change nothing

    vectors: Tensor
    computed: Tensor

    def __init__(self, n_items: int, width: int, policy: CachePolicy) -> None:
        super().__init__()
        self.policy, self.width, self.n_items = policy, width, n_items
        self.number = 0
        """Training batches so far."""
        self.current_at = -1
        """`number` when all of `vectors` were computed with the weights of that time; -1: never."""
        # Made when they are first needed; what an epoch has changed of them is saved as the model's attributes.
        self.register_buffer("vectors", torch.zeros(0, width), persistent=False)
        self.register_buffer("computed", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._batch: _Batch | None = None
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_before_loading)

    @abstractmethod
    def sizes(self, ids: Tensor) -> list[int]:
        """Return the number of tokens and image patches of each of the items (n,)."""

    @abstractmethod
    def read(self, ids: Tensor) -> Tensor:
        """Return the vectors (n, h) float32 of items (n,), in one pass of the LLM, with gradients where enabled."""

    # ------------------------------------------------------------------------------------------------------- encoding

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors (n, h) of items (n,), with gradients where enabled, in passes of bounded size."""
        sizes = self.sizes(ids)
        order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)  # items of like size share a pass
        parts = cut_into_passes([sizes[place] for place in order], self.policy.max_tokens)
        again = torch.is_grad_enabled() and len(parts) > 1
        places = torch.tensor(order, dtype=torch.int64, device=ids.device)
        found = [self._pass(ids[places[start:end]], again) for start, end in parts]
        return torch.cat(found)[places.argsort()] if found else torch.zeros(0, self.width, device=ids.device)

    def _pass(self, ids: Tensor, again: bool) -> Tensor:
        return checkpoint(self.read, ids, use_reentrant=False) if again else self.read(ids)

    @torch.no_grad()
    def _refresh(self, ids: Tensor) -> None:
        """Compute the cached vectors of items (n,) with the weights of now, without dropout."""
        if len(ids):
            training = self.training
            self.eval()
            self.vectors[ids] = self(ids).to(self.vectors)
            self.train(training)
            self.computed[ids] = self.number + (self._batch is None)  # between two batches: as of the next one

    def set_vectors(self, vectors: Tensor) -> None:
        """Take the vectors (n_items, h) of all items as those of the weights of now."""
        self.vectors = vectors.detach().to(self.vectors, copy=True)  # it is written to
        self.computed = torch.full((self.n_items,), self.number + 1, device=self.vectors.device)
        self.current_at = self.number

    def table(self) -> Tensor:
        """Return the vectors (n_items, h) of all items, without gradients; the same until the next training batch."""
        if self.current_at != self.number:
            self._make_room()
            self._refresh(torch.arange(self.n_items, device=self.vectors.device))
            self.current_at = self.number
        return self.vectors

    def keep(self) -> None:
        """Start an epoch that leaves the LLM as it is; the vectors of now count as the epoch's own, and are saved."""
        self.table()
        self.number += 1
        self.computed += 1
        self.vectors, self.current_at = self.vectors.clone(), self.number

    def start_epoch(self) -> None:
        """Compute the cache anew, unless it is of the weights of now or nothing will be read from it."""
        if self.policy.negatives == CACHED:
            self.table()

    def _make_room(self) -> None:
        if len(self.vectors) != self.n_items:
            self.set_vectors(torch.zeros(self.n_items, self.width, device=self.vectors.device))
            self.computed.fill_(-1)

    # ------------------------------------------------------------------------------------------------------- training

    @contextmanager
    def batch(self, ids: Tensor) -> Iterator[None]:
        """Encode the distinct items of `ids` (any shape) with gradients; `look_up` gives them within the block."""
        if self.policy.negatives == CACHED:
            if self.current_at < 0:
                self.table()
            self._make_room()
        self.number += 1
        nothing = ids.new_zeros(0)
        place = torch.full((self.n_items,), -1, dtype=torch.int64, device=ids.device)
        self._batch = _Batch(nothing, torch.zeros(0, self.width, device=ids.device), place)
        try:
            self._train_on(torch.unique(ids))
            yield
        finally:
            self._batch = None

    def _train_on(self, ids: Tensor) -> None:
        """Add distinct items (n,) to those that have gradients in this batch."""
        batch = self._batch
        assert batch is not None
        batch.place[ids] = torch.arange(len(batch.items), len(batch.items) + len(ids), device=ids.device)
        vectors = self(ids).float()
        batch.items = torch.cat([batch.items, ids])
        batch.vectors = torch.cat([batch.vectors, vectors])
        if self.policy.negatives == CACHED:
            self.vectors[ids] = vectors.detach().to(self.vectors)
            self.computed[ids] = self.number

    def look_up(self, ids: Tensor | None = None) -> Tensor:
        """Return vectors, within a batch as its policy says, otherwise those of the weights of now.

        Args:
            ids: items of any shape, giving (..., h); None for all items, giving (n_items, h).
        """
        batch = self._batch
        if batch is None:
            return self.table() if ids is None else self.table()[ids]
        wanted = torch.arange(self.n_items, device=batch.place.device) if ids is None else torch.unique(ids)
        others = wanted[batch.place[wanted] < 0]
        if self.policy.negatives == TRAINED:
            if len(others):
                self._train_on(others)
            return batch.vectors[batch.place if ids is None else batch.place[ids]]
        if self.policy.staleness is not None:
            self._refresh(others[self.number - self.computed[others] > self.policy.staleness])
        if ids is None:
            return self.vectors.index_copy(0, batch.items, batch.vectors.to(self.vectors))
        place = batch.place[ids]
        trained = batch.vectors[place.clamp_min(0)]
        return torch.where((place >= 0).unsqueeze(-1), trained, self.vectors[ids])


def cut_into_passes(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cut items into passes of at most `most` tokens, padding included, or of one item.

    Args:
        sizes: tokens of each item, the longest first.
        most: bound of a pass.

    Returns:
        Start and end of each pass.

    Example:
        >>> cut_into_passes([90, 19, 19, 1], 40)
        [(0, 1), (1, 3), (3, 4)]
    """
    parts, start = [], 0
    while start < len(sizes):
        end = min(len(sizes), start + max(1, most // max(1, sizes[start])))
        parts.append((start, end))
        start = end
    return parts


def with_rate_of(llm: nn.Module, rate: float, model: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's groups of a model, a part of which has a learning rate of its own."""
    known = {id(weight) for weight in llm.parameters()}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    return [{"params": others}, {"params": list(llm.parameters()), "lr": rate}]


def require_one_process(config: Config, what: str) -> None:
    """Refuse several workers, each of which would have a cache of its own.

    Raises:
        ConfigError: `train_workers` is above 1.
    """
    if config["train_workers"] > 1:
        raise ConfigError(f"{what} keeps a cache of item vectors in one process; set train_workers: 1")


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in module.named_parameters() if not weight.requires_grad}


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put the frozen weights where loading looks for them, and forget vectors of the former weights."""
    assert isinstance(module, TrainedItems)
    for name, weight in _frozen(module).items():
        state.setdefault(prefix + name, weight.detach())
    module.current_at = -1
