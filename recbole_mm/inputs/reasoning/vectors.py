"""Texts to sentence vectors, each distinct text encoded once, ever (MLLMRec's encoding stage)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_mm.artifacts.fill import FillReport
from recbole_mm.artifacts.store import artifact_key
from recbole_mm.artifacts.vectors import Encoder, vectors_through_store
from recbole_mm.data.features import text_hash
from recbole_mm.errors import DataError, ModelLoadError
from recbole_mm.inputs.context import Context, PlannedStage
from recbole_mm.inputs.reasoning.failures import failures_file
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.prompts import Texts
from recbole_mm.inputs.reasoning.rates import ASSUMED_SENTENCES, note_rate, rate_name
from recbole_mm.inputs.reasoning.writing import DESCRIPTIONS, TextNeed, Writing, computing_device
from recbole_mm.llm.encoders import SentenceEncoder, vector_parameters
from recbole_mm.llm.pretrained import Pretrained, find_encoder

logger = logging.getLogger(__name__)

STAGE = "sentence_vector"
BATCH = 128


class SentenceVectors:
    """Plans and computes the vectors of texts by `sentence_encoder`; all needs of a run have it in common.

    Args:
        context: the run's context.
    """

    def __init__(self, context: Context, /) -> None:
        self.context, self.config = context, context.config
        self.name = context.share(Writing).settings.sentence_encoder
        self._planned: dict[str, tuple[list[str], int]] = {}

    def check(self) -> None:
        """Finds the encoder; a hub model is downloaded.

        Raises:
            ModelLoadError: it cannot be had.
        """
        if self.context.open_encoder is None and not self.context.remembered.of(STAGE):
            try:
                find_encoder(self.name)
            except ModelLoadError as error:
                raise ModelLoadError(f"sentence_encoder: {error}") from error

    def keys(self, identity: str, parameters: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
        """Returns the artifact keys of texts.

        Args:
            identity, parameters: of the encoder.
            texts: not empty.
        """
        return [artifact_key(STAGE, identity, "", parameters, text_hash(text)) for text in texts]

    def plan(self, what: str, texts: Sequence[str | None], unwritten: int) -> PlannedStage:
        """Returns one stage for these texts and all that were planned before.

        Args:
            what: they are.
            texts: that are written.
            unwritten: how many are not.
        """
        self._planned[what] = [text for text in texts if text and text.strip()], unwritten
        distinct = list(dict.fromkeys(text for known, _ in self._planned.values() for text in known))
        unknown = sum(count for _, count in self._planned.values())
        found, done, identity = local_encoder(self.name), None, ""
        if found is None:
            self.context.notes.append(
                f"{self.name} is not on this machine; a run will fetch it, or give --sentence_encoder=FOLDER"
            )
        else:
            identity = found.identity
            trust = bool(self.config["trust_remote_code"])
            parameters = vector_parameters("sentence-transformers", found, trust_remote_code=trust)
            done = len(self.context.store.contains(self.keys(identity, parameters, distinct)))
        to_do = len(distinct) - (done or 0) + unknown
        rate = self.context.share(Writing).rates.get(rate_name(STAGE, identity, computing_device(self.config)))
        if rate is None and to_do:
            self.context.notes.append(f"assumed rate of the sentence encoder: {ASSUMED_SENTENCES:,.0f} texts a second")
        seconds = to_do / (rate.per_second if rate else ASSUMED_SENTENCES)
        at_most = bool(unknown) or found is None
        return PlannedStage("sentence vectors", self.name, done, to_do, at_most, None, True, seconds, rate is not None)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded."""
        if self.context.open_encoder is not None:
            return self.context.open_encoder()
        trust = bool(self.config["trust_remote_code"])
        return SentenceEncoder(self.name, self.config["device"], trust_remote_code=trust)

    def encode(self, what: str, texts: Texts, stage: str) -> np.ndarray:
        """Encodes texts through the store.

        Args:
            what: they are, for people.
            texts: n texts, or None; a text without words counts as none.
            stage: that wrote them.

        Returns:
            (n, d) float32; zeros where there is no text.

        Raises:
            DataError: there is no text at all.
            StoreError, ModelLoadError: the store or the encoder.
        """
        places = encoding_order(texts)
        if (known := self._remembered([texts[place] or "" for place in places])) is not None:
            vectors = np.zeros((len(texts), known.shape[1]), dtype=np.float32)
            vectors[places] = known
            return vectors
        encoder, reports = self.encoder, list[FillReport]()
        found, failed = vectors_through_store(
            self.context.store,
            STAGE,
            encoder.identity,
            encoder.parameters,
            [text_hash(texts[place] or "") for place in places],
            lambda rank: texts[places[rank]],
            encoder.encode,
            BATCH,
            self.config["show_progress"],
            executor=self.context.executor,
            recipe=getattr(encoder, "recipe", None),
            on_report=reports.append,
            names=("the sentence encoder", lambda rank: f"the text {(texts[places[rank]] or '')[:40]!r}"),
        )
        if found.shape[1] == 0:
            raise DataError(self._why_none(what, stage, list(failed.values())))
        if failed:
            reason = next(iter(failed.values()))
            logger.warning("%s: %d could not be encoded and are masked (%s)", what, len(failed), reason)
        vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
        vectors[places] = found
        self.context.remembered.note(STAGE, model=[encoder.identity, dict(encoder.parameters)])
        name = rate_name(STAGE, encoder.identity, computing_device(self.config))
        note_rate(self.context.artifacts, name, reports[0].computed, reports[0].seconds)
        logger.info(
            "%s: %d of %d have a sentence vector of %d dimensions, %d computed now",
            *(what, int(vectors.any(axis=1).sum()), len(texts) - 1, vectors.shape[1], reports[0].computed),
        )
        return vectors

    def _remembered(self, texts: Sequence[str]) -> np.ndarray | None:
        """The vectors (texts, d) by the encoder of the run's folder; None where the store lacks one of them."""
        made_with = self.context.remembered.of(STAGE).get("model")
        if made_with is None or not texts:
            return None
        identity, parameters = made_with
        keys, store = self.keys(identity, parameters, texts), self.context.store
        return store.get_matrix(keys) if store.sound(keys) == set(keys) else None

    def _why_none(self, what: str, stage: str, reasons: Sequence[str]) -> str:
        settings = self.context.share(Writing).settings
        if reasons:
            return f"{what}: none could be encoded by {self.name}: {reasons[0]}"
        path = failures_file(self.context.artifacts, self.config, stage)
        if path.is_file():
            return f"{what}: not one could be written; {path} says why"
        return f"{what}: there are none; item_text: {settings.item_text} finds no words or image: set text_fields"


