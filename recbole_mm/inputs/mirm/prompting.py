"""Examples of the mixture as the model reads them: items laid out as for encoding, what is asked, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recbole_mm.inputs.mirm.objectives import Example, ShownItem
from recbole_mm.llm.encode import SPECIAL_TOKENS
from recbole_mm.llm.family import Part
from recbole_mm.llm.finetuning import examples as sft
from recbole_mm.llm.item_vectors import Content
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import ItemPrompt


class PromptedExamples:
    """`recbole_mm.llm.finetuning.examples.Examples` of a mixture.

    Every item ends in `[Cur_Item]`, as when it is encoded, and nothing stands before the first one: what follows is
    predicted from the very states that are read as item vectors.

    Args:
        examples: the mixture.
        content: the items' images.
        mllm: tokenizer and family.
        image_pixels: bound on an image's area.
        max_text_tokens: longer item texts are cut, as for encoding.
        max_answer_tokens: longer answers are cut; one that is whole ends in the tokenizer's end token.
        weights: loss weight of each objective; 1 where it has none.
        prompt: the wording after an item.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        content: Content,
        mllm: MLLM,
        *,
        image_pixels: int,
        max_text_tokens: int,
        max_answer_tokens: int,
        weights: Mapping[str, float] | None = None,
        prompt: ItemPrompt | None = None,
    ) -> None:
        self.examples = examples
        self.content = content
        self.mllm = mllm
        self.max_text_tokens = max_text_tokens
        self.max_answer_tokens = max_answer_tokens
        self.weights = weights or {}
        self.prompt = prompt or ItemPrompt()
        self._image_cost = mllm.family.image_cost(mllm.family.bound(image_pixels))
        self._texts: dict[str, np.ndarray] = {}
        self.lengths = np.array([self._cost(example) for example in examples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> sft.Example | None:
        """One example; None if none of its items can be shown."""
        example = self.examples[index]
        parts = [part for item in example.items for part in self._parts(item)]
        if not parts:
            return None
        return sft.Example(
            [*parts, self._request(example)],
            self._answer(example),
            example.objective,
            self.weights.get(example.objective, 1.0),
        )

    def _parts(self, shown: ShownItem) -> list[Part]:
        """An item as `ItemEncoder` lays it out; nothing of one whose only image is broken."""
        image = self.content[shown.item].image if shown.image else None
        words = self._words(shown.text)
        if image is None and not len(words):
            return []
        instruction = self._tokens(f"\n{self.prompt.instruction(image is not None, bool(len(words)))}")
        ids = [*words, *instruction, self.mllm.cur_item_id]
        return [ids] if image is None else [image, ids]

    def _words(self, text: str | None) -> np.ndarray:
        return self._tokens((text or "").strip())[: self.max_text_tokens]

    def _request(self, example: Example) -> list[int]:
        return [*self._tokens(f"\n{example.request}\n")]

    def _answer(self, example: Example) -> list[int]:
        words = self._tokens(example.answer.strip()).tolist()
        end = self.mllm.tokenizer.eos_token_id
        whole = words if end is None else [*words, end]
        return whole[: self.max_answer_tokens]

    def _tokens(self, text: str) -> np.ndarray:
        """Token ids of a text, kept: the same items are shown again and again, and every epoch."""
        ids = self._texts.get(text)
        if ids is None:
            ids = self._texts[text] = np.array(self.mllm.token_ids(text), dtype=np.int32)
        return ids

    def _cost(self, example: Example) -> int:
        """At most so many tokens and patches."""
        total = 1 + len(self._request(example)) + len(self._answer(example))  # 1: the token that opens a prompt
        for item in example.items:
            words = len(self._words(item.text))
            longest = max(len(self._tokens(f"\n{text}")) for text in vars(self.prompt).values())
            total += words + longest + SPECIAL_TOKENS + (self._image_cost if item.image else 0)
        return total
