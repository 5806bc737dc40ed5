"""Stand-ins for the reasoning stage: a writer that answers by rule, and an encoder of sentences that counts words."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.inputs.context import Context
from recbole_mm.inputs.model_inputs import shared_needs
from recbole_mm.inputs.reasoning.failures import LeftOut
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.preferences import Preferences, UserPreferences
from recbole_mm.inputs.reasoning.profiles import UserProfiles
from recbole_mm.inputs.reasoning.prompts import Texts
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.inputs.reasoning.writing import TextNeed, write_texts
from recbole_mm.llm.texts.generator import Request


class RuleWriter:
    """An LLM that answers with a text made of the prompt and the picture, and keeps what it was asked.

    Args:
        fails: prompt -> reason of a failure, or None.
        reads: load the picture of a request, as a multimodal LLM does.
        reads_images, longest_prompt: what it says of itself.
    """

    identity = "rule-1"
    makes = "answers"

    def __init__(
        self,
        fails=lambda prompt: None,
        reads: bool = True,
        reads_images: bool = True,
        longest_prompt: int | None = None,
    ) -> None:
        self.reads_images, self.longest_prompt = reads_images, longest_prompt
        self.parameters: dict[str, Any] = {"temperature": 0.0}
        self.fails = fails
        self.reads = reads
        self.asked: list[Request] = []
        self.closed = False

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        self.asked += requests
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> str | Failure:
        reason = self.fails(request.prompt)
        if reason is not None:
            return reason if reason == "" else Failure(reason)
        seen = ""
        if request.image is not None and self.reads:
            image = request.image()
            if image is None:
                return Failure("no picture")
            seen = f" of colour {image.getpixel((0, 0))}"
        return f"answer {hashlib.sha256(request.prompt.encode()).hexdigest()[:6]}{seen}"

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        self.closed = True


class WordEncoder:
    """Sentence vectors that count words by their hash."""

    identity = "words-1"

    def __init__(self, width: int = 12) -> None:
        self.parameters: dict[str, Any] = {"width": width}
        self.width = width
        self.encoded: list[str] = []

    def encode(self, inputs: list[str]) -> np.ndarray:
        self.encoded += inputs
        vectors = np.zeros((len(inputs), self.width), dtype=np.float32)
        for row, text in enumerate(inputs):
            for word in text.split():
                vectors[row, int(hashlib.sha256(word.encode()).hexdigest(), 16) % self.width] += 1
        return vectors


class Forgetful(RuleWriter):
    """A writer that keeps no request that it has answered."""

    def generate(self, requests):
        return [self._answer(request) for request in requests]


class LiveRequests:
    """Makes requests in place of `Request`, and counts those that somebody still holds.

    Attributes:
        alive, most: how many there are now, and were at most.
    """

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __call__(self, *arguments: Any) -> Request:
        made = Request(*arguments)
        weakref.finalize(made, self._gone)
        self.alive += 1
        self.most = max(self.most, self.alive)
        return made

    def _gone(self) -> None:
        self.alive -= 1


class Reasoning:
    """Computes what needs of texts give for one dataset, store and writer, every time anew."""

    def __init__(
        self, config: Any, dataset: Any, store: Store, artifacts: Path, generator: Any, left_out: LeftOut | None = None
    ) -> None:
        self.settings, self.preference = ReasoningSettings.of(config), PreferenceSettings.of(config)
        self.config, self.dataset, self.store, self.artifacts = config, dataset, store, artifacts
        self.given = {"artifacts": artifacts, "generator": generator, "left_out": left_out}

    def context(self, *needs: str, **changed: Any) -> Context:
        """A context of these needs."""
        return Context(self.config, self.dataset, self.store, needs=needs, **self.given, **changed)

    def item_texts(self) -> Texts:
        """The text of every item."""
        return self.context().share(ItemTexts).texts

    def profiles(self, _: Texts) -> Texts:
        """The profile of every user."""
        return self.context().share(UserProfiles).texts

    def preferences(self, _: Texts) -> Preferences:
        """What users prefer."""
        return self.context().share(UserPreferences).texts

    def provide(self, needs: tuple[str, ...], open_encoder: Any = None) -> dict[str, Any]:
        """What the needs give."""
        return computed(self.context(*needs, open_encoder=open_encoder))


def computed(context: Context) -> dict[str, Any]:
    """What the needs of a context give, all of which are of texts."""
    needs = [need for need in shared_needs(context) if isinstance(need, TextNeed)]
    write_texts(needs)
    return {name: value for need in needs for name, value in need.compute().items()}
