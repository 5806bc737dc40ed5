"""What the reasoning stage still has to compute, for `recbole-mm plan`; nothing is computed by telling it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.inputs.reasoning import items, profiles, recurrent, vectors
from recbole_mm.inputs.reasoning.failures import failures_file
from recbole_mm.inputs.reasoning.preference_prompts import PreferencePrompts, Shown
from recbole_mm.inputs.reasoning.preferences import Cases, requests_at_once, requests_of_template
from recbole_mm.inputs.reasoning.rates import (
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
from recbole_mm.inputs.reasoning.recurrent import Node
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.inputs.reasoning.stage import ENCODED, NAMES, NEEDS, computing_device, device_name, preference_prompts
from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.llm.texts.stage import text_key

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


class Estimate:
    """The stages, one after the other: each needs what is known of the texts before it.

    Args:
        config: of the run.
        dataset: loaded and not yet split.
        store: of artifacts, read only.
        artifacts: its folder.
        generator: never asked for a text; its identity, and its count of tokens.
        notes: what a reader must know is added here.

    Attributes:
        summaries: after `stages`: item texts that are known, None where there is none yet or never.
        unwritten: items whose text is not known yet.

    Raises:
        ConfigError: a setting that is not accepted.
    """

    def __init__(
        self, config: Any, dataset: Any, store: Any, artifacts: Path, generator: Generator, notes: list[str]
    ) -> None:
        self.settings, self.preference = ReasoningSettings.of(config), PreferenceSettings.of(config)
        self.config, self.dataset, self.store, self.artifacts = config, dataset, store, artifacts
        self.generator, self.notes = generator, notes
        self.rates = read_rates(artifacts)
        self.writes = generator.makes == "answers"
        self.by = f"{config['text_backend']}: {writer_name(config)}" if self.writes else TEMPLATE
        self.counted = config["text_backend"] == "hf" and generator.identity != ""
        self.summaries: items.Texts = []
        self.unwritten: set[int] = set()

    def stages(self, needs: Sequence[str]) -> list[PlannedStage]:
        """Stages for the needs of a model, out of `recbole_mm.inputs.reasoning.stage.NEEDS`."""
        prefers = "user_preferences" in needs and self.preference.preference != "none"
        if not prefers and not set(needs) & set(NEEDS) - {"user_preferences"}:
            return []
        content = self.dataset.content
        requests = items.description_requests(content, self.settings, self.generator)
        described, self.unwritten = self._known(items.STAGE, requests)
        planned = [self._texts(items.STAGE, requests, self.unwritten, len(described), self.counted)] if requests else []
        if not requests and items.wants_descriptions(self.settings, self.generator):
            self.notes.append("no item has an image: no description is made")
        words = stand_in(self.settings.description_words)
        guessed = items.item_texts(content, self.settings, described | dict.fromkeys(self.unwritten, words))
        self.summaries = [None if item in self.unwritten else text for item, text in enumerate(guessed)]
        encoded = [text for text in self.summaries if text] if "item_text_features" in needs else []
        unknown = len(self.unwritten) if "item_text_features" in needs else 0
        if "user_profiles" in needs:
            stage, told, untold = self._profiles(guessed, self.unwritten)
            planned.append(stage)
            encoded += told
            unknown += untold
        if prefers:
            planned.append(self._preferences(guessed))
        return [*planned, *([self._vectors(encoded, unknown)] if set(needs) & set(ENCODED) else [])]

    def _preferences(self, texts: items.Texts) -> PlannedStage:
        """The stage of user preferences: what follows a text that is not written is estimated."""
        cases = Cases.of(self.config, self.dataset)
        prompts = preference_prompts(self.config, self.settings, self.preference, texts, self.generator)
        if not self.writes:
            words = self.preference.preference_words
            made = requests_of_template(cases, self.dataset.content, words)
            return self._texts(recurrent.STAGE, made, set(), len(made), self.counted)
        if self.preference.preference == "direct":
            requests, shown, _ = requests_at_once(cases, prompts)
            sure = OnDemand((node for node in requests if self.unwritten.isdisjoint(shown[node])), requests.__getitem__)
            known, missing = self._known(recurrent.STAGE, sure)
            waiting = set(requests) - set(sure)
        else:
            requests, known, missing, waiting = self._chains(cases, prompts)
        if waiting:
            self.notes.append(
                f"{len(waiting):,} preference texts are made of texts that are not written yet: their prompts are "
                f"estimated with {self.preference.preference_words} words per text before and "
                f"{self.settings.description_words} per description"
            )
        exact = self.counted and not waiting
        return self._texts(recurrent.STAGE, requests, missing | waiting, len(known), exact, waiting)

    def _chains(
        self, cases: Cases, prompts: PreferencePrompts
    ) -> tuple[Mapping[Node, Request], dict[Node, str], set[Node], set[Node]]:
        """Requests of all blocks; texts that are in the store; texts that are to do, and those that wait for one.

        A chain is followed as far as the store knows it: block after block, all users at once.
        """
        chains, sequences = cases.chains(self.preference), cases.sequences()
        before: dict[Node, str | None] = {}
        told: dict[Node, str | None] = {}
        known: dict[Node, str] = {}
        missing: set[Node] = set()
        waiting: set[Node] = set()
        words, after = stand_in(self.preference.preference_words), chains.after()
        level = [node for node in chains.starts if chains.before(node) is None]

        def shown(node: Node, said: str | None) -> Shown | None:
            return prompts.of(sequences[node[0]][chains.starts[node] : node[1]].tolist(), said)

        def request(node: Node) -> Request:
            made = shown(node, told[node])
            assert made is not None
            return made.request

        while level:
            sure: list[Node] = []
            for node in level:
                parent = chains.before(node)
                said = None if parent is None else before[parent]
                unsure = parent in missing or parent in waiting
                made = shown(node, said)
                before[node] = said
                if made is None:
                    waiting |= {node} if unsure else set()
                    continue
                told[node] = said
                if unsure or not self.unwritten.isdisjoint(made.items):
                    waiting.add(node)
                    before[node] = words
                else:
                    sure.append(node)
            found, lacking = self._known(recurrent.STAGE, OnDemand(sure, request))
            known |= found
            missing |= lacking
            before |= {node: items.cut_words(text, self.preference.preference_words) for node, text in found.items()}
            before |= dict.fromkeys(lacking, words)
            level = [later for node in level for later in after.get(node, ())]
        longest = max(chains.remaining().values(), default=0)
        self.notes.append(f"preferences: {len(chains):,} blocks, at most {longest:,} of them one after the other")
        return OnDemand(told, request), known, missing, waiting & set(told)

    def _profiles(self, texts: items.Texts, unwritten: set[int]) -> tuple[PlannedStage, list[str], int]:
        """The stage; the profiles that are written; how many are not."""
        histories = profiles.Histories.of(self.dataset, self.settings)
        made = profiles.profile_requests(
            self.dataset.content, histories, texts, self.settings, self.generator, self.config["text_context_tokens"]
        )
        certain = (user for user in made.requests if unwritten.isdisjoint(made.shown[user]))
        sure = OnDemand(certain, made.requests.__getitem__)
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
        self,
        stage: str,
        requests: Mapping[Key, Request],
        missing: set[Key],
        known: int,
        exact: bool,
        estimated: Collection[Key] = (),
    ) -> PlannedStage:
        """One stage of texts. Requests that are `estimated` count one by one: what will be alike in them is not
        known."""
        keys = {key: text_key(stage, self.generator, request) for key, request in requests.items()}
        if not self.writes:
            wanted = set(keys.values())
            absent = len(wanted - self.store.contains(wanted))
            return PlannedStage(NAMES[stage], self.by, len(wanted) - absent, absent, seconds=0.0, measured=True)
        keys |= {key: f"{keys[key]} {place}" for place, key in enumerate(estimated)}
        todo = _first_of_each((keys[key], key) for key in requests if key in missing)
        done = len({keys[key] for key in requests if key not in missing})
        failed = set(self.store.failures(stage)) & {keys[key] for key in todo}
        if failed:
            path = failures_file(self.artifacts, self.config, stage)
            self.notes.append(f"{len(failed):,} of the {NAMES[stage]} to do have failed before ({path})")
        work = text_work(self.generator, map(requests.__getitem__, todo), self.config["text_max_new_tokens"])
        rate = self.rates.get(rate_name(stage, self.generator.identity, device_name(self.config)))
        if rate is None and todo:
            self.notes.append(
                f"assumed rate: {ASSUMED_UNITS:,.0f} prompt tokens or {ASSUMED_UNITS / PER_NEW_TOKEN:,.0f} new tokens "
                f"a second, an image as {PER_IMAGE} tokens, until {writer_name(self.config)} has worked here once"
            )
        seconds = work.units / (rate.per_second if rate else ASSUMED_UNITS)
        measured, at_most = rate is not None, bool(estimated)
        return PlannedStage(NAMES[stage], self.by, done, len(todo), at_most, work, exact, seconds, measured)

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
        rate: Rate | None = self.rates.get(rate_name(vectors.STAGE, identity or "", computing_device(self.config)))
        if rate is None and to_do:
            self.notes.append(f"assumed rate of the sentence encoder: {ASSUMED_SENTENCES:,.0f} texts a second")
        seconds = to_do / (rate.per_second if rate else ASSUMED_SENTENCES)
        at_most = bool(unknown) or identity is None
        return PlannedStage("sentence vectors", name, done, to_do, at_most, None, True, seconds, rate is not None)


def stand_in(words: int) -> str:
    """So many words, for a text that is not written yet."""
    return " ".join(islice(cycle(STAND_IN.split()), words))


def _first_of_each(pairs: Iterable[tuple[str, Key]]) -> list[Key]:
    """One key of the caller's for each distinct artifact key."""
    first: dict[str, Key] = {}
    for name, key in pairs:
        first.setdefault(name, key)
    return list(first.values())


def writer_name(config: Any) -> str:
    """The model that writes, by the name that the user gave."""
    return str(config["text_model"] or config["mllm"])
