"""Vectors through the store: each distinct input is encoded once, ever."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from recbole_mm.artifacts.fill import Failure, fill
from recbole_mm.artifacts.store import Store, artifact_key

BATCHES_AHEAD = 2


def vectors_through_store(
    store: Store,
    stage: str,
    identity: str,
    parameters: Mapping[str, Any],
    hashes: Sequence[str],
    load: Callable[[int], Any],
    encode: Callable[[list[Any]], np.ndarray],
    batch_size: int = 64,
    show_progress: bool = True,
) -> tuple[np.ndarray, dict[int, str]]:
    """Encode n inputs, taking from the store what it has and adding each batch to it as soon as it is done.

    Args:
        store: where vectors are kept.
        stage: name of the stage.
        identity: the encoder and its revision, or a hash of its files.
        parameters: plain settings that the vectors depend on.
        hashes: n content hashes; inputs with the same hash are encoded once.
        load: place in `hashes` -> input, or None when it cannot be had. Called in threads, only for what is encoded.
        encode: inputs -> (k, d) array.
        batch_size: inputs per call of `encode`.
        show_progress: show a progress display.

    Returns:
        (n, d) float32 array, zeros where there is no vector ((n, 0) where no input has one); place -> reason of those.

    Raises:
        StoreError: the store cannot be read or written.
    """
    keys = [artifact_key(stage, identity, "", parameters, content) for content in hashes]
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)

    def work(inputs: list[Any]) -> list[np.ndarray | Failure]:
        return list(np.asarray(encode(inputs), dtype=np.float32))

    def batches(missing: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        return _loaded_ahead(missing, load, batch_size)

    report = fill(store, stage, places, work, batches, show_progress)
    matrix = store.get_matrix([None if key in report.reasons else key for key in keys])
    return matrix, {place: report.reasons[key] for place, key in enumerate(keys) if key in report.reasons}


def _loaded_ahead(missing: Mapping[str, int], load: Callable[[int], Any], size: int) -> Iterator[dict[str, Any]]:
    """Batches of loaded inputs by key; the next ones are loaded in threads while one is worked on."""

    def loaded(place: int) -> Any:
        value = load(place)
        return Failure("the input cannot be loaded") if value is None else value

    keys = iter(missing)
    chunks = iter(lambda: list(islice(keys, size)), [])
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        pending: deque = deque()
        try:
            for chunk in chunks:
                pending.append([(key, pool.submit(loaded, missing[key])) for key in chunk])
                if len(pending) > BATCHES_AHEAD:
                    yield {key: future.result() for key, future in pending.popleft()}
            while pending:
                yield {key: future.result() for key, future in pending.popleft()}
        finally:
            for _, future in (pair for batch in pending for pair in batch):
                future.cancel()
