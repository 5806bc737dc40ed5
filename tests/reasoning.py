"""Stand-ins for the reasoning stage: a writer that answers by rule, and an encoder of sentences that counts words."""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import numpy as np

from recbole_mm.artifacts.executor import Failure
from recbole_mm.llm.texts.generator import Request


class RuleWriter:
    """An LLM that answers with a text made of the prompt and the picture, and keeps what it was asked.

    Args:
        fails: prompt -> reason of a failure, or None.
        reads: load the picture of a request, as a multimodal LLM does.
    """

    identity = "rule-1"
    makes = "answers"

    def __init__(self, fails=lambda prompt: None, reads: bool = True) -> None:
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
