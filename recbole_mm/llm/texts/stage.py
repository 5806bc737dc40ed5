"""A stage of texts through the artifact store: each distinct request is answered once, ever; resumable at any point."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.fill import OnDemand, fill
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.llm.texts.generator import Generator, Request, StreamingGenerator

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

EMPTY = "the text is empty"
TEXTS_PER_BATCH = 64
"""Texts per transaction, from a generator that does not cut its own batches."""


@dataclass
class TextReport(Generic[Key]):
    """What came of the requests, under the keys of the requests.

    Attributes:
        texts: key -> text, in the order of the requests.
        failed: key -> reason of those that have no text.
        keys: key -> artifact key, of those that have a text.
        asked: one key of each distinct text that the store lacked, in the order of the requests.
        computed: distinct texts that this call had written; the others were in the store.
        seconds: wall time.
    """

    texts: dict[Key, str] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)
    keys: dict[Key, str] = field(default_factory=dict)
    asked: list[Key] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0


def text_key(stage: str, generator: Generator, request: Request) -> str:
    """Artifact key of a text: stage, model, settings, and what of the request the generator makes it of."""
    answers = generator.makes == "answers"
    prompt = request.prompt if answers else ""
    return artifact_key(stage, generator.identity, prompt, generator.parameters, request.content_hash(answers))


def texts_through_store(
    store: Store,
    stage: str,
    generator: Generator,
    requests: Mapping[Key, Request],
    show_progress: bool = True,
) -> TextReport[Key]:
    """Have texts written, taking from the store what it has and adding each batch to it as soon as it is done.

    Interrupt it anywhere: all that was finished is kept, and the next call asks only for the rest. Failures are
    recorded in the store with their reasons, and tried again by the next call.

    Args:
        store: where texts are kept.
        stage: name of the stage, e.g. `item_description`.
        generator: the backend.
        requests: what is wanted, under keys of the caller's own. Identical requests are answered once. Each is looked
            up when it is needed, several times in all, and none is kept (`OnDemand`).
        show_progress: show a progress display.

    Returns:
        Every key of `requests` is in `texts` or in `failed`. No text is empty.

    Raises:
        StoreError: the store cannot be read or written.
        RecboleMMError: no text at all can be had, as from a server that refuses the key; what was finished is kept.

    Example:
        >>> from recbole_mm.artifacts.store import Store
        >>> from recbole_mm.llm.texts.generator import TemplateGenerator
        >>> store = Store(tmp_path / "artifacts.sqlite")
        >>> texts_through_store(store, "title", TemplateGenerator(), {1: Request("Name it", "Blue shoes")}).texts
        {1: 'Blue shoes'}
    """
    keys = {key: text_key(stage, generator, request) for key, request in requests.items()}
    first = _first_of_each(keys)
    there = store.contains(first)
    distinct = OnDemand(first, lambda name: requests[first[name]])
    batches: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] | int = TEXTS_PER_BATCH
    work: Callable[[list[Any]], list[str | Failure]] = generator.generate
    if isinstance(generator, StreamingGenerator):
        batches, work = generator.stream, list  # the stream's batches are finished texts already
    report = fill(store, stage, distinct, lambda inputs: _not_empty(work(inputs)), batches, show_progress)
    values = store.get_many(keys.values())
    asked = [key for name, key in first.items() if name not in there]
    outcome: TextReport[Key] = TextReport(asked=asked, computed=report.computed, seconds=report.seconds)
    for key, name in keys.items():
        if name in report.reasons:
            outcome.failed[key] = report.reasons[name]
        else:
            outcome.texts[key], outcome.keys[key] = str(values[name]), name
    logger.info(
        "%s: %d texts wanted, %d distinct, %d written in %.1f s, %d failed",
        *(stage, len(keys), len(first), report.computed, report.seconds, len(outcome.failed)),
    )
    return outcome


def _first_of_each(keys: Mapping[Key, str]) -> dict[str, Key]:
    """Artifact key -> the first of the caller's keys that has it."""
    first: dict[str, Key] = {}
    for key, name in keys.items():
        first.setdefault(name, key)
    return first


def _not_empty(outcomes: list[str | Failure]) -> list[str | Failure]:
    return [Failure(EMPTY) if isinstance(outcome, str) and not outcome.strip() else outcome for outcome in outcomes]
