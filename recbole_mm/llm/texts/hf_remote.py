"""Texts by models that transformers runs on other machines: the requests are sent there, the store stays here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from recbole_mm.artifacts.executor import Executor, Failure, RemoteWork
from recbole_mm.data.content import CarriedImage, ItemImage
from recbole_mm.llm.encode_remote import LLMRecipe
from recbole_mm.llm.pretrained import check_identity, find_llm, published
from recbole_mm.llm.texts.generator import NO_PICTURE, Request, Writing
from recbole_mm.llm.texts.hf import UNIT, HfGenerator, longest_first
from recbole_mm.llm.texts.writers import (
    check_writes,
    multimodal_writer,
    text_writer,
)
from recbole_mm.utils.prefetch import prefetch

THREADS = 8
READ_AHEAD = 2 * UNIT


@dataclass(frozen=True)
class WriteRecipe:
    """A writer, and how it writes.

    Attributes:
        name: what the run calls the model.
        model: the model.
        multimodal: whether it is a multimodal LLM; else a text LLM.
        image_pixels, batch_tokens, writing: as for `HfGenerator`.
    """

    name: str
    model: LLMRecipe
    multimodal: bool
    image_pixels: int
    batch_tokens: int
    writing: Writing

    def open(self, device: str) -> WriteWorker:
        """Load the model.

        Raises:
            ModelLoadError: it is not there, cannot be loaded, or is another one.
        """
        model = self.model
        if self.multimodal:
            writer = multimodal_writer(model.load(device, with_head=True), self.image_pixels)
        else:
            source = find_llm(model.name, model.revision, check_writes, model.trust_remote_code)
            check_identity(model.name, source.identity, model.identity)
            writer = text_writer(source, torch.device(device), model.dtype, model.trust_remote_code)
        writer.name = self.name
        return WriteWorker(HfGenerator(lambda: writer, self.writing, self.batch_tokens, self.image_pixels))


class WriteWorker:
    """Answers units of requests."""

    def __init__(self, generator: HfGenerator) -> None:
        self.generator = generator
        self._problems: dict[str, str] = {}

    def compute(self, inputs: list[Request]) -> list[str | Failure]:
        """A text of each."""
        answers = self.generator.generate(inputs)
        images = [request.image for request in inputs if isinstance(request.image, CarriedImage)]
        self._problems = {image.item_id: image.problem for image in images if image.problem}
        return answers

    def report(self) -> dict[str, Any]:
        """Images that proved broken."""
        return {"problems": self._problems}


class RemoteHfGenerator(HfGenerator):
    """Writes what `HfGenerator` writes, on other machines; this one needs no weights.

    Args:
        executor: has it done.
        multimodal: whether the model is a multimodal LLM; else a text LLM.
        trust_remote_code: allow a tokenizer that ships its own Python code.
        given: arguments of `HfGenerator`, with an outline.
    """

    def __init__(self, executor: Executor, multimodal: bool, trust_remote_code: bool, *given: Any) -> None:
        super().__init__(*given)
        self.executor = executor
        self.multimodal, self.trust_remote_code = multimodal, trust_remote_code

    @property
    def recipe(self) -> WriteRecipe:
        """Of the writer."""
        known = self._outline
        place = published(known.name, known.identity)
        model = LLMRecipe(*place, known.identity, known.precision, self.trust_remote_code)
        return WriteRecipe(known.name, model, self.multimodal, self.image_pixels, self.batch_tokens, self.writing)

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, Any]]:
        """Write units of requests, each as soon as a worker is done with it."""
        sources = {
            image.item_id: image.source for each in requests.values() if isinstance(image := each.image, ItemImage)
        }

        def on_report(report: Mapping[str, Any]) -> None:
            for item_id, problem in report["problems"].items():
                sources[item_id].problems[item_id] = problem

        return self.executor.stream(RemoteWork(self.recipe, _units, on_report), requests)

    def close(self) -> None:
        """Let go of the workers."""
        self.executor.release()


def _units(requests: Mapping[str, Request]) -> Iterator[dict[str, Request | Failure]]:
    """Requests with their pictures' bytes, which are read in threads."""
    order = longest_first(requests)
    with closing(prefetch(lambda key: _carried(requests[key]), order, THREADS, READ_AHEAD)) as ready:
        for start in range(0, len(order), UNIT):
            yield dict(zip(order[start : start + UNIT], ready, strict=False))


def _carried(request: Request) -> Request | Failure:
    if request.image is None:
        return replace(request, fallback=None)
    if not isinstance(request.image, ItemImage):
        raise TypeError("only the image of an item can be sent to another process")
    image = request.image.carried()
    return Failure(NO_PICTURE) if image is None else replace(request, fallback=None, image=image)
