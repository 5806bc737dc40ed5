"""The names of what a run needs besides interactions, known without importing any code that computes it."""

from __future__ import annotations

from typing import Any, Protocol

from recbole_mm.config.resolved import Config
from recbole_mm.data.features import reads_summaries


class Asks(Protocol):
    """The hooks of a model's class that inputs read; `models/base.py` declares them."""

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """Names of what the model needs."""

    @classmethod
    def build_prompt(cls, config: Config, dataset: Any, mllm: Any) -> Any:
        """The prompt that an LLM is fine-tuned to answer."""


def needed(config: Config, hooks: type[Asks]) -> tuple[str, ...]:
    """Returns what a model requires, and the item texts where a feature of `item_features` is made of them."""
    needs = tuple(hooks.requirements(config))
    if reads_summaries(config["item_features"] or {}) and "item_texts" not in needs:
        return (*needs, "item_texts")
    return needs


def asks_for_inputs(config: Config, hooks: type[Asks]) -> bool:
    """Returns whether a run needs more than interactions: inputs of its model, or features of items."""
    return bool(needed(config, hooks) or config["item_features"])
