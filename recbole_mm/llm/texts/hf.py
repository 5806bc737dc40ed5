"""Texts by a model that transformers runs here: batched, images and words, any supported multimodal or text LLM."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from recbole_mm.artifacts.executor import Failure
from recbole_mm.errors import ImageError
from recbole_mm.llm.decoder import context_of
from recbole_mm.llm.family import PreparedInput
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.texts.cleaning import clean_answer
from recbole_mm.llm.texts.generator import NO_PICTURE, Request, StreamingGenerator, Writing
from recbole_mm.llm.texts.writers import (
    Writer,
)
from recbole_mm.utils.prefetch import prefetch

logger = logging.getLogger(__name__)

RECIPE = 1
"""Part of every key: raise it whenever the same prompt, model and settings would give another text."""

IMAGE_PIXELS = 401_408
"""A picture's area where `mllm_image_pixels` is not set: 512 tokens of Qwen2-VL. Its own bound would be 16,384."""

UNIT = 64
"""No batch goes across so many requests, in the order in which they are written: a unit is cut into the
same batches here and on other machines."""

LOOKAHEAD = 2
"""Prompts that are prepared ahead of the model, per thread."""


class Outline(NamedTuple):
    """What is known of a model that writes, its weights aside.

    Attributes:
        name: what it was asked for by.
        identity: the model's commit, or a hash of its files.
        precision: dtype of its weights.
        token_ids: plain text -> token ids.
        reads_images: whether prompts may hold pictures.
        longest: tokens of the longest prompt and answer together, if the model says so.
    """

    name: str
    identity: str
    precision: str
    token_ids: Callable[[str], list[int]]
    reads_images: bool
    longest: int | None

    @classmethod
    def of(cls, model: Writer | MLLM) -> Outline:
        """Returns the outline of a writer or a multimodal LLM, which may be without weights."""
        precision = str(model.model.dtype).removeprefix("torch.")
        reads_images = model.family.reads_images if isinstance(model, MLLM) else model.reads_images
        return cls(model.name, model.identity, precision, model.token_ids, reads_images, context_of(model.model))


