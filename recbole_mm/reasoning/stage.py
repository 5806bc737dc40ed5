"""The reasoning stage of a run (MLLMRec, section 4.1): item texts and user profiles, written, then encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_mm.artifacts.store import Store
from recbole_mm.data.encoders import Encoder, SentenceEncoder
from recbole_mm.errors import DataError
from recbole_mm.reasoning import items, profiles, vectors
from recbole_mm.reasoning.failures import failures_file, list_failures
from recbole_mm.reasoning.left_out import LeftOut
from recbole_mm.reasoning.rates import note_rate, rate_name, text_work
from recbole_mm.reasoning.settings import ReasoningSettings
from recbole_mm.texts.generator import Generator
from recbole_mm.texts.request import Request
from recbole_mm.texts.stage import texts_missing, texts_through_store

logger = logging.getLogger(__name__)

NEEDS = ("item_text_features", "user_profiles")
NAMES = {items.STAGE: "item descriptions", profiles.STAGE: "user profiles"}

Key = TypeVar("Key", bound=Hashable)


class Reasoning:
    """Has texts written and encoded.

    Args:
        config: of the run.
        dataset: loaded and not yet split.
        store: where texts and vectors are kept.
        artifacts: the folder of the store, for the list of failures and the measured rates.
        generator: who writes.
        left_out: what the run had to do without when it began; it is not asked for again.

    Raises:
        ConfigError: a setting that is not accepted.
    """

    def __init__(
        self,
        config: Any,
        dataset: Any,
        store: Store,
        artifacts: Path,
        generator: Generator,
        left_out: LeftOut | None = None,
    ) -> None:
        self.settings = ReasoningSettings.of(config)
        self.config = config
        self.dataset = dataset
        self.store = store
        self.artifacts = artifacts
        self.generator = generator
        self.left_out = left_out or LeftOut()

    def provide(self, needs: Sequence[str], open_encoder: Callable[[], Encoder] | None = None) -> dict[str, Any]:
        """What these needs give a dataset.

        Args:
            needs: out of `NEEDS`.
            open_encoder: the sentence encoder, opened once the texts are there; `sentence_encoder` by default.

        Returns:
            `fused_vectors` (n_items, d) and `profile_vectors` (n_users, d), float32, as far as they are needed. Row 0
            and the rows of what has no text are zeros.

        Raises:
            DataError: no item or no user at all has a text.
            ConfigError, ModelLoadError, StoreError: settings, a model or the store.
        """
        try:
            texts = self.item_texts()
            written = self.profiles(texts) if "user_profiles" in needs else None
        finally:
            self.generator.close()  # its memory is wanted by the next model
        encoder = self._encoder() if open_encoder is None else open_encoder()
        provided = {}
        if "item_text_features" in needs:
            provided["fused_vectors"] = self._vectors(texts, encoder, "item texts")
        if written is not None:
            provided["profile_vectors"] = self._vectors(written, encoder, "user profiles")
        return provided

    def item_texts(self) -> items.Texts:
        """The text of every item, by RecBole's id; the images described first, where that is asked for."""
        content = self.dataset.content
        requests = items.description_requests(content, self.settings, self.generator)
        self._say_what_is_described(len(requests), len(content) - 1)
        descriptions = self._written(items.STAGE, requests, content.tokens)
        texts = items.item_texts(content, self.settings, descriptions)
        items.log_coverage(content, descriptions, texts)
        return texts

    def profiles(self, texts: items.Texts) -> items.Texts:
        """The profile of every user, by RecBole's id.

        Args:
            texts: of the items.
        """
        histories = profiles.Histories.of(self.dataset, self.settings)
        context = self.config["text_context_tokens"]
        made = profiles.profile_requests(self.dataset.content, histories, texts, self.settings, self.generator, context)
        tokens = self.dataset.field2id_token[self.dataset.uid_field]
        profiles.log_requests(made, self.settings.profile_history_tokens, tokens)
        written = self._written(profiles.STAGE, made.requests, tokens)
        found: items.Texts = [None] * len(tokens)
        for user, text in written.items():
            found[user] = items.cut_words(text, self.settings.profile_words)
        return found

    def _say_what_is_described(self, requests: int, total: int) -> None:
        by_template = self.generator.makes == "templates"
        if self.settings.item_text == "image" and by_template:
            logger.warning(
                "item_text: image with text_backend: template: descriptions say the metadata, no image is read"
            )
        elif by_template and self.settings.item_text == "fused":
            logger.info("item descriptions: none, for a template could only repeat the metadata that is there already")
        elif self.settings.item_text != "text" and requests < total:
            logger.info(
                "item descriptions: %d of %d items have no image; no call is made for them", total - requests, total
            )

    def _written(self, stage: str, requests: Mapping[int, Request], tokens: Sequence[str]) -> dict[int, str]:
        """Texts of a stage by RecBole's id; what fails is listed and left out."""
        path = failures_file(self.artifacts, str(self.config["dataset"]), stage)
        done_without = self.left_out.of(stage)
        if done_without is not None:
            requests = {key: request for key, request in requests.items() if tokens[key] not in done_without}
        if not requests:
            list_failures(path, NAMES[stage], {}, 0)
            return {}
        missing = texts_missing(self.store, stage, self.generator, requests)
        report = texts_through_store(self.store, stage, self.generator, requests, self.config["show_progress"])
        failed = {tokens[key]: why for key, why in report.failed.items()}
        list_failures(path, NAMES[stage], failed, len(requests))
        self.left_out.note(stage, {*failed, *(done_without or ())})
        if self.generator.makes == "answers" and report.computed:
            name = rate_name(stage, self.generator.identity, device_name(self.config))
            units = text_work(self.generator, [requests[key] for key in missing], self.config["text_max_new_tokens"])
            note_rate(self.artifacts, name, units.units, report.seconds)
        return report.texts

    def _encoder(self) -> Encoder:
        return SentenceEncoder(self.settings.sentence_encoder, self.config["device"])

    def _vectors(self, texts: items.Texts, encoder: Encoder, what: str) -> np.ndarray:
        """(len(texts), d) float32."""
        encoded = vectors.sentence_vectors(texts, encoder, self.store, self.config["show_progress"])
        if encoded.vectors.shape[1] == 0:
            raise DataError(self._why_none(what, encoded.failed))
        if encoded.failed:
            reason = next(iter(encoded.failed.values()))
            logger.warning("%s: %d could not be encoded and are masked (%s)", what, len(encoded.failed), reason)
        name = rate_name(vectors.STAGE, encoder.identity, str(self.config["device"]))
        note_rate(self.artifacts, name, encoded.computed, encoded.seconds)
        have, width = int(encoded.vectors.any(axis=1).sum()), encoded.vectors.shape[1]
        logger.info(
            "%s: %d of %d have a sentence vector of %d dimensions, %d computed now",
            *(what, have, len(texts) - 1, width, encoded.computed),
        )
        return encoded.vectors

    def _why_none(self, what: str, failed: Mapping[int, str]) -> str:
        if failed:
            return f"{what}: none could be encoded by {self.settings.sentence_encoder}: {next(iter(failed.values()))}"
        stage = profiles.STAGE if what == NAMES[profiles.STAGE] else items.STAGE
        path = failures_file(self.artifacts, str(self.config["dataset"]), stage)
        if path.is_file():
            return f"{what}: not one could be written; {path} says why"
        return f"{what}: there are none; item_text: {self.settings.item_text} finds no words or image: set text_fields"


def device_name(config: Any) -> str:
    """Where a run's models work, for the rates: a server is as fast as it is wherever the run itself is."""
    return str(config["text_url"]) if config["text_backend"] == "openai" else str(config["device"])
