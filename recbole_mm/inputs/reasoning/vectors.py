"""Texts to sentence vectors, each distinct text encoded once, ever (MLLMRec's encoding stage)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.artifacts.executor import Executor
from recbole_mm.artifacts.fill import FillReport
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.artifacts.vectors import Encoder, vectors_through_store
from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.pretrained import find_encoder

logger = logging.getLogger(__name__)

STAGE = "sentence_vector"
BATCH = 128
PARAMETERS = {"kind": "sentence-transformers", "normalize": False}
"""Those of the `SentenceEncoder` that is used here: for telling what is computed without loading it."""


@dataclass
class Encoded:
    """Vectors of texts.

    Attributes:
        vectors: (n, d) float32; zeros where there is no text. (n, 0) if there is none at all.
        failed: place -> reason, where a text could not be encoded.
        computed: distinct texts that were encoded now.
        seconds: spent on that.
    """

    vectors: np.ndarray
    failed: dict[int, str]
    computed: int
    seconds: float


def sentence_vectors(
    texts: Sequence[str | None],
    encoder: Encoder,
    store: Store,
    show_progress: bool = True,
    executor: Executor | None = None,
) -> Encoded:
    """Encode texts through the store.

    Args:
        texts: n texts, or None; a text without words counts as none.
        encoder: of sentences.
        store: where vectors are kept.
        show_progress: show a progress display.
        executor: encodes in other processes; None encodes in this one.
    """
    places = encoding_order(texts)
    reports: list[FillReport] = []
    found, failed = vectors_through_store(
        store,
        STAGE,
        encoder.identity,
        encoder.parameters,
        [text_hash(texts[place] or "") for place in places],
        lambda rank: texts[places[rank]],
        encoder.encode,
        BATCH,
        show_progress,
        executor=executor,
        recipe=getattr(encoder, "recipe", None),
        on_report=reports.append,
        names=("the sentence encoder", lambda rank: f"the text {(texts[places[rank]] or '')[:40]!r}"),
    )
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    vectors[places] = found
    done = reports[0]
    return Encoded(vectors, {places[rank]: reason for rank, reason in failed.items()}, done.computed, done.seconds)


def encoding_order(texts: Sequence[str | None]) -> list[int]:
    """Places of the texts that can be encoded, longest first.

    Batches are then of like length, and the same whatever numbers RecBole has given the items: a vector's last bits
    depend on what shares its batch.
    """
    words = {place: text for place, text in enumerate(texts) if text and text.strip()}
    return sorted(words, key=lambda place: (-len(words[place]), words[place]))


def text_hash(text: str) -> str:
    """Content hash of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def vector_key(identity: str, text: str) -> str:
    """The artifact key under which `sentence_vectors` keeps the vector of a text.

    Args:
        identity: of the encoder.
        text: not empty.
    """
    return artifact_key(STAGE, identity, "", PARAMETERS, text_hash(text))


def known_identity(name: str, revision: str | None = None) -> str | None:
    """Identity of an encoder whose files are on this machine; None where they are not. Downloads nothing.

    Args:
        name: folder or hub id.
        revision: of a hub model.
    """
    try:
        return find_encoder(name, revision, download=False).identity
    except ModelLoadError:  # no weights in the folder, no such hub id, nothing in the cache
        return None
