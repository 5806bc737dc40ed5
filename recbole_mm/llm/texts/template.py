"""No LLM at all: each text is made of metadata, the same on every machine. The honest "no-LLM" ablation."""

from __future__ import annotations

import logging
from typing import Any, Literal

from recbole_mm.artifacts.executor import Failure
from recbole_mm.llm.texts.request import Request

logger = logging.getLogger(__name__)

NOTHING_TO_SAY = "there is no metadata to make a text of"


class TemplateGenerator:
    """Gives every request its fallback, word for word.

    Its parameters are empty: whoever makes the fallback decides how long it is, and it is itself part of the key.
    """

    identity = "template-1"
    makes: Literal["templates"] = "templates"

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
