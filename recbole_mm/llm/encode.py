"""Items to vectors: the last-layer hidden state at `[Cur_Item]` (Molar, Eq. 1), fast, computed once, resumable."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from recbole_mm.artifacts.store import artifact_key
from recbole_mm.errors import ConfigError
from recbole_mm.llm.family import Part, PreparedInput
from recbole_mm.llm.loading import has_bfloat16
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pooling import CUR_ITEM, MEAN, Pooling
from recbole_mm.llm.prompts import ItemPrompt
from recbole_mm.llm.tokens import closing_tokens
from recbole_mm.utils.prefetch import prefetch

STAGE = "item_vector"
RECIPE = 1
"""Part of every key: raise it whenever the same item, model and settings would give another vector."""

DEFAULT_TEXT_TOKENS = 256
DEFAULT_BATCH_TOKENS = 8192
PARTS_PER_CORE = 4
"""Parts of a batch for each core. Several, so that a core that is held up leaves little for the others to wait for."""
LOOKAHEAD = 4
"""Batches of items that are prepared ahead of the model."""
PARTS_PER_UNIT = 32
"""A GPU's batches end with a unit of so many times the items that fit into one whatever their size. Who gets a unit can
cut its batches without knowing the others: on another machine as here."""
SPECIAL_TOKENS = 2
"""What opens a prompt, and `[Cur_Item]`."""

Pending = PreparedInput | None | Callable[[], PreparedInput | None]
"""A prepared item, None for one with neither image nor text, or a function that prepares one."""

Given = TypeVar("Given")


class Record(Protocol):
    """What an item is made of."""

    @property
    def item_id(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def image(self) -> Image.Image | None: ...


def runs_in_bfloat16(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights of this dtype are computed with in bfloat16: float32 ones, on a GPU that has it."""
    return dtype == torch.float32 and has_bfloat16(device)


