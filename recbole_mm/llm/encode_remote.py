"""Encoding items on other machines: what is sent there, and the worker that encodes it as `encode_items` does here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from recbole_mm.artifacts.executor import RemoteWork
from recbole_mm.data.content import CarriedItem, ItemContent, carried_item
from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pooling import Pooling
from recbole_mm.llm.pretrained import check_identity, published
from recbole_mm.llm.prompts import ItemPrompt
from recbole_mm.utils.prefetch import prefetch

READ_AHEAD = 64
"""Items whose files are read ahead of the batch that they are for."""


@dataclass(frozen=True)
class LLMRecipe:
    """An LLM that is loaded from its folder, under the same path everywhere, or from the hub.

    Attributes:
        name: folder or hub id.
        revision: commit of a hub model.
        identity: that the loaded model must have.
        dtype: of its weights.
        trust_remote_code: as for `load_mllm`.
    """

    name: str
    revision: str | None
    identity: str
    dtype: str
    trust_remote_code: bool

    def load(self, device: str, with_head: bool = False) -> MLLM:
        """Load it as a multimodal LLM.

        Raises:
            ModelLoadError: it is not there, cannot be loaded, or is another one.
        """
        mllm = load_mllm(self.name, device, self.dtype, self.trust_remote_code, self.revision, with_head=with_head)
        check_identity(self.name, mllm.identity, self.identity)
        return mllm


@dataclass(frozen=True)
class EncodeRecipe:
    """An item encoder; its fields but the first are those of `ItemEncoder`."""

    mllm: LLMRecipe
    prompt: ItemPrompt
    image_pixels: int
    max_text_tokens: int
    tokens_per_batch: int
    autocast: bool
    precision: str
    layers: int | None = None
    pooling: Pooling | None = None

    def open(self, device: str) -> EncodeWorker:
        """Load the model.

        Raises:
            ModelLoadError: it is not there, is another one, or would compute in another precision.
        """
        encoder = ItemEncoder(
            self.mllm.load(device),
            self.prompt,
            self.image_pixels,
            self.max_text_tokens,
            self.tokens_per_batch,
            self.autocast,
            layers=self.layers,
            pooling=self.pooling,
        )
        found = encoder.parameters["precision"]
        if found != self.precision:
            raise ModelLoadError(
                f"{self.mllm.name}: a worker would compute in {found}, the run in {self.precision}; set mllm_dtype, "
                "and give workers the device of the run"
            )
        return EncodeWorker(encoder)


class EncodeWorker:
    """Encodes units of items."""

    def __init__(self, encoder: ItemEncoder) -> None:
        self.encoder = encoder
        self._report: dict[str, Any] = {}

    def compute(self, inputs: list[CarriedItem]) -> list[np.ndarray]:
        """(hidden,) float32 of each item."""
        cut = self.encoder.texts_cut
        vectors = self.encoder.encode(inputs, CarriedItem.record)
        problems = {item.item_id: item.image.problem for item in inputs if item.image and item.image.problem}
        self._report = {"problems": problems, "texts_cut": self.encoder.texts_cut - cut}
        return list(vectors)

    def report(self) -> dict[str, Any]:
        """Images that proved broken, and how many texts were cut."""
        return self._report


def carried_encoding(content: ItemContent, encoder: ItemEncoder, trust_remote_code: bool = False) -> RemoteWork:
    """The encoding of items, to be sent to another process.

    Args:
        content: the items.
        encoder: says how; its model is not used.
        trust_remote_code: as for `load_mllm`.
    """
    mllm, dtype = encoder.mllm, str(encoder.mllm.dtype).removeprefix("torch.")
    recipe = EncodeRecipe(
        LLMRecipe(*published(mllm.name, mllm.identity), mllm.identity, dtype, trust_remote_code),
        encoder.prompt,
        encoder.image_pixels,
        encoder.max_text_tokens,
        encoder.tokens_per_batch,
        encoder.autocast,
        encoder.parameters["precision"],
        encoder.layers,
        encoder.pooling,
    )

    def batches(missing: Mapping[str, int]) -> Iterator[dict[str, CarriedItem]]:
        lengths = {key: len(content.text(index) or "") for key, index in missing.items()}
        return _read(content, missing, encoder.units(lengths), encoder.threads)

    def on_report(report: Mapping[str, Any]) -> None:
        content.source.problems.update(report["problems"])
        encoder.texts_cut += report["texts_cut"]

    return RemoteWork(recipe, batches, on_report)


def _read(
    content: ItemContent, missing: Mapping[str, int], units: Sequence[Sequence[str]], threads: int
) -> Iterator[dict[str, CarriedItem]]:
    """Units of items with their files' bytes, which are read in threads."""
    keys = (key for unit in units for key in unit)
    indexes = (missing[key] for key in keys)
    with closing(prefetch(partial(carried_item, content), indexes, threads, READ_AHEAD)) as items:
        for unit in units:
            yield dict(zip(unit, items, strict=False))
