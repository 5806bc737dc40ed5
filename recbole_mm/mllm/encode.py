"""Items to vectors: the last-layer hidden state at `[Cur_Item]` (Molar, Eq. 1), fast, computed once, resumable."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice, pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from recbole_mm.artifacts.fill import fill
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.mllm.loading import has_bfloat16
from recbole_mm.mllm.model import MLLM
from recbole_mm.mllm.prompts import ItemPrompt
from recbole_mm.mllm.qwen2_vl import PreparedItem

logger = logging.getLogger(__name__)

STAGE = "item_vector"
RECIPE = 1
"""Part of every key: raise it whenever the same item, model and settings would give another vector."""

DEFAULT_TEXT_TOKENS = 256
DEFAULT_BATCH_TOKENS = 8192
SHOWN_IDS = 5

Given = TypeVar("Given")
Made = TypeVar("Made")


class Record(Protocol):
    """What an item is made of."""

    @property
    def item_id(self) -> str: ...
    @property
    def text(self) -> str | None: ...
    @property
    def image(self) -> Image.Image | None: ...


class Content(Protocol):
    """Items aligned to RecBole's ids; index 0 is padding. Its methods are called from several threads."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Record: ...
    def text(self, index: int, /) -> str | None: ...
    def fingerprint(self, index: int, /) -> str: ...