class HfGenerator(StreamingGenerator):
    """Writes with transformers' `generate`.

    Greedy by default: the same prompt gives the same text, whatever shares its batch, as far as the arithmetic of the
    machine is the same for every batch shape: in float32 nearly always, in bfloat16 two nearly equal words may trade
    places. With a temperature each word is drawn with a number that follows from the seed, the request and the word's
    place alone, so sampled texts depend on the batch no more than greedy ones do.

    Args:
        load: loads the writer; called when it is first needed.
        writing: how texts are written.
        batch_tokens: bound on a batch: its prompts and answers with padding, plus image patches. Bounds memory.
        image_pixels: for the keys; the writer holds to it.
        outline: gives what is known of the writer without its weights, when it is first needed; None loads the writer.

    Raises:
        ModelLoadError: when the writer is first needed.
    """

    makes: Literal["answers"] = "answers"

    def __init__(
        self,
        load: Callable[[], Writer],
        writing: Writing,
        batch_tokens: int = 8192,
        image_pixels: int = IMAGE_PIXELS,
        outline: Callable[[], Outline] | None = None,
    ) -> None:
        self._load, self._find_outline = load, outline
        self.writing = writing
        self.batch_tokens = batch_tokens
        self.image_pixels = image_pixels
        self.threads = min(os.cpu_count() or 1, 8)

    @cached_property
    def writer(self) -> Writer:
        """The model, loaded on first use."""
        return self._load()

    # --- what a text depends on --------------------------------------------------------------------------------------

    @property
    def _outline(self) -> Outline:
        return Outline.of(self.writer) if self._find_outline is None else self._found_outline

    @cached_property
    def _found_outline(self) -> Outline:
        assert self._find_outline is not None
        return self._find_outline()

    @property
    def identity(self) -> str:
        """The model's commit, or a hash of its files."""
        return self._outline.identity

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that a text depends on, for artifact keys."""
        others = {"backend": "hf", "recipe": RECIPE, "image_pixels": self.image_pixels}
        return self.writing.parameters | others | {"precision": self._outline.precision}

    @property
    def reads_images(self) -> bool:
        """Whether the model reads pictures."""
        return self._outline.reads_images

    @property
    def longest_prompt(self) -> int | None:
        """Tokens that the model's context leaves for a prompt."""
        longest = self._outline.longest
        return None if longest is None else longest - self.writing.max_new_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt's words, without the chat template's markup."""
        return len(self._outline.token_ids(text))

    # --- writing -----------------------------------------------------------------------------------------------------

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        """Write in batches of like length, longest first: a batch that is too big for the machine shows at once."""
        order = longest_first(requests)
        room = self.writing.max_new_tokens
        batch: dict[str, PreparedInput] = {}
        failed: dict[str, str | Failure] = {}
        longest = patches = 0
        stream = prefetch(lambda key: self._prepared(requests[key]), order, self.threads, LOOKAHEAD * self.threads)
        with closing(stream):
            for place, (key, item) in enumerate(zip(order, stream)):
                if batch and place % UNIT == 0:
                    yield failed | self._written(requests, batch)
                    batch, failed, longest, patches = {}, {}, 0, 0
                if isinstance(item, Failure):
                    failed[key] = item
                    continue
                size = (len(batch) + 1) * (max(longest, len(item.ids)) + room) + patches + item.patches
                if batch and size > self.batch_tokens:
                    yield failed | self._written(requests, batch)
                    batch, failed, longest, patches = {}, {}, 0, 0
                batch[key] = item
                longest, patches = max(longest, len(item.ids)), patches + item.patches
        if batch or failed:
            yield failed | (self._written(requests, batch) if batch else {})

    def _prepared(self, request: Request) -> PreparedInput | Failure:
        """Tokenize one prompt and cut its picture. Called in threads."""
        image = None
        if request.image is not None:
            if not self.writer.reads_images:
                return Failure(f"{self.writer.name} reads no pictures")
            try:
                image = request.image()
            except (ImageError, OSError) as error:
                return Failure(f"{NO_PICTURE}: {error}")
            if image is None:
                return Failure(NO_PICTURE)
        item = self.writer.prepare(self.writer.chat.parts(request.prompt, image))
        if len(item.ids) > self.writing.context_tokens:
            return Failure(
                f"the prompt has {len(item.ids)} tokens, more than text_context_tokens ({self.writing.context_tokens})"
            )
        longest = self.writer.longest
        if longest is not None and len(item.ids) + self.writing.max_new_tokens > longest:
            room = f"{len(item.ids)} tokens and {self.writing.max_new_tokens} new ones"
            return Failure(f"the prompt's {room} are more than the {longest} that {self.writer.name} can hold")
        return item

    def _written(self, requests: Mapping[str, Request], batch: Mapping[str, PreparedInput]) -> dict[str, str | Failure]:
        answers = self._answers(list(batch.values()), [requests[key] for key in batch])
        return {key: self._text(answer) for key, answer in zip(batch, answers)}

    def _text(self, ids: list[int]) -> str | Failure:
        """The text of an answer, which may hold the token that ended it."""
        end = next((place for place, token in enumerate(ids) if token in self.writer.ends), None)
        answer = self.writer.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return clean_answer(answer, self.writing.max_words, ended=end is not None)

    @torch.inference_mode()
    def _answers(self, items: Sequence[PreparedInput], requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of the answers, in one go; in two halves if that is too much for the GPU's memory."""
        writer, model = self.writer, self.writer.model
        batch = writer.collate(items)
        width = batch["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if self.writing.temperature > 0:
            numbers = np.stack([self._numbers(request) for request in requests])
            processors.append(Draw(numbers, width, self.writing.temperature, self.writing.top_p))
        own, model.generation_config = model.generation_config, self._settings()
        try:
            return model.generate(**batch, logits_processor=processors)[:, width:].tolist()
        except torch.cuda.OutOfMemoryError:
            if len(items) == 1:
                raise
        finally:
            model.generation_config = own
        torch.cuda.empty_cache()
        half = len(items) // 2
        return self._answers(items[:half], requests[:half]) + self._answers(items[half:], requests[half:])

    def _settings(self) -> GenerationConfig:
        """Greedy, and nothing of the checkpoint's own settings but its ends: those differ between checkpoints."""
        return GenerationConfig(
            max_new_tokens=self.writing.max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.writer.ends) or None,
            pad_token_id=self.writer.pad_token_id,
            suppress_tokens=list(self.writer.never) or None,
        )

    def _numbers(self, request: Request) -> np.ndarray:
        """(max_new_tokens,) numbers from 0 to 1, a function of the seed and the request alone."""
        text = f"{self.writing.seed}\0{request.image_hash}\0{request.prompt}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).random(
            self.writing.max_new_tokens
        )

    def close(self) -> None:
        """Let go of the model; it is loaded anew if another text is wanted."""
        if "writer" in self.__dict__:
            on_gpu = self.writer.model.device.type == "cuda"
            del self.writer
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()


def longest_first(requests: Mapping[str, Request]) -> list[str]:
    """Keys in the order in which they are written."""
    return sorted(requests, key=lambda key: len(requests[key].prompt), reverse=True)


class Draw(LogitsProcessor):
    """Draws the next word of each row with a number of its own, and leaves nothing else for `generate` to choose.

    Drawing inside a greedy search keeps rows apart: torch's own drawing takes the numbers of all rows from one
    generator, so that a text would depend on what shares its batch.

    Args:
        numbers: (B, new tokens) from 0 to 1.
        width: columns of the prompts.
        temperature, top_p: as in `Writing`.
    """

    def __init__(self, numbers: np.ndarray, width: int, temperature: float, top_p: float) -> None:
        self.numbers, self.width, self.temperature, self.top_p = numbers, width, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """(B, vocabulary) scores -> 0 for the word that is drawn, minus infinity for the others."""
        shares = (scores.double() / self.temperature).softmax(-1)
        words = None
        if self.top_p < 1:
            shares, words = shares.sort(dim=-1, descending=True, stable=True)
            shares = shares.masked_fill(shares.cumsum(-1) - shares >= self.top_p, 0)
        sums = shares.cumsum(-1)
        numbers = torch.from_numpy(self.numbers[:, input_ids.shape[1] - self.width]).to(sums.device)
        # The first place at which the sum is above the number: never one of share 0.
        place = torch.searchsorted(sums, (numbers * sums[:, -1])[:, None], right=True)
        place = place.clamp(max=sums.shape[1] - 1)
        chosen = place if words is None else words.gather(1, place)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)
