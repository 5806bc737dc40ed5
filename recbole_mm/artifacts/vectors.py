"""Vectors through the store: each distinct input is encoded once, ever."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from recbole_mm.artifacts.executor import Executor, Failure, Portable
from recbole_mm.artifacts.fill import FillReport, fill, require_finite
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.data.carried import CarriedImage
from recbole_mm.errors import ModelLoadError

BATCHES_AHEAD = 2
NOT_LOADED = "the input cannot be loaded"


class Encoder(Protocol):
    """Turns inputs of one modality into vectors.

    Attributes:
        identity: which model: hub id and commit, or a hash of its files.
        parameters: plain settings that its vectors depend on.
    """

    identity: str
    parameters: dict[str, Any]

    def encode(self, inputs: list[Any]) -> np.ndarray:
        """n texts or RGB images -> (n, d) float32."""


class EncoderRecipe(Protocol):
    """How an encoder is made on another machine; `name` is for errors."""

    @property
    def name(self) -> str: ...

    def open(self, device: str) -> Encoder:
        """Load the model."""


@dataclass(frozen=True)
class VectorRecipe:
    """An encoder, with the settings that its vectors depend on."""

    encoder: EncoderRecipe
    parameters: dict[str, Any]

    def open(self, device: str) -> VectorWorker:
        """Load the encoder.

        Raises:
            ModelLoadError: it cannot be loaded, or would make other vectors.
        """
        encoder = self.encoder.open(device)
        if encoder.parameters != self.parameters:
            raise ModelLoadError(
                f"{self.encoder.name}: a worker would encode with {encoder.parameters}, the run with {self.parameters}"
            )
        return VectorWorker(encoder)


class VectorWorker:
    """Encodes batches of texts or of images."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._problems: dict[str, str] = {}

    def compute(self, inputs: list[Any]) -> list[np.ndarray | Failure]:
        """(d,) float32 of each; a failure for an image that is broken."""
        images = {place: each for place, each in enumerate(inputs) if isinstance(each, CarriedImage)}
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            decoded = dict(zip(images, pool.map(lambda image: image(), images.values())))
        self._problems = {image.item_id: image.problem for image in images.values() if image.problem}
        ready = [decoded.get(place, each) for place, each in enumerate(inputs)]
        loaded = [each for each in ready if each is not None]
        vectors = iter(list(np.asarray(self.encoder.encode(loaded), dtype=np.float32)) if loaded else [])
        return [Failure(NOT_LOADED) if each is None else next(vectors) for each in ready]

    def told(self) -> dict[str, Any]:
        """Images that proved broken."""
        return {"problems": self._problems}


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
    executor: Executor | None = None,
    recipe: EncoderRecipe | None = None,
    carry: Callable[[int], Any] | None = None,
    problems: MutableMapping[str, str] | None = None,
    hear: Callable[[FillReport], None] | None = None,
    names: tuple[str, Callable[[int], str]] | None = None,
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
        executor: encodes elsewhere, if the encoder has a recipe; None encodes here.
        recipe: of the encoder.
        carry: as `load`, of inputs that are sent elsewhere: texts, or images as `data.carried` has them.
        problems: item id -> why its image is broken, for those that prove so elsewhere.
        hear: called with what was done.
        names: what encodes, and place -> its input, for errors; by default the stage and the key.

    Returns:
        (n, d) float32 array, zeros where there is no vector ((n, 0) where no input has one); place -> reason of those.

    Raises:
        StoreError: the store cannot be read or written.
        DataError: a vector holds NaN or infinity.
    """
    keys = [artifact_key(stage, identity, "", parameters, content) for content in hashes]
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, place)

    def work(inputs: list[Any]) -> list[np.ndarray | Failure]:
        return list(np.asarray(encode(inputs), dtype=np.float32))

    def batches(missing: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        return _loaded_ahead(missing, load, batch_size)

    def carried(missing: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        return _loaded_ahead(missing, carry or load, batch_size)

    def note(told: Mapping[str, Any]) -> None:
        if problems is not None:
            problems.update(told["problems"])

    portable = None if recipe is None else Portable(VectorRecipe(recipe, dict(parameters)), carried, note)
    report = fill(store, stage, places, work, batches, show_progress, executor=executor, portable=portable)
    encoder, name = names or (stage, lambda place: keys[place])
    require_finite(report, encoder, lambda key: name(places[key]))
    if hear is not None:
        hear(report)
    matrix = store.get_matrix([None if key in report.reasons else key for key in keys])
    return matrix, {place: report.reasons[key] for place, key in enumerate(keys) if key in report.reasons}


def _loaded_ahead(missing: Mapping[str, int], load: Callable[[int], Any], size: int) -> Iterator[dict[str, Any]]:
    """Batches of loaded inputs by key; the next ones are loaded in threads while one is worked on."""

    def loaded(place: int) -> Any:
        value = load(place)
        return Failure(NOT_LOADED) if value is None else value

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
