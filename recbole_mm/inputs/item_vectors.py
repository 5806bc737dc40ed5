"""Vectors and tokens of items by the run's multimodal LLM (Molar, Eq. 1; HLLM)."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np

from recbole_mm.data.content import ItemContent
from recbole_mm.inputs.context import Context, Need, PlannedStage
from recbole_mm.inputs.mllm import RunMLLM
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS, ItemEncoder
from recbole_mm.llm.encode_remote import carried_encoding
from recbole_mm.llm.item_tokens import tokenize_items
from recbole_mm.llm.item_vectors import encode_items, item_keys
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pooling import pooling_of
from recbole_mm.llm.prepared_items import PreparedItems


class MLLMVectors:
    """Plans and computes item vectors of the multimodal LLM.

    Args:
        context: the run's context.
    """

    def __init__(self, context: Context, /) -> None:
        self.context, self.config = context, context.config

    def encoder(self, mllm: MLLM) -> ItemEncoder:
        """Returns the encoder of items, whose keys need no weights of the model.

        Raises:
            ConfigError: settings of the vectors that do not fit the model.
        """
        max_text_tokens = self.config["max_text_tokens"] or DEFAULT_TEXT_TOKENS
        return ItemEncoder(
            mllm,
            image_pixels=self.config["mllm_image_pixels"],
            max_text_tokens=max_text_tokens,
            layers=self.config["mllm_layers"],
            pooling=pooling_of(self.config["mllm_pooling"], self.config["mllm_instruction"], mllm),
        )

    def prepared(self, content: ItemContent) -> PreparedItems:
        """Returns the prompts of all items, laid out when they are read."""
        return PreparedItems(content, self.encoder(self.context.share(RunMLLM).loaded))

    def plan(self, content: ItemContent, name: str) -> PlannedStage:
        """Returns the stage of encoding all items.

        Args:
            content: the items.
            name: of the stage.
        """
        by, mllm = str(self.config["mllm"]), self.context.share(RunMLLM).outline
        if mllm is None:
            _, to_do = self.context.count(content.fingerprints(range(1, len(content))))
            return PlannedStage(name, by, None, to_do, at_most=True)
        return PlannedStage(name, by, *self.context.count(item_keys(content, self.encoder(mllm))))

    def compute(self, content: ItemContent) -> np.ndarray:
        """Returns the vectors of all items, float32 (n_items, h); row 0 is zeros (Molar, Eq. 1)."""
        stage, tokens, remembered = f"item vectors of {content.modalities}", content.tokens, self.context.remembered
        if (known := remembered.vectors(stage, tokens, self.context.store)) is not None:
            return known
        carry, executor = None, self.context.executor
        if executor is not None:
            carry = partial(carried_encoding, trust_remote_code=bool(self.config["trust_remote_code"]))
        encoder = self.encoder(self.context.share(RunMLLM).loaded)
        return encode_items(
            *(content, encoder, self.context.store, self.config["show_progress"], executor, carry),
            on_keys=lambda keys: remembered.note(stage, keys=dict(zip(tokens[1:], keys[1:], strict=True))),
        )


class ItemVectors(Need):
    """`item_vectors`: the vectors of all items' images and texts, as `modalities` says."""

    name: ClassVar[str] = "item_vectors"

    @property
    def content(self) -> ItemContent:
        """The items."""
        return self.context.content

    def plan(self) -> list[PlannedStage]:
        """Returns the stage of encoding."""
        return [self.context.share(MLLMVectors).plan(self.content, self.name.replace("_", " "))]

    def compute(self) -> dict[str, Any]:
        """Returns the vectors."""
        return {self.name: self.context.share(MLLMVectors).compute(self.content)}


class ItemTextVectors(ItemVectors):
    """`item_text_vectors`: the vectors of all items' texts alone."""

    name = "item_text_vectors"

    @property
    def content(self) -> ItemContent:
        """The items without their images."""
        return self.context.content.only("text")


class ItemPrompts(Need):
    """`prepared_items`: the prompts of all items, for models that train the LLM which reads them."""

    def compute(self) -> dict[str, Any]:
        """Returns `prepared_items`."""
        return {"prepared_items": self.context.share(MLLMVectors).prepared(self.context.content)}


class ItemTokens(Need):
    """`item_tokens`: the tokens of all items' texts, for models that train the LLM which reads them."""

    def compute(self) -> dict[str, Any]:
        """Returns `item_token_ids` and `item_token_lengths`."""
        mllm, most = self.context.share(RunMLLM).loaded, self.context.config["max_text_tokens"] or DEFAULT_TEXT_TOKENS
        ids, lengths = tokenize_items(self.context.content, mllm, most)
        return {"item_token_ids": ids, "item_token_lengths": lengths}
