"""The reasoning stage of a run: item texts, user profiles (MLLMRec, section 4.1) and preferences (MLLM-MSR).

They are written first, all of them, and then encoded where a model wants vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_mm.artifacts.executor import Executor
from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.vectors import Encoder
from recbole_mm.errors import DataError
from recbole_mm.inputs.reasoning import items, profiles, recurrent, vectors
from recbole_mm.inputs.reasoning.failures import failures_file, list_failures
from recbole_mm.inputs.reasoning.left_out import LeftOut
from recbole_mm.inputs.reasoning.preference_prompts import PreferencePrompts
from recbole_mm.inputs.reasoning.preferences import Cases, Preferences, requests_at_once, requests_of_template
from recbole_mm.inputs.reasoning.rates import TextWork, note_rate, rate_name, text_work
from recbole_mm.inputs.reasoning.recurrent import Node
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.llm.encoders import SentenceEncoder
from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.llm.texts.stage import texts_through_store

logger = logging.getLogger(__name__)

ENCODED = ("item_text_features", "user_profiles")
"""Needs of sentence vectors; the others are texts."""
NEEDS = (*ENCODED, "item_texts", "user_preferences")
NAMES = {items.STAGE: "item descriptions", profiles.STAGE: "user profiles", recurrent.STAGE: "user preferences"}

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
        executor: has texts encoded elsewhere; None has them encoded here. Who writes them is the generator's business.

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
        executor: Executor | None = None,
    ) -> None:
        self.settings = ReasoningSettings.of(config)
        self.preference = PreferenceSettings.of(config)
        self.config = config
        self.dataset = dataset
        self.store = store
        self.artifacts = artifacts
        self.generator = generator
        self.left_out = left_out or LeftOut()
        self.executor = executor

    def provide(self, needs: Sequence[str], open_encoder: Callable[[], Encoder] | None = None) -> dict[str, Any]:
        """What these needs give a dataset.

        Args:
            needs: out of `NEEDS`.
            open_encoder: the sentence encoder, opened once the texts are there; `sentence_encoder` by default.

        Returns:
            `fused_vectors` (n_items, d) and `profile_vectors` (n_users, d), float32, as far as they are needed: row 0
            and the rows of what has no text are zeros. `item_texts` and `preferences` likewise.

        Raises:
            DataError: no item or no user at all has a text, where vectors are needed.
            ConfigError, ModelLoadError, StoreError: settings, a model or the store.
        """
        provided: dict[str, Any] = {}
        texts: items.Texts = []
        try:
            if set(needs) & set(NEEDS) - {"user_preferences"} or self.preference.preference != "none":
                texts = self.item_texts()
            if "item_texts" in needs:
                provided["item_texts"] = texts
            written = self.profiles(texts) if "user_profiles" in needs else None
            if "user_preferences" in needs:
                provided["preferences"] = self.preferences(texts)
        finally:
            self.generator.close()  # its memory is wanted by the next model
        if not set(needs) & set(ENCODED):
            return provided
        encoder = self._encoder() if open_encoder is None else open_encoder()
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

    def preferences(self, texts: items.Texts) -> Preferences:
        """What every user prefers after each history that the model is asked about.

        Args:
            texts: of the items.

        Raises:
            ConfigError: the split is one whose training rows are not known yet, or sessions are wanted without times.
        """
        max_length = self.config["MAX_ITEM_LIST_LENGTH"]
        if self.preference.preference == "none":
            return Preferences({}, {}, max_length)
        cases = Cases.of(self.config, self.dataset)
        if self.generator.makes == "answers" and self.preference.preference == "recurrent":
            told = self._chains(cases, texts)
        else:
            told = self._at_once(cases, texts)
        found = Preferences(cases.sequences(), told, max_length)
        without = sum(not any((user, length) in told for length in cases.lengths[user]) for user in cases.lengths)
        logger.info("user preferences: %d texts for %d cases; %d users have none", len(found), len(cases), without)
        return found

    def _at_once(self, cases: Cases, texts: items.Texts) -> dict[Node, str]:
        """A text for each case, none of which waits for another."""
        words = self.preference.preference_words
        requests: Mapping[Node, Request]
        if self.generator.makes == "templates":
            requests = requests_of_template(cases, self.dataset.content, words)
        else:
            requests, _, cut = requests_at_once(cases, self._prompts(texts))
            self._say_what_is_cut(cut, len(requests))
        written = self._written(recurrent.STAGE, requests, self._labels(requests))
        return {node: items.cut_words(text, words) for node, text in written.items()}

    def _chains(self, cases: Cases, texts: items.Texts) -> dict[Node, str]:
        """Texts block by block, of the cases and of what they are made of."""
        chains, sequences = cases.chains(self.preference), cases.sequences()
        labels = self._labels(chains.starts)
        longest = max(chains.remaining().values(), default=0)
        logger.info("user preferences: %d blocks, at most %d one after the other", len(chains), longest)
        done_without = self.left_out.of(recurrent.STAGE) or frozenset()
        writer = recurrent.ChainWriter(
            chains,
            lambda user: sequences[user].tolist(),
            self._prompts(texts),
            self.preference.preference_words,
            self.store,
            self.generator,
            {node for node, label in labels.items() if label in done_without},
        )
        try:
            made = writer.write(self.config["show_progress"])
        finally:
            done = writer.written
            work = TextWork(done.asked, done.prompt_tokens, 0, done.asked * self.config["text_max_new_tokens"])
            if done.computed:
                self._note_rate(recurrent.STAGE, work, done.seconds)
        self._say_what_is_cut(made.cut, len(chains))
        self._say_what_failed(recurrent.STAGE, {labels[node]: why for node, why in made.failed.items()}, len(chains))
        return made.texts

    def _prompts(self, texts: items.Texts) -> PreferencePrompts:
        return preference_prompts(self.config, self.settings, self.preference, texts, self.generator)

    def _labels(self, nodes: Iterable[Node]) -> dict[Node, str]:
        """What a text is called in the list of failures: `u7 (12 items)`."""
        tokens = self.dataset.field2id_token[self.dataset.uid_field]
        return {(user, length): f"{tokens[user]} ({length} items)" for user, length in nodes}

    def _say_what_is_cut(self, cut: int, total: int) -> None:
        if cut:
            logger.info("user preferences: %d of %d prompts have no room for all that is known", cut, total)

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

    def _written(
        self, stage: str, requests: Mapping[Key, Request], labels: Mapping[Key, str] | Sequence[str]
    ) -> dict[Key, str]:
        """Texts of a stage under the keys of the requests; what fails is listed by its label and left out."""
        names: Any = labels
        done_without = self.left_out.of(stage)
        if done_without is not None:
            requests = OnDemand((key for key in requests if names[key] not in done_without), requests.__getitem__)
        if not requests:
            list_failures(failures_file(self.artifacts, self.config, stage), NAMES[stage], {}, 0)
            return {}
        report = texts_through_store(self.store, stage, self.generator, requests, self.config["show_progress"])
        self._say_what_failed(stage, {names[key]: why for key, why in report.failed.items()}, len(requests))
        if report.computed:
            work = text_work(
                self.generator, map(requests.__getitem__, report.asked), self.config["text_max_new_tokens"]
            )
            self._note_rate(stage, work, report.seconds)
        return report.texts

    def _say_what_failed(self, stage: str, failed: Mapping[str, str], wanted: int) -> None:
        """List the failures, and remember them as part of the run."""
        list_failures(failures_file(self.artifacts, self.config, stage), NAMES[stage], failed, wanted)
        self.left_out.note(stage, {*failed, *(self.left_out.of(stage) or ())})

    def _note_rate(self, stage: str, work: TextWork, seconds: float) -> None:
        if self.generator.makes == "answers":
            name = rate_name(stage, self.generator.identity, device_name(self.config))
            note_rate(self.artifacts, name, work.units, seconds)

    def _encoder(self) -> Encoder:
        trust = bool(self.config["trust_remote_code"])
        return SentenceEncoder(self.settings.sentence_encoder, self.config["device"], trust_remote_code=trust)

    def _vectors(self, texts: items.Texts, encoder: Encoder, what: str) -> np.ndarray:
        """(len(texts), d) float32."""
        encoded = vectors.sentence_vectors(texts, encoder, self.store, self.config["show_progress"], self.executor)
        if encoded.vectors.shape[1] == 0:
            raise DataError(self._why_none(what, encoded.failed))
        if encoded.failed:
            reason = next(iter(encoded.failed.values()))
            logger.warning("%s: %d could not be encoded and are masked (%s)", what, len(encoded.failed), reason)
        name = rate_name(vectors.STAGE, encoder.identity, computing_device(self.config))
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
        path = failures_file(self.artifacts, self.config, stage)
        if path.is_file():
            return f"{what}: not one could be written; {path} says why"
        return f"{what}: there are none; item_text: {self.settings.item_text} finds no words or image: set text_fields"


def preference_prompts(
    config: Any, settings: ReasoningSettings, preference: PreferenceSettings, texts: items.Texts, generator: Generator
) -> PreferencePrompts:
    """What makes the requests of a run's preferences."""
    return PreferencePrompts(
        texts,
        settings.item_domain,
        preference.preference_words,
        generator,
        config["text_context_tokens"],
        preference.preference_history_tokens if preference.preference == "direct" else None,
    )


def device_name(config: Any) -> str:
    """Where a run's models work, for the rates: a server is as fast as it is wherever the run itself is."""
    return str(config["text_url"]) if config["text_backend"] == "openai" else computing_device(config)


def computing_device(config: Any) -> str:
    """Where a run computes itself: workers on a cluster are as fast together as they are."""
    return f"{config['device']} on Ray" if config["ray_address"] else str(config["device"])