class ItemTextFeatures(TextNeed):
    """`item_text_features`: sentence vectors of what is said of items (MLLMRec, section 4.1)."""

    def check(self) -> None:
        """Finds the sentence encoder."""
        self.context.share(SentenceVectors).check()

    def plan(self) -> list[PlannedStage]:
        """Returns the stages of descriptions and of vectors."""
        items = self.context.share(ItemTexts)
        rows, known = items.planned
        return [*rows, self.context.share(SentenceVectors).plan("item texts", known.written, len(known.unwritten))]

    def write(self) -> None:
        """Has the item texts written."""
        self.context.share(ItemTexts).write()

    def compute(self) -> dict[str, Any]:
        """Returns `fused_vectors`."""
        texts = self.context.share(ItemTexts).texts
        return {"fused_vectors": self.context.share(SentenceVectors).encode("item texts", texts, DESCRIPTIONS)}


def encoding_order(texts: Sequence[str | None]) -> list[int]:
    """Returns the places of the texts that can be encoded, longest first.

    Batches are then of like length, and the same whatever numbers RecBole has given the items: a vector's last bits
    depend on what shares its batch.

    Example:
        >>> encoding_order([None, "bb", "a", " ", "dddd"])
        [4, 1, 2]
    """
    words = {place: text for place, text in enumerate(texts) if text and text.strip()}
    return sorted(words, key=lambda place: (-len(words[place]), words[place]))


def local_encoder(name: str, revision: str | None = None) -> Pretrained | None:
    """Returns an encoder whose files are on this machine; None where they are not. Nothing is downloaded.

    Args:
        name: folder or hub id.
        revision: of a hub model.
    """
    try:
        return find_encoder(name, revision, download=False)
    except ModelLoadError:  # no weights in the folder, no such hub id, nothing in the cache
        return None
