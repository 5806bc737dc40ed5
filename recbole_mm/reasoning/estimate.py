"""What the reasoning stage still has to compute, for `recbole-mm plan`; nothing is computed by telling it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from recbole_mm.reasoning import items, profiles, vectors
from recbole_mm.reasoning.failures import failures_file
from recbole_mm.reasoning.rates import (
    ASSUMED_SENTENCES,
    ASSUMED_UNITS,
    PER_IMAGE,
    PER_NEW_TOKEN,
    Rate,
    TextWork,
    rate_name,
    read_rates,
    text_work,
)
from recbole_mm.reasoning.settings import ReasoningSettings
from recbole_mm.reasoning.stage import NAMES, device_name
from recbole_mm.texts.generator import Generator
from recbole_mm.texts.request import Request
from recbole_mm.texts.stage import text_key

STAND_IN = "A dark red cotton shirt with long sleeves, small round buttons and a loose fit, for warm days outside."
"""Words of about usual length, for a description that is not written yet."""

TEMPLATE = "template"

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan.

    Attributes:
        name: what is made.
        by: the model.
        done: distinct results in the store; None where that cannot be told.
        to_do: distinct results to compute.
        at_most: whether `to_do` is a bound only.
        work: tokens of the texts to write; None for vectors.
        exact: whether the prompt tokens are counted; else they are estimated.
        seconds: estimate of time; None where there is no ground for one.
        measured: whether it rests on what this model did here before.
    """

    name: str
    by: str
    done: int | None
    to_do: int
    at_most: bool = False
    work: TextWork | None = None
    exact: bool = True
    seconds: float | None = None
    measured: bool = False


def reasoning_stages(
    config: Any,
    dataset: Any,
    store: Any,
    artifacts: Path,
    generator: Generator,
    needs: Sequence[str],
    notes: list[str],
) -> list[PlannedStage]:
    """Stages for `item_text_features` and `user_profiles`.

    Args:
        config: of the run.
        dataset: loaded and not yet split.
        store: of artifacts, read only.
        artifacts: its folder.
        generator: never asked for a text; its identity, and its count of tokens.
        needs: of the model.
        notes: what a reader must know is added here.
    """
    return _Estimate(config, dataset, store, artifacts, generator, notes).stages(needs)


