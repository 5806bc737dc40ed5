"""The names of what a run asks for beside interactions, known without importing any code that computes it."""

from __future__ import annotations

from typing import Any, Protocol

from recbole_mm.data.features import reads_summaries


class Asks(Protocol):
    """What inputs want to know of a model's class; `models/base.py` declares it."""

    @classmethod
    def requirements(cls, config: Any) -> tuple[str, ...]: ...

    @classmethod
    def build_prompt(cls, config: Any, dataset: Any, mllm: Any) -> Any: ...


def needed(config, hooks: type[Asks]) -> tuple[str, ...]:
    """What a model requires, and the item texts where a feature of `item_features` is made of them."""
    needs = tuple(hooks.requirements(config))
    if reads_summaries(config["item_features"] or {}) and "item_texts" not in needs:
        return (*needs, "item_texts")
    return needs


def asks_for_inputs(config, hooks: type[Asks]) -> bool:
    """Whether a run asks for more than interactions: its model for inputs, or its settings for features of items."""
    return bool(needed(config, hooks) or config["item_features"])
