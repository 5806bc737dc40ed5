"""Prompts on their way to the model: laid out, items' parts kept, and asked about as `recbole_mm.llm.answer` wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_mm.inputs.answering.prompt import WordedPrompt
from recbole_mm.llm.blocks import Block
from recbole_mm.llm.family import Part, PreparedInput
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.questions import Questions
from recbole_mm.utils.cache import ByteCache

KEPT_BYTES = 1 << 29
"""Of items' parts: candidates of one user are candidates of the next."""


@dataclass(frozen=True)
class ItemPart:
    """The item's part of a prompt.

    Attributes:
        input: its tokens; without pixels where `seen` stands for them.
        seen: (T, hidden) what the vision tower made of its image; None where there is none, or where the decoder wants
            more of it (`Family.images_are_vectors`).
    """

    input: PreparedInput
    seen: Tensor | None

    @property
    def nbytes(self) -> int:
        """Memory held."""
        pixels = sum(image.pixels.nbytes for image in self.input.images)
        return self.input.ids.nbytes + pixels + (0 if self.seen is None else self.seen.nbytes)


class PromptBlocks:
    """Makes blocks of prompts for an `AnswerReader` around the MLLM's base model.

    Every item's image is decoded and goes through the vision tower once for all users, as long as memory lasts; so the
    model must not change meanwhile.

    Args:
        mllm: the model that answers.
        prompt: the wording.
        kept_bytes: bound on the items' parts that are kept.

    Example:
        >>> blocks = PromptBlocks(mllm, prompt)                                         # doctest: +SKIP
        >>> reader = AnswerReader.of(mllm, prompt.tail)                                 # doctest: +SKIP
        >>> ask(reader, blocks.questions(users, histories, owners, items), 8192)        # doctest: +SKIP
    """

    def __init__(self, mllm: MLLM, prompt: WordedPrompt, kept_bytes: int = KEPT_BYTES) -> None:
        self.mllm = mllm
        self.prompt = prompt
        self._kept: ByteCache[int, ItemPart] = ByteCache(kept_bytes)

    def questions(
        self,
        users: Sequence[int],
        histories: Sequence[Sequence[int] | np.ndarray],
        owners: np.ndarray,
        items: Sequence[Any] | np.ndarray,
    ) -> Questions:
        """Return n questions about U users.

        Args:
            users: (U,) RecBole's ids.
            histories: U of them, RecBole's ids of items, oldest first.
            owners: (n,) which of the U each question is about.
            items: (n,) the candidates.

        Returns:
            For `ask`. Where prompts cannot share a prefix (`WordedPrompt.shares_prefix`), they are read whole.
        """
        owners = np.asarray(owners, dtype=np.int64)
        before = [tuple(map(int, history)) for history in histories]
        prefix_lengths = [self.prompt.prefix_length(user, history) for user, history in zip(users, before)]

        def prefixes(rows: np.ndarray) -> Block:
            """Return the blocks of these users' prefixes."""
            return self._block([self.prefix(users[row], before[row]) for row in rows.tolist()])

        def suffixes(rows: np.ndarray) -> Block:
            """Return the blocks of these questions' candidates."""
            return self.suffix_block([items[row] for row in rows.tolist()])

        def whole(rows: np.ndarray) -> Block:
            """Return the blocks of these questions' whole prompts."""
            asked = [(int(owners[row]), items[row]) for row in rows.tolist()]
            return self._block([self.whole(users[owner], before[owner], item) for owner, item in asked])

        return Questions(
            np.array(prefix_lengths, dtype=np.int64),
            np.array([self.suffix_length(item) for item in items], dtype=np.int64),
            owners,
            prefixes,
            suffixes,
            None if self.prompt.shares_prefix else whole,
        )

    def prefix(self, user: int, history: Sequence[int]) -> PreparedInput:
        """The user's part of a prompt."""
        return self.mllm.family.prepare(self.prompt.prefix(user, history), self.prompt.image_pixels)

    def suffix_length(self, item: Any) -> int:
        """At most so many tokens and image patches of a candidate's part."""
        return self.prompt.suffix_length(int(item))

    def suffix_parts(self, item: Any) -> list[Part]:
        """A candidate's part, laid out."""
        return self.prompt.suffix(int(item))

    def suffix_block(self, items: Sequence[Any]) -> Block:
        """The candidates' parts as a block; images that were seen before are not seen again."""
        parts = self.item_parts([int(item) for item in items])
        seen = [part.seen for part in parts if part.seen is not None]
        inputs = [part.input for part in parts]
        return Block.of_seen(self.mllm.family, self.mllm.model, inputs, seen) if seen else self._block(inputs)

    def whole(self, user: int, history: Sequence[int], item: Any) -> PreparedInput:
        """A whole prompt."""
        parts = [*self.prompt.prefix(user, history), *self.suffix_parts(item)]
        return self.mllm.family.prepare(parts, self.prompt.image_pixels)

    def item_parts(self, items: Sequence[int]) -> list[ItemPart]:
        """The items' parts of prompts; what is not kept is made, all images in one pass of the vision tower."""
        found = {item: part for item in dict.fromkeys(items) if (part := self._kept.get(item)) is not None}
        made = self._made([item for item in dict.fromkeys(items) if item not in found])
        for item, part in made.items():
            self._kept.put(item, part, part.nbytes)
        found |= made
        return [found[item] for item in items]

    def _made(self, items: Sequence[int]) -> dict[int, ItemPart]:
        family = self.mllm.family
        inputs = [family.prepare(self.prompt.suffix(item), self.prompt.image_pixels, continued=True) for item in items]
        if not family.images_are_vectors:
            return {item: ItemPart(made, None) for item, made in zip(items, inputs)}
        images = [image for made in inputs for image in made.images]
        with torch.no_grad():
            seen = iter(family.image_vectors(self.mllm.model, images, self.mllm.device) if images else [])
        return {
            item: ItemPart(replace(made, images=()), torch.cat([next(seen) for _ in made.images]).clone())
            if made.images
            else ItemPart(made, None)
            for item, made in zip(items, inputs)
        }

    def _block(self, inputs: Sequence[PreparedInput]) -> Block:
        return Block.of_prepared(self.mllm.family, inputs, self.mllm.device)


class ListBlocks(PromptBlocks):
    """`PromptBlocks` whose candidates are lists of items, each list shown in one prompt; none of its images is kept.

    Example:
        >>> blocks = ListBlocks(mllm, prompt)                                                  # doctest: +SKIP
        >>> ask(reader, blocks.questions([1], [[4]], np.array([0]), [(7, 3)]), 8192).shape     # doctest: +SKIP
        torch.Size([1, 2])
    """

    def suffix_length(self, item: Any) -> int:
        """At most so many tokens and image patches of a list."""
        return self.prompt.list_length(item)

    def suffix_parts(self, item: Any) -> list[Part]:
        """A list, laid out."""
        return self.prompt.list_suffix(item)

    def suffix_block(self, items: Sequence[Any]) -> Block:
        """Lists as a block."""
        family, pixels = self.mllm.family, self.prompt.image_pixels
        return self._block([family.prepare(self.suffix_parts(item), pixels, continued=True) for item in items])
