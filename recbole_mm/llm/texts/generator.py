"""Text generation: what is asked for, the interface of the backends, and the one that needs no LLM."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from recbole_mm.artifacts.executor import Failure

logger = logging.getLogger(__name__)


NOTHING_TO_SAY = "there is no metadata to make a text of"
NO_PICTURE = "the picture cannot be loaded"
"""Why a text fails whose picture is not there; a reason may follow."""


@dataclass(frozen=True)
class Request:
    """One text that is wanted, and all that it may be made of.

    Attributes:
        prompt: everything the LLM reads, the instruction included.
        fallback: what the `template` backend gives: a deterministic text made of metadata. None: nothing to say.
        image: loads the picture, RGB, or gives None where it turns out to be unusable. Called only by backends that
            read pictures, maybe in a thread.
        image_hash: content hash of the picture, "" without one.

    Raises:
        ValueError: a picture without a hash, or a hash without a picture: texts of different pictures would be one.

    Example:
        >>> Request("Describe this product in one sentence: blue suede shoes", "Blue suede shoes.").fallback
        'Blue suede shoes.'
    """

    prompt: str
    fallback: str | None
    image: Callable[[], Image.Image | None] | None = None
    image_hash: str = ""

    def __post_init__(self) -> None:
        if (self.image is None) != (not self.image_hash):
            raise ValueError("a request has a picture and its content hash, or neither")

    def content_hash(self, reads_images: bool) -> str:
        """Hash of what a text is made of, for the artifact key.

        Args:
            reads_images: whether an LLM answers, which reads the picture and the prompt (the prompt has a place of
                its own in the key); else a template gives the fallback.
        """
        if reads_images:
            return self.image_hash
        if self.fallback is None:
            return ""
        return hashlib.sha256(self.fallback.encode("utf-8", "surrogatepass")).hexdigest()


class Generator(Protocol):
    """Writes texts.

    Attributes:
        identity: the model and its revision, or a hash of its files; `template-1` for the template.
        parameters: plain settings that the texts depend on.
        makes: what of a request the texts depend on: `answers` on its prompt and picture, `templates` on its fallback.
        reads_images: whether requests may show pictures; of a server this is taken on trust.
        longest_prompt: tokens of the longest prompt that leaves the model room for an answer; None if not known.
    """

    @property
    def identity(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...
    @property
    def makes(self) -> Literal["answers", "templates"]: ...
    @property
    def reads_images(self) -> bool: ...
    @property
    def longest_prompt(self) -> int | None: ...

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """As many texts, in the same order; a `Failure` with its reason where there is none."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt's words: exact (`hf`), characters / 4 (`openai`), words (`template`)."""

    def close(self) -> None:
        """Let go of the model or of connections."""


@runtime_checkable
class StreamingGenerator(Protocol):
    """A generator that cuts its own batches, as suits its machine, and hands each over as soon as it is done."""

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        """Yield every key of `requests` exactly once, in any order, with its text."""

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """As many texts, in the same order; a `Failure` with its reason where there is none."""
        found: dict[str, str | Failure] = {}
        for batch in self.stream({str(place): each for place, each in enumerate(requests)}):
            found.update(batch)
        return [found[str(place)] for place in range(len(requests))]


@dataclass(frozen=True)
class Writing:
    """How a text is written, whatever the backend.

    Attributes:
        max_words: longer texts are cut at a sentence's or a word's end.
        max_new_tokens: at most so many tokens are generated.
        context_tokens: longer prompts, images included, are refused.
        temperature: 0 takes the likeliest word; above, words are drawn.
        top_p: words are drawn among the likeliest that make up this share.
        seed: of the drawing.

    Example:
        >>> Writing(max_words=40).parameters
        {'max_words': 40, 'max_new_tokens': 256, 'temperature': 0.0}
    """

    max_words: int = 100
    max_new_tokens: int = 256
    context_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """What a text depends on, for artifact keys. A seed and a share say nothing where nothing is drawn."""
        plain = {"max_words": self.max_words, "max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return plain | ({"top_p": self.top_p, "seed": self.seed} if self.temperature > 0 else {})


class TemplateGenerator:
    """Gives every request its fallback, word for word.

    Its parameters are empty: the fallback is as long as it is made, and it is itself part of the key.

    Example:
        >>> TemplateGenerator().generate([Request("Name it", "Blue shoes"), Request("Name it", None)])
        ['Blue shoes', Failure(reason='there is no metadata to make a text of')]
    """

    identity = "template-1"
    makes: Literal["templates"] = "templates"
    reads_images = False
    longest_prompt = None

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        logger.warning(
            "text_backend: template: texts are made of METADATA BY A TEMPLATE; no LLM writes them and no image is "
            "looked at. text_backend: hf (the model of mllm, or of text_model) or openai has an LLM write them."
        )

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """The fallbacks, in order; a `Failure` where there is none."""
        return [self._text(request.fallback) for request in requests]

    @staticmethod
    def _text(fallback: str | None) -> str | Failure:
        return Failure(NOTHING_TO_SAY) if fallback is None or not fallback.strip() else fallback

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def close(self) -> None:
        """Nothing is held open."""
