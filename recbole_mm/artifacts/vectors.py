"""Vectors of texts and images, by any encoder, through the store: each distinct input is encoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recbole_mm.artifacts.executor import Executor, Failure, RemoteWork
from recbole_mm.artifacts.fill import FillReport, fill, require_finite
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.data.content import CarriedImage
from recbole_mm.errors import ModelLoadError
from recbole_mm.utils.prefetch import prefetch

BATCHES_AHEAD = 2
THREADS = min(os.cpu_count() or 1, 8)
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
    """Makes an encoder in another process; `name` is for error messages."""

    @property
    def name(self) -> str: ...

    def open(self, device: str) -> Encoder:
        """Load the model."""


@dataclass(frozen=True)
class VectorRecipe:
    """The recipe of a `VectorWorker`: an encoder, and the settings that its vectors depend on."""

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
        """Returns the (d,) float32 vector of each text or image, or a failure where the image is broken."""
        images = {place: each for place, each in enumerate(inputs) if isinstance(each, CarriedImage)}
        with ThreadPoolExecutor(THREADS) as pool:
            decoded = dict(zip(images, pool.map(lambda image: image(), images.values())))
        self._problems = {image.item_id: image.problem for image in images.values() if image.problem}
        ready = [decoded.get(place, each) for place, each in enumerate(inputs)]
        loaded = [each for each in ready if each is not None]
        vectors = iter(list(np.asarray(self.encoder.encode(loaded), dtype=np.float32)) if loaded else [])
        return [Failure(NOT_LOADED) if each is None else next(vectors) for each in ready]

    def report(self) -> dict[str, Any]:
        """Returns the ids of the last batch's broken images, and why they are broken."""
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
    on_report: Callable[[FillReport], None] | None = None,
    names: tuple[str, Callable[[int], str]] | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Encode n inputs: take from the store what it has, and add each batch to it as soon as it is encoded.

    Args:
        store: keeps the vectors.
        stage: name of the stage.
        identity: the encoder and its revision, or a hash of its files.
        parameters: plain settings that the vectors depend on.
        hashes: n content hashes; inputs with the same hash are encoded once.
        load: index in `hashes` -> input, or None where it cannot be loaded. Called in threads, for missing vectors.
        encode: k inputs -> (k, d) array.
        batch_size: number of inputs per call of `encode`.
        show_progress: show a progress display.
        executor: encodes in other processes, if there is a recipe; None encodes in this one.
        recipe: makes the encoder in other processes.
        carry: as `load`, of inputs that can be sent to other processes: texts, or `data.content.CarriedImage`s.
        problems: receives item id -> reason, of images that other processes find broken.
        on_report: called with the report of `fill`.
        names: name of the encoder, and index -> name of its input, for errors; by default the stage and the key.

    Returns:
        (n, d) float32 array with zeros where there is no vector, or (n, 0) where no input has one; and index -> reason
        of those without.

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

    def add_problems(found: Mapping[str, Any]) -> None:
        if problems is not None:
            problems.update(found["problems"])

    remote = None if recipe is None else RemoteWork(VectorRecipe(recipe, dict(parameters)), carried, add_problems)
    report = fill(store, stage, places, work, batches, show_progress, executor=executor, remote_work=remote)
    encoder, name = names or (stage, lambda place: keys[place])
    require_finite(report, encoder, lambda key: name(places[key]))
    if on_report is not None:
        on_report(report)
    matrix = store.get_matrix([None if key in report.reasons else key for key in keys])
    return matrix, {place: report.reasons[key] for place, key in enumerate(keys) if key in report.reasons}


def _loaded_ahead(missing: Mapping[str, int], load: Callable[[int], Any], size: int) -> Iterator[dict[str, Any]]:
    """Yields batches of loaded inputs by key; threads load the next ones while one is encoded."""

    def loaded(key: str) -> Any:
        value = load(missing[key])
        return Failure(NOT_LOADED) if value is None else value

    keys = list(missing)
    with closing(prefetch(loaded, keys, THREADS, BATCHES_AHEAD * size)) as ready:
        for start in range(0, len(keys), size):
            yield dict(zip(keys[start : start + size], ready, strict=False))
