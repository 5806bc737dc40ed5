"""Blocks of prompts, or of the like pieces of prompts, and what a model remembers of their beginnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recbole_mm.llm.family import Family, PreparedInput
from recbole_mm.llm.tokens import pad_ids


@dataclass(frozen=True)
class Block:
    """B prompts, or the like piece of B prompts, padded on the right to L columns.

    Attributes:
        inputs: keyword arguments of the model: `inputs_embeds` (B, L, hidden), or `input_ids` (B, L) with what its
            images need.
        lengths: (B,) int64, at least 1.
        positions: rope positions counted from the piece's own start, (B, L) or (3, B, L); None: 0 .. L - 1.
        placed: whether the model takes these positions; else it works out its own, and prompts are read whole.
    """

    inputs: Mapping[str, Any]
    lengths: Tensor
    positions: Tensor | None = None
    placed: bool = True

    @classmethod
    def of_vectors(cls, vectors: Tensor, lengths: Tensor) -> Block:
        """Input vectors (B, L, hidden), one after the other."""
        return cls({"inputs_embeds": vectors}, lengths)

    @classmethod
    def of_prepared(cls, family: Family, inputs: Sequence[PreparedInput], device: torch.device) -> Block:
        """Prompts of words and images, for an `AnswerReader` around the base model."""
        batch = family.collate(inputs, device)
        positions = batch.pop("position_ids", None)
        lengths = torch.tensor([len(item.ids) for item in inputs], device=device)
        placed = not family.places_images or not any(item.images for item in inputs)
        return cls(batch, lengths, positions, placed)

    @classmethod
    def of_seen(
        cls, family: Family, model: nn.Module, inputs: Sequence[PreparedInput], seen: Sequence[Tensor]
    ) -> Block:
        """Prompts whose images the vision tower has read before.

        Args:
            family, model: of the prompts.
            inputs: B of them.
            seen: of all their images in reading order, from `Family.image_vectors`.
        """
        embed = family.base(model).get_input_embeddings()
        block = cls.of_prepared(family, [replace(item, images=()) for item in inputs], embed.weight.device)
        ids = block.inputs["input_ids"]
        vectors = torch.cat(list(seen)) if seen else embed.weight[:0]
        filled = fill_placeholders(embed(ids), ids == family.config.image_token_id, vectors)
        return cls({"inputs_embeds": filled}, block.lengths, block.positions)

    def whole_positions(self) -> Tensor | None:
        """Those of whole prompts; None where the model works them out."""
        return self.all_positions() if self.placed else None

    def all_positions(self) -> Tensor:
        """(B, L) or (3, B, L)."""
        if self.positions is not None:
            return self.positions
        main = next(value for name, value in self.inputs.items() if name in ("inputs_embeds", "input_ids"))
        batch, width = main.shape[:2]
        return torch.arange(width, device=main.device).expand(batch, width)


@dataclass(frozen=True)
class Prefix:
    """What the model remembers of the beginnings of U prompts, P columns wide.

    Attributes:
        layers: keys and values of each layer, each (U, heads, P, head size).
        lengths: (U,) real columns.
        following: (U,) the rope position right after each.
    """

    layers: list[tuple[Tensor | None, Tensor | None]]
    lengths: Tensor
    following: Tensor

    def rows(self, owners: Tensor) -> DynamicCache:
        """A cache to go on from, its row r a copy of prefix `owners[r]`."""
        taken = [(k if k is None else k[owners], v if v is None else v[owners]) for k, v in self.layers]
        return DynamicCache(taken)

    @property
    def width(self) -> int:
        """P."""
        return next(keys.shape[2] for keys, _ in self.layers if keys is not None)

    def seen(self, owners: Tensor, width: int) -> Tensor:
        """bool (R, 1, width, P + width): a suffix's token sees its own prefix, what is before it, and itself."""
        device = self.lengths.device
        earlier = torch.arange(self.width, device=device) < self.lengths[owners, None]
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        shape = (len(owners), 1, width)
        return torch.cat([earlier[:, None, None].expand(*shape, -1), own.expand(*shape, -1)], dim=-1)

    def apart(self, owners: Tensor, width: int) -> Tensor:
        """int64 (R, width, P + width): by how many tokens of the whole prompt a column lies before a suffix's token."""
        own = self.lengths[owners, None] + torch.arange(width, device=self.lengths.device)
        earlier = torch.arange(self.width, device=self.lengths.device).expand(len(owners), -1)
        return own[:, :, None] - torch.cat([earlier, own], dim=1)[:, None, :]


def fill_placeholders(words: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Input vectors with others in place of the placeholder tokens.

    Args:
        words: (B, L, hidden) word embeddings.
        places: bool (B, L), True at each of the n placeholders.
        vectors: (n, hidden), in reading order, row by row.

    Raises:
        ValueError: there are more or fewer vectors than placeholders.

    Example:
        >>> fill_placeholders(torch.zeros(1, 3, 1), torch.tensor([[False, True, False]]), torch.ones(1, 1)).flatten()
        tensor([0., 1., 0.])
    """
    if int(places.sum()) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors for {int(places.sum())} placeholders")
    return words.masked_scatter(places.unsqueeze(-1), vectors.to(words.dtype))


def padded(rows: Sequence[np.ndarray], fill: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one table: int64 (B, L) filled up on the right, and their lengths (B,)."""
    batch = pad_ids(rows, fill, device)
    return batch["input_ids"], batch["attention_mask"].sum(1)