class ItemEncoder:
    """Turns items into vectors with an LLM.

    An item's vector does not depend on the batch it is computed in, so batches may be cut as suits the machine.

    Args:
        mllm: the loaded model.
        prompt: the wording after an item's image and text.
        image_pixels: bound on an image's area after resizing; cost grows with it. None takes the checkpoint's own.
        max_text_tokens: longer texts are cut; the instruction and `[Cur_Item]` never are.
        tokens_per_batch: decoder tokens (with padding) plus image patches of a batch. Bounds memory.
        autocast: compute float32 weights in bfloat16 on a GPU that has it.
        threads: that read, decode and tokenize items ahead of the model; None takes one per core, at most 8.
        layers: encode with the first so many layers of the decoder; None takes all.
        pooling: where the vector is read; None: at `[Cur_Item]`.

    Raises:
        ValueError: a bound is too small to hold anything.
        ConfigError: the decoder has not so many layers, or texts may be longer than what the model can read.

    Example:
        >>> encoder = ItemEncoder(load_mllm(build_tiny(texts, folder)), image_pixels=112 * 112)  # doctest: +SKIP
        >>> encoder.encode([record, another]).shape                                              # doctest: +SKIP
        (2, 128)
    """

    def __init__(
        self,
        mllm: MLLM,
        prompt: ItemPrompt | None = None,
        image_pixels: int | None = None,
        max_text_tokens: int = DEFAULT_TEXT_TOKENS,
        tokens_per_batch: int = DEFAULT_BATCH_TOKENS,
        autocast: bool = True,
        threads: int | None = None,
        layers: int | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self.mllm = mllm if layers is None else mllm.first_layers(layers, "mllm_layers")
        self.layers = layers
        self.pooling = pooling or Pooling()
        self.prompt = prompt or ItemPrompt()
        self.image_pixels = mllm.family.bound(image_pixels)
        self.max_text_tokens = int(max_text_tokens)
        self.tokens_per_batch = int(tokens_per_batch)
        self.threads = threads or min(os.cpu_count() or 1, 8)
        self._may_autocast = autocast
        self.autocast = autocast and runs_in_bfloat16(mllm.dtype, mllm.device)
        if self.max_text_tokens < 1 or self.tokens_per_batch < 1:
            raise ValueError("max_text_tokens and tokens_per_batch must be at least 1")
        self._instructions = {
            (image, text): mllm.token_ids(f"\n{self.prompt.instruction(image, text)}")
            for image, text in ((True, True), (True, False), (False, True))
        }
        self._instruction = mllm.token_ids(self.pooling.instruction) if self.pooling.instruction else []
        self._closing = closing_tokens(mllm.tokenizer) if self.pooling.kind != CUR_ITEM else []
        self._context = mllm.context
        self._check_context()
        self.texts_cut = 0
        """Texts that were longer than `max_text_tokens` and so were cut."""
        self._counting = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = (0, 0)

    def _check_context(self) -> None:
        asking = self._instructions.values() if self.pooling.kind == CUR_ITEM else [self._closing]
        around = len(self._instruction) + max(map(len, asking)) + SPECIAL_TOKENS
        context = self._context
        if context is not None and around >= context:
            raise ConfigError(
                f"{self.mllm.name} can read {context} tokens, and the {around} around a text leave none for it; give a "
                "shorter mllm_instruction, or another mllm_pooling"
            )
        if context is not None and self.max_text_tokens + around > context:
            advice = (
                f"give at most {context - around}" if context > around else "take a model that reads longer prompts"
            )
            raise ConfigError(
                f"max_text_tokens: {self.max_text_tokens} and the {around} tokens around a text are more than the "
                f"{context} that {self.mllm.name} can read; {advice}"
            )

    # --- what a vector depends on ------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that a vector depends on, for artifact keys."""
        precision = "bfloat16 autocast" if self.autocast else str(self.mllm.dtype).removeprefix("torch.")
        return {
            "recipe": RECIPE,
            "image_pixels": self.image_pixels,
            "max_text_tokens": self.max_text_tokens,
            "precision": precision,
            **({} if self.layers is None else {"layers": self.layers}),
            **self.pooling.parameters,
        }

    def key(self, fingerprint: str) -> str:
        """Artifact key of the vector of an item with this content fingerprint."""
        return artifact_key(STAGE, self.mllm.identity, self.prompt.identity, self.parameters, fingerprint)

    # --- one batch ---------------------------------------------------------------------------------------------------

    def prepare(self, record: Record) -> PreparedInput | None:
        """Tokenize an item and cut its image into patches; None for an item with neither. Safe to call from threads.

        Raises:
            ConfigError: with its image it has more tokens than the model can read.
        """
        text = (record.text or "").strip()
        if record.image is None and not text:
            return None
        if record.image is None:  # the instruction and the text are one text
            parts: list[Part] = []
            words = self._words(self.pooling.instruction + text, len(self._instruction))
        else:
            parts = [*([self._instruction] if self._instruction else []), record.image]
            words = self._words(text, 0) if text else []
        if self.pooling.kind == CUR_ITEM:
            words = [*words, *self._instructions[record.image is not None, bool(text)], self.mllm.cur_item_id]
        words = [*words, *self._closing]
        found = self.mllm.family.prepare([*parts, words] if words else parts, self.image_pixels)
        if self._context is not None and len(found.ids) > self._context:  # of a text alone that was checked before
            raise ConfigError(
                f"item {record.item_id}: its image and text are {len(found.ids)} tokens, and {self.mllm.name} can read "
                f"{self._context}; lower mllm_image_pixels or max_text_tokens"
            )
        return found

    def _words(self, text: str, before: int) -> list[int]:
        """Token ids of a text, cut where it is longer than `max_text_tokens` and the tokens `before` it."""
        words = self.mllm.token_ids(text)
        if len(words) > self.max_text_tokens + before:
            with self._counting:
                self.texts_cut += 1
        return words[: self.max_text_tokens + before]

    def compute(self, items: Sequence[Pending]) -> list[np.ndarray]:
        """Vectors of one batch, in order.

        On a CPU, parts of the batch are shared out over the cores, which then wait for each other once per batch.
        torch's own way, sharing out every operation, waits at each of them: where the cores also decode images, or
        other programs use them, most of the time goes into waiting.

        Args:
            items: prepared items, or functions that prepare them.

        Returns:
            (hidden,) float32 each; zeros for an item with neither image nor text.
        """
        cores = torch.get_num_threads()
        on_cpu = self.mllm.device.type == "cpu"
        count = max(PARTS_PER_CORE * cores, -(-len(items) // self._items_per_part)) if on_cpu else 1
        count = min(count, len(items))
        parts = [items[i * len(items) // count : (i + 1) * len(items) // count] for i in range(count)]
        if count == 1 or cores == 1:
            return [vector for part in parts for vector in self._compute_part(part)]
        try:
            return [vector for part in self._workers(cores).map(self._compute_part, parts) for vector in part]
        finally:
            torch.set_num_threads(cores)  # threads born later take the number that was set last, by whichever thread

    def _compute_part(self, items: Sequence[Pending]) -> np.ndarray:
        """(items, hidden) float32."""
        ready = [item() if callable(item) else item for item in items]
        vectors = np.zeros((len(ready), self.mllm.hidden_size), dtype=np.float32)
        present = [item for item in ready if item is not None]
        if present:
            vectors[[item is not None for item in ready]] = self._forward(present)
        return vectors

    def _workers(self, cores: int) -> ThreadPoolExecutor:
        """Single-threaded workers, kept between batches: torch's start in a new thread costs milliseconds."""
        if self._pool is None or self._pool_of != (os.getpid(), cores):  # threads do not survive a fork
            self._pool = ThreadPoolExecutor(cores, "encode", initializer=torch.set_num_threads, initargs=(1,))
            self._pool_of = (os.getpid(), cores)
        return self._pool

    @torch.inference_mode()
    def _forward(self, items: Sequence[PreparedInput]) -> np.ndarray:
        """(items, hidden) float32, in one pass; in two halves if that is too much for the GPU's memory."""
        try:
            return self.states(items).cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if len(items) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(items) // 2
        return np.concatenate([self._forward(items[:half]), self._forward(items[half:])])

    def states(self, items: Sequence[PreparedInput]) -> torch.Tensor:
        """(items, hidden) float32 in one pass, where and how `pooling` reads them; with gradients where enabled."""
        context: AbstractContextManager = nullcontext()
        if self.autocast:
            context = torch.autocast(self.mllm.device.type, dtype=torch.bfloat16)
        with context:
            if self.pooling.kind == MEAN:
                opening = self.mllm.family.bos_token_id is not None
                skipped = 0 if self.pooling.counts_instruction else len(self._instruction) + opening
                states = self.mllm.mean_hidden_states(items, skipped)
            else:
                states = self.mllm.last_hidden_states(items)
            return (F.normalize(states.float(), dim=-1) if self.pooling.normalize else states).float()

    def over(self, mllm: MLLM) -> ItemEncoder:
        """Return an encoder of the same prompts and pooling that reads with other weights of the same model."""
        other = copy.copy(self)
        other.mllm = mllm
        other.autocast = self._may_autocast and runs_in_bfloat16(mllm.dtype, mllm.device)
        other._pool, other._counting = None, threading.Lock()
        return other

    # --- many items --------------------------------------------------------------------------------------------------

    @property
    def _items_per_part(self) -> int:
        """So many items are within `tokens_per_batch`, however long their texts and large their images."""
        image = self.mllm.family.image_cost(self.image_pixels)
        around = max(map(len, self._instructions.values())) + len(self._instruction) + SPECIAL_TOKENS
        longest = self.max_text_tokens + around + image
        return max(1, self.tokens_per_batch // longest)

    def batches(
        self, load: Callable[[Given], Record], lengths: Mapping[Given, int]
    ) -> Iterator[Mapping[Given, Pending]]:
        """Cut items into batches of similar length, for `compute`.

        For a GPU, threads load and prepare the items ahead of the model. On a CPU the cores have no time to spare:
        there each prepares its own items right before it runs the model on them.

        Args:
            load: gives the record of an item; called in threads.
            lengths: item -> a number that grows with its text's length.

        Yields:
            Batches that let `compute` run at most `tokens_per_batch` at once; an item that alone is longer is a batch
            of its own.
        """
        if self.mllm.device.type == "cpu":
            for unit in self.units(lengths):
                yield {item: partial(self._load, load, item) for item in unit}
        else:
            yield from self._prepared_batches(load, [item for unit in self.units(lengths) for item in unit])

    def units(self, lengths: Mapping[Given, int]) -> list[list[Given]]:
        """Items in the order in which they are encoded, cut where no batch goes across.

        Args:
            lengths: as for `batches`.
        """
        order = sorted(lengths, key=lengths.__getitem__, reverse=True)  # longest first: a batch too big shows at once
        return [order[start : start + self._unit] for start in range(0, len(order), self._unit)]

    @property
    def _unit(self) -> int:
        on_cpu = self.mllm.device.type == "cpu"
        return self._items_per_part * (PARTS_PER_CORE * torch.get_num_threads() if on_cpu else PARTS_PER_UNIT)

    def _load(self, load: Callable[[Given], Record], item: Given) -> PreparedInput | None:
        return self.prepare(load(item))

    def _prepared_batches(
        self, load: Callable[[Given], Record], order: Sequence[Given]
    ) -> Iterator[Mapping[Given, PreparedInput | None]]:
        """Batches of prepared items, as full as their actual lengths allow."""
        depth = max(2 * self.threads, min(LOOKAHEAD * self._items_per_part, 512))
        batch: dict[Given, PreparedInput | None] = {}
        longest = patches = 0
        with closing(prefetch(partial(self._load, load), order, self.threads, depth)) as stream:
            for place, (item, prepared) in enumerate(zip(order, stream)):
                tokens, more = (len(prepared.ids), prepared.patches) if prepared else (0, 0)
                size = (len(batch) + 1) * max(longest, tokens) + patches + more
                if batch and (size > self.tokens_per_batch or place % self._unit == 0):
                    yield batch
                    batch, longest, patches = {}, 0, 0
                batch[item] = prepared
                longest, patches = max(longest, tokens), patches + more
        if batch:
            yield batch

    def encode(self, records: Sequence[Any], load: Callable[[Any], Record] | None = None) -> np.ndarray:
        """Encode records without a store.

        Args:
            records: n items, or what `load` makes records of; their `text` says which are of like length.
            load: called in threads.

        Returns:
            (n, hidden) float32; zeros for a record with neither image nor text.
        """
        vectors = np.zeros((len(records), self.mllm.hidden_size), dtype=np.float32)
        lengths = {row: len(record.text or "") for row, record in enumerate(records)}
        for batch in self.batches(lambda row: load(records[row]) if load else records[row], lengths):
            vectors[list(batch)] = self.compute(list(batch.values()))
        return vectors