class _Estimate:
    """The stages, one after the other: each needs what is known of the texts before it."""

    def __init__(
        self, config: Any, dataset: Any, store: Any, artifacts: Path, generator: Generator, notes: list[str]
    ) -> None:
        self.settings = ReasoningSettings.of(config)
        self.config, self.dataset, self.store, self.artifacts = config, dataset, store, artifacts
        self.generator, self.notes = generator, notes
        self.rates = read_rates(artifacts)
        self.writes = generator.makes == "answers"
        self.by = f"{config['text_backend']}: {writer_name(config)}" if self.writes else TEMPLATE
        self.counted = config["text_backend"] == "hf" and generator.identity != ""

    def stages(self, needs: Sequence[str]) -> list[PlannedStage]:
        content = self.dataset.content
        requests = items.description_requests(content, self.settings, self.generator)
        described, unwritten = self._known(items.STAGE, requests)
        planned = [self._texts(items.STAGE, requests, unwritten, len(described), self.counted)] if requests else []
        if not requests and items.wants_descriptions(self.settings, self.generator):
            self.notes.append("no item has an image: no description is made")
        words = " ".join(islice(cycle(STAND_IN.split()), self.settings.description_words))
        guessed = items.item_texts(content, self.settings, described | dict.fromkeys(unwritten, words))
        known: list[str | None] = [None if item in unwritten else text for item, text in enumerate(guessed)]
        encoded = [text for text in known if text] if "item_text_features" in needs else []
        unknown = len(unwritten) if "item_text_features" in needs else 0
        if "user_profiles" in needs:
            stage, told, untold = self._profiles(guessed, unwritten)
            planned.append(stage)
            encoded += told
            unknown += untold
        return [*planned, self._vectors(encoded, unknown)]

    def _profiles(self, texts: items.Texts, unwritten: set[int]) -> tuple[PlannedStage, list[str], int]:
        """The stage; the profiles that are written; how many are not."""
        histories = profiles.Histories.of(self.dataset, self.settings)
        made = profiles.profile_requests(
            self.dataset.content, histories, texts, self.settings, self.generator, self.config["text_context_tokens"]
        )
        sure = {user: each for user, each in made.requests.items() if unwritten.isdisjoint(made.shown[user])}
        written, missing = self._known(profiles.STAGE, sure)
        waiting = set(made.requests) - set(sure)
        if waiting:
            self.notes.append(
                f"{len(waiting):,} profiles show items that are not described yet: their prompts are estimated with "
                f"{self.settings.description_words} words per description"
            )
        if made.cut:
            self.notes.append(
                f"{len(made.cut):,} of {len(made.requests):,} histories are cut to their newest items within "
                f"{self.settings.profile_history_tokens:,} tokens"
            )
        exact = self.counted and not waiting
        stage = self._texts(profiles.STAGE, made.requests, missing | waiting, len(written), exact)
        cut = [items.cut_words(text, self.settings.profile_words) for text in written.values()]
        return stage, cut, len(missing | waiting)

    def _known(self, stage: str, requests: Mapping[Key, Request]) -> tuple[dict[Key, str], set[Key]]:
        """Texts that are in the store, and whose are not. The template's are known without having been written."""
        keys = {key: text_key(stage, self.generator, request) for key, request in requests.items()}
        found = self.store.get_many(keys.values())
        if not self.writes:
            return {key: str(request.fallback) for key, request in requests.items()}, set()
        return (
            {key: str(found[name]) for key, name in keys.items() if name in found},
            {key for key, name in keys.items() if name not in found},
        )

    def _texts(
        self, stage: str, requests: Mapping[int, Request], missing: set[int], known: int, exact: bool
    ) -> PlannedStage:
        keys = {key: text_key(stage, self.generator, request) for key, request in requests.items()}
        if not self.writes:
            wanted = set(keys.values())
            absent = len(wanted - self.store.contains(wanted))
            return PlannedStage(NAMES[stage], self.by, len(wanted) - absent, absent, seconds=0.0, measured=True)
        todo = _first_of_each((keys[key], key) for key in requests if key in missing)
        done = len({keys[key] for key in requests if key not in missing})
        failed = set(self.store.failures(stage)) & {keys[key] for key in todo}
        if failed:
            path = failures_file(self.artifacts, str(self.config["dataset"]), stage)
            self.notes.append(f"{len(failed):,} of the {NAMES[stage]} to do have failed before ({path})")
        work = text_work(self.generator, [requests[key] for key in todo], self.config["text_max_new_tokens"])
        rate = self.rates.get(rate_name(stage, self.generator.identity, device_name(self.config)))
        if rate is None and todo:
            self.notes.append(
                f"assumed rate: {ASSUMED_UNITS:,.0f} prompt tokens or {ASSUMED_UNITS / PER_NEW_TOKEN:,.0f} new tokens "
                f"a second, an image as {PER_IMAGE} tokens, until {writer_name(self.config)} has worked here once"
            )
        seconds = work.units / (rate.per_second if rate else ASSUMED_UNITS)
        return PlannedStage(NAMES[stage], self.by, done, len(todo), False, work, exact, seconds, rate is not None)

    def _vectors(self, known: Iterable[str], unknown: int) -> PlannedStage:
        """The sentence vectors of texts that are written, and of so many that are not."""
        name = self.settings.sentence_encoder
        identity = vectors.known_identity(name)
        distinct = {vectors.text_hash(text): text for text in known if text.strip()}
        keys = [] if identity is None else [vectors.vector_key(identity, text) for text in distinct.values()]
        done = None if identity is None else len(self.store.contains(keys))
        to_do = len(distinct) - (done or 0) + unknown
        if identity is None:
            self.notes.append(f"{name} is not on this machine; a run will fetch it, or give --sentence_encoder=FOLDER")
        rate: Rate | None = self.rates.get(rate_name(vectors.STAGE, identity or "", str(self.config["device"])))
        if rate is None and to_do:
            self.notes.append(f"assumed rate of the sentence encoder: {ASSUMED_SENTENCES:,.0f} texts a second")
        seconds = to_do / (rate.per_second if rate else ASSUMED_SENTENCES)
        at_most = bool(unknown) or identity is None
        return PlannedStage("sentence vectors", name, done, to_do, at_most, None, True, seconds, rate is not None)


def _first_of_each(pairs: Iterable[tuple[str, Key]]) -> list[Key]:
    """One key of the caller's for each distinct artifact key."""
    first: dict[str, Key] = {}
    for name, key in pairs:
        first.setdefault(name, key)
    return list(first.values())


def writer_name(config: Any) -> str:
    """The model that writes, by the name that the user gave."""
    return str(config["text_model"] or config["mllm"])
