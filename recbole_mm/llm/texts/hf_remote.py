"""Texts by models that transformers runs on other machines: the requests are sent there, the store stays here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch

from recbole_mm.artifacts.executor import Executor, Failure, RemoteWork
from recbole_mm.data.carried import CarriedImage, ItemImage
from recbole_mm.llm.family import plain_token_ids
from recbole_mm.llm.loading import load_mllm, weights_dtype
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import check_identity, find_llm, published
from recbole_mm.llm.texts.generator import NO_PICTURE, Request, Writing, collected
from recbole_mm.llm.texts.hf import IMAGE_PIXELS, UNIT, HfGenerator, longest_first, text_parameters
from recbole_mm.llm.texts.writers import (
    Writer,
    check_writes,
    multimodal_writer,
    read_tokenizer,
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
        place: its folder, under the same path everywhere, or hub id.
        revision: commit of a hub model.
        identity: that the loaded model must have.
        dtype: of its weights.
        multimodal: whether it is a multimodal LLM; else a text LLM.
        trust_remote_code, image_pixels, batch_tokens, writing: as everywhere.
    """

    name: str
    place: str
    revision: str | None
    identity: str
    dtype: str
    multimodal: bool
    trust_remote_code: bool
    image_pixels: int
    batch_tokens: int
    writing: Writing

    def open(self, device: str) -> WriteWorker:
        """Load the model.

        Raises:
            ModelLoadError: it is not there, cannot be loaded, or is another one.
        """
        writer = self._writer(device)
        check_identity(self.place, writer.identity, self.identity)
        writer.name = self.name
        return WriteWorker(HfGenerator(lambda: writer, self.writing, self.batch_tokens, self.image_pixels))

    def _writer(self, device: str) -> Writer:
        trust = self.trust_remote_code
        if not self.multimodal:
            source = find_llm(self.place, self.revision, check_writes, trust)
            return text_writer(source, torch.device(device), self.dtype, trust)
        mllm = load_mllm(self.place, device, self.dtype, trust, self.revision, with_head=True)
        return multimodal_writer(mllm, self.image_pixels)


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


class RemoteHfGenerator:
    """Writes what `HfGenerator` writes, on other machines; this one needs no weights.

    Args:
        find: gives the recipe of the writer and what counts the tokens of a prompt's words; called when the first text
            is wanted.
        executor: has it done.
    """

    makes: Literal["answers"] = "answers"

    def __init__(self, find: Callable[[], tuple[WriteRecipe, Callable[[str], int]]], executor: Executor) -> None:
        self._find = find
        self.executor = executor

    @cached_property
    def _found(self) -> tuple[WriteRecipe, Callable[[str], int]]:
        return self._find()

    @property
    def recipe(self) -> WriteRecipe:
        """Of the writer."""
        return self._found[0]

    @property
    def identity(self) -> str:
        """The model's commit, or a hash of its files."""
        return self.recipe.identity

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that a text depends on, for artifact keys."""
        return text_parameters(self.recipe.writing, self.recipe.dtype, self.recipe.image_pixels)

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt's words, without the chat template's markup."""
        return self._found[1](text)

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """As many texts, in the same order; a `Failure` with its reason where there is none."""
        return collected(self.stream({str(place): each for place, each in enumerate(requests)}), len(requests))

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


def open_remote_hf(
    config: Any,
    model: str | None,
    outline: Callable[[], MLLM],
    writing: Writing,
    batch_tokens: int,
    executor: Executor,
) -> RemoteHfGenerator:
    """The generator of `text_backend: hf` where an executor has its work done in other processes.

    Args:
        config: of the run: device, `mllm_dtype`, `trust_remote_code`, `mllm_image_pixels`.
        model: `text_model`; null, or the same as `mllm`, is the run's own multimodal LLM.
        outline: gives that one with its head, without its weights.
        writing: how texts are written.
        batch_tokens: bound on a batch.
        executor: has them written.

    Raises:
        ModelLoadError: there is no such model, or it writes no texts.
    """
    pixels = int(config["mllm_image_pixels"] or IMAGE_PIXELS)
    device, trust = torch.device(config["device"]), bool(config["trust_remote_code"])
    dtype = str(weights_dtype(config["mllm_dtype"] or "auto", device)).removeprefix("torch.")
    recipe = partial(
        WriteRecipe,
        dtype=dtype,
        trust_remote_code=trust,
        image_pixels=pixels,
        batch_tokens=batch_tokens,
        writing=writing,
    )

    def of_mllm(mllm: MLLM) -> tuple[WriteRecipe, Callable[[str], int]]:
        place, revision = published(mllm.name, mllm.identity)
        made = recipe(mllm.name, place, revision, mllm.identity, multimodal=True)
        return made, lambda text: len(mllm.token_ids(text))

    if model is None or model == config["mllm"]:
        return RemoteHfGenerator(lambda: of_mllm(outline()), executor)
    source = find_llm(model, None, check_writes, bool(config["trust_remote_code"]))
    if source.is_adapter or check_writes(model, source.folder):
        load = partial(load_mllm, model, dtype=dtype, trust_remote_code=trust, with_head=True, without_weights=True)
        return RemoteHfGenerator(lambda: of_mllm(load()), executor)
    token_ids = plain_token_ids(read_tokenizer(source, trust))
    place, revision = published(source.name, source.identity)
    made = recipe(source.name, place, revision, source.identity, multimodal=False)
    return RemoteHfGenerator(lambda: (made, lambda text: len(token_ids(text))), executor)
