"""Stages of texts: the description of what is wanted, and what plans it and has it written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import cycle, islice
from typing import Any, Generic, Literal, NoReturn, TypeVar

from recbole_mm.artifacts.fill import OnDemand
from recbole_mm.config.resolved import Config
from recbole_mm.inputs.context import Context, Need, PlannedStage, open_store
from recbole_mm.inputs.mllm import RunMLLM, is_gguf_model, local_llm, small_source
from recbole_mm.inputs.reasoning.failures import failures_file, list_failures
from recbole_mm.inputs.reasoning.rates import (
    ASSUMED_UNITS,
    PER_IMAGE,
    PER_NEW_TOKEN,
    Rate,
    TextWork,
    note_rate,
    rate_name,
    read_rates,
    text_work,
)
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.llm.pretrained import Pretrained, find_llm
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.llm.texts.stage import TextReport, text_key, texts_through_store

logger = logging.getLogger(__name__)

DESCRIPTIONS, PROFILES, PREFERENCES = "item_description", "user_profile", "user_preference"
"""Names of the stages in the artifact store."""
LABELS = {DESCRIPTIONS: "item descriptions", PROFILES: "user profiles", PREFERENCES: "user preferences"}
TEMPLATE = "template"
COUNTED_USERS = 200
"""Users whose tokens are counted, evenly spread over all of them in the order of their tokens."""
CHARACTERS_PER_TOKEN = 4
STAND_IN = "A dark red cotton shirt with long sleeves, small round buttons and a loose fit, for warm days outside."
"""Words of about usual length, for a description that is not written yet."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class TextStage(Generic[Key]):
    """The texts that are wanted of one stage.

    Attributes:
        name: of the stage in the artifact store.
        requests: key -> request; may be made on demand.
        names: key -> what the list of failures calls it.
        shown: key -> ids of the items whose texts the request shows; may be empty where none shows any.

    Example:
        >>> TextStage("user_profile", {1: Request("What does this person like?", None)}, {1: "u7"}, {1: [4, 9]}).names
        {1: 'u7'}
    """

    name: str
    requests: Mapping[Key, Request]
    names: Mapping[Key, str] | Sequence[str]
    shown: Mapping[Key, Collection[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedTexts(Generic[Key]):
    """What a plan knows of a stage.

    Attributes:
        row: of the plan.
        texts: key -> text, as far as they are written.
        unwritten: keys whose text is to be written.
        waiting: those among them whose request is not certain, since it shows texts that are not written yet.
    """

    row: PlannedStage
    texts: Mapping[Key, str]
    unwritten: set[Key]
    waiting: set[Key]


class UnknownWriter:
    """Stands for a model of which nothing is known yet: it has written nothing, and its tokens are estimated.

    Args:
        reads_images: whether it is taken to read pictures.

    Example:
        >>> UnknownWriter().count_tokens("a red lamp")
        3
    """

    identity = ""
    makes: Literal["answers"] = "answers"
    longest_prompt = None

    def __init__(self, reads_images: bool = True) -> None:
        self.parameters: dict[str, Any] = {}
        self.reads_images = reads_images

    def generate(self, requests: list[Request]) -> NoReturn:
        """Is never called.

        Raises:
            AssertionError: always.
        """
        _refuse()

    def count_tokens(self, text: str) -> int:
        """Returns a quarter of the characters."""
        return -(-len(text) // CHARACTERS_PER_TOKEN)

    def close(self) -> None:
        """Nothing is held open."""


def _refuse(*_: Any) -> NoReturn:
    raise AssertionError("a plan loads no weights")


class Writing:
    """Plans stages of texts and has them written, by `text_backend`.

    Args:
        context: the run's context.

    Raises:
        ConfigError: a setting that is not accepted.
    """

    def __init__(self, context: Context, /) -> None:
        self.settings = ReasoningSettings.of(context.config)
        self.preference = PreferenceSettings.of(context.config)
        self.context, self.config, self.store = context, context.config, context.store
        self.left_out = context.left_out

    @cached_property
    def generator(self) -> Generator:
        """Writes the texts; of a plan, gives its identity and counts tokens. Nothing is loaded before a text is
        wanted."""
        if self.context.generator is not None:
            return self.context.generator
        mllm = self.context.share(RunMLLM)
        if not self.context.is_plan:
            load = partial(mllm.open, with_head=True)
            outline_of = partial(load, without_weights=True)
            return open_generator(self.config, load, self.context.executor, outline_of, self._find)
        if self.config["text_backend"] != "hf":
            return open_generator(self.config, _refuse)
        model, notes = self.config["text_model"], self.context.notes
        unknown = UnknownWriter(reads_images=not is_gguf_model(str(model or self.config["mllm"])))
        if model is None or model == self.config["mllm"]:
            outline = mllm.outline
            return unknown if outline is None else open_generator(self.config, _refuse, None, lambda: outline)
        source = small_source(str(model), self.config, notes)
        if source is not None and source.is_adapter:
            notes.append(f"{source.name} is an adapter: what it has written already shows when it is loaded")
            source = None
        if source is None:
            return unknown
        found: Pretrained = source
        return open_generator(self.config, _refuse, None, None, lambda *_: found)

    def _find(self, name: str, *rest: Any) -> Pretrained:
        """The files of `text_model`, which may be a GGUF file."""
        return find_llm(local_llm(name, self.config), *rest)

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest prompt: `text_context_tokens`, or what the model's own context leaves for it."""
        limit, longest = int(self.config["text_context_tokens"]), self.generator.longest_prompt
        return limit if longest is None else min(limit, longest)

    @property
    def answers(self) -> bool:
        """Whether an LLM writes, and not a template."""
        given = self.context.generator
        return self.config["text_backend"] != TEMPLATE if given is None else given.makes == "answers"

    def close(self) -> None:
        """Frees the memory of the model that writes."""
        if "generator" in self.__dict__:
            self.generator.close()

    # --- writing -----------------------------------------------------------------------------------------------------

    def remembered(self, stage: str, name_of: Mapping[Key, str]) -> dict[Key, str] | None:
        """Returns the texts of a stage that the run's folder lists; None where it does not, or the store lacks one.

        Args:
            stage: its name.
            name_of: key -> name, of all that a text may be about.
        """
        found = self.context.remembered.texts(stage, self.store)
        if found is None:
            return None
        self.context.tokens |= self.context.remembered.of(stage).get("tokens", {})
        logger.info("%s: %d, which the run's folder lists", LABELS[stage], len(found))
        return {key: found[name] for key, name in name_of.items() if name in found}

    def remember(self, stage: str, keys: Mapping[str, str]) -> None:
        """Lists in the run's folder which texts it reads, name -> artifact key. A template's cost nothing."""
        if self.config["text_backend"] != TEMPLATE:
            self.context.remembered.note(stage, keys=dict(keys))

    def write(self, stage: TextStage[Key]) -> dict[Key, str]:
        """Returns the texts of a stage under the keys of its requests; what fails is listed by its name and left out.

        Raises:
            StoreError: the store cannot be read or written.
            RecboleMMError: no text at all can be had, as from a server that refuses the key.
        """
        requests, names = stage.requests, stage.names
        done_without = self.left_out.of(stage.name)
        if done_without is not None:
            wanted = (key for key in requests if names[key] not in done_without)  # type: ignore[call-overload]
            requests = OnDemand(wanted, requests.__getitem__)
        if not requests:
            list_failures(failures_file(self.context.artifacts, self.config, stage.name), LABELS[stage.name], {}, 0)
            self.remember(stage.name, {})
            return {}
        report = texts_through_store(self.store, stage.name, self.generator, requests, self.config["show_progress"])
        failed = {names[key]: why for key, why in report.failed.items()}  # type: ignore[call-overload]
        self.list_failed(stage.name, failed, len(requests))
        self.remember(stage.name, {names[key]: name for key, name in report.keys.items()})  # type: ignore[call-overload]
        if report.computed:
            made = map(requests.__getitem__, report.asked)
            work = text_work(self.generator, made, self.config["text_max_new_tokens"])
            self.note_rate(stage.name, work, report.seconds)
        return report.texts

    def list_failed(self, stage: str, failed: Mapping[str, str], wanted: int) -> None:
        """Lists what failed in a file, and keeps it in the list of failures.

        Args:
            stage: its name.
            failed: what the list calls it -> reason.
            wanted: how many texts were asked for.
        """
        list_failures(failures_file(self.context.artifacts, self.config, stage), LABELS[stage], failed, wanted)
        self.left_out.note(stage, {*failed, *(self.left_out.of(stage) or ())})

    def note_rate(self, stage: str, work: TextWork, seconds: float) -> None:
        """Keeps how fast an LLM worked, for plans."""
        if self.answers:
            note_rate(self.context.artifacts, self._rate_name(stage), work.units, seconds)

    def note_tokens(
        self,
        stage: str,
        users: Mapping[Any, Iterable[Key]],
        asked: Callable[[Key], str | None],
        texts: Mapping[Key, str],
    ) -> None:
        """Keeps how many tokens an LLM reads and writes about a user, whether it does so now or has done so before.

        Args:
            stage: its name.
            users: user -> keys of that user's texts.
            asked: key -> the prompt; None where nothing is asked.
            texts: key -> what was written.
        """
        if not self.answers or not users:
            return
        some = list(users)[:: -(-len(users) // COUNTED_USERS)]
        keys = [key for user in some for key in users[user]]
        read = sum(self.generator.count_tokens(prompt) for key in keys if (prompt := asked(key)) is not None)
        written = sum(self.generator.count_tokens(texts[key]) for key in keys if key in texts)
        spent = {f"{LABELS[stage]}, read": read / len(some), f"{LABELS[stage]}, written": written / len(some)}
        self.context.tokens |= spent
        self.context.remembered.note(stage, tokens=spent)

    # --- planning ----------------------------------------------------------------------------------------------------

    @cached_property
    def rates(self) -> dict[str, Rate]:
        """The rates that were measured before."""
        return read_rates(self.context.artifacts)

    @property
    def is_counted(self) -> bool:
        """Whether tokens are counted by the model's own tokenizer."""
        return self.config["text_backend"] == "hf" and self.generator.identity != ""

    def plan(self, stage: TextStage[Key], unwritten: Collection[int] = (), apart: bool = False) -> PlannedTexts[Key]:
        """Returns what is known of a stage; nothing is written.

        Args:
            stage: the same that `write` gets; its requests show stand-ins for texts that are not written yet.
            unwritten: items whose text is not written yet.
            apart: count the requests that show such items one by one: what will be alike in them is not known.
        """
        unwritten = frozenset(unwritten)
        sure = stage.requests
        if unwritten:
            certain = (key for key in stage.requests if unwritten.isdisjoint(stage.shown[key]))
            sure = OnDemand(certain, stage.requests.__getitem__)
        known, missing = self.known(stage.name, sure)
        waiting = set(stage.requests) - set(sure)
        exact = self.is_counted and not waiting
        row = self.row(stage.name, stage.requests, missing | waiting, len(known), exact, waiting if apart else ())
        return PlannedTexts(row, known, missing | waiting, waiting)

    def known(self, stage: str, requests: Mapping[Key, Request]) -> tuple[dict[Key, str], set[Key]]:
        """Returns the texts that are in the store, and the keys of the others. Those of a template are known without
        having been written."""
        if not self.answers:
            return {key: str(request.fallback) for key, request in requests.items()}, set()
        keys = {key: text_key(stage, self.generator, request) for key, request in requests.items()}
        found = self.store.get_many(keys.values())
        return (
            {key: str(found[name]) for key, name in keys.items() if name in found},
            {key for key, name in keys.items() if name not in found},
        )

    def row(
        self,
        stage: str,
        requests: Mapping[Key, Request],
        missing: Collection[Key],
        known: int,
        exact: bool,
        estimated: Collection[Key] = (),
    ) -> PlannedStage:
        """Returns the row of a stage of texts.

        Args:
            stage: its name.
            requests: all.
            missing: keys of the texts that are to be written.
            known: how many are written.
            exact: whether prompt tokens are counted.
            estimated: keys of requests that count one by one.
        """
        keys = {key: text_key(stage, self.generator, request) for key, request in requests.items()}
        if not self.answers:
            wanted = set(keys.values())
            absent = len(wanted - self.store.contains(wanted))
            return PlannedStage(LABELS[stage], TEMPLATE, len(wanted) - absent, absent, seconds=0.0, measured=True)
        keys |= {key: f"{keys[key]} {place}" for place, key in enumerate(estimated)}
        todo = first_of_each((keys[key], key) for key in requests if key in missing)
        done = len({keys[key] for key in requests if key not in missing})
        if failed := set(self.store.failures(stage)) & {keys[key] for key in todo}:
            path = failures_file(self.context.artifacts, self.config, stage)
            self.context.notes.append(f"{len(failed):,} of the {LABELS[stage]} to do have failed before ({path})")
        work = text_work(self.generator, map(requests.__getitem__, todo), self.config["text_max_new_tokens"])
        rate, model = self.rates.get(self._rate_name(stage)), str(self.config["text_model"] or self.config["mllm"])
        if rate is None and todo:
            self.context.notes.append(
                f"assumed rate: {ASSUMED_UNITS:,.0f} prompt tokens or {ASSUMED_UNITS / PER_NEW_TOKEN:,.0f} new tokens "
                f"a second, an image as {PER_IMAGE} tokens, until {model} has worked here once"
            )
        seconds = work.units / (rate.per_second if rate else ASSUMED_UNITS)
        measured, at_most = rate is not None, bool(estimated)
        by = f"{self.config['text_backend']}: {model}"
        return PlannedStage(LABELS[stage], by, done, len(todo), at_most, work, exact, seconds, measured)

    def _rate_name(self, stage: str) -> str:
        """A server is as fast as it is wherever the run itself is."""
        server = self.config["text_backend"] == "openai"
        where = str(self.config["text_url"]) if server else computing_device(self.config)
        return rate_name(stage, self.generator.identity, where)


class TextNeed(Need):
    """A need of texts, or of their vectors."""

    @property
    def writing(self) -> Writing:
        """Plans and writes texts; all needs of a run have it in common."""
        return self.context.share(Writing)

    def write(self) -> None:
        """Has the texts written. All are written before the first are encoded, so that models share no memory."""


def write_texts(needs: Sequence[TextNeed]) -> None:
    """Has the texts of all needs written, and frees the memory of what wrote them."""
    if needs:
        try:
            for need in needs:
                need.write()
        finally:
            needs[0].writing.close()


class AnswerWriter(Need):
    """`answer_writer`: what has `text_backend` write answers whenever it is called; and the multimodal LLM without its
    weights, to word prompts."""

    reads_inputs = True
    of_contents = False

    def compute(self) -> dict[str, Any]:
        """Returns `mllm` and `write_texts`; what writes is loaded with the first text that the store lacks."""
        config = self.context.config
        name, load = self.context.share(RunMLLM).base()
        generator = self.context.share(Writing).generator

        def write(stage: str, requests: Mapping[Any, Request]) -> TextReport[Any]:
            with open_store(config) as store:
                return texts_through_store(store, stage, generator, requests, show_progress=False)

        return {"mllm": load(name, with_head=True, without_weights=True), "write_texts": write}


def first_of_each(pairs: Iterable[tuple[str, Key]]) -> list[Key]:
    """Returns one key of the caller's for each distinct artifact key, in order.

    Example:
        >>> first_of_each([("a", 1), ("b", 2), ("a", 3)])
        [1, 2]
    """
    first: dict[str, Key] = {}
    for name, key in pairs:
        first.setdefault(name, key)
    return list(first.values())


def stand_in(words: int) -> str:
    """Returns so many words, for a text that is not written yet.

    Example:
        >>> stand_in(4)
        'A dark red cotton'
    """
    return " ".join(islice(cycle(STAND_IN.split()), words))


def computing_device(config: Config) -> str:
    """Returns where a run computes itself, for rates: workers of a cluster count together."""
    return f"{config['device']} on Ray" if config["ray_address"] else str(config["device"])
