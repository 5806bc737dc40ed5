"""All items to vectors through the artifact store: each distinct content once, resumable at any point."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from recbole_mm.artifacts.executor import Executor, RemoteWork
from recbole_mm.artifacts.fill import fill, require_finite
from recbole_mm.artifacts.store import Store
from recbole_mm.llm.encode import STAGE, ItemEncoder, Pending, Record
from recbole_mm.utils.prefetch import prefetch

logger = logging.getLogger(__name__)

SHOWN_IDS = 5


class Content(Protocol):
    """Items aligned to RecBole's ids; index 0 is padding. Its methods are called from several threads."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Record: ...
    def text(self, index: int, /) -> str | None: ...
    def fingerprint(self, index: int, /) -> str: ...


Carry = Callable[[Any, ItemEncoder], RemoteWork]
"""Items and an encoder -> the work of encoding them, to be sent to another process."""


def encode_items(
    content: Content,
    encoder: ItemEncoder,
    store: Store,
    show_progress: bool = True,
    executor: Executor | None = None,
    carry: Carry | None = None,
    what: str = "item",
    on_keys: Callable[[list[str | None]], None] | None = None,
) -> np.ndarray:
    """Encode every item through the artifact store: each distinct content once, ever; resumable at any point.

    Args:
        content: the items; index 0 is padding.
        encoder: the model and its settings.
        store: what was computed before is taken from it, every finished batch is added at once.
        show_progress: show a progress display.
        executor: encodes in other processes; None encodes in this one.
        carry: how the work is sent there (`encode_remote.carried_encoding`).
        what: one of them is called in messages.
        on_keys: called with the artifact key of each row; None where there is no vector.

    Returns:
        (items, hidden) float32: row 0 and the rows of items with neither image nor text are zeros.

    Raises:
        StoreError: the store cannot be read or written.
        DataError: a vector holds NaN or infinity.
    """
    keys: list[str | None] = [None, *item_keys(content, encoder)]
    indexes: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            indexes.setdefault(key, index)

    def batches(missing: Mapping[str, int]) -> Iterator[Mapping[str, Pending]]:
        lengths = {key: len(content.text(index) or "") for key, index in missing.items()}
        return encoder.batches(lambda key: content[missing[key]], lengths)

    cut = encoder.texts_cut
    remote_work = None if carry is None else carry(content, encoder)
    report = fill(
        *(store, STAGE, indexes, encoder.compute, batches, show_progress, f"Encoding {what}s"),
        executor=executor,
        remote_work=remote_work,
    )
    mllm = f"the multimodal LLM {encoder.mllm.name}"
    require_finite(report, mllm, lambda key: f"{what} {content[indexes[key]].item_id!r}")
    keys = [None if key in report.reasons else key for key in keys]
    if on_keys is not None:
        on_keys(keys)
    matrix = store.get_matrix(keys)
    if matrix.shape[1] == 0:
        matrix = np.zeros((len(content), encoder.mllm.hidden_size), dtype=np.float32)
    logger.info(
        "%s vectors: %d %ss, %d distinct, %d computed in %.1f s, %d texts cut to %d tokens",
        *(
            what.capitalize(),
            len(content) - 1,
            what,
            len(indexes),
            report.computed,
            report.seconds,
            encoder.texts_cut - cut,
            encoder.max_text_tokens,
        ),
    )
    empty = [index for index, key in enumerate(keys) if key is not None and not matrix[index].any()]
    if empty:
        shown = ", ".join(content[index].item_id for index in empty[:SHOWN_IDS])
        more = ", ..." if len(empty) > SHOWN_IDS else ""
        told = (len(empty), what, shown, more)
        logger.warning("%d %ss have neither image nor text: their vectors are zeros (%s%s)", *told)
    return matrix


def item_keys(content: Content, encoder: ItemEncoder) -> list[str]:
    """Returns the artifact keys of items 1, 2, ...; the model of the encoder needs no weights for it."""
    return [encoder.key(fingerprint) for fingerprint in fingerprints(content, encoder.threads)]


def fingerprints(content: Content, threads: int, per_task: int = 256) -> Iterator[str]:
    """Yields the fingerprints of items 1, 2, ...; reads their images' bytes in threads."""
    starts = range(1, len(content), per_task)

    def some(start: int) -> list[str]:
        return [content.fingerprint(index) for index in range(start, min(start + per_task, len(content)))]

    for part in prefetch(some, starts, threads, 2 * threads):
        yield from part