class ItemEncoder:
    """Turns items into vectors with a multimodal LLM.

    An item's vector does not depend on the batch it is computed in, so batches may be cut as suits the machine.

    Args:
        mllm: the loaded model.
        prompt: the wording behind an item's image and text.
        image_pixels: bound on an image's area after resizing; cost grows with it. None takes the checkpoint's own.
        max_text_tokens: longer texts are cut; the instruction and `[Cur_Item]` never are.
        tokens_per_batch: decoder tokens (with padding) plus image patches of a batch. Bounds memory.
        autocast: compute float32 weights in bfloat16 on a GPU that has it.
        threads: that read, decode and tokenize items while the model runs; None takes one per core, at most 8.

    Raises:
        ValueError: a bound is too small to hold anything.

    Example:
        >>> encoder = ItemEncoder(load_mllm(build_tiny(texts, folder)), image_pixels=112 * 112)
        >>> encoder.encode([record, another]).shape
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
    ) -> None:
        self.mllm = mllm
        self.prompt = prompt or ItemPrompt()
        self.image_pixels = mllm.inputs.max_pixels if image_pixels is None else int(image_pixels)
        self.max_text_tokens = int(max_text_tokens)
        self.tokens_per_batch = int(tokens_per_batch)
        self.threads = threads or min(os.cpu_count() or 1, 8)
        self.autocast = autocast and mllm.dtype == torch.float32 and has_bfloat16(mllm.device)
        if self.image_pixels < mllm.inputs.least_pixels:
            raise ValueError(f"image_pixels must be at least {mllm.inputs.least_pixels}, not {image_pixels}")
        if self.max_text_tokens < 1 or self.tokens_per_batch < 1:
            raise ValueError("max_text_tokens and tokens_per_batch must be at least 1")
        self._instructions = {
            (image, text): mllm.token_ids(f"\n{self.prompt.instruction(image, text)}")
            for image, text in ((True, True), (True, False), (False, True))
        }

    # --- what a vector depends on ------------------------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """The settings that a vector depends on, for artifact keys."""
        return {
            "recipe": RECIPE,
            "image_pixels": self.image_pixels,
            "max_text_tokens": self.max_text_tokens,
            "precision": "bfloat16 autocast" if self.autocast else str(self.mllm.dtype).removeprefix("torch."),
        }

    def key(self, fingerprint: str) -> str:
        """Artifact key of the vector of an item with this content fingerprint."""
        return artifact_key(STAGE, self.mllm.identity, self.prompt.identity, self.parameters, fingerprint)

    # --- one batch ---------------------------------------------------------------------------------------------------

    def prepare(self, record: Record) -> PreparedItem | None:
        """Tokenize an item and cut its image into patches; None for an item with neither. Safe to call from threads."""
        text = (record.text or "").strip()
        if record.image is None and not text:
            return None
        words = self.mllm.token_ids(text) if text else []
        cut = len(words) > self.max_text_tokens
        words = [*words[: self.max_text_tokens], *self._instructions[record.image is not None, bool(text)]]
        return self.mllm.inputs.prepare(record.image, words, [self.mllm.cur_item_id], self.image_pixels, cut)

    def compute(self, items: Sequence[PreparedItem | None]) -> list[np.ndarray]:
        """Vectors of one batch, in order.

        Returns:
            (hidden,) float32 each; zeros for an item with neither image nor text. A batch too big for the GPU's memory
            is halved.
        """
        present = [item for item in items if item is not None]
        vectors = iter(self._vectors(present)) if present else iter(())
        return [np.zeros(self.mllm.hidden_size, np.float32) if item is None else next(vectors) for item in items]

    def _vectors(self, items: Sequence[PreparedItem]) -> np.ndarray:
        """(B, hidden) of a batch; on a CPU each core takes an equal part of it.

        Sharing out the batch once costs one wait per batch. torch's own way, sharing out every operation, waits at each
        of them: on cores that also decode images, or that other programs use, most of the time goes into waiting.
        """
        cores = torch.get_num_threads()
        parts = min(cores, len(items)) if self.mllm.device.type == "cpu" else 1
        if parts == 1:
            return self._forward(items)
        edges = [part * len(items) // parts for part in range(parts + 1)]
        try:
            with ThreadPoolExecutor(parts, "encode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return np.concatenate(list(pool.map(self._forward, (items[a:b] for a, b in pairwise(edges)))))
        finally:
            torch.set_num_threads(cores)  # threads born later take the number that was set last, by whichever thread

    @torch.inference_mode()
    def _forward(self, items: Sequence[PreparedItem]) -> np.ndarray:
        context: AbstractContextManager = nullcontext()
        if self.autocast:
            context = torch.autocast(self.mllm.device.type, dtype=torch.bfloat16)
        try:
            with context:
                return self.mllm.last_hidden_states(items).float().cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if len(items) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(items) // 2
        return np.concatenate([self._forward(items[:half]), self._forward(items[half:])])

    # --- many items --------------------------------------------------------------------------------------------------

    def batches(
        self, load: Callable[[Given], Record], lengths: Mapping[Given, int]
    ) -> Iterator[dict[Given, PreparedItem | None]]:
        """Prepare items in threads, ahead of the consumer, and cut them into batches of similar length.

        Args:
            load: gives the record of an item; called in threads.
            lengths: item -> a number that grows with its text's length.

        Yields:
            Batches of at most `tokens_per_batch`; an item that alone is longer is a batch of its own.
        """
        order = sorted(lengths, key=lengths.__getitem__, reverse=True)  # longest first: a batch too big shows at once
        per_item = self.max_text_tokens + self.image_pixels // self.mllm.inputs.patch**2
        depth = max(2 * self.threads, min(2 * self.tokens_per_batch // per_item, 512))
        stream = ahead(lambda item: (item, self.prepare(load(item))), order, self.threads, depth)
        batch: dict[Given, PreparedItem | None] = {}
        longest = patches = 0
        with closing(stream):
            for item, prepared in stream:
                tokens, more = (len(prepared.ids), prepared.patches) if prepared else (0, 0)
                size = (len(batch) + 1) * max(longest, tokens) + patches + more
                if batch and size > self.tokens_per_batch:
                    yield batch
                    batch, longest, patches = {}, 0, 0
                batch[item] = prepared
                longest, patches = max(longest, tokens), patches + more
        if batch:
            yield batch

    def encode(self, records: Sequence[Record]) -> np.ndarray:
        """Encode records without a store.

        Returns:
            (n, hidden) float32; zeros for a record with neither image nor text.
        """
        vectors = np.zeros((len(records), self.mllm.hidden_size), dtype=np.float32)
        lengths = {row: len(record.text or "") for row, record in enumerate(records)}
        for batch in self.batches(records.__getitem__, lengths):
            vectors[list(batch)] = self.compute(list(batch.values()))
        return vectors


def encode_items(content: Content, encoder: ItemEncoder, store: Store, show_progress: bool = True) -> np.ndarray:
    """Encode every item through the artifact store: each distinct content once, ever; resumable at any point.

    Args:
        content: the items; index 0 is padding.
        encoder: the model and its settings.
        store: what was computed before is taken from it, every finished batch is added at once.
        show_progress: show a progress display.

    Returns:
        (items, hidden) float32: row 0 and the rows of items with neither image nor text are zeros.

    Raises:
        StoreError: the store cannot be read or written.
    """
    keys: list[str | None] = [None]
    keys += [encoder.key(fingerprint) for fingerprint in fingerprints(content, encoder.threads)]
    indexes: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            indexes.setdefault(key, index)
    cut = 0

    def batches(missing: Mapping[str, int]) -> Iterator[dict[str, PreparedItem | None]]:
        nonlocal cut
        lengths = {key: len(content.text(index) or "") for key, index in missing.items()}
        for batch in encoder.batches(lambda key: content[missing[key]], lengths):
            cut += sum(item.text_cut for item in batch.values() if item is not None)
            yield batch

    report = fill(store, STAGE, indexes, encoder.compute, batches, show_progress, label="Encoding items")
    keys = [None if key in report.reasons else key for key in keys]
    matrix = store.get_matrix(keys)
    if matrix.shape[1] == 0:
        matrix = np.zeros((len(content), encoder.mllm.hidden_size), dtype=np.float32)
    logger.info(
        "Item vectors: %d items, %d distinct, %d computed in %.1f s, %d texts cut to %d tokens",
        *(len(content) - 1, len(indexes), report.computed, report.seconds, cut, encoder.max_text_tokens),
    )
    empty = [index for index, key in enumerate(keys) if key is not None and not matrix[index].any()]
    if empty:
        shown = ", ".join(content[index].item_id for index in empty[:SHOWN_IDS])
        more = ", ..." if len(empty) > SHOWN_IDS else ""
        logger.warning("%d items have neither image nor text: their vectors are zeros (%s%s)", len(empty), shown, more)
    return matrix


def fingerprints(content: Content, threads: int, per_task: int = 256) -> Iterator[str]:
    """Yield the fingerprints of items 1, 2, ...; reading their images' bytes in threads."""
    starts = range(1, len(content), per_task)

    def some(start: int) -> list[str]:
        return [content.fingerprint(index) for index in range(start, min(start + per_task, len(content)))]

    for part in ahead(some, starts, threads, 2 * threads):
        yield from part


def ahead(
    function: Callable[[Given], Made], inputs: Iterable[Given], threads: int, depth: int
) -> Generator[Made, None, None]:
    """Yield function(input) in order, computing up to `depth` results in threads before they are asked for."""
    pending: deque[Future[Made]] = deque()
    source = iter(inputs)
    with ThreadPoolExecutor(threads, thread_name_prefix="items") as pool:
        try:
            pending.extend(pool.submit(function, value) for value in islice(source, depth))
            while pending:
                made = pending.popleft().result()
                pending.extend(pool.submit(function, value) for value in islice(source, 1))
                yield made
        finally:
            for future in pending:
                future.cancel()
